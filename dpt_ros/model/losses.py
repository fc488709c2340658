# SPDX-License-Identifier: Apache-2.0
"""Training losses, on inverse depth and on labels.

DPT (arXiv 2103.13413, section 4.1) is trained with the scale- and shift-invariant loss of MiDaS
(Ranftl et al., arXiv 1907.01341, section 5) and fine-tuned for metres with :func:`silog_loss`;
section 4.2 trains labels with cross-entropy.

``prediction`` and ``target`` are (B, H, W) float32 inverse depths (1 / m where metric); ``mask``
is (B, H, W) bool, True where the target is known; losses are scalars.

``share``: a loss that is a mean over the pixels of a batch passes its pixel count through it and
divides by the result. Where several processes hold a part of the batch each, it is
:func:`mean_over_processes`; then the mean of the processes' gradients is that of the whole batch.
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


def _centred(inverse: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Differences from the median (B, H W), 0 where unknown; median and mean absolute deviation
    (B,), NaN and 0 for an image without a known pixel."""
    flat, known = inverse.flatten(1), mask.flatten(1)
    median = flat.masked_fill(~known, torch.nan).nanmedian(1).values
    centred = (flat - median[:, None]).masked_fill(~known, 0)
    return centred, median, centred.abs().sum(1) / known.sum(1).clamp(min=1)


def median_align(inverse: Tensor, mask: Tensor) -> Tensor:
    """Subtract the median, divide by the mean absolute deviation from it (MiDaS, section 5).

    Images with no known pixel become zero.

    Returns:
        (B, H, W), 0 where unknown.
    """
    centred, _, deviation = _centred(inverse, mask)
    return (centred / deviation[:, None].clamp(min=1e-6)).view_as(inverse)


def robust_alignment(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift that give every prediction its target's median and mean absolute deviation.

    Returns:
        scale and shift, (B,); NaN for an image without a known pixel or a constant prediction.
    """
    _, median_p, deviation_p = _centred(prediction, mask)
    _, median_t, deviation_t = _centred(target, mask)
    scale = torch.where(deviation_p > 0, deviation_t / deviation_p, torch.nan)
    return scale, median_t - scale * median_p


def trimmed_mae(residual: Tensor, mask: Tensor, trim: float = 0.2) -> Tensor:
    """Half the mean absolute residual, without the largest of every image (MiDaS, section 5).

    Args:
        residual: (B, H, W).
        trim: share of an image's known pixels that is left out.
    """
    values = (residual.abs() * mask).flatten(1).sort(1).values
    count = mask.flatten(1).sum(1)
    # Unknown pixels are 0 and come first, so the first H W - trim * count are kept.
    kept = values.shape[1] - (trim * count).round().long()
    ranks = torch.arange(values.shape[1], device=values.device)
    total = (values * (ranks < kept[:, None])).sum(1)
    return (total / (2 * count.clamp(min=1))).mean()


def gradient_matching(
    residual: Tensor, mask: Tensor, scales: int = 4, share: Share = alone
) -> Tensor:
    """Mean absolute differences of neighbouring residuals (B, H, W), summed over full, half,
    quarter ... resolution (MiDaS, section 5)."""
    total = residual.new_zeros(())
    for scale in range(scales):
        r, m = residual[:, :: 2**scale, :: 2**scale], mask[:, :: 2**scale, :: 2**scale]
        across = (r[:, :, 1:] - r[:, :, :-1]).abs() * (m[:, :, 1:] & m[:, :, :-1])
        down = (r[:, 1:] - r[:, :-1]).abs() * (m[:, 1:] & m[:, :-1])
        total = total + (across.sum() + down.sum()) / share(m.sum()).clamp(min=1)
    return total


def _with_gradients(
    loss: Tensor, residual: Tensor, mask: Tensor, alpha: float, share: Share
) -> Tensor:
    return loss + alpha * gradient_matching(residual, mask, share=share) if alpha else loss


def scale_shift_invariant_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, alpha: float = 0.5, share: Share = alone
) -> Tensor:
    """The loss of a relative network: :func:`trimmed_mae` plus ``alpha`` times
    :func:`gradient_matching` of what :func:`median_align` leaves (MiDaS, section 5)."""
    target = median_align(target.masked_fill(~mask, 0), mask)
    residual = (median_align(prediction, mask) - target).masked_fill(~mask, 0)
    return _with_gradients(trimmed_mae(residual, mask), residual, mask, alpha, share)


def metric_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    alpha: float = 0.5,
    floor: float = 1e-3,
    share: Share = alone,
) -> Tensor:
    """The loss of a metric network: L1 of :func:`log_residual` plus ``alpha`` times its
    :func:`gradient_matching`.

    A metric network has to learn scale and shift, so nothing is aligned. The logarithm weighs
    relative errors equally at 1 m and at 20 m, as AbsRel does.

    Args:
        floor: see :func:`log_residual`.
    """
    residual = log_residual(prediction, target, mask, floor)
    loss = residual.abs().sum() / share(mask.sum()).clamp(min=1)
    return _with_gradients(loss, residual, mask, alpha, share)


def log_residual(prediction: Tensor, target: Tensor, mask: Tensor, floor: float) -> Tensor:
    """Difference of the logarithms (B, H, W), 0 where the target is unknown.

    Args:
        floor: inverse depths are clamped to it, 1 / m: the network's smallest; sky has 0.
    """
    difference = prediction.clamp(min=floor).log() - target.clamp(min=floor).log()
    return difference.masked_fill(~mask, 0)


def silog_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    alpha: float = 0.5,
    floor: float = 1e-3,
    variance_focus: float = 0.5,
    share: Share = alone,
) -> Tensor:
    """The loss of Eigen et al. (NeurIPS 2014, eq. 4), with which DPT is fine-tuned (section 4.1):
    mean of d**2 minus ``variance_focus`` times the square of the mean of d, where d is
    :func:`log_residual`; the mean over images. Plus ``alpha`` times gradient matching of d.

    Args:
        alpha: 0 for sparse truth, such as KITTI's, which has no neighbours to compare.
        floor: see :func:`log_residual`.
    """
    residual = log_residual(prediction, target, mask, floor)
    count = mask.flatten(1).sum(1).clamp(min=1)
    mean = residual.flatten(1).sum(1) / count
    square = residual.square().flatten(1).sum(1) / count
    loss = (square - variance_focus * mean.square()).mean()
    return _with_gradients(loss, residual, mask, alpha, share)


def label_loss(
    logits: Tensor, labels: Tensor, weight: Tensor | None = None, share: Share = alone
) -> Tensor:
    """Cross-entropy (section 4.2), the mean over labelled pixels; 0 if there are none.

    Args:
        logits: (B, C, H, W) float32.
        labels: (B, H, W) int64 class indices, -1 where unlabelled.
        weight: (C,) of the classes.
    """
    total = F.cross_entropy(logits, labels, weight, ignore_index=-1, reduction="sum")
    known = labels >= 0
    count = known.sum() if weight is None else weight[labels.clamp(min=0)][known].sum()
    return total / share(count).clamp(min=1e-6)
