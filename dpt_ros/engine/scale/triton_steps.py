# SPDX-License-Identifier: Apache-2.0
"""The Triton versions of ``steps``. Needs triton; ``steps`` does not."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dpt_ros.engine import triton_launch
from dpt_ros.engine.packed import length
from dpt_ros.engine.scale import triton_correct_jit as jit
from dpt_ros.engine.scale.anchors import MAX_PAIRS
from dpt_ros.engine.scale.kalman import KALMAN
from dpt_ros.engine.scale.plan import SCALE_FIELDS, ScaleStats
from dpt_ros.engine.scale.robust_fit import Fit
from dpt_ros.engine.scale.steps import COLUMNS, DEPTHS, reach_of
from dpt_ros.engine.scale.triton_fit_jit import fit_kernel
from dpt_ros.engine.triton_launch import check_maps, check_rows

_PIXELS = 1024  # of one program
_ROWS = 16  # of the table, of one program
_CLASSES = 8  # of logits, at a time


def fit_frame(
    raw_inverse_depth: Tensor, logits: Tensor | None, numbers: Tensor, floor: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See :func:`dpt_ros.engine.scale.steps.fit_frame`."""
    batch, height, width = check_maps("fit_frame", raw_inverse_depth)
    check_rows("fit_frame", batch, (numbers, length(SCALE_FIELDS)))
    sources, device = 1, raw_inverse_depth.device
    classes, labels, ids = raw_inverse_depth[:, None], 0, numbers
    if logits is not None and floor is not None:
        sources, classes, labels, ids = 2, logits, len(floor), floor
        if len(logits) != batch or floor.dtype != torch.int64 or not floor.is_contiguous():
            raise ValueError(
                f"fit_frame takes logits of {batch} frames and int64 labels, but got"
                f" {len(logits)} and {floor.dtype}."
            )
    fits = torch.empty((batch, sources, len(Fit._fields)), dtype=torch.float64, device=device)
    seen = torch.empty((batch, MAX_PAIRS), dtype=torch.float32, device=device)
    count, *size = classes.shape[1:]
    given = raw_inverse_depth, classes, numbers, ids, fits, seen
    sizes = numbers.stride(0), height, width, reach_of(width), *size, *classes.stride(), count
    meta = {"COUNT": MAX_PAIRS, "SOURCES": sources, "LABELS": labels, "BLOCK": _CLASSES}
    triton_launch.run(fit_kernel, (sources, batch), given + sizes, meta, 8)
    return fits, seen


def correct(
    state: Tensor, table: Tensor, fits: Tensor, seen: Tensor, numbers: Tensor, metric: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`dpt_ros.engine.scale.steps.correct`."""
    batch = len(numbers)
    check_rows("correct", batch, (numbers, length(SCALE_FIELDS)))
    check_maps("correct", table, shape=(batch, DEPTHS, COLUMNS))
    whole = state.is_contiguous() and fits.is_contiguous() and seen.is_contiguous()
    if state.shape != (batch, len(KALMAN)) or not whole or state.dtype != torch.float64:
        raise ValueError(f"correct takes states of {batch} cameras, but got {tuple(state.shape)}.")
    new = torch.empty_like(state), torch.empty_like(table)
    parts = [
        torch.empty((batch, count), dtype=torch.float32, device=numbers.device)
        for count in (2, 3, len(ScaleStats._fields))
    ]
    triton_launch.run(
        jit.correct_kernel,
        (DEPTHS // _ROWS, batch),
        (state, table, fits, seen, numbers, *new, *parts, numbers.stride(0)),
        {"COUNT": MAX_PAIRS, "SOURCES": fits.shape[1], "METRIC": metric}
        | {"ROWS": _ROWS, "WIDTH": triton.next_power_of_2(COLUMNS), "CHUNK": 32},
    )
    return *new, *parts  # type: ignore[return-value]


def apply_table(raw_inverse_depth: Tensor, table: Tensor, affine: Tensor) -> Tensor:
    """See :func:`dpt_ros.engine.scale.steps.apply_table`."""
    batch, height, width = check_maps("apply_table", raw_inverse_depth)
    check_maps("apply_table", table, shape=(batch, DEPTHS, COLUMNS))
    out, pixels = torch.empty_like(raw_inverse_depth), height * width
    triton_launch.run(
        jit.apply_table_kernel,
        (triton.cdiv(pixels, _PIXELS), batch),
        (raw_inverse_depth, table, affine.contiguous(), out, pixels, width, COLUMNS / width),
        {"PIXELS": _PIXELS},
    )
    return out


def relative_variance(raw_inverse_depth: Tensor, affine: Tensor, covariance: Tensor) -> Tensor:
    """See :func:`dpt_ros.engine.scale.steps.relative_variance`."""
    batch, height, width = check_maps("relative_variance", raw_inverse_depth)
    out, pixels = torch.empty_like(raw_inverse_depth), height * width
    triton_launch.run(
        jit.relative_variance_kernel,
        (triton.cdiv(pixels, _PIXELS), batch),
        (raw_inverse_depth, affine.contiguous(), covariance.contiguous(), out, pixels),
        {"PIXELS": _PIXELS},
    )
    return out
