# SPDX-License-Identifier: Apache-2.0
"""From a depth network's raw inverse depth to 1/m: the metric sources behind one interface;
and every conversion between the two and to metres."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpt_ros.engine.scale.kalman import KALMAN
from dpt_ros.engine.scale.steps import COLUMNS, DEPTHS, apply_table, correct, fit_frame


class ScaleState(NamedTuple):
    """What is kept of a batch of cameras from frame to frame.

    Args:
        numbers: (B, 14) float64, the fields of ``Kalman``.
        table: (B, 64, 40) float32, the local correction.
    """

    numbers: Tensor
    table: Tensor

    @classmethod
    def empty(cls, batch: int, device: torch.device | str = "cpu") -> ScaleState:
        """Of cameras without a past: their first frame has to be ``fresh``."""
        numbers = torch.zeros(batch, len(KALMAN), dtype=torch.float64, device=device)
        return cls(numbers, torch.zeros(batch, DEPTHS, COLUMNS, device=device))


def scale(
    state: ScaleState,
    raw_inverse_depth: Tensor,
    logits: Tensor | None,
    numbers: Tensor,
    metric: bool,
    floor: Tensor | None = None,
) -> tuple[ScaleState, Tensor, Tensor, Tensor, Tensor]:
    """Update the correction of a batch of cameras by a frame of each, and apply it.

    Each frame's robust fit updates a Kalman filter over scale and shift, so that nothing jumps.
    Without a good fit the last correction is held and its uncertainty grows. What anchors measure
    beyond that corrects their surroundings.

    Args:
        state: after the cameras' last frames; of a fresh camera anything.
        raw_inverse_depth: (B, H, W) float32, relative, or 1/m of a metric network; 0 beyond
            range, NaN unknown.
        logits: (B, C, h, w), in which the floor is looked for; None without labels.
        numbers: (B, length(SCALE_FIELDS)) float32, from ``plan_scale``.
        metric: whether the network predicts 1/m by itself.
        floor: (F,) int64 on the device, label ids of the floor counted from 1; None if the
            ground is not used.

    Returns:
        The new state; (B, H, W) float32 raw inverse depth, corrected beside anchors, perhaps the
        argument; (B, 2) float32, scale and shift, of which it becomes inverse depth, 1 and 0
        without metres; (B, 3) float32, their covariance [0, 0], [0, 1], [1, 1]; (B, 9) float32,
        the fields of ``ScaleStats``.
    """
    fits, seen = fit_frame(raw_inverse_depth, None if floor is None else logits, numbers, floor)
    kept, table, affine, covariance, stats = correct(
        state.numbers, state.table, fits, seen, numbers, metric
    )
    corrected = apply_table(raw_inverse_depth, table, affine)
    return ScaleState(kept, table), corrected, affine, covariance, stats


def metric_inverse_depth(raw_inverse_depth: Tensor, affine: Tensor) -> Tensor:
    """Inverse depth in 1/m; 0 is beyond range, NaN is unknown.

    Args:
        raw_inverse_depth: (..., H, W) float32; what is not positive becomes 0, NaN stays NaN.
        affine: (2, ...) scale and shift, whatever their signs.

    Returns:
        (..., H, W) float32; 0 where the affine map would make it negative.
    """
    mapped = torch.addcmul(affine[1], affine[0], raw_inverse_depth).clamp(min=0)
    return torch.where(raw_inverse_depth > 0, mapped, raw_inverse_depth.clamp(min=0))


def limit_depth(depth: Tensor, max_range: Tensor | float) -> Tensor:
    """Depth by REP 117: NaN where it is unknown, not positive or nearer than 1e-6 m (inverse depth
    that overflowed), +Inf beyond ``max_range`` metres.

    Args:
        depth: (...) float32 metres.
        max_range: a tensor () can be changed between replays of a CUDA graph.
    """
    depth = torch.where(depth > 1e-6, depth, torch.nan)
    return torch.where(depth > max_range, torch.inf, depth)
