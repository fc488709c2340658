# SPDX-License-Identifier: Apache-2.0
"""Affine registration of frames' inverse depth against the filter's state."""

from __future__ import annotations

import numpy as np
import torch

from dpt_ros.engine.scale import arrays
from dpt_ros.engine.smoothing.maps import LARGEST, Array, library, scaled

MIN_INVERSE_DEPTH = 1e-6  # 1/m, stands for an inverse depth that is not valid
# What is larger is not valid, in any unit: a network's overflow. Squares of it fit into float32.
MAX_INVERSE_DEPTH = 1e9
_ITERATIONS = 3
_HUBER = 0.05  # relative residual from which on a sample has less weight
_OUTLIER = 0.35  # relative residual from which on it has none
_INLIER = 0.15  # relative residual up to which a sample is an inlier
_MIN_WEIGHT = 100  # sum of the weights that a fit needs
# Variance of the state's errors over a frame's. Plain least squares takes the frame for exact,
# which flattens it a little; repeated every frame, that would end in a flat wall.
_VARIANCE_RATIO = 0.2
# Regularisation towards a mere scaling, a spread relative to the mean: in front of a flat wall
# scale and shift look alike.
_RIDGE = 0.1


def fit_affine(
    inverse_depth: Array, target: Array, usable: Array, start: Array, metric_affine: Array
) -> tuple[Array, Array]:
    """Scale and shift with ``scale * inverse_depth + shift`` near ``target``.

    Deming regression with errors on both sides, relative residuals (weight 1 / target), Huber's
    weights and a hard limit.

    Args:
        inverse_depth: (B, N) of the frame.
        target: (B, N) of the state at the same points, 1/m, > 0 where usable.
        usable: (B, N) float, 1 for samples that may be used, 0 for others.
        start: (B, 2) initial scale and shift, kept where the samples do not determine them.
        metric_affine: (B, 2) scale and shift that the frame would have by itself.

    Returns:
        (B, 2) scale and shift; and (B,) the share of usable samples that are inliers, 0..1.
    """
    parts = inverse_depth, target, usable, start, metric_affine
    if isinstance(inverse_depth, np.ndarray):
        found = np.array([_fit(*(one[0] for one in parts))], np.float32)
        return found[:, :2], found[:, 2]
    slope, shift, inliers = _fit(*parts)
    return torch.cat([slope, shift], 1), inliers[:, 0]


def _fit(
    inverse_depth: Array, target: Array, usable: Array, start: Array, metric_affine: Array
) -> tuple[Array, Array, Array]:
    """Scale, shift and share of inliers, see ``fit_affine``: of tensors (B, 1) each, of one
    camera's arrays numbers."""
    safe = arrays.where(usable > 0, target, 1.0)
    inverse, ones = 1.0 / safe, arrays.zeros(safe) + 1.0
    relative = inverse_depth * inverse
    rows = arrays.stack([relative, ones, inverse], -2)
    slope, shift = map(arrays.column, arrays.columns(start))
    own_slope, own_shift = map(arrays.column, arrays.columns(metric_affine))
    for _ in range(_ITERATIONS):
        residual = abs(slope * relative + shift * inverse - 1.0)
        weight = usable * (_HUBER / arrays.maximum(residual, _HUBER)) * (residual <= _OUTLIER)
        moments = (rows * weight[..., None, :]) @ rows.swapaxes(-1, -2)
        moments = moments.reshape(*moments.shape[:-2], 9)
        xx, xy, x, _, count, y, _, _, total = map(arrays.column, arrays.columns(moments))
        total = arrays.maximum(total, 1e-9)
        x, y = x / total, y / total
        scaling = own_slope * y / arrays.maximum(own_slope * x + own_shift, 1e-6)
        ridge = (_RIDGE * x) ** 2
        xx = xx / total - x * x + ridge
        yy = count / total - y * y + ridge * scaling * scaling
        xy = xy / total - x * y + ridge * scaling
        half = (yy - _VARIANCE_RATIO * slope * slope * xx) / 2
        found = (half + arrays.sqrt(half * half + _VARIANCE_RATIO * (slope * xy) ** 2)) / xy
        good = (count >= _MIN_WEIGHT) & (xy > 0) & (found > 0.2) & (found < 5.0)
        slope, shift = arrays.where(good, found, slope), arrays.where(good, y - found * x, shift)
    residual = abs(slope * relative + shift * inverse - 1.0)
    inliers = (usable * (residual <= _INLIER)).sum(-1) / arrays.maximum(usable.sum(-1), 1.0)
    return slope, shift, arrays.column(inliers)


def bounded_affine(inverse_depth: Array, affine: Array, metric_affine: Array) -> Array:
    """Inverse depth (B, H, W) by an affine map (B, 2), within 0.3 to 3 times of that by another:
    a shift that fits what is near may not send what is far behind the camera."""
    xp, mapped = library(inverse_depth), scaled(inverse_depth, affine[:, 0], affine[:, 1])
    # What is linear keeps its sign between the ends: then nothing is to be bounded.
    if xp is np:
        (a, b), (c, d) = affine[0].tolist(), metric_affine[0].tolist()
        ends = float(inverse_depth.min()), float(inverse_depth.max())
        pairs = [(a * x + b, c * x + d) for x in ends]
        if all(y > MIN_INVERSE_DEPTH and 0.3 * y < x < 3 * y for x, y in pairs):
            return mapped
    usual = scaled(inverse_depth, metric_affine[:, 0], metric_affine[:, 1])
    usual = usual.clip(MIN_INVERSE_DEPTH, LARGEST)
    xp.maximum(mapped, 0.3 * usual, out=mapped)
    usual *= 3
    return xp.minimum(mapped, usual, out=mapped)
