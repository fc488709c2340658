# SPDX-License-Identifier: Apache-2.0
"""Errors of a depth and label network, put on the truth: flicker, bias, fluttering boundaries."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dpt_ros.metrics.temporal_truth import Truth


@dataclass(frozen=True)
class Magnitudes:
    """Standard deviations of the errors, relative to the inverse depth unless stated otherwise.

    All but ``bias``, ``label_bias`` and ``white`` change over time, with correlation ``rho``
    between two frames 1/30 s apart.
    """

    scale: float = 0.04  # of the frame's scale
    shift: float = 0.02  # of its shift, relative to the first frame's median inverse depth
    field: float = 0.035  # of a smooth field
    flutter: float = 0.9  # displacement of edges and boundaries, pixels of an image 320 wide
    bias: float = 0.04  # fixed to the scene
    white: float = 0.006  # of each pixel by itself
    rho: float = 0.6
    odometry_turn: float = 0.03  # degrees about each axis and frame
    odometry_share: float = 0.02  # of the distance
    odometry_shift: float = 0.001  # metres along each axis and frame
    label_field: float = 0.215  # of each class's logits, for a margin of 1 of the right class
    label_bias: float = 0.16  # the same, fixed to the scene


class _Fields:
    """Smooth fields with unit variance at every pixel: low frequencies of a cosine transform with
    random amplitudes that follow an AR(1) process."""

    def __init__(
        self, rng: np.random.Generator, count: int, waves: tuple[int, int], size: tuple[int, int]
    ) -> None:
        self._rng, (self._rows, self._columns) = rng, map(_cosines, waves, size)
        self._amplitudes = rng.standard_normal((count, *waves)).astype(np.float32)

    def step(self, rho: float) -> np.ndarray:
        """(count, H, W) float32 now, then a step of the process."""
        fields = self._rows @ self._amplitudes @ self._columns.T
        fresh = self._rng.standard_normal(self._amplitudes.shape).astype(np.float32)
        share = np.float32(np.sqrt(1 - rho * rho))
        self._amplitudes = np.float32(rho) * self._amplitudes + share * fresh
        return fields


def _cosines(waves: int, size: int) -> np.ndarray:
    place = (np.arange(size) + 0.5) / size
    basis = np.cos(np.pi * np.arange(waves) * place[:, None])
    return (basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32)


class NoisyNetwork:
    """Predictions made of the truth and errors, the same for the same seed. The smooth field has
    wavelengths from a quarter of the image; the bias is a function of the position in odom, with
    wavelengths of 1.5 to 5 m. ``num_classes``: C of the logits."""

    def __init__(self, seed: int, num_classes: int, magnitudes: Magnitudes = Magnitudes()) -> None:
        self._rng = np.random.default_rng([seed, 11])
        self._magnitudes, self._classes = magnitudes, num_classes
        self._state = self._rng.standard_normal(2)
        self._fields: tuple[_Fields, ...] = ()
        self._waves = _waves(self._rng, 6)
        self._label_waves = [_waves(self._rng, 3) for _ in range(num_classes)]

    def predict(self, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
        """Inverse depth (H, W) float32, 1/m, and logits (C, H / 2, W / 2) float32 of the next
        frame."""
        m, rng = self._magnitudes, self._rng
        height, width = truth.depth.shape
        inverse = (1 / truth.depth).astype(np.float32)
        half = (height // 2, width // 2)
        if not self._fields:
            self._fields = (
                _Fields(rng, 1, (6, 8), (height, width)),
                _Fields(rng, 2, (24, 32), (height, width)),
                _Fields(rng, self._classes, (15, 20), half),
            )
            self._shift = m.shift * float(np.median(inverse[inverse > 0]))
            self._stamp = truth.stamp_ns - round(1e9 / 30)
        rho = m.rho ** ((truth.stamp_ns - self._stamp) * 30e-9)
        self._stamp = truth.stamp_ns
        self._state = rho * self._state + np.sqrt(1 - rho**2) * rng.standard_normal(2)
        field, flutter, noise = (fields.step(rho) for fields in self._fields)
        y, x = np.indices((height, width), np.float32)
        reach = np.float32(m.flutter * width / 320)
        place = x + reach * flutter[0], y + reach * flutter[1]
        moved = cv2.remap(inverse, *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        low, high = cv2.erode(inverse, None), cv2.dilate(inverse, None)
        near_edge = cv2.dilate((high > 1.1 * low).astype(np.uint8), np.ones((9, 9))) > 0
        depth = np.where(near_edge, moved, inverse)
        points = _points(truth)
        error = m.field * field[0] + m.bias * _at(self._waves, points)
        error += m.white * rng.standard_normal(inverse.shape, np.float32)
        depth = depth * (1 + error) * (1 + m.scale * self._state[0])
        depth = np.maximum(depth + self._shift * self._state[1] * (inverse > 0), 0)
        near = cv2.INTER_NEAREST
        labels = cv2.remap(truth.labels, *place, near, borderMode=cv2.BORDER_REPLICATE)
        at = corner_map((height, width), half)
        right = [
            cv2.remap(cv2.blur((labels == k).astype(np.float32), (3, 3)), *at, cv2.INTER_LINEAR)
            for k in range(1, self._classes + 1)
        ]
        coarse = points[:, ::2, ::2]
        fixed = np.stack([_at(waves, coarse) for waves in self._label_waves])
        logits = np.stack(right) + m.label_field * noise + m.label_bias * fixed
        return depth.astype(np.float32), (8 * logits).astype(np.float32)


def corner_map(size: tuple[int, ...], small: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows, (h, w) float32, to resize (H, W) corner to corner, as DPT's head does."""
    pairs = zip(size, small, strict=True)
    rows, columns = (np.linspace(0, a - 1, b, dtype=np.float32) for a, b in pairs)
    return np.repeat(columns[None], small[0], 0), np.repeat(rows[:, None], small[1], 1)


