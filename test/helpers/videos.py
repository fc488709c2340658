# SPDX-License-Identifier: Apache-2.0
"""Videos made with PyAV, and packets as ffmpeg_image_transport and Foxglove send them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from builtin_interfaces.msg import Time
from std_msgs.msg import Header

from dpt_ros.ros.messages.cdr import VideoPacket

# Encoders without and with B-frames, by the codec that messages name.
PLAIN = {
    "h264": ("libx264", {"preset": "ultrafast", "tune": "zerolatency"}),
    "h265": ("libx265", {"preset": "ultrafast", "tune": "zerolatency"}),
    # Not for low delay (pred-struct=1): SVT-AV1 4.1 then waits for itself for ever on a busy CPU.
    # Every other packet only shows a picture that came before it.
    "av1": ("libsvtav1", {"preset": "12"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
}
WITH_B_FRAMES = {
    "h264": ("libx264", {"preset": "fast"}),
    "h265": ("libx265", {"preset": "ultrafast"}),
}
PERIOD = 33_333_333  # nanoseconds


def _leave_real_time() -> None:
    """Started by root, SVT-AV1 gives its threads real-time priority, and nothing else of two cores
    is left to others: neither the tests beside it, nor the thread that it waits for."""
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended
            if os.sched_getscheduler(int(thread)) != os.SCHED_OTHER:
                os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))


class Encoded(NamedTuple):
    """A packet of an encoder."""

    number: int
    keyframe: bool
    data: bytes


def pictures(count: int, width: int = 160, height: int = 120) -> list[np.ndarray]:
    """Smooth pictures in motion, (height, width, 3) uint8, in which a bar counts."""
    rng = np.random.default_rng(7)
    large = cv2.GaussianBlur(
        rng.integers(0, 256, (height, width + 2 * count, 3), np.uint8), (0, 0), 6
    )
    large = cv2.normalize(large, None, 0, 255, cv2.NORM_MINMAX)
    found = []
    for k in range(count):
        picture = large[:, 2 * k : 2 * k + width].copy()
        picture[: height // 4, : (k * 8) % width + 8] = 255 * (k % 2)
        found.append(picture)
    return found


def encode(
    images: Sequence[np.ndarray],
    codec: str = "h264",
    gop: int = 10,
    b_frames: int = 0,
    pix_fmt: str = "yuv420p",
    **options: str,
) -> list[Encoded]:
    """The packets of a video, in the order of decoding."""
    name, settings = (WITH_B_FRAMES if b_frames else PLAIN)[codec]
    context: Any = av.CodecContext.create(name, "w")
    context.height, context.width = images[0].shape[:2]
    context.pix_fmt = pix_fmt
    context.framerate, context.time_base = Fraction(30), Fraction(1, 30)
    context.gop_size, context.max_b_frames = gop, b_frames
    context.thread_count = 1
    quiet = (
        {"x265-params": f"log-level=none:pools=none:bframes={b_frames}"} if codec == "h265" else {}
    )
    context.options = {**settings, **quiet, **options}
    context.open()
    _leave_real_time()
    packets = []
    for number, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(image, "rgb24")
        frame.pts = number
        packets += context.encode(frame)
    packets += context.encode(None)
    return [Encoded(p.pts, p.is_keyframe, bytes(p)) for p in packets]


def stamp_of(number: int) -> int:
    """Nanoseconds; not quite regular, as of a camera."""
    return 1_700_000_000_000_000_000 + number * PERIOD + (number * 7919) % 1000


def header_of(number: int) -> Header:
    seconds, nanoseconds = divmod(stamp_of(number), 1_000_000_000)
    return Header(stamp=Time(sec=seconds, nanosec=nanoseconds), frame_id="eye")


def packets(
    encoded: Sequence[Encoded], codec: str = "h264", kind: str = "ffmpeg"
) -> list[VideoPacket]:
    """As read from FFMPEGPacket ("ffmpeg") or CompressedVideo ("foxglove")."""
    found = []
    for one in encoded:
        data, header = np.frombuffer(one.data, np.uint8), header_of(one.number)
        if kind == "ffmpeg":
            found.append(VideoPacket(header, codec, data, one.keyframe, one.number, (0, 0)))
        else:
            found.append(VideoPacket(header, codec, data))
    return found
