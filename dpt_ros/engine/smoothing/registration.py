# SPDX-License-Identifier: Apache-2.0
"""The affine map that brings a frame's inverse depth in line with the past."""

from __future__ import annotations

import torch
from torch import Tensor

_ITERATIONS = 3
_HUBER = 0.05  # relative residual from which on a sample counts less
_OUTLIER = 0.35  # relative residual from which on it does not count
_INLIER = 0.15  # relative residual that still speaks for the same scene
_FEWEST = 100  # samples that a fit needs
# Variance of the past's errors as a share of a frame's. Plain least squares takes the frame for
# exact, which flattens it a little; repeated every frame, that would end in a flat wall.
_QUIETER = 0.2
# Spread, as a share of the mean, with which the samples hold a shift against a mere scaling: in
# front of a flat wall the two look alike.
_STIFF = 0.1


def fit_affine(
    raw: Tensor, target: Tensor, usable: Tensor, start: Tensor, own: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and shift with ``scale * raw + shift`` near ``target``.

    Deming's regression with errors on both sides, relative residuals (weight 1 / target in
    inverse depth), Huber's weights and a hard limit. Nothing here waits for the device.

    Args:
        raw: (N,) inverse depth of the frame.
        target: (N,) what the past says of the same places, > 0 where usable.
        usable: (N,) float, 1 for samples that may be used, 0 for others.
        start: (2,) scale and shift to begin with, kept where the samples do not decide.
        own: (2,) scale and shift that the frame would have without a past.

    Returns:
        (2,) scale and shift; and the share of usable samples in line with them, 0..1.
    """
    safe = torch.where(usable > 0, target, torch.ones_like(target))
    rows = torch.stack([raw, safe, torch.ones_like(raw)])
    count = usable.sum().clamp(min=1.0)
    fit = start
    for _ in range(_ITERATIONS):
        residual = ((fit[0] * raw + fit[1]) / safe - 1.0).abs()
        weight = usable * (_HUBER / residual.clamp(min=_HUBER)) * (residual < _OUTLIER)
        moments = (rows * (weight / safe.square())) @ rows.T
        moments = moments / moments[2, 2].clamp(min=1e-9)
        x, y = moments[0, 2], moments[1, 2]
        scaling = own[0] * y / (own[0] * x + own[1]).clamp(min=1e-6)
        stiff = (_STIFF * x).square()
        xx = moments[0, 0] - x * x + stiff
        yy = moments[1, 1] - y * y + stiff * scaling * scaling
        xy = moments[0, 1] - x * y + stiff * scaling
        half = (yy - _QUIETER * fit[0].square() * xx) / 2
        slope = (half + (half.square() + _QUIETER * (fit[0] * xy).square()).sqrt()) / xy
        good = (weight.sum() >= _FEWEST) & (xy > 0) & (slope > 0.2) & (slope < 5.0)
        fit = torch.where(good, torch.stack([slope, y - slope * x]), fit)
    residual = ((fit[0] * raw + fit[1]) / safe - 1.0).abs()
    inliers = (usable * (residual < _INLIER)).sum() / count
    return fit, inliers
