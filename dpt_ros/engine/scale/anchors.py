# SPDX-License-Identifier: Apache-2.0
"""Anchors: pixels with known metres, from a scan, a cloud or a depth image; and the robust fit."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dpt_ros.engine.frame import CameraModel

MAX_PAIRS = 300
_NEAR = 0.05  # metres in front of the camera; nothing nearer is projected
_CELLS = 80  # per row of the picture; of the points in a cell only the nearest is an anchor
_BORDER = 1.5  # pixels; what a network says at the very border is worth little
_START = 128  # pairs of which the start of the fit takes all slopes
_SLOPE = 0.02  # difference of two inverse depths, of their median, from which on they give a slope
_TUKEY = 4.685  # standard deviations beyond which a pair does not count (95 % efficiency)
_LEAST_NOISE = 0.01  # relative; no network is better than this
_MOST_NOISE = 0.35  # relative; beyond this the pairs do not belong to the picture
_LEAST_INLIERS = 0.5
# A network's error is smooth over the picture and hardly noise: however many the pairs and however
# small their residual, they say no more than so many independent ones with that much noise.
_INDEPENDENT = 6.0
_BIAS = 0.04
_VAGUE = 0.2  # relative standard deviation of the scale beyond which only one number is believed
# Scale after the fit, as a share of the plain ratio: an inverse depth of which nearly all is
# shift knows nothing of the scene.
LEAST_SCALE = 0.05


@dataclass(frozen=True)
class Anchors:
    """N pixels of which the depth is known.

    Args:
        u, v: (N,) float32, column and row in pixels of an image of ``width`` x ``height``.
        metres: (N,) float32, depth along optical Z.
        stamp_ns: when it was measured, nanoseconds.
        width, height: size of the image in which ``u`` and ``v`` are given.
    """

    u: np.ndarray
    v: np.ndarray
    metres: np.ndarray
    stamp_ns: int
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.metres)

    def thinned(self, most: int = MAX_PAIRS) -> Anchors:
        """At most ``most`` of them, evenly picked; the same ones every time."""
        if len(self) <= most:
            return self
        pick = np.linspace(0, len(self) - 1, most).round().astype(np.intp)
        return Anchors(
            self.u[pick], self.v[pick], self.metres[pick], self.stamp_ns, self.width, self.height
        )


def project_points(
    points: np.ndarray, camera_from_sensor: np.ndarray, camera: CameraModel, stamp_ns: int
) -> Anchors:
    """Anchors from points in the sensor's frame.

    Points that are not finite, behind the camera or outside of the picture are left out. Where
    several fall close together only the nearest stays: the camera, which sees them from another
    place than the sensor, has it in front of the others.

    Args:
        points: (N, 3) metres in the sensor's frame.
        camera_from_sensor: (4, 4), moves points into the optical frame (REP 103).
        camera: rectified intrinsics.
        stamp_ns: when they were measured.

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
    front = z > _NEAR
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
    keep = order[first]
    return Anchors(
        u[keep].astype(np.float32),
        v[keep].astype(np.float32),
        z[keep].astype(np.float32),
        stamp_ns,
        camera.width,
        camera.height,
    )


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

    Ranges outside of ``range_min``..``range_max``, infinite ones and NaN are no measurement
    (REP 117).

    Args:
        ranges: (N,) metres.
        angle_min, angle_increment: radians, counter-clockwise about the scanner's Z.
        range_min, range_max: metres.
        camera_from_sensor: (4, 4), from the scanner's frame into the optical frame.
        camera: rectified intrinsics.
        stamp_ns: when it was measured.

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
        camera_from_sensor: (4, 4), from its optical frame into this camera's.
        camera: rectified intrinsics of this camera.
        stamp_ns: when it was measured.

    Raises:
        ValueError: the depth image has another shape than its intrinsics say.
    """
    if depth.shape != (depth_camera.height, depth_camera.width):
        raise ValueError(
            f"The depth image is {depth.shape[::-1]}, but its camera_info says"
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
    """``scale * network + shift`` as the pairs of one frame have it.

    Args:
        state: "fitted"; "scale only": the pairs have no spread and fix one number, namely that
            the line goes through ``center``; or why there is nothing: "too few pairs",
            "not plausible".
        pairs: how many pairs there were.
        scale, shift: of the line; in state "scale only" the shift is 0.
        covariance: (2, 2) of scale and shift; in state "scale only" [0, 0] has the variance of
            the inverse depth at ``center``.
        center: median of the network's value and of the inverse depth.
        residual: relative standard deviation of the network about the line, robust.
    """

    state: str
    pairs: int
    scale: float = 1.0
    shift: float = 0.0
    covariance: np.ndarray = field(default_factory=lambda: np.zeros((2, 2)))
    center: tuple[float, float] = (1.0, 1.0)
    residual: float = 0.0


def fit_pairs(
    network: np.ndarray, inverse: np.ndarray, min_pairs: int = 8, min_spread: float = 0.25
) -> Fit:
    """The line that leads from a network's inverse depth to the measured one.

    It is fitted the other way round, network over measurement, since the network has the noise;
    fitted forwards, noise would flatten the line. The start is the repeated median of slopes
    (Siegel 1982, a Theil-Sen estimator with half of the pairs free to be wrong), which has one
    answer only and does not jump between two as RANSAC does; Tukey's weights refine it, with
    errors relative to the inverse depth.

    Args:
        network: (N,) what the network says, of any unit; pairs where it is not > 0 are dropped.
        inverse: (N,) 1/m, > 0.
        min_pairs: fewer give nothing.
        min_spread: what lies between the 10th and the 90th percentile of ``inverse``, as a share
            of its median, with which shift and scale can be told apart.
    """
    good = np.isfinite(network) & (network > 0) & np.isfinite(inverse) & (inverse > 0)
    x = network[good].astype(np.float64)[:MAX_PAIRS]
    q = inverse[good].astype(np.float64)[:MAX_PAIRS]
    pairs = len(q)
    if pairs < min_pairs:
        return Fit("too few pairs", pairs)
    center = float(np.median(x)), float(np.median(q))
    unit = center[1] / center[0]
    x = x * unit
    low, high = np.percentile(q, (10, 90))
    if high - low >= min_spread * center[1]:
        line = _line(q, x)
        if line is not None:
            return _invert(*line, pairs, unit, center)
    # The median ratio. Pairs that do not agree on it are of no use.
    ratio = q / x
    middle = float(np.median(ratio))
    noise = max(1.4826 * float(np.median(np.abs(ratio / middle - 1))), _LEAST_NOISE)
    if noise > _MOST_NOISE:
        return Fit("not plausible", pairs, center=center, residual=noise)
    center = center[0], middle * center[1]
    variance = np.zeros((2, 2))
    variance[0, 0] = (max(noise, _BIAS) * center[1]) ** 2 / _INDEPENDENT
    return Fit("scale only", pairs, middle * unit, 0.0, variance, center, noise)


def _line(q: np.ndarray, x: np.ndarray) -> tuple[float, float, np.ndarray, float] | None:
    """x = a q + b: a, b, their covariance (2, 2), relative noise of x; None if implausible."""
    pick = np.linspace(0, len(q) - 1, min(len(q), _START)).round().astype(np.intp)
    a = _repeated_median(q[pick], x[pick])
    b = float(np.median(x - a * q))
    if not np.isfinite(a) or a <= 0:
        return None
    design = np.stack([q, np.ones_like(q)], 1)
    for _ in range(6):
        # Errors are relative to what the line says, but near its zero they end somewhere.
        size = np.maximum(a * q + b, 0.1 * a * q)
        error = (x - a * q - b) / size
        noise = max(1.4826 * float(np.median(np.abs(error))), _LEAST_NOISE)
        weight = np.clip(1 - (error / (_TUKEY * noise)) ** 2, 0, None) ** 2
        scaled = design * (weight / size**2)[:, None]
        normal = scaled.T @ design
        if np.linalg.cond(normal) > 1e10:
            return None
        a, b = (float(part) for part in np.linalg.solve(normal, scaled.T @ x))
    inliers = float((weight > 0).mean())
    plausible = LEAST_SCALE < a < 1 / LEAST_SCALE
    if not plausible or noise > _MOST_NOISE or inliers < _LEAST_INLIERS:
        return None
    alike = max(len(q) / _INDEPENDENT, 1.0)
    covariance = np.linalg.inv(normal) * max(noise, _BIAS) ** 2 * alike
    if covariance[0, 0] > (_VAGUE * a) ** 2:
        return None
    return a, b, covariance, noise


def _repeated_median(q: np.ndarray, x: np.ndarray) -> float:
    """The median over all points of the median slope to the others; NaN if there is none."""
    run = q[:, None] - q
    enough = np.abs(run) > _SLOPE * np.median(q)
    slopes = np.full_like(run, np.inf)
    np.divide(x[:, None] - x, run, out=slopes, where=enough)
    count = enough.sum(1)
    slopes.sort(1)
    rows = np.flatnonzero(count)
    if not len(rows):
        return float("nan")
    return float(np.median(slopes[rows, (count[rows] - 1) // 2]))


def _invert(
    a: float,
    b: float,
    covariance: np.ndarray,
    noise: float,
    pairs: int,
    unit: float,
    center: tuple[float, float],
) -> Fit:
    """From ``unit * network = a inverse + b`` to ``inverse = scale * network + shift``."""
    scale, shift = unit / a, -b / a
    jacobian = np.array([[-unit / a**2, 0.0], [b / a**2, -1 / a]])
    return Fit("fitted", pairs, scale, shift, jacobian @ covariance @ jacobian.T, center, noise)
