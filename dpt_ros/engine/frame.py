# SPDX-License-Identifier: Apache-2.0
"""The types of the engine's interface: camera, frame, requested outputs, kind, prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class CameraModel:
    """A rectified pinhole camera: the left 3x3 of ``P`` in sensor_msgs/CameraInfo (REP 104).

    Focal lengths ``fx``, ``fy`` and principal point ``cx``, ``cy`` are in pixels of an image of
    ``width`` x ``height``.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def scaled(self, width: int, height: int) -> CameraModel:
        """The intrinsics of an image resized to ``width`` x ``height``.

        Pixel centres have integer coordinates, hence the half pixels of the principal point.
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


@dataclass(frozen=True)
class Lens:
    """How a raw picture is distorted, as sensor_msgs/CameraInfo has it.

    Args:
        model: "plumb_bob", "rational_polynomial" or "equidistant" (a fisheye).
        coefficients: ``D``: k1 k2 p1 p2 k3 of plumb_bob, k4 k5 k6 more of rational_polynomial,
            k1 k2 k3 k4 of equidistant.
        raw: ``K`` and the size of the raw picture.
        rotation: ``R`` row by row, from the raw camera to the rectified one.
    """

    model: str
    coefficients: tuple[float, ...]
    raw: CameraModel
    rotation: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Frame:
    """One camera image and what is known about it.

    Args:
        pixels: the camera's own pixels in ``encoding``: (H, W) or (H, W, C), uint8, uint16
            or float32; planar YUV as OpenCV stacks it. May be a strided view of a message.
        encoding: a sensor_msgs encoding name ("rgb8", "bayer_rggb8", ...).
        stamp_ns: acquisition time, nanoseconds.
        frame_id: the optical frame of the camera (REP 103).
        source: the camera's name, "" if there is only one.
        camera: intrinsics of ``pixels``, if known; with ``lens`` of the rectified picture.
        lens: of raw ``pixels``, which are to be rectified for ``camera``, at their own size; None
            if they are rectified, or taken as if they were.
        odom_from_camera: (4, 4) pose of the optical frame at ``stamp_ns`` in a frame that does not
            jump (odom, not map; REP 105), metres; None if unknown.
        locate: returns ``odom_from_camera`` when it is needed, since odometry can arrive later
            than the image. Called from a thread of the pipeline.
        anchors: pixels of measured depth (``scale.anchors.Anchors``) or None.
        down: (3,) unit vector towards the floor in the optical frame; None for a level camera.
        sense: returns what a depth camera measured at ``stamp_ns`` in the view of a camera (see
            ``input.sensor_depth.registered_depth``), None if nothing; for ``OutputRequest.fused``.
            Called when it is needed, from a thread of the pipeline.
        context: data of the caller, returned with the prediction.
        decode: decompresses ``pixels``, which are then the bytes of a file in the format
            ``encoding``. Returns pixels and their encoding, or raises a ValueError.
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
    lens: Lens | None = None
    sense: Callable[[CameraModel], np.ndarray | None] | None = None

    def pose(self) -> np.ndarray | None:
        """``odom_from_camera``, as far as it is known now."""
        return self.odom_from_camera if self.locate is None else self.locate()

    def sensor_depth(self, height: int, width: int) -> np.ndarray:
        """(height, width) float32, metres: what ``sense`` measured, NaN where nothing is known."""
        found = None
        if self.sense is not None and self.camera is not None:
            found = self.sense(self.camera.scaled(width, height))
        return np.full((height, width), np.nan, np.float32) if found is None else found

    def decoded(self) -> Frame:
        """The frame with decoded pixels; itself if it is not compressed.

        Raises:
            ValueError: the file cannot be decoded.
        """
        if self.decode is None:
            return self
        pixels, encoding = self.decode()
        return replace(self, pixels=pixels, encoding=encoding, decode=None)


@dataclass(frozen=True)
class OutputRequest:
    """The outputs of a frame to compute, by their names in ``Prediction``.

    Args:
        depth, inverse, labels, confidence, deviation, points, fused: whether it is wanted.
    """

    depth: bool = True
    inverse: bool = False
    labels: bool = True
    confidence: bool = False
    deviation: bool = False
    points: bool = False
    fused: bool = False

    @property
    def any(self) -> bool:
        """Whether anything is wanted."""
        return self.any_depth or self.labels or self.confidence

    @property
    def any_depth(self) -> bool:
        """Whether anything is wanted that needs the depth network."""
        return self.depth or self.inverse or self.deviation or self.points or self.fused


@dataclass(frozen=True)
class Kind:
    """The properties shared by frames that one chain processes, and that can form a batch.

    Args:
        encoding: of the pixels.
        shape: of ``Frame.pixels``.
        dtype: of ``Frame.pixels``: "uint8", "uint16" or "float32".
        outputs: the outputs to compute.
        camera: intrinsics, if they are needed: for points, fused depth, pixels to be rectified.
        lens: of pixels that are to be rectified.
    """

    encoding: str
    shape: tuple[int, ...]
    dtype: str
    outputs: OutputRequest
    camera: CameraModel | None = None
    lens: Lens | None = None

    @classmethod
    def of(cls, frame: Frame, outputs: OutputRequest) -> Kind:
        """The kind of a decoded frame."""
        if outputs.points and frame.camera is None:
            outputs = replace(outputs, points=False)
        camera = frame.camera if outputs.points or outputs.fused or frame.lens else None
        pixels = frame.pixels
        return cls(frame.encoding, pixels.shape, pixels.dtype.name, outputs, camera, frame.lens)


@dataclass
class Prediction:
    """The result of one frame. Arrays are C-contiguous and valid until the ticket is released.

    Args:
        frame: the frame it belongs to.
        depth: (H, W) float32, metres along optical Z; NaN unknown, +Inf beyond range (REP 117).
        inverse: (H, W) float32, inverse depth >= 0: 1/m if ``metric``, else relative.
        labels: (H, W) uint8 class ids; 0 none, 255 unlabelled.
        confidence: (H, W) uint8, 0..255, probability of the label's class.
        deviation: (H, W) float32, metres, standard deviation of the depth.
        points: (h, w) of ``output.point_cloud.POINT``, organised, in the optical frame.
        fused: (H, W) float32, metres: of the depth camera where it is right, else ``depth``.
        fused_origin: (H, W) uint8, of ``fused``: 0 none, 1 depth camera, 2 network.
        fused_sigma: (H, W) float32, metres, standard deviation of ``fused``.
        uncertain: how many pixels of known depth are too uncertain for points; None if there is
            no limit.
        metric: whether depth is in metres; if not, there is only ``inverse``.
        scale: names and values of the metric scale for /diagnostics.
        reset: why the temporal filter was reset at this frame, "" if it was not.
        camera: intrinsics of the arrays above, if the frame's are known.
        seconds: time spent per step ("preprocess", "network", "postprocess", ...).
    """

    frame: Frame
    depth: np.ndarray | None = None
    inverse: np.ndarray | None = None
    labels: np.ndarray | None = None
    confidence: np.ndarray | None = None
    deviation: np.ndarray | None = None
    points: np.ndarray | None = None
    fused: np.ndarray | None = None
    fused_origin: np.ndarray | None = None
    fused_sigma: np.ndarray | None = None
    uncertain: float | None = None
    metric: bool = True
    scale: dict[str, str] = field(default_factory=dict)
    reset: str = ""
    camera: CameraModel | None = None
    seconds: dict[str, float] = field(default_factory=dict)
