# SPDX-License-Identifier: Apache-2.0
"""Decodes one video, packet by packet: every packet ends once, as a picture or with a reason.

A picture has the stamp of the packet that it was encoded in, also where B-frames change the order.
Nothing here needs ROS to run; PyAV (``av``) is imported when a decoder is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from dpt_ros.ros.messages.cdr import VideoPacket
from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.messages.types import nanoseconds, video_classes
from dpt_ros.ros.video.bitstream import Inspector, Unit, codec_of

# A decoder keeps up to 17 pictures of 1.5 to 6 bytes a pixel, so less than of a single image.
MAX_PIXELS = 4096 * 4096
MAX_PACKET = 1 << 25  # bytes
WAITING = "waiting for a keyframe"
_ONLY_SETS = "only parameter sets"
_MOST_DELAYED = 32  # packets; H.264 and H.265 reorder up to 16 pictures
_MOST_PARAMETERS = 1 << 16  # bytes of parameter sets that wait for their picture
# The decoders of a codec, the best first.
_DECODERS = {"av1": ("libdav1d", "libaom-av1", "av1"), "vp9": ("vp9", "libvpx-vp9")}


class Picture(NamedTuple):
    """What became of a packet: a picture, or an error. It has pixels from ``converted`` on."""

    packet: VideoPacket
    received_ns: int  # when it was received, or recorded in a bag; nanoseconds
    decoded: Any = None  # PyAV's frame
    error: MessageError | None = None  # why there is no picture
    pixels: np.ndarray = np.empty((0, 0), np.uint8)  # (H, W, 3) uint8, (H, W) without colour
    encoding: str = ""  # of the pixels, "rgb8" or "mono8"

    @property
    def stamp_ns(self) -> int:
        """The stamp of its packet, nanoseconds."""
        return nanoseconds(self.packet.header.stamp)

    def converted(self) -> Picture:
        """It with pixels.

        Raises:
            MessageError: there is none, or its format of pixels cannot be converted.
        """
        if self.error is not None:
            raise self.error
        name = self.decoded.format.name
        form, encoding = ("gray", "mono8") if name.startswith("gray") else ("rgb24", "rgb8")
        try:
            pixels = self.decoded.to_ndarray(format=form)
        except (OSError, ValueError, MemoryError) as error:  # as for an unknown space of colours
            raise MessageError(
                "undecodable", f"A picture of the format {name} cannot be converted: {error}."
            ) from error
        return self._replace(decoded=None, pixels=pixels, encoding=encoding)


def check_decoders() -> None:
    """Whether videos can be decoded at all.

    Raises:
        ImportError: PyAV is not installed; the text says what to do.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"Video needs PyAV, which cannot be imported ({error}): pip install av."
        ) from error


def video_problem() -> str:
    """Why a node cannot receive videos, else ""."""
    try:
        check_decoders()
    except ImportError as error:
        return str(error)
    if video_classes():
        return ""
    return (
        "image_transport is video, but neither ffmpeg_image_transport_msgs nor foxglove_msgs is"
        " installed: apt install ros-$ROS_DISTRO-ffmpeg-image-transport-msgs (or"
        " ros-$ROS_DISTRO-foxglove-msgs), or set image_transport to raw or compressed."
    )