def _points(truth: Truth) -> np.ndarray:
    """(3, H, W) float32, every pixel's place in odom, at most 40 m away."""
    camera, pose = truth.camera, truth.odom_from_camera.astype(np.float32)
    z = np.minimum(truth.depth, np.float32(40))
    x = ((np.arange(camera.width) - camera.cx) / camera.fx).astype(np.float32)
    y = ((np.arange(camera.height) - camera.cy) / camera.fy).astype(np.float32)[:, None]
    return np.stack([z * (row[0] * x + row[1] * y + row[2]) + row[3] for row in pose[:3]])


def _waves(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4): wave vectors, radians per metre, and phases."""
    way = rng.standard_normal((count, 3))
    way *= (2 * np.pi / rng.uniform(1.5, 5, (count, 1))) / np.linalg.norm(way, axis=1)[:, None]
    return np.concatenate([way, rng.uniform(0, 2 * np.pi, (count, 1))], 1).astype(np.float32)


def _at(waves: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Their sum with unit variance, (H, W)."""
    total = np.zeros(points.shape[1:], np.float32)
    for a, b, c, phase in waves:
        total += np.cos(a * points[0] + b * points[1] + c * points[2] + phase)
    return total * np.float32(np.sqrt(2 / len(waves)))


class NoisyOdometry:
    """Odometry whose errors, times ``factor``, add up, as those of wheels and gyros do; with jumps
    of 0.3 m and 5 degrees every ``jump_every`` frames, 0 for none."""

    def __init__(self, seed: int, factor: float = 1.0, jump_every: int = 0) -> None:
        self._rng = np.random.default_rng([seed, 12])
        self._factor, self._every, self._count = factor, jump_every, 0
        self._true = self._estimate = np.eye(4)

    def pose(self, odom_from_camera: np.ndarray) -> np.ndarray:
        """The estimate for a true pose, both (4, 4)."""
        if self._count == 0:
            self._estimate = odom_from_camera
        else:
            move = np.linalg.inv(self._true) @ odom_from_camera
            m, factor, rng = Magnitudes(), self._factor, self._rng
            way = float(np.linalg.norm(move[:3, 3]))
            turn = rng.standard_normal(3) * np.radians(m.odometry_turn) * factor
            shift = rng.standard_normal(3) * m.odometry_shift * factor
            move[:3, 3] *= 1 + rng.standard_normal() * m.odometry_share * factor * (way > 0)
            if self._every and self._count % self._every == 0:
                turn[1] += np.radians(5)
                shift[0] += 0.3
            error = np.eye(4)
            error[:3, :3], error[:3, 3] = cv2.Rodrigues(turn)[0], shift
            self._estimate = self._estimate @ move @ error
        self._true = odom_from_camera.copy()
        self._count += 1
        return self._estimate.copy()


def scan(truth: Truth, rng: np.random.Generator, points: int = 58) -> tuple[np.ndarray, ...]:
    """A planar laser scan 0.35 m above the floor, seen by the camera: rows and columns, (N,)
    pixels, and depth, (N,) metres, with an error of 1 % and 1 cm."""
    height = _points(truth)[2]
    columns = np.unique(np.linspace(0, truth.camera.width - 1, points).astype(int))
    distance = np.abs(height[:, columns] - 0.35)
    rows = np.argmin(distance, 0)
    depth = truth.depth[rows, columns]
    good = (distance[rows, np.arange(len(columns))] < 0.05) & np.isfinite(depth)
    rows, columns, depth = rows[good], columns[good], depth[good].astype(np.float64)
    error = rng.standard_normal((2, len(depth)))
    return rows, columns, depth * (1 + 0.01 * error[0]) + 0.01 * error[1]


def theil_sen(inverse: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """(scale, shift) from inverse depth to measured inverse depth, both (N,), 1/m (Theil-Sen).

    The median slope of all pairs that differ by 20 % of the median; with fewer than 60 such pairs,
    as in front of a flat wall, the median ratio and no shift. (1, 0) with fewer than 8 points.
    """
    if len(inverse) < 8:
        return 1.0, 0.0
    i, j = np.triu_indices(len(inverse), 1)
    spread = inverse[i] - inverse[j]
    wide = np.abs(spread) > 0.2 * np.median(inverse)
    if wide.sum() >= 60:
        scale = float(np.median((measured[i] - measured[j])[wide] / spread[wide]))
        if scale > 0.05:
            return scale, float(np.median(measured - scale * inverse))
    return float(np.median(measured / inverse)), 0.0
