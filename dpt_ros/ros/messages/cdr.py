# SPDX-License-Identifier: Apache-2.0
"""Serialised images and packets of video, read where they lie.

A raw subscription delivers a message as the bytes that came over the wire: OMG's Common Data
Representation, version 1 (DDS-XTypes 1.3, 7.4.3), behind a header of four bytes that names the
byte order. Every primitive is aligned to its size, counted from after that header. Strings and
sequences begin with their length; a string's includes a zero at its end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.messages.types import FFMPEG, FOXGLOVE

_ENCAPSULATION = 4
_BYTE_ORDERS = {b"\x00\x00": ">", b"\x00\x01": "<"}


@dataclass(frozen=True)
class VideoPacket:
    """One encoded picture: an FFMPEGPacket or a CompressedVideo."""

    header: Header
    codec: str  # as the message names it, "h264", "libx264;yuv420p;bgr8;bgr8", ...
    data: np.ndarray  # the encoded picture, (N,) uint8, a read-only view
    keyframe: bool = False  # whether the message says that it is one
    number: int | None = None  # its presentation time in units of the sender, where it is given
    size: tuple[int, int] = (0, 0)  # width and height, where they are given


# Each raises a MessageError for bytes that are no such message. Which values its fields have is
# not judged here: ``image_pixels`` does that.


def read_image(serialised: bytes) -> Image:
    """The Image that was serialised; its pixels are a read-only view of the bytes."""
    reader = _Reader(serialised, "Image")
    image = Image(
        header=reader.header(),
        height=reader.number("height"),
        width=reader.number("width"),
        encoding=reader.string("encoding"),
        is_bigendian=reader.octet("is_bigendian"),
        step=reader.number("step"),
    )
    image._data = reader.octets("data")
    return image


def read_compressed_image(serialised: bytes) -> CompressedImage:
    """The CompressedImage that was serialised; its file is a read-only view of the bytes."""
    reader = _Reader(serialised, "CompressedImage")
    image = CompressedImage(header=reader.header(), format=reader.string("format"))
    image._data = reader.octets("data")
    return image


def read_ffmpeg_packet(serialised: bytes) -> VideoPacket:
    """The ffmpeg_image_transport_msgs/FFMPEGPacket that was serialised."""
    reader = _Reader(serialised, "FFMPEGPacket")
    header = reader.header()
    size = (reader.number("width"), reader.number("height"))
    codec, number = reader.string("encoding"), reader.long_number("pts")
    keyframe = bool(reader.octet("flags") & 1)  # AV_PKT_FLAG_KEY
    reader.octet("is_bigendian")
    return VideoPacket(header, codec, reader.octets("data"), keyframe, number, size)


def read_compressed_video(serialised: bytes) -> VideoPacket:
    """The foxglove_msgs/CompressedVideo that was serialised."""
    reader = _Reader(serialised, "CompressedVideo")
    header = reader.header()  # its timestamp and frame_id are serialised alike
    data = reader.octets("data")
    return VideoPacket(header, reader.string("format"), data)


VIDEO_READERS = {FFMPEG: read_ffmpeg_packet, FOXGLOVE: read_compressed_video}


class _Reader:
    """Takes one field after the other from a serialised message."""

    def __init__(self, serialised: bytes, kind: str) -> None:
        self._bytes = serialised
        self._kind = kind
        self._at = _ENCAPSULATION
        order = _BYTE_ORDERS.get(serialised[:2])
        if order is None or len(serialised) < _ENCAPSULATION:
            raise MessageError(
                "malformed message",
                f"The serialised {kind} of {len(serialised)} bytes begins with"
                f" {serialised[:4].hex(' ') or '(none)'}, but plain CDR begins with"
                " 00 00 or 00 01 and two bytes of options.",
            )
        self._uint32 = struct.Struct(f"{order}I")
        self._uint64 = struct.Struct(f"{order}Q")
        self._time = struct.Struct(f"{order}iI")

    def header(self) -> Header:
        sec, nanosec = self._time.unpack_from(self._bytes, self._take("header.stamp", 8))
        frame_id = self.string("header.frame_id")
        return Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id=frame_id)

    def number(self, field: str) -> int:
        self._at += -self._at % 4
        return int(self._uint32.unpack_from(self._bytes, self._take(field, 4))[0])

    def long_number(self, field: str) -> int:
        self._at += (_ENCAPSULATION - self._at) % 8
        return int(self._uint64.unpack_from(self._bytes, self._take(field, 8))[0])

    def octet(self, field: str) -> int:
        return self._bytes[self._take(field, 1)]

    def string(self, field: str) -> str:
        size = self.number(field)
        start = self._take(field, size)
        # As rclpy: a string ends at its first zero, and invalid UTF-8 is replaced.
        text, _, _ = self._bytes[start : start + size].partition(b"\0")
        return text.decode("utf-8", "replace")

    def octets(self, field: str) -> np.ndarray:
        size = self.number(field)
        start = self._take(field, size)
        return np.frombuffer(self._bytes, np.uint8)[start : start + size]

    def _take(self, field: str, size: int) -> int:
        """Where ``size`` bytes begin that are now taken."""
        start, end = self._at, self._at + size
        if end > len(self._bytes):
            raise MessageError(
                "malformed message",
                f"The serialised {self._kind} has {len(self._bytes)} bytes, but its field"
                f" '{field}' ends at byte {end}.",
            )
        self._at = end
        return start