class VideoDecoder:
    """The decoder of one topic; not to be called by two threads at once.

    Args:
        warn: takes messages on the video, each time.
        count: counts what is no fault of a packet, such as "changes of size".
        hardware: whether to decode on a device of PyAV's (cuda, qsv, ...), where there is one.

    Raises:
        ImportError: PyAV is not installed.
    """

    def __init__(
        self,
        warn: Callable[[str], None],
        count: Callable[[str], None] = lambda what: None,
        hardware: bool = False,
    ) -> None:
        check_decoders()
        self._warn = warn
        self._count = count
        self._hardware = hardware
        self._codec = ""
        self._context: Any = None
        self._inspector: Inspector | None = None
        self._sent = 0
        self._pending: dict[int, tuple[VideoPacket, int]] = {}  # by the number of the packet
        self._sets = b""  # the last parameter sets
        self._unsent = b""  # those of them that this context has not had
        self._waiting = True
        self._last_number: int | None = None
        self._numbered = False  # whether packets are numbered one by one
        self._size = (0, 0)

    def decode(
        self, packet: VideoPacket, received_ns: int = 0, gap: bool = False
    ) -> list[Picture]:
        """Decode the next packet.

        Args:
            packet: in the order of sending.
            received_ns: returned with its picture.
            gap: whether packets before it are known to be lost.

        Returns:
            What is known now: of this packet, and of earlier ones whose picture was delayed.
        """
        pictures: list[Picture] = []
        try:
            self._check(packet)
            codec = codec_of(packet.codec)
            if codec != self._codec:
                pictures = self.restart()
                self._open(codec)
            assert self._inspector is not None
            data = packet.data.tobytes()
            unit = self._inspector.look(data)
            missing = self._is_gap(packet) or unit.gap
            if missing and not gap and not self._waiting:
                self._count("gaps: packets missing")
            self._begin(packet, unit, gap or missing, pictures)
            if unit.sets and len(unit.sets) <= _MOST_PARAMETERS:
                self._sets, self._unsent = unit.sets, b"" if unit.picture else unit.sets
            if not unit.picture:
                raise MessageError(_ONLY_SETS, "The packet has parameter sets and no picture.")
            self._sent += 1
            self._pending[self._sent] = packet, received_ns
            data, self._unsent = self._unsent + data, b""
            pictures += self._send(data)
        except MessageError as error:
            if error.reason not in (WAITING, _ONLY_SETS):  # what follows may refer to it
                pictures += self.restart()
            pictures.append(Picture(packet, received_ns, error=error))
        return pictures

    def restart(self) -> list[Picture]:
        """The pictures that are still in the decoder, which then waits for a keyframe."""
        if self._context is None or (self._waiting and not self._pending):
            return []
        pictures = self._pictures(None)
        pictures += [Picture(*self._pending.pop(n), error=_none()) for n in list(self._pending)]
        # After damage a flushed decoder of H.264 gave wrong pictures (FFmpeg 8); a new one not.
        self._context, self._hardware = open_decoder(self._codec, self._hardware, self._warn)
        self._unsent = self._sets
        self._waiting = True
        return pictures

    def _check(self, packet: VideoPacket) -> None:
        width, height = packet.size
        if packet.data.size > MAX_PACKET or width * height > MAX_PIXELS:
            raise MessageError(
                "bad size",
                f"The packet has {packet.data.size} bytes for a picture of {width}x{height}, more"
                f" than the {MAX_PACKET} bytes or {MAX_PIXELS} pixels allowed.",
            )

    def _open(self, codec: str) -> None:
        self._context, self._hardware = open_decoder(codec, self._hardware, self._warn)
        if self._codec:
            self._count("changes of codec")
        self._codec = codec
        self._inspector = Inspector(codec)
        self._sets = self._unsent = b""
        self._waiting = True
        self._last_number, self._numbered = None, False

    def _is_gap(self, packet: VideoPacket) -> bool:
        """Whether numbers are missing; encoders for ffmpeg_image_transport count pictures."""
        last, self._last_number = self._last_number, packet.number
        if last is None or packet.number is None or self._context.has_b_frames:
            return False
        step = packet.number - last
        self._numbered |= step == 1
        return self._numbered and step != 1

    def _begin(self, packet: VideoPacket, unit: Unit, gap: bool, pictures: list[Picture]) -> None:
        """Wait for a keyframe after a gap: a MessageError for each packet until then."""
        keyframe = packet.keyframe or unit.keyframe
        if gap and not keyframe and not self._waiting:
            pictures += self.restart()
        if self._waiting and not keyframe and unit.picture:
            raise MessageError(
                WAITING,
                "Packets were lost or the stream was joined in between: there are no pictures"
                " until its next keyframe.",
            )
        if unit.picture:
            self._waiting = False

    def _send(self, data: bytes) -> list[Picture]:
        """Decode a packet that is pending."""
        import av

        picture = av.Packet(data)
        picture.pts = self._sent
        pictures = self._pictures(picture)
        # Without B-frames a picture comes with its packet, or with the next one from a device.
        delayed = _MOST_DELAYED if self._context.has_b_frames else 1
        for number in [n for n in self._pending if n <= self._sent - delayed]:
            pictures.append(Picture(*self._pending.pop(number), error=_none()))
        return pictures

    def _pictures(self, packet: Any) -> list[Picture]:
        """What became of packets at this one; None for what is left in the decoder."""
        import av

        pictures, corrupt = [], False
        try:
            for picture in self._context.decode(packet):
                pending = self._pending.pop(picture.pts, None)
                if pending is None:  # a second picture of a packet
                    continue
                if picture.is_corrupt:
                    corrupt = True
                    pictures.append(Picture(*pending, error=self._damaged("parts are missing")))
                else:
                    self._examine(picture)
                    pictures.append(Picture(*pending, picture))
        except (av.FFmpegError, OSError, ValueError) as error:
            if packet is None:  # nothing was left
                return pictures
            pending = self._pending.pop(packet.pts, None)
            pictures += self.restart()
            if pending is not None:
                pictures.append(Picture(*pending, error=self._damaged(str(error))))
        if corrupt and packet is not None:
            pictures += self.restart()
        return pictures

    def _damaged(self, why: str) -> MessageError:
        return MessageError(
            "undecodable",
            f"A packet of the {self._codec} video cannot be decoded ({why}); it may be damaged,"
            f" lack its parameter sets, or have more than the {MAX_PIXELS} pixels allowed.",
        )

    def _examine(self, picture: Any) -> None:
        if picture.pts != self._sent and self._context.has_b_frames:
            self._count("pictures delayed by B-frames")
            self._warn(
                "The video has B-frames, so pictures come some frames late. Set max_b_frames (or"
                " tune: zerolatency) at the encoder, if that matters."
            )
        size = (picture.width, picture.height)
        if size != self._size and self._size != (0, 0):
            self._count("changes of size")
            self._warn(f"The video changed from {self._size} to {size} pixels.")
        self._size = size


