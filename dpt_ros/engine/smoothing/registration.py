# SPDX-License-Identifier: Apache-2.0
"""Affine registration of frames' inverse depth against the filter's state."""

from __future__ import annotations

from dpt_ros.engine.smoothing.maps import LARGEST, Array, above, extremes, library, scaled

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
    xp = library(inverse_depth)
    safe = xp.where(usable > 0, target, 1.0)
    inverse = 1.0 / safe
    relative = inverse_depth * inverse
    rows = xp.stack([relative, xp.ones_like(safe), inverse], 1)
    own_scale, own_shift = metric_affine[:, 0], metric_affine[:, 1]
    fit = start
    for _ in range(_ITERATIONS):
        residual = abs(fit[:, :1] * relative + fit[:, 1:] * inverse - 1.0)
        weight = usable * (_HUBER / residual.clip(_HUBER, LARGEST))
        weight *= 1 - above(residual, _OUTLIER)
        moments = (rows * weight[:, None]) @ rows.swapaxes(1, 2)
        moments = moments / moments[:, 2:, 2:].clip(1e-9, LARGEST)
        x, y = moments[:, 0, 2], moments[:, 1, 2]
        scaling = own_scale * y / (own_scale * x + own_shift).clip(1e-6, LARGEST)
        ridge = (_RIDGE * x) ** 2
        xx = moments[:, 0, 0] - x * x + ridge
        yy = moments[:, 1, 1] - y * y + ridge * scaling * scaling
        xy = moments[:, 0, 1] - x * y + ridge * scaling
        half = (yy - _VARIANCE_RATIO * fit[:, 0] ** 2 * xx) / 2
        slope = (half + xp.sqrt(half**2 + _VARIANCE_RATIO * (fit[:, 0] * xy) ** 2)) / xy
        good = (weight.sum(1) >= _MIN_WEIGHT) & (xy > 0) & (slope > 0.2) & (slope < 5.0)
        fit = xp.where(good[:, None], xp.stack([slope, y - slope * x], 1), fit)
    residual = abs(fit[:, :1] * relative + fit[:, 1:] * inverse - 1.0)
    inliers = (usable * (1 - above(residual, _INLIER))).sum(1) / usable.sum(1).clip(1.0, LARGEST)
    return fit, inliers


def bounded_affine(inverse_depth: Array, affine: Array, metric_affine: Array) -> Array:
    """Inverse depth (B, H, W) by an affine map (B, 2), within 0.3 to 3 times of that by another:
    a shift that fits what is near may not send what is far behind the camera."""
    xp, mapped = library(inverse_depth), scaled(inverse_depth, affine[:, 0], affine[:, 1])
    # What is linear keeps its sign between the ends: then nothing is to be bounded.
    if ends := extremes(inverse_depth):
        (a, b), (c, d) = affine[0].tolist(), metric_affine[0].tolist()
        pairs = [(a * x + b, c * x + d) for x in ends]
        if all(y > MIN_INVERSE_DEPTH and 0.3 * y < x < 3 * y for x, y in pairs):
            return mapped
    usual = scaled(inverse_depth, metric_affine[:, 0], metric_affine[:, 1])
    usual = usual.clip(MIN_INVERSE_DEPTH, LARGEST)
    xp.maximum(mapped, 0.3 * usual, out=mapped)
    usual *= 3
    return xp.minimum(mapped, usual, out=mapped)
