# SPDX-License-Identifier: Apache-2.0
"""Anchors: pixels of known depth, from a scan, a cloud or a depth image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dpt_ros.engine.frame import CameraModel

MAX_PAIRS = 300
MIN_DEPTH = 0.05  # metres; nearer points are not projected
_CELLS = 80  # per image row; only the nearest point of a cell becomes an anchor
_BORDER = 1.5  # pixels along the image border without anchors: networks are poor there


@dataclass(frozen=True)
class Anchors:
    """N pixels of known depth.

    Args:
        u, v: (N,) float32, column and row in pixels of an image of ``width`` x ``height``.
        metres: (N,) float32, depth along optical Z.
        stamp_ns: of the measurement, nanoseconds.
    """

    u: np.ndarray
    v: np.ndarray
    metres: np.ndarray
    stamp_ns: int
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.metres)

    def thinned(self, count: int = MAX_PAIRS) -> Anchors:
        """At most ``count`` of them, evenly spaced; deterministic."""
        if len(self) <= count:
            return self
        return self._picked(np.linspace(0, len(self) - 1, count).round().astype(np.intp))

    def within(self, mask: np.ndarray) -> Anchors:
        """Those in pixels where a mask of the image, (H, W) bool of any size, is true."""
        row = (self.v + 0.5) * (mask.shape[0] / self.height)
        column = (self.u + 0.5) * (mask.shape[1] / self.width)
        return self._picked(mask[row.astype(np.intp), column.astype(np.intp)])

    def _picked(self, pick: np.ndarray) -> Anchors:
        return replace(self, u=self.u[pick], v=self.v[pick], metres=self.metres[pick])


def finite_transform(camera_from_sensor: np.ndarray) -> np.ndarray:
    """The transform as (4, 4) float64.

    Raises:
        ValueError: it has another shape, or is not finite.
    """
    transform = np.asarray(camera_from_sensor, np.float64)
    if transform.shape != (4, 4) or not np.isfinite(transform).all():
        raise ValueError("camera_from_sensor must be a finite 4x4 transform.")
    return transform


def check_depth_image(depth: np.ndarray, camera: CameraModel) -> None:
    """Refuse a depth image (h, w) of another size than its intrinsics.

    Raises:
        ValueError: it is.
    """
    if depth.shape != (camera.height, camera.width):
        raise ValueError(
            f"The depth image is {depth.shape[1]}x{depth.shape[0]}, but its camera_info is for"
            f" {camera.width}x{camera.height}."
        )


def project_points(
    points: np.ndarray, camera_from_sensor: np.ndarray, camera: CameraModel, stamp_ns: int
) -> Anchors:
    """Anchors from points in the sensor's frame.

    Points that are not finite, behind the camera or outside of the image are left out. Of points
    in one cell of the image only the nearest stays: it hides the others from the camera.

    Args:
        points: (N, 3) metres in the sensor's frame.
        camera_from_sensor: (4, 4), moves points into the optical frame (REP 103).
        camera: rectified intrinsics.
        stamp_ns: of the measurement, nanoseconds.

    Raises:
        ValueError: the points or the transform have another shape, or the transform is not finite.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"Points have shape {points.shape}, but must be (N, 3).")
    transform = finite_transform(camera_from_sensor)
    points = points.astype(np.float64, copy=False)
    points = points[np.isfinite(points).all(1)]
    x, y, z = transform[:3, :3] @ points.T + transform[:3, 3:]
    front = z > MIN_DEPTH
    x, y, z = x[front], y[front], z[front]
    u = camera.fx * x / z + camera.cx
    v = camera.fy * y / z + camera.cy
    inside = (u >= _BORDER) & (u <= camera.width - 1 - _BORDER)
    inside &= (v >= _BORDER) & (v <= camera.height - 1 - _BORDER)
    u, v, z = u[inside], v[inside], z[inside]
    cell = max(camera.width / _CELLS, 1.0)
    key = (v / cell).astype(np.int64) * 100_000 + (u / cell).astype(np.int64)
    order = np.lexsort((z, key))
    first = np.flatnonzero(np.diff(key[order], prepend=-1))
    u, v, z = (part[order[first]].astype(np.float32) for part in (u, v, z))
    return Anchors(u, v, z, stamp_ns, camera.width, camera.height)


def project_scan(
    ranges: np.ndarray,
    angle_min: float,
    angle_increment: float,
    range_min: float,
    range_max: float,
    camera_from_sensor: np.ndarray,
    camera: CameraModel,
    stamp_ns: int,
) -> Anchors:
    """Anchors from a planar scan; the arguments are the fields of sensor_msgs/LaserScan.

    Args:
        ranges: (N,) metres; outside of ``range_min``..``range_max`` and NaN are no measurement
            (REP 117).
        angle_min, angle_increment: radians, counter-clockwise about the scanner's Z.
        range_min, range_max: metres.
        camera_from_sensor, camera, stamp_ns: see ``project_points``.

    Raises:
        ValueError: the ranges or the transform have another shape.
    """
    ranges = np.asarray(ranges, np.float64)
    if ranges.ndim != 1:
        raise ValueError(f"Ranges have shape {ranges.shape}, but must be (N,).")
    angles = angle_min + angle_increment * np.arange(len(ranges))
    good = np.isfinite(ranges) & (ranges >= range_min) & (ranges <= range_max)
    r, a = ranges[good], angles[good]
    points = np.stack([r * np.cos(a), r * np.sin(a), np.zeros_like(r)], 1)
    return project_points(points, camera_from_sensor, camera, stamp_ns)


def project_depth(
    depth: np.ndarray,
    depth_camera: CameraModel,
    camera_from_sensor: np.ndarray,
    camera: CameraModel,
    stamp_ns: int,
) -> Anchors:
    """Anchors from the depth image of another camera (REP 118).

    Args:
        depth: (h, w) float32 metres, or uint16 millimetres; 0, NaN and infinite are unknown.
        depth_camera: intrinsics of the depth image.
        camera_from_sensor, camera, stamp_ns: see ``project_points``.

    Raises:
        ValueError: the depth image has another shape than its intrinsics.
    """
    check_depth_image(depth, depth_camera)
    step = max(1, round(max(depth.shape) / 160))
    unit = 1e-3 if depth.dtype == np.uint16 else 1.0
    z = depth[step // 2 :: step, step // 2 :: step].astype(np.float64) * unit
    rows, columns = np.nonzero(np.isfinite(z) & (z > 0))
    z = z[rows, columns]
    u, v = columns * step + step // 2, rows * step + step // 2
    x = (u - depth_camera.cx) / depth_camera.fx * z
    y = (v - depth_camera.cy) / depth_camera.fy * z
    return project_points(np.stack([x, y, z], 1), camera_from_sensor, camera, stamp_ns)
