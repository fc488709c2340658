# SPDX-License-Identifier: Apache-2.0
"""The image of a depth camera with its holes filled by the network's depth.

What becomes of a pixel, by the first rule that applies:

1. The sensor has no value, or one out of its range (closer than it can measure, too): network.
2. Within one pixel the sensor's depth changes more than that of a surface at the largest angle of
   incidence (``flying_pixels``), and the pixel is not on the near side: flying pixels, network.
3. The network has no value: sensor.
4. The sensor is nearer than the network: sensor, because the nearer of two is the safer one, and
   a network misses what is thin.
5. The sensor is at most ``max(tolerance_metres, tolerance * sensor)`` farther: sensor.
6. It is ``mirror`` times as far or more: the depth in a mirror or behind glass, network.
7. It is farther by less, and more than ``MIRROR_SHARE`` of the pixels around are of rule 6: the
   rim of a mirror, network. Elsewhere: sensor. Networks are off by that on whole walls, a depth
   camera only behind glass.

What the sensor gives is kept bit for bit. What the network gives is multiplied by the ratio of
sensor and network around it, so that there is no step at a seam. The ratio is averaged over the
pixels kept, with less weight the more it differs from 1 (Tukey's biweight: what differs by more
belongs to another object), and diffused into the holes by pull and push over a pyramid (Gortler
et al. 1996, "The Lumigraph"). Far from all pixels kept it is 1: the network has been scaled to the
sensor already.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpt_ros.engine import triton_launch
from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.output import postprocess

NONE, SENSOR, NETWORK = range(3)
"""Values of the origin."""

_CELLS = 80  # of the finest level, per image row
LEVELS = 6
PRIOR = 0.05  # weight of the coarser level, in shares of a cell that is full of kept pixels
FRONT = 0.5  # exponent of the edge, of what still belongs to the nearer side
MIRROR_SHARE = 0.1
MIRROR_REACH = 2  # cells around a pixel in which that share is counted
_NOTHING = 1e6  # metres; farther than any depth
_KERNEL = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class FusionSettings:
    """Of the fusion.

    Args:
        near, far: metres, the sensor's range.
        tolerance_metres, tolerance: what a sensor may be farther than the network and still be
            right where there is a mirror near; metres and relative.
        mirror: ratio of sensor and network from which on it is a mirror.
        other: logarithm of that ratio from which on it corrects nothing else.
        edge: largest ratio of sensor depths within one pixel, see ``largest_ratio``.
        noise: standard deviation of the sensor, metres at a distance of 1 m; grows with depth
            squared.
    """

    near: float = 0.3
    far: float = 10.0
    tolerance_metres: float = 0.3
    tolerance: float = 0.1
    mirror: float = 1.7
    other: float = 0.3
    edge: float = 1.15
    noise: float = 0.002


def largest_ratio(camera: CameraModel, width: int, max_incidence: float) -> float:
    """The largest ratio of depths in a 3x3 neighbourhood on a surface.

    Args:
        camera: intrinsics; those of another size are scaled.
        width: of the depth image, pixels.
        max_incidence: largest angle between ray and surface normal, degrees, below 90.
    """
    focal = camera.fx * width / camera.width
    return math.exp(2 * math.tan(math.radians(max_incidence)) / focal)


def fuse(
    sensor: Tensor, depth: Tensor, sigma: Tensor, settings: FusionSettings = FusionSettings()
) -> tuple[Tensor, Tensor, Tensor]:
    """The sensor where it is right, the network elsewhere; see the module for the rules.

    Args:
        sensor: (B, H, W) float32 metres of a depth camera, registered to the image; NaN, 0 and
            infinite are unknown.
        depth: (B, H, W) float32 metres of the network, scaled to the sensor; NaN unknown, +Inf
            beyond range.
        sigma: (B, H, W) float32 metres, standard deviation of ``depth``.
        settings: of the fusion.

    Returns:
        (B, H, W) float32 metres, NaN unknown, +Inf beyond range; (B, H, W) uint8, ``NONE``,
        ``SENSOR`` or ``NETWORK``; (B, H, W) float32 metres, standard deviation.

    Raises:
        ValueError: the shapes differ, or are not (B, H, W).
    """
    if sensor.ndim != 3 or not sensor.shape == depth.shape == sigma.shape:
        shapes = ", ".join(str(tuple(part.shape)) for part in (sensor, depth, sigma))
        raise ValueError(
            f"Sensor, depth and sigma have shapes {shapes}, but must be of one shape (B, H, W)."
        )
    if postprocess.on_host(sensor):
        arrays = sensor.numpy(), depth.numpy(), sigma.numpy()
        cameras = [_on_host(*maps, settings) for maps in zip(*arrays, strict=True)]
        return postprocess.batched(cameras)
    if triton := triton_launch.triton_of(sensor, "dpt_ros.engine.output.triton_fused_depth"):
        return triton.fuse(sensor, depth, sigma, settings)
    return _fuse(sensor, depth, sigma, settings)


def grid_of(width: int) -> tuple[int, int]:
    """Pixels per cell, and from one that counts for the ratio to the next."""
    cell = max(1, round(width / _CELLS))
    return cell, 2 if cell >= 8 and cell % 2 == 0 else 1


def _fuse(
    sensor: Tensor, depth: Tensor, sigma: Tensor, s: FusionSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """The plain version: every step is a map or a fixed number of them."""
    height, width = sensor.shape[1:]
    cell, step = grid_of(width)
    valid = (sensor >= s.near) & (sensor <= s.far)
    farthest = _max3x3(torch.where(valid, sensor, 0.0))
    nearest = -_max3x3(torch.where(valid, -sensor, -_NOTHING))
    good = valid & ((farthest <= nearest * s.edge) | (sensor <= nearest * s.edge**FRONT))
    ratio = sensor / depth
    mirror = valid & (ratio >= s.mirror)
    share = F.avg_pool2d(
        _cells(mirror.float()[:, None], cell), 2 * MIRROR_REACH + 1, 1, MIRROR_REACH
    )
    around = F.interpolate((share > MIRROR_SHARE).float(), scale_factor=float(cell))
    around = around[:, 0, :height, :width] > 0
    far = sensor - depth > (sensor * s.tolerance).clamp(min=s.tolerance_metres)
    good = good & ~mirror & ~(around & far)

    few = good[:, ::step, ::step]
    log = torch.where(few, ratio[:, ::step, ::step], 1.0).log() * (1 / s.other)
    log = log.nan_to_num(1.0).clamp(-1, 1)
    weight = torch.where(few, (1 - log * log) ** 2, 0.0)
    cells = [_cells(part[:, None], cell // step) for part in (weight * log, weight)]
    mean = _diffused(cells, _cells, _upsampled)
    factor = _upsampled((mean * s.other).exp(), cell, (height, width))[:, 0]

    fused = torch.where(good, sensor, depth * factor)
    deviation = torch.where(good, sensor * sensor * s.noise, sigma * factor)
    origin = torch.where(good, SENSOR, torch.where(fused > 0, NETWORK, NONE)).to(torch.uint8)
    return fused, origin, deviation


def _max3x3(values: Tensor) -> Tensor:
    return F.max_pool2d(values[:, None], 3, 1, 1)[:, 0]


def _cells(values: Tensor, cell: int) -> Tensor:
    """(B, 1, h, w): means of cells of (B, 1, H, W), beyond the border 0."""
    height, width = values.shape[2:]
    return F.avg_pool2d(F.pad(values, (0, -width % cell, 0, -height % cell)), cell)


def _diffused(finest: Any, cells: Callable, upsampled: Callable) -> Any:
    """The weighted mean (..., h, w) of each cell, where there is little weight that of the cells
    around; 0 without any. The functions are those for tensors, or those for arrays."""
    total, weight = finest
    levels = [(total, weight)]
    for _ in range(LEVELS - 1):
        total, weight = cells(total, 2), cells(weight, 2)
        levels.append((total, weight))
    mean = 0 * weight
    for k, (total, weight) in enumerate(reversed(levels)):
        if k:
            mean = upsampled(mean, 2, total.shape[-2:])
        mean = (total + PRIOR * mean) / (weight + PRIOR)
    return mean


def _upsampled(values: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    larger = F.interpolate(values, scale_factor=float(factor), mode="bilinear")
    return larger[:, :, : size[0], : size[1]]


def _on_host(
    sensor: np.ndarray, depth: np.ndarray, sigma: np.ndarray, s: FusionSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``_fuse`` of one camera with OpenCV; the maps are (H, W)."""
    height, width = sensor.shape
    cell, step = grid_of(width)
    valid = cv2.inRange(sensor, s.near, s.far)
    farthest, nearest = np.zeros_like(sensor), np.full_like(sensor, _NOTHING)
    for extreme in (farthest, nearest):
        cv2.copyTo(sensor, valid, extreme)
    nearest = cv2.multiply(cv2.erode(nearest, _KERNEL), s.edge)
    good = cv2.compare(cv2.dilate(farthest, _KERNEL), nearest, cv2.CMP_LE)
    front = cv2.compare(sensor, cv2.multiply(nearest, s.edge ** (FRONT - 1)), cv2.CMP_LE)
    good = cv2.bitwise_and(cv2.bitwise_or(good, front), valid)
    ratio = cv2.divide(sensor, depth)
    mirror = cv2.bitwise_and(valid, cv2.compare(ratio, s.mirror, cv2.CMP_GE))
    if cv2.countNonZero(mirror):
        share = _host_cells(mirror.astype(np.float32), cell)
        size = (2 * MIRROR_REACH + 1,) * 2
        share = cv2.blur(share, size, borderType=cv2.BORDER_CONSTANT)
        near = cv2.compare(share, 255 * MIRROR_SHARE, cv2.CMP_GT)
        near = cv2.resize(near, None, fx=cell, fy=cell, interpolation=cv2.INTER_NEAREST)
        tolerance = cv2.max(cv2.multiply(sensor, s.tolerance), s.tolerance_metres)
        far = cv2.compare(cv2.subtract(sensor, depth), tolerance, cv2.CMP_GT)
        far = cv2.bitwise_and(far, near[:height, :width])
        good = cv2.bitwise_and(good, cv2.bitwise_not(cv2.bitwise_or(far, mirror)))

    few = np.ascontiguousarray(good[::step, ::step])
    log = np.full(few.shape, s.other, np.float32)
    cv2.log(np.ascontiguousarray(ratio[::step, ::step]), log)
    log *= np.float32(1 / s.other)
    cv2.patchNaNs(log, 1.0)
    log = cv2.min(cv2.max(log, -1.0), 1.0)
    weight = cv2.subtract(1.0, cv2.multiply(log, log))
    weight = cv2.copyTo(cv2.multiply(weight, weight), few)
    cells = [_host_cells(part, cell // step) for part in (cv2.multiply(weight, log), weight)]
    mean = _diffused(cells, _host_cells, _host_upsampled)
    factor = _host_upsampled(cv2.exp(mean * np.float32(s.other)), cell, (height, width))

    fused, deviation = cv2.multiply(depth, factor), cv2.multiply(sigma, factor)
    origin = cv2.threshold(fused, 0, NETWORK, cv2.THRESH_BINARY)[1].astype(np.uint8)
    cv2.copyTo(sensor, good, fused)
    cv2.copyTo(cv2.multiply(sensor, sensor, scale=s.noise), good, deviation)
    cv2.copyTo(cv2.min(good, SENSOR), good, origin)
    return fused, origin, deviation


def _host_cells(values: np.ndarray, cell: int) -> np.ndarray:
    height, width = values.shape
    right, below = -width % cell, -height % cell
    if right or below:
        values = cv2.copyMakeBorder(values, 0, below, 0, right, cv2.BORDER_CONSTANT)
    size = (values.shape[1] // cell, values.shape[0] // cell)
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA)


def _host_upsampled(values: np.ndarray, factor: int, size: tuple[int, int]) -> np.ndarray:
    larger = (values.shape[1] * factor, values.shape[0] * factor)
    return cv2.resize(values, larger, interpolation=cv2.INTER_LINEAR)[: size[0], : size[1]]
