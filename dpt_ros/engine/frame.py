# SPDX-License-Identifier: Apache-2.0
"""The plain types that travel through the house: camera, frame in, prediction out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class CameraModel:
    """A rectified pinhole camera: the left 3x3 of ``P`` in sensor_msgs/CameraInfo (REP 104).

    Focal lengths and principal point are in pixels of an image of ``width`` x ``height``.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def scaled(self, width: int, height: int) -> CameraModel:
        """The same camera seen in an image resized to ``width`` x ``height``.

        Pixel centres sit at integer coordinates, so the principal point moves by the half pixel.
        """
        sx, sy = width / self.width, height / self.height
        return CameraModel(
            width,
            height,
            self.fx * sx,
            self.fy * sy,
            (self.cx + 0.5) * sx - 0.5,
            (self.cy + 0.5) * sy - 0.5,
        )

    def matrix(self) -> np.ndarray:
        """The intrinsic matrix ``K``: (3, 3) float64, pixels."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float64)


@dataclass(frozen=True, eq=False)
class Frame:
    """One camera image on its way in.

    Args:
        pixels: the camera's own pixels, as ``encoding`` says: (H, W) or (H, W, C), uint8, uint16
            or float32; planar YUV as OpenCV stacks it. May be a strided view of a message.
        encoding: a sensor_msgs encoding name ("rgb8", "bayer_rggb8", ...).
        stamp_ns: acquisition time, nanoseconds.
        frame_id: the optical frame of the camera (REP 103).
        source: the camera's name, "" when there is only one.
        camera: intrinsics of ``pixels``, if known.
        odom_from_camera: (4, 4) pose of the optical frame at ``stamp_ns`` in a frame that does not
            jump (odom, not map; REP 105), metres; None if nobody knows.
        locate: looks up ``odom_from_camera`` when it is needed, instead of it: what tells it may
            come later than the image. Called from a thread of the pipeline.
        anchors: pixels of known depth (``engine.anchors.Anchors``), if a sensor measured some.
        down: (3,) unit vector towards the floor in the optical frame; None for a camera that
            looks straight ahead.
        context: whatever the caller wants back with the prediction, untouched.
        decode: reads pixels that are still a compressed file: ``pixels`` are then its bytes and
            ``encoding`` names its format. Gives the pixels and their encoding, or raises a
            ValueError with a sentence.
    """

    pixels: np.ndarray
    encoding: str
    stamp_ns: int
    frame_id: str = ""
    source: str = ""
    camera: CameraModel | None = None
    odom_from_camera: np.ndarray | None = None
    anchors: Any = None
    down: np.ndarray | None = None
    context: Any = None
    decode: Callable[[], tuple[np.ndarray, str]] | None = None
    locate: Callable[[], np.ndarray | None] | None = None

    def pose(self) -> np.ndarray | None:
        """(4, 4), where the camera was, as far as is known by now; see ``odom_from_camera``."""
        return self.odom_from_camera if self.locate is None else self.locate()

    def decoded(self) -> Frame:
        """The frame with its own pixels; itself unless they are still a compressed file.

        Raises:
            ValueError: the file cannot be decoded.
        """
        if self.decode is None:
            return self
        pixels, encoding = self.decode()
        return replace(self, pixels=pixels, encoding=encoding, decode=None)


@dataclass(frozen=True)
class OutputRequest:
    """Which results of a frame somebody wants; what nobody wants is not computed."""

    depth: bool = True
    inverse: bool = False
    labels: bool = True
    confidence: bool = False
    deviation: bool = False
    points: bool = False

    @property
    def any(self) -> bool:
        return self.any_depth or self.labels or self.confidence

    @property
    def any_depth(self) -> bool:
        return self.depth or self.inverse or self.deviation or self.points


@dataclass
class Prediction:
    """What the networks say of one frame. Every array is C-contiguous and owned by the receiver.

    Args:
        frame: the frame that was seen.
        depth: (H, W) float32, metres along optical Z; NaN unknown, +Inf beyond range (REP 117).
        inverse: (H, W) float32, inverse depth: 1/m for a metric network, else relative, >= 0.
        labels: (H, W) uint8 class ids; 0 none, 255 unlabelled.
        confidence: (H, W) uint8, 0..255, probability of the label's class.
        deviation: (H, W) float32, metres, standard deviation of the depth.
        points: (h, w) of ``engine.cloud.POINT``, organised, in the optical frame.
        metric: whether depth is in metres; without, only ``inverse`` is there, relative.
        scale: where the metres come from, names and values for /diagnostics.
        reset: why the temporal filter forgot the past at this frame, "" if it did not.
        camera: intrinsics of the arrays above, when the frame's are known.
        seconds: time spent per step ("preprocess", "network", "postprocess", ...).
    """

    frame: Frame
    depth: np.ndarray | None = None
    inverse: np.ndarray | None = None
    labels: np.ndarray | None = None
    confidence: np.ndarray | None = None
    deviation: np.ndarray | None = None
    points: np.ndarray | None = None
    metric: bool = True
    scale: dict[str, str] = field(default_factory=dict)
    reset: str = ""
    camera: CameraModel | None = None
    seconds: dict[str, float] = field(default_factory=dict)
