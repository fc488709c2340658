# SPDX-License-Identifier: Apache-2.0
"""From the messages of a bag to the frames of its cameras, in order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from dpt_ros.bag.reader import Message
from dpt_ros.bag.sensors import LOOKAHEAD, Beside, StaticFrames, stamp_of
from dpt_ros.bag.topics import Camera
from dpt_ros.engine.frame import Frame, OutputRequest, Prediction
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.messages.cdr import read_compressed_image, read_image
from dpt_ros.ros.messages.image import MessageError, compressed_file, image_pixels
from dpt_ros.ros.messages.image_bits import ImageBits

STATIC_FRAMES = "/tf_static"


@dataclass(frozen=True)
class Origin:
    """What a frame's prediction is written with: ``Frame.context``.

    Args:
        time: of the image's recording, nanoseconds.
        header: of the image.
        info: camera_info that fits the image, if there is one.
    """

    time: int
    header: Header
    info: CameraInfo | None


@dataclass(frozen=True)
class Item:
    """A message whose turn it is.

    Args:
        number: of the message, counted from 0 over all that are read.
        message: itself, if it is to be copied.
        camera: name of the camera whose image it is, None if it is no image.
        frame: the image, perhaps still being decoded; None if it is no image or cannot be read.
        outputs: what is wanted of the frame, if it is there.
        error: why the image cannot be read.
    """

    number: int
    message: Message | None = None
    camera: str | None = None
    frame: Future[Frame] | None = None
    outputs: OutputRequest | None = None
    error: str = ""


class Frames:
    """Makes frames.

    Args:
        cameras: of the bag.
        settings: of each camera, by its name.
        wanted: what is wanted of a camera's frame, by its name and whether it is calibrated.
        copied: topics whose messages are handed through.
        decoder: where compressed images are decoded.
        say: takes a sentence when something cannot be used; the same one again and again.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        settings: Mapping[str, Settings],
        wanted: Callable[[str, bool], OutputRequest],
        copied: Collection[str],
        decoder: Executor,
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._wanted = wanted
        self._copied = copied
        self._decoder = decoder
        self._static = StaticFrames()
        self._cameras = {camera.image: camera for camera in cameras}
        self._bits = {camera.name: _bits_of(settings[camera.name], say) for camera in cameras}
        self._beside = {
            camera.name: Beside(camera, settings[camera.name], self._static, say)
            for camera in cameras
        }

    def items(self, messages: Iterable[Message], skip: int = 0) -> Iterator[Item]:
        """Every message that is to be copied or computed, in order.

        Args:
            messages: as they were recorded.
            skip: how many messages were dealt with before.
        """
        for number, message in enumerate(self._delayed(messages)):
            camera = self._cameras.get(message.topic)
            copy = message if message.topic in self._copied else None
            if camera is None:
                if copy is not None and number >= skip:
                    yield Item(number, copy)
                continue
            try:
                stamp = stamp_of(message.data)
                self._beside[camera.name].advance(message.time, stamp)
                if number >= skip:
                    frame, outputs = self._frame(camera, message, stamp)
                    yield Item(number, copy, camera.name, frame, outputs)
            except MessageError as error:
                if number >= skip:
                    yield Item(number, copy, camera.name, error=str(error))

    def _delayed(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Messages, each after those of the half second behind it were seen."""
        waiting: deque[Message] = deque()
        for message in messages:
            try:
                if message.topic == STATIC_FRAMES:
                    self._static.see(message.data)
                for beside in self._beside.values():
                    beside.see(message)
            except MessageError as error:
                self._say(f"{message.topic}: {error}")
            waiting.append(message)
            # A damaged time may be far ahead, and must not keep the rest of the bag waiting.
            while waiting and abs(message.time - waiting[0].time) > LOOKAHEAD:
                yield waiting.popleft()
        yield from waiting

    def _frame(
        self, camera: Camera, message: Message, stamp: int
    ) -> tuple[Future[Frame], OutputRequest]:
        beside, bits, time = self._beside[camera.name], self._bits[camera.name], message.time
        outputs = self._wanted(camera.name, beside.calibrated(time, stamp))
        future: Future[Frame]
        if camera.compressed:
            image = read_compressed_image(message.data)
            file = compressed_file(image)
            if file.oddity:
                self._say(f"{camera.image}: {file.oddity}")
            size = (file.width, file.height)
            about, info = beside.about(time, image.header, stamp, size)
            origin = Origin(time, image.header, info)

            def decode() -> tuple[np.ndarray, str]:
                pixels, encoding = file.decode()
                return bits(pixels), encoding

            packed = Frame(file.data, file.kind, decode=decode, context=origin, **about)
            return self._decoder.submit(packed.decoded), outputs
        view = read_image(message.data)
        pixels = bits(image_pixels(view))
        about, info = beside.about(time, view.header, stamp, (view.width, view.height))
        origin = Origin(time, view.header, info)
        future = Future()
        future.set_result(Frame(pixels, view.encoding, context=origin, **about))
        return future, outputs


def _bits_of(settings: Settings, say: Callable[[str], None]) -> ImageBits:
    return ImageBits(lambda: settings.image_bits, say)


class Resets:
    """Counts, by camera, the frames at which the temporal filter forgot the past."""

    _FEW = 4  # frames, of which the most can be resets by chance

    def __init__(self) -> None:
        self._frames: Counter[str] = Counter()
        self._reasons: dict[str, Counter[str]] = {}
        self._stamps: dict[str, set[int]] = {}

    def see(self, prediction: Prediction) -> None:
        """Take the next prediction."""
        frame = prediction.frame
        self._frames[frame.source] += 1
        if prediction.reset:
            self._reasons.setdefault(frame.source, Counter())[prediction.reset] += 1
        stamps = self._stamps.setdefault(frame.source, set())
        if len(stamps) < 2:
            stamps.add(frame.stamp_ns)

    def sentences(self) -> list[str]:
        """One on each camera whose past was forgotten at most of its frames."""
        found = []
        for camera, reasons in self._reasons.items():
            (reason, count), frames = reasons.most_common(1)[0], self._frames[camera]
            if frames < self._FEW or 2 * reasons.total() < frames:
                continue
            stamps = self._stamps[camera]
            why = reason
            if len(stamps) == 1:
                why += f"; the stamp of every image is {next(iter(stamps)) / 1e9:g} s"
            elif reason == "stamp not newer":
                why += "; perhaps several cameras publish on one topic"
            found.append(
                f"{camera + ': ' if camera else ''}{count} of {frames} frames were computed"
                f" without those before them ({why}), so depth and labels are not smoothed."
            )
        return found
