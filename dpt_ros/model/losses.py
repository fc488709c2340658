# SPDX-License-Identifier: Apache-2.0
"""Training losses on inverse depth.

Relative networks: the scale-and-shift-invariant loss of Ranftl et al., "Towards Robust Monocular
Depth Estimation", arXiv 1907.01341, which DPT was trained with. Metric networks:
:func:`metric_loss`.

Shapes: ``prediction`` and ``target`` are (B, H, W) float32 inverse depths, ``mask`` is (B, H, W)
bool, True where the target is known.
"""

from __future__ import annotations

import torch
from torch import Tensor


def median_align(inverse: Tensor, mask: Tensor) -> Tensor:
    """Remove shift and scale: subtract the median, divide by the mean absolute deviation from it.

    Images with no known pixel become zero.
    """
    flat, known = inverse.flatten(1), mask.flatten(1)
    count = known.sum(1, keepdim=True).clamp(min=1)
    shift = flat.masked_fill(~known, torch.nan).nanmedian(1, keepdim=True).values.nan_to_num()
    centred = (flat - shift) * known
    scale = centred.abs().sum(1, keepdim=True) / count
    return (centred / scale.clamp(min=1e-6)).view_as(inverse)


def least_squares_align(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """``scale * prediction + shift`` of every image that comes closest to its target.

    An image whose prediction is constant keeps scale 0 and gets the target's mean.
    """
    known = mask.flatten(1).to(prediction.dtype)
    count = known.sum(1).clamp(min=1)
    p, t = prediction.flatten(1) * known, target.flatten(1).masked_fill(~mask.flatten(1), 0)
    mean_p, mean_t = p.sum(1) / count, t.sum(1) / count
    centred = (p - mean_p[:, None]) * known
    variance = centred.square().sum(1)
    scale = (centred * (t - mean_t[:, None])).sum(1) / variance.clamp(min=1e-12)
    shift = mean_t - scale * mean_p
    return scale[:, None, None] * prediction + shift[:, None, None]


def trimmed_mae(residual: Tensor, mask: Tensor, trim: float = 0.2) -> Tensor:
    """Half the mean absolute residual, without the largest ``trim`` part of every image."""
    values = (residual.abs() * mask).flatten(1).sort(1).values
    count = mask.flatten(1).sum(1)
    # masked pixels are 0 and stand in front, so what is kept are the first H W - trim * count
    kept = values.shape[1] - (trim * count).round().long()
    ranks = torch.arange(values.shape[1], device=values.device)
    total = (values * (ranks < kept[:, None])).sum(1)
    return (total / (2 * count.clamp(min=1))).mean()


def gradient_matching(residual: Tensor, mask: Tensor, scales: int = 4) -> Tensor:
    """Absolute differences of neighbouring residuals, at full, half, quarter ... resolution."""
    total = residual.new_zeros(())
    for scale in range(scales):
        r, m = residual[:, :: 2**scale, :: 2**scale], mask[:, :: 2**scale, :: 2**scale]
        across = (r[:, :, 1:] - r[:, :, :-1]).abs() * (m[:, :, 1:] & m[:, :, :-1])
        down = (r[:, 1:] - r[:, :-1]).abs() * (m[:, 1:] & m[:, :-1])
        total = total + (across.sum() + down.sum()) / m.sum().clamp(min=1)
    return total


def scale_shift_invariant_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    alpha: float = 0.5,
    scales: int = 4,
    trim: float = 0.2,
    align: str = "median",
) -> Tensor:
    """The loss of a relative network: trimmed data term plus ``alpha`` times gradient matching.

    Args:
        align: "median" (robust against outliers) or "least squares".

    Raises:
        ValueError: if ``align`` is something else.
    """
    if align == "median":
        residual = median_align(prediction, mask) - median_align(
            target.masked_fill(~mask, 0), mask
        )
    elif align == "least squares":
        residual = least_squares_align(prediction, target, mask) - target
    else:
        raise ValueError(f"The alignment must be 'median' or 'least squares', not {align!r}.")
    residual = residual.masked_fill(~mask, 0)
    return trimmed_mae(residual, mask, trim) + alpha * gradient_matching(residual, mask, scales)


def metric_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    alpha: float = 0.5,
    scales: int = 4,
    floor: float = 1e-3,
) -> Tensor:
    """The loss of a metric network: L1 on the logarithm of inverse depth plus gradient matching of
    the same.

    A metric network has to learn scale and shift, so nothing is aligned away. The logarithm makes
    an error of 5 % cost the same at 1 m and at 20 m, as AbsRel does; plain inverse depth would
    hardly see anything beyond a few metres.

    Args:
        floor: inverse depths below it count as it (the farthest the network can say; sky has
            inverse depth 0).
    """
    residual = (prediction.clamp(min=floor).log() - target.clamp(min=floor).log()).masked_fill(
        ~mask, 0
    )
    data = residual.abs().sum() / mask.sum().clamp(min=1)
    return data + alpha * gradient_matching(residual, mask, scales)
