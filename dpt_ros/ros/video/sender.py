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


class VideoEncoder:
    """H.264 by libx264 without B-frames: every picture is one packet, at once.

    Args:
        width, height: of the pictures, pixels; even.
        rate: pictures per second.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: it was built without libx264, or a side is odd.
    """

    def __init__(self, width: int, height: int, rate: float) -> None:
        import av

        if width % 2 or height % 2:
            raise ValueError(f"H.264 needs even sides, but the picture is {width}x{height}.")
        self._context = av.CodecContext.create("libx264", "w")
        self._context.width, self._context.height = width, height
        self._context.pix_fmt = "yuv420p"
        self._context.framerate = Fraction(rate).limit_denominator(1000)
        self._context.time_base = 1 / self._context.framerate
        self._context.gop_size = KEYFRAMES
        self._context.thread_count = 1
        self._context.options = {"preset": "ultrafast", "tune": "zerolatency"}
        self._frame = av.VideoFrame.from_ndarray
        self._number = 0

    def encode(self, rgb: np.ndarray) -> list[Encoded]:
        """The packets of the next picture, (H, W, 3) uint8: one."""
        frame = self._frame(np.ascontiguousarray(rgb), "rgb24")
        frame.pts = self._number
        self._number += 1
        packets = self._context.encode(frame)
        return [Encoded(p.pts or 0, p.is_keyframe, bytes(p)) for p in packets]


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
    """Publishes pictures as video, while somebody subscribes; see `VideoEncoder`.

    ``publishers`` are with the classes of their messages, ``size`` is width and height.
    """

    def __init__(
        self, publishers: Mapping[Publisher, Any], size: tuple[int, int], rate: float
    ) -> None:
        self._publishers = publishers
        self._size = size
        self._rate = rate
        self._encoder: VideoEncoder | None = VideoEncoder(*size, rate)

    def publish(self, rgb: np.ndarray, header: Header) -> None:
        """Encode and publish a picture, (H, W, 3) uint8; the first one is a keyframe."""
        wanted = [one for one in self._publishers if one.get_subscription_count()]
        if not wanted:
            self._encoder = None
            return
        self._encoder = self._encoder or VideoEncoder(*self._size, self._rate)
        for encoded in self._encoder.encode(rgb):
            for one in wanted:
                one.publish(video_message(encoded, header, self._size, self._publishers[one]))
