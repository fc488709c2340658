# SPDX-License-Identifier: Apache-2.0
"""From the messages of a bag to the frames of its cameras, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial

from dpt_ros.bag.salvage import Message
from dpt_ros.bag.sensors import LOOKAHEAD, SensorBuffer, StaticFrames
from dpt_ros.bag.topics import Camera
from dpt_ros.engine.frame import Frame, OutputRequest
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.messages.types import VIDEOS
from dpt_ros.ros.video.recorded import VideoTrack

STATIC_FRAMES = "/tf_static"


@dataclass(eq=False)
class Item:
    """A message whose turn it is."""

    number: int  # counted from 0 over all that are read
    copy: Message | None = None  # the message, if it is to be copied
    camera: str | None = None  # name of the camera whose image it is
    decoding: Future[Frame] | None = None  # the image of a file, perhaps still being decoded
    request: OutputRequest = field(default_factory=OutputRequest)  # what is wanted of the frame
    error: str = ""  # why the image cannot be used
    frame: Frame | None = None  # the image once it is decoded


class Frames:
    """Makes frames of the messages of a bag.

    ``settings`` are those of each camera; ``request`` gives what is wanted of a camera's frame, by
    its name and whether it is calibrated; ``warn`` takes what cannot be used, each time.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        settings: Mapping[str, Settings],
        request: Callable[[str, bool], OutputRequest],
        copied: Collection[str],
        decoder: Executor,
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        self._request = request
        self._copied = copied
        self._decoder = decoder
        self._static = StaticFrames()
        self._cameras = {camera.image: camera.name for camera in cameras}
        self._videos = {
            camera.image: VideoTrack(
                camera.kind,
                partial(lambda topic, text: warn(f"{topic}: {text}"), camera.image),
                settings[camera.name].video_decoder == "hardware",
            )
            for camera in cameras
            if camera.kind in VIDEOS
        }
        self._sensors = {
            camera.name: SensorBuffer(camera, settings[camera.name], self._static, warn)
            for camera in cameras
        }

    def items(self, messages: Iterable[Message], skip: int = 0) -> Iterator[Item]:
        """Every message that is to be copied or computed, in order, without those that an
        earlier run has processed."""
        for number, message in enumerate(self._delayed(messages)):
            camera = self._cameras.get(message.topic)
            item = Item(number, message if message.topic in self._copied else None, camera)
            if camera is not None:
                self._add_frame(item, camera, message, number >= skip)
            if number >= skip and (item.copy is not None or camera is not None):
                yield item

    def _delayed(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Messages, each after those of the half second behind it were taken."""
        waiting: deque[Message] = deque()
        for message in messages:
            try:
                if message.topic == STATIC_FRAMES:
                    self._static.take(message.data)
                for sensors in self._sensors.values():
                    sensors.add(message)
            except MessageError as error:
                self._warn(f"{message.topic}: {error}")
            waiting.append(message)
            # A damaged time may be far ahead, and must not keep the rest of the bag waiting.
            while waiting and abs(message.time - waiting[0].time) > LOOKAHEAD:
                if not self._resolved(waiting, ended=False):
                    break
                yield waiting.popleft()
        while waiting:
            self._resolved(waiting, ended=True)
            yield waiting.popleft()

    def _resolved(self, waiting: deque[Message], ended: bool) -> bool:
        """Whether the first message can be used: its picture may need packets behind it."""
        topic = waiting[0].topic
        if topic not in self._videos:
            return True
        packets = (message.data for message in waiting if message.topic == topic)
        return self._videos[topic].resolve(packets, ended)

    def _add_frame(self, item: Item, camera: str, message: Message, computed: bool) -> None:
        sensors, video = self._sensors[camera], self._videos.get(message.topic)
        try:
            picture = None if video is None else video.take(message.time)
            stamp = message.stamp if picture is None else picture.stamp_ns
            sensors.advance(message.time, stamp)
            if not computed:
                return
            sensors.select(message.time, stamp)
            calibrated = sensors.builder.calibration.camera is not None
            item.request = self._request(camera, calibrated)
            frame = sensors.builder.build(picture or message.data, message.time)
        except MessageError as error:
            item.error = str(error)
            return
        # Later there would be odometry of later frames.
        frame = replace(frame, odom_from_camera=frame.pose(), locate=None)
        if frame.decode is not None:
            item.decoding = self._decoder.submit(frame.decoded)
        else:
            item.frame = frame
