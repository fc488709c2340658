# SPDX-License-Identifier: Apache-2.0
"""Raw inverse depth, inverse depth in 1/m, and depth in metres: every conversion, once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def metric_inverse_depth(raw_inverse_depth: Tensor, affine: Any) -> Tensor:
    """Inverse depth in 1/m; 0 is beyond range, NaN is unknown.

    Args:
        raw_inverse_depth: (..., H, W) float32; what is not positive becomes 0, NaN stays NaN.
        affine: scale and shift, whatever their signs: two numbers, or a tensor (2,).

    Returns:
        (..., H, W) float32; 0 where the affine map would make it negative.
    """
    if isinstance(affine, Tensor):
        mapped = torch.addcmul(affine[1], affine[0], raw_inverse_depth)
    else:
        mapped = raw_inverse_depth * affine[0] + affine[1]
    mapped = mapped.clamp(min=0)
    return torch.where(raw_inverse_depth > 0, mapped, raw_inverse_depth.clamp(min=0))


def limit_depth(depth: Tensor, max_range: Tensor | float) -> Tensor:
    """Depth by REP 117: NaN where it is unknown or not positive, +Inf beyond ``max_range`` metres.

    Args:
        depth: (...) float32 metres.
        max_range: a tensor () can be changed between replays of a CUDA graph.
    """
    depth = torch.where(depth > 0, depth, torch.nan)
    return torch.where(depth > max_range, torch.inf, depth)
