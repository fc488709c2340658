# SPDX-License-Identifier: Apache-2.0
"""Images whose stamps say what they are, and a judge of all that comes back."""

from __future__ import annotations

import array
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

CAMERA_FRAME = "camera"
LARGEST_DEPTH = 50.01  # metres: what the embedded network can say
_KEPT = 600
_UNIT = 8  # widths and heights are multiples
_PRIME = 97


def stamp_of(now_ns: int, width: int, height: int) -> tuple[int, int]:
    """Seconds and nanoseconds of a stamp that tells the size of its image.

    The milliseconds are those of ``now_ns``; what is below them holds the size and a checksum, so
    that a stamp which is not one of ours is found out.
    """
    seconds, milliseconds = divmod(now_ns // 1_000_000, 1000)
    code = (width // _UNIT * 100 + height // _UNIT) * 100 + _checksum(seconds, milliseconds)
    return seconds, milliseconds * 1_000_000 + code


def size_of(seconds: int, nanoseconds: int) -> tuple[int, int] | None:
    """Width and height of the image that has this stamp; None if none of ours has it."""
    milliseconds, code = divmod(nanoseconds, 1_000_000)
    code, check = divmod(code, 100)
    if check != _checksum(seconds, milliseconds):
        return None
    width, height = divmod(code, 100)
    return width * _UNIT, height * _UNIT


def _checksum(seconds: int, milliseconds: int) -> int:
    return (seconds * 1000 + milliseconds) % _PRIME


def picture(width: int, height: int, number: int) -> np.ndarray:
    """The picture of a frame by its number, (H, W, 3) uint8: it moves."""
    shift = number % width
    return np.ascontiguousarray(_wallpaper(width, height)[:, shift : shift + width])


@cache
def _wallpaper(width: int, height: int) -> np.ndarray:
    coarse = np.random.default_rng(7).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.tile(coarse.repeat(8, 0).repeat(8, 1), (1, 2, 1))


def image_of(
    now_ns: int, width: int, height: int, number: int, encoding: str = "rgb8"
) -> tuple[CameraInfo, Image]:
    """The camera_info and the image that a camera sends at a moment."""
    pixels = picture(width, height, number)
    if encoding == "mono8":
        pixels = np.ascontiguousarray(pixels[..., 0])
    info = camera_info_of(width, height)
    info.header.frame_id = CAMERA_FRAME
    info.header.stamp.sec, info.header.stamp.nanosec = stamp_of(now_ns, width, height)
    msg = Image(header=info.header, width=width, height=height, encoding=encoding)
    msg.step = pixels.nbytes // height
    msg.data = array.array("B", pixels.tobytes())
    return info, msg


class Watch:
    """Takes the outputs of a camera of the node and judges each message.

    Attributes:
        arrivals: by topic, (stamp in nanoseconds, ``time.monotonic()``) of the newest messages.
        counts: messages by topic.
        wrong: a sentence for each message that says what it must not.

    Args:
        node: listens.
        prefix: of the camera's topics.
        classes: the largest class id.
    """

    def __init__(self, node: Node, prefix: str = "", classes: int = 254) -> None:
        self.arrivals: dict[str, deque[tuple[int, float]]] = {}
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._classes = classes
        self._sizes: set[tuple[int, int]] = set()
        judges: dict[str, tuple[type, Callable[[Any], str]]] = {
            "depth/image": (Image, self._judge_depth),
            "depth/camera_info": (CameraInfo, self._judge_info),
            "depth/confidence": (Image, self._judge_deviation),
            "semantic/labels": (Image, self._judge_labels),
        }
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        for topic, (kind, judge) in judges.items():
            self.arrivals[topic] = deque(maxlen=_KEPT)
            node.create_subscription(kind, prefix + topic, self._taker(topic, judge), qos)

    def forget(self) -> None:
        """Let stamps come a second time, as those of a bag that is played again."""
        for arrivals in self.arrivals.values():
            arrivals.clear()

    def _taker(self, topic: str, judge: Callable[[Any], str]) -> Callable[[Any], None]:
        arrivals = self.arrivals[topic]

        def take(msg: Any) -> None:
            now = time.monotonic()
            stamp = msg.header.stamp.sec * 1_000_000_000 + msg.header.stamp.nanosec
            size = size_of(msg.header.stamp.sec, msg.header.stamp.nanosec)
            if size is None:
                fault = "no image had this stamp"
            elif size != (msg.width, msg.height):
                fault = f"its image has {size[0]}x{size[1]} pixels"
            elif msg.header.frame_id != CAMERA_FRAME:
                fault = f"its frame is {msg.header.frame_id!r}"
            elif any(stamp == earlier for earlier, _ in arrivals):
                fault = "a second time"
            else:
                fault = judge(msg)
            if fault:
                self.wrong.append(f"{topic} of {stamp} ns, {msg.width}x{msg.height}: {fault}.")
            arrivals.append((stamp, now))
            self.counts[topic] += 1

        return take

    def _judge_depth(self, msg: Image) -> str:
        if msg.encoding == "16UC1":
            depth = _pixels(msg, np.uint16) * 1e-3
            known = depth[depth > 0]
        elif msg.encoding == "32FC1":
            depth = _pixels(msg, np.float32)
            if np.isneginf(depth).any():
                return "it is minus infinity somewhere"
            known = depth[np.isfinite(depth)]
        else:
            return f"encoding {msg.encoding}"
        if not known.size:
            return "it is unknown everywhere"
        if not 0 < known.min() <= known.max() <= LARGEST_DEPTH:
            return f"it is from {known.min()} to {known.max()} m"
        return ""

    def _judge_deviation(self, msg: Image) -> str:
        if msg.encoding != "32FC1":
            return f"encoding {msg.encoding}"
        deviation = _pixels(msg, np.float32)
        known = deviation[np.isfinite(deviation)]
        return "" if (known > 0).all() else f"it is {known.min()} m somewhere"

    def _judge_labels(self, msg: Image) -> str:
        if msg.encoding != "mono8":
            return f"encoding {msg.encoding}"
        labels = _pixels(msg, np.uint8)
        highest = labels[labels != 255].max(initial=0)
        return "" if highest <= self._classes else f"class {highest}"

    def _judge_info(self, msg: CameraInfo) -> str:
        expected = camera_info_of(msg.width, msg.height)
        same = np.allclose(msg.k, expected.k, atol=1e-6)
        return "" if same else f"focal lengths {msg.k[0]}, {msg.k[4]}"


def _pixels(msg: Image, kind: type) -> np.ndarray:
    return np.frombuffer(msg.data, kind).reshape(msg.height, msg.width)


def camera_info_of(width: int, height: int) -> CameraInfo:
    """The calibration of a camera with images of this size: the lens tells the size."""
    info = CameraInfo(width=width, height=height, distortion_model="plumb_bob")
    cx, cy = (width - 1) / 2, (height - 1) / 2
    info.k = [1.1 * width, 0.0, cx, 0.0, 1.2 * height, cy, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [1.1 * width, 0.0, cx, 0.0, 0.0, 1.2 * height, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    info.d = [0.0] * 5
    return info
