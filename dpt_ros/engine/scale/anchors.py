# SPDX-License-Identifier: Apache-2.0
"""Anchors: pixels of known depth, from a scan, a cloud or a depth image; and the robust fit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from dpt_ros.engine.frame import CameraModel

MAX_PAIRS, MIN_PAIRS = 300, 8
# From the 10th to the 90th percentile of the inverse depth, relative to its median: the spread
# from which on scale and shift can be distinguished.
_MIN_SPREAD = 0.25
_MIN_DEPTH = 0.05  # metres; nearer points are not projected
_CELLS = 80  # per image row; only the nearest point of a cell becomes an anchor
_BORDER = 1.5  # pixels along the image border without anchors: networks are poor there
_START_PAIRS = 128  # pairs of which the initial estimate takes all slopes
_MIN_BASELINE = 0.02  # smallest difference of two inverse depths that gives a slope, over median
_TUKEY = 4.685  # standard deviations from which on a pair has no weight (95 % efficiency)
_MIN_NOISE = 0.01  # relative; no network is better than this
_MAX_NOISE = 0.35  # relative; beyond this the pairs do not belong to the image
_MIN_INLIERS = 0.5
# A network's error is smooth over the image, not white noise: however many the pairs and however
# small their residual, they count as this many independent ones with this noise.
_INDEPENDENT = 6.0
_BIAS = 0.04
_MAX_SCALE_SIGMA = 0.2  # relative; beyond it only one number is fitted
# Scale after the fit over the plain ratio: an inverse depth that is nearly all shift has no
# information about the scene.
MIN_SCALE = 0.05


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
        pick = np.linspace(0, len(self) - 1, count).round().astype(np.intp)
        return replace(self, u=self.u[pick], v=self.v[pick], metres=self.metres[pick])


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
    transform = np.asarray(camera_from_sensor, np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"Points have shape {points.shape}, but must be (N, 3).")
    if transform.shape != (4, 4) or not np.isfinite(transform).all():
        raise ValueError("camera_from_sensor must be a finite 4x4 transform.")
    points = points.astype(np.float64, copy=False)
    points = points[np.isfinite(points).all(1)]
    x, y, z = transform[:3, :3] @ points.T + transform[:3, 3:]
    front = z > _MIN_DEPTH
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
    if depth.shape != (depth_camera.height, depth_camera.width):
        raise ValueError(
            f"The depth image is {depth.shape[1]}x{depth.shape[0]}, but its camera_info is for"
            f" {depth_camera.width}x{depth_camera.height}."
        )
    step = max(1, round(max(depth.shape) / 160))
    unit = 1e-3 if depth.dtype == np.uint16 else 1.0
    z = depth[step // 2 :: step, step // 2 :: step].astype(np.float64) * unit
    rows, columns = np.nonzero(np.isfinite(z) & (z > 0))
    z = z[rows, columns]
    u, v = columns * step + step // 2, rows * step + step // 2
    x = (u - depth_camera.cx) / depth_camera.fx * z
    y = (v - depth_camera.cy) / depth_camera.fy * z
    return project_points(np.stack([x, y, z], 1), camera_from_sensor, camera, stamp_ns)


@dataclass(frozen=True)
class Fit:
    """``inverse_depth = scale * raw_inverse_depth + shift``, as fitted to one frame.

    Args:
        state: "fitted"; "scale only": the pairs have no spread and fix one number, namely that
            the line goes through ``center``; or why there is no fit: "too few pairs",
            "not plausible".
        pairs: how many pairs there were.
        scale, shift: of the line; in state "scale only" the shift is 0.
        covariance: (2, 2) of scale and shift; in state "scale only" [0, 0] is the variance of
            the inverse depth at ``center``.
        center: medians of the raw and of the measured inverse depth.
        residual: relative standard deviation of the network about the line, robust.
    """

    state: str
    pairs: int
    scale: float = 1.0
    shift: float = 0.0
    covariance: np.ndarray = field(default_factory=lambda: np.zeros((2, 2)))
    center: tuple[float, float] = (1.0, 1.0)
    residual: float = 0.0


def fit_pairs(raw_inverse_depth: np.ndarray, inverse_depth: np.ndarray) -> Fit:
    """Robust line from a network's inverse depth to the measured one.

    The network is regressed on the measurement, not vice versa, since the network has the noise,
    which would flatten the line. The initial slope is the repeated median (Siegel 1982, a
    Theil-Sen estimator with a breakdown point of 50 %), which is unique and does not jump between
    two solutions as RANSAC does; Tukey's weights refine it, with errors relative to the inverse
    depth.

    Args:
        raw_inverse_depth: (N,) of the network, any unit; pairs where it is not > 0 are dropped.
        inverse_depth: (N,) measured, 1/m, > 0.
    """
    good = np.isfinite(raw_inverse_depth) & (raw_inverse_depth > 0)
    good &= np.isfinite(inverse_depth) & (inverse_depth > 0)
    x = raw_inverse_depth[good].astype(np.float64)[:MAX_PAIRS]
    q = inverse_depth[good].astype(np.float64)[:MAX_PAIRS]
    pairs = len(q)
    if pairs < MIN_PAIRS:
        return Fit("too few pairs", pairs)
    center = float(np.median(x)), float(np.median(q))
    unit = center[1] / center[0]
    x = x * unit
    low, high = np.percentile(q, (10, 90))
    if high - low >= _MIN_SPREAD * center[1]:
        line = _tukey_line(q, x)
        if line is not None:
            a, b, covariance, noise = line
            # From unit * raw = a * inverse + b to inverse = scale * raw + shift.
            jacobian = np.array([[-unit / a**2, 0.0], [b / a**2, -1 / a]])
            covariance = jacobian @ covariance @ jacobian.T
            return Fit("fitted", pairs, unit / a, -b / a, covariance, center, noise)
    # The median ratio, unless the pairs do not agree on it.
    ratio = q / x
    middle = float(np.median(ratio))
    noise = max(1.4826 * float(np.median(np.abs(ratio / middle - 1))), _MIN_NOISE)
    if noise > _MAX_NOISE:
        return Fit("not plausible", pairs, center=center, residual=noise)
    center = center[0], middle * center[1]
    variance = np.zeros((2, 2))
    variance[0, 0] = (max(noise, _BIAS) * center[1]) ** 2 / _INDEPENDENT
    return Fit("scale only", pairs, middle * unit, 0.0, variance, center, noise)


def _tukey_line(q: np.ndarray, x: np.ndarray) -> tuple[float, float, np.ndarray, float] | None:
    """x = a q + b: a, b, their covariance (2, 2), relative noise of x; None if implausible."""
    pick = np.linspace(0, len(q) - 1, min(len(q), _START_PAIRS)).round().astype(np.intp)
    a = _repeated_median(q[pick], x[pick])
    b = float(np.median(x - a * q))
    if not np.isfinite(a) or a <= 0:
        return None
    design = np.stack([q, np.ones_like(q)], 1)
    for _ in range(6):
        # Errors are relative to the fitted value, bounded from below near its zero.
        size = np.maximum(a * q + b, 0.1 * a * q)
        error = (x - a * q - b) / size
        noise = max(1.4826 * float(np.median(np.abs(error))), _MIN_NOISE)
        weight = np.clip(1 - (error / (_TUKEY * noise)) ** 2, 0, None) ** 2
        scaled = design * (weight / size**2)[:, None]
        normal = scaled.T @ design
        if np.linalg.cond(normal) > 1e10:
            return None
        a, b = (float(part) for part in np.linalg.solve(normal, scaled.T @ x))
    inliers = float((weight > 0).mean())
    plausible = MIN_SCALE < a < 1 / MIN_SCALE
    if not plausible or noise > _MAX_NOISE or inliers < _MIN_INLIERS:
        return None
    correlated = max(len(q) / _INDEPENDENT, 1.0)
    covariance = np.linalg.inv(normal) * max(noise, _BIAS) ** 2 * correlated
    if covariance[0, 0] > (_MAX_SCALE_SIGMA * a) ** 2:
        return None
    return a, b, covariance, noise


def _repeated_median(q: np.ndarray, x: np.ndarray) -> float:
    """The median over all points of the median slope to the others; NaN if there is none."""
    baseline = q[:, None] - q
    enough = np.abs(baseline) > _MIN_BASELINE * np.median(q)
    slopes = np.full_like(baseline, np.inf)
    np.divide(x[:, None] - x, baseline, out=slopes, where=enough)
    count = enough.sum(1)
    slopes.sort(1)
    rows = np.flatnonzero(count)
    if not len(rows):
        return float("nan")
    return float(np.median(slopes[rows, (count[rows] - 1) // 2]))