def _none() -> MessageError:
    return MessageError(
        "no picture", "The decoder gave no picture for a packet: it refers to pictures before it."
    )


def open_decoder(codec: str, hardware: bool, warn: Callable[[str], None]) -> tuple[Any, bool]:
    """PyAV's context to decode a codec without delay, and whether it is on a device.

    Raises:
        MessageError: PyAV was built without it.
    """
    from av.codec.hwaccel import hwdevices_available

    names = _DECODERS.get(codec, (codec,))
    context = _context(names, hwdevices_available()) if hardware else None
    if hardware and context is None:
        warn(f"video_decoder is hardware, but no device here decodes {codec}: the CPU does.")
        hardware = False
    context = context or _context(names, [None])
    if context is None:
        raise MessageError(
            "codec not there",
            f"The video is {codec}, for which this PyAV has no decoder ({', '.join(names)}):"
            " install the wheel of PyPI (pip install av), or encode as h264.",
        )
    context.thread_count = 1  # threads of frames would delay each by one
    context.options = {"max_pixels": str(MAX_PIXELS)}
    return context, hardware


def _context(names: Sequence[str], devices: Sequence[str | None]) -> Any:
    """A context on the first device, None for the CPU, of the first decoder that there is; None
    without any."""
    import av
    from av.codec.codec import UnknownCodecError
    from av.codec.hwaccel import HWAccel

    for device, name in product(devices, names):
        with suppress(UnknownCodecError, av.FFmpegError, NotImplementedError, OSError):
            hwaccel = HWAccel(device, allow_software_fallback=True) if device else None
            return av.CodecContext.create(name, "r", hwaccel=hwaccel)
    return None
