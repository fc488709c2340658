# SPDX-License-Identifier: Apache-2.0
"""Sends pictures as H.264 without delay, for the simulated camera."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from rclpy.publisher import Publisher
from std_msgs.msg import Header

from dpt_ros.ros.messages.image import give_bytes

KEYFRAMES = 30  # pictures from one keyframe to the next


class Encoded(NamedTuple):
    """A picture as a packet: its number, whether it is a keyframe, its bytes (Annex B)."""

    number: int
    keyframe: bool
    data: bytes


def _encoder(width: int, height: int, rate: float) -> Any:
    """libx264 without B-frames: every picture is one packet, at once."""
    import av

    if width % 2 or height % 2:
        raise ValueError(f"H.264 needs even sides, but the picture is {width}x{height}.")
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height = width, height
    context.pix_fmt = "yuv420p"
    context.framerate = Fraction(rate).limit_denominator(1000)
    context.time_base = 1 / context.framerate
    context.gop_size = KEYFRAMES
    context.thread_count = 1
    context.options = {"preset": "ultrafast", "tune": "zerolatency"}
    return context


def video_message(encoded: Encoded, header: Header, size: tuple[int, int], kind: Any) -> Any:
    """An FFMPEGPacket or a CompressedVideo; ``kind`` is its class, ``size`` width and height."""
    if "timestamp" in kind.get_fields_and_field_types():
        msg = kind(timestamp=header.stamp, frame_id=header.frame_id, format="h264")
    else:
        msg = kind(header=header, encoding="h264", pts=encoded.number, flags=int(encoded.keyframe))
        msg.width, msg.height = size
    give_bytes(msg, np.frombuffer(encoded.data, np.uint8))
    return msg


class VideoSender:
    """Publishes pictures as video, while somebody subscribes.

    Args:
        publishers: with the classes of their messages.
        size: width and height of the pictures; even.
        rate: pictures per second.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: it was built without libx264, or a side is odd.
    """

    def __init__(
        self, publishers: Mapping[Publisher, Any], size: tuple[int, int], rate: float
    ) -> None:
        self._publishers = publishers
        self._size = size
        self._rate = rate
        self._encoder, self._number = _encoder(*size, rate), 0

    def publish(self, rgb: np.ndarray, header: Header) -> None:
        """Encode and publish a picture, (H, W, 3) uint8; the first one is a keyframe."""
        wanted = [one for one in self._publishers if one.get_subscription_count()]
        if not wanted:
            self._encoder = None
            return
        from av import VideoFrame

        if self._encoder is None:
            self._encoder, self._number = _encoder(*self._size, self._rate), 0
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
        frame.pts = self._number
        self._number += 1
        for packet in self._encoder.encode(frame):
            encoded = Encoded(packet.pts or 0, packet.is_keyframe, bytes(packet))
            for one in wanted:
                one.publish(video_message(encoded, header, self._size, self._publishers[one]))
