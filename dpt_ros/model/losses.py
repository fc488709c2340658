# SPDX-License-Identifier: Apache-2.0
"""Training losses on inverse depth.

Relative networks: the scale-and-shift-invariant loss of Ranftl et al., "Towards Robust Monocular
Depth Estimation", arXiv 1907.01341, which DPT was trained with. Metric networks:
:func:`metric_loss`, or :func:`silog_loss`, with which DPT was fine-tuned. Labels:
:func:`label_loss`.

Shapes: ``prediction`` and ``target`` are (B, H, W) float32 inverse depths, ``mask`` is (B, H, W)
bool, True where the target is known.

``share``: a loss that is a mean over the pixels of a batch asks it for the number to divide by.
Where several processes hold a part of the batch each, it is :func:`mean_over_processes`; then the
mean of the processes' gradients is the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Share = Callable[[Tensor], Tensor]


def alone(count: Tensor) -> Tensor:
    """The count of a process that holds the whole batch."""
    return count


def mean_over_processes(count: Tensor) -> Tensor:
    """What every process counted, on average: the same number in all of them."""
    count = count.detach().float()
    torch.distributed.all_reduce(count)
    return count / torch.distributed.get_world_size()


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


def robust_alignment(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift that give every prediction its target's median and mean absolute deviation.

    Returns:
        scale and shift, (B,); NaN for an image without a known pixel or a constant prediction.
    """
    known = mask.flatten(1)
    count = known.sum(1)

    def location(inverse: Tensor) -> tuple[Tensor, Tensor]:
        flat = inverse.flatten(1).masked_fill(~known, torch.nan)
        median = flat.nanmedian(1).values
        return median, (flat - median[:, None]).abs().nansum(1) / count

    (median_p, spread_p), (median_t, spread_t) = location(prediction), location(target)
    scale = torch.where(spread_p > 0, spread_t / spread_p, torch.nan)
    return scale, median_t - scale * median_p


def trimmed_mae(residual: Tensor, mask: Tensor, trim: float = 0.2) -> Tensor:
    """Half the mean absolute residual, without the largest ``trim`` part of every image."""
    values = (residual.abs() * mask).flatten(1).sort(1).values
    count = mask.flatten(1).sum(1)
    # masked pixels are 0 and stand in front, so what is kept are the first H W - trim * count
    kept = values.shape[1] - (trim * count).round().long()
    ranks = torch.arange(values.shape[1], device=values.device)
    total = (values * (ranks < kept[:, None])).sum(1)
    return (total / (2 * count.clamp(min=1))).mean()


def gradient_matching(
    residual: Tensor, mask: Tensor, scales: int = 4, share: Share = alone
) -> Tensor:
    """Absolute differences of neighbouring residuals, at full, half, quarter ... resolution."""
    total = residual.new_zeros(())
    for scale in range(scales):
        r, m = residual[:, :: 2**scale, :: 2**scale], mask[:, :: 2**scale, :: 2**scale]
        across = (r[:, :, 1:] - r[:, :, :-1]).abs() * (m[:, :, 1:] & m[:, :, :-1])
        down = (r[:, 1:] - r[:, :-1]).abs() * (m[:, 1:] & m[:, :-1])
        total = total + (across.sum() + down.sum()) / share(m.sum()).clamp(min=1)
    return total


def scale_shift_invariant_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    alpha: float = 0.5,
    scales: int = 4,
    trim: float = 0.2,
    align: str = "median",
    share: Share = alone,
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
    loss = trimmed_mae(residual, mask, trim)
    return loss + alpha * gradient_matching(residual, mask, scales, share) if alpha else loss


def metric_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    alpha: float = 0.5,
    scales: int = 4,
    floor: float = 1e-3,
    share: Share = alone,
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
    residual = log_residual(prediction, target, mask, floor)
    loss = residual.abs().sum() / share(mask.sum()).clamp(min=1)
    return loss + alpha * gradient_matching(residual, mask, scales, share) if alpha else loss


def log_residual(prediction: Tensor, target: Tensor, mask: Tensor, floor: float) -> Tensor:
    """Difference of the logarithms, 0 where the target is unknown."""
    difference = prediction.clamp(min=floor).log() - target.clamp(min=floor).log()
    return difference.masked_fill(~mask, 0)


def silog_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    alpha: float = 0.5,
    scales: int = 4,
    floor: float = 1e-3,
    variance_focus: float = 0.5,
    share: Share = alone,
) -> Tensor:
    """The loss of Eigen et al. (NeurIPS 2014, eq. 4), with which the paper fine-tunes (4.1):
    mean of d**2 minus ``variance_focus`` times the square of the mean of d, d the difference of
    the logarithms; the mean over images. Plus ``alpha`` times gradient matching of d.

    Args:
        alpha: 0 for sparse truth, such as KITTI's, which has no neighbours to compare.
        floor: as for :func:`metric_loss`.
    """
    residual = log_residual(prediction, target, mask, floor)
    count = mask.flatten(1).sum(1).clamp(min=1)
    mean = residual.flatten(1).sum(1) / count
    square = residual.square().flatten(1).sum(1) / count
    loss = (square - variance_focus * mean.square()).mean()
    return loss + alpha * gradient_matching(residual, mask, scales, share) if alpha else loss


def label_loss(
    logits: Tensor, labels: Tensor, weight: Tensor | None = None, share: Share = alone
) -> Tensor:
    """Cross-entropy, the mean over the judged pixels; 0 if there are none.

    Args:
        logits: (B, C, H, W) float32.
        labels: (B, H, W) int64 class indices, -1 where nothing is judged.
        weight: (C,) of the classes.
    """
    total = F.cross_entropy(logits, labels, weight, ignore_index=-1, reduction="sum")
    judged = labels >= 0
    count = judged.sum() if weight is None else weight[labels.clamp(min=0)][judged].sum()
    return total / share(count).clamp(min=1e-6)
