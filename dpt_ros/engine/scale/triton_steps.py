# SPDX-License-Identifier: Apache-2.0
"""The Triton versions of ``steps``. Needs triton; ``steps`` does not."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dpt_ros.engine.packed import length
from dpt_ros.engine.scale import triton_correct_jit as jit
from dpt_ros.engine.scale.anchors import MAX_PAIRS
from dpt_ros.engine.scale.kalman import KALMAN
from dpt_ros.engine.scale.plan import SCALE_FIELDS, ScaleStats
from dpt_ros.engine.scale.robust_fit import Fit
from dpt_ros.engine.scale.steps import COLUMNS, DEPTHS, reach_of
from dpt_ros.engine.scale.triton_fit_jit import fit_kernel
from dpt_ros.engine.triton_launch import Launch, run

_PIXELS = 1024  # of one program
_ROWS = 16  # of the table, of one program
_CLASSES = 8  # of logits, at a time


def fit_frame(
    raw_inverse_depth: Tensor,
    logits: Tensor | None,
    numbers: Tensor,
    floor: Tensor | None,
    launch: Launch = run,
) -> tuple[Tensor, Tensor]:
    """See :func:`dpt_ros.engine.scale.steps.fit_frame`."""
    batch, height, width = _map("fit_frame", raw_inverse_depth)
    _numbers("fit_frame", numbers, batch)
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
    launch(fit_kernel, (sources, batch), given + sizes, meta, 8)
    return fits, seen


def correct(
    state: Tensor,
    table: Tensor,
    fits: Tensor,
    seen: Tensor,
    numbers: Tensor,
    metric: bool,
    launch: Launch = run,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`dpt_ros.engine.scale.steps.correct`."""
    batch = len(numbers)
    _numbers("correct", numbers, batch)
    _table("correct", table, batch)
    whole = state.is_contiguous() and fits.is_contiguous() and seen.is_contiguous()
    if state.shape != (batch, len(KALMAN)) or not whole or state.dtype != torch.float64:
        raise ValueError(f"correct takes states of {batch} cameras, but got {tuple(state.shape)}.")
    new = torch.empty_like(state), torch.empty_like(table)
    parts = [
        torch.empty((batch, count), dtype=torch.float32, device=numbers.device)
        for count in (2, 3, len(ScaleStats._fields))
    ]
    launch(
        jit.correct_kernel,
        (DEPTHS // _ROWS, batch),
        (state, table, fits, seen, numbers, *new, *parts, numbers.stride(0)),
        {"COUNT": MAX_PAIRS, "SOURCES": fits.shape[1], "METRIC": metric}
        | {"ROWS": _ROWS, "WIDTH": triton.next_power_of_2(COLUMNS), "CHUNK": 32},
        4,
    )
    return *new, *parts  # type: ignore[return-value]


def apply_table(
    raw_inverse_depth: Tensor, table: Tensor, affine: Tensor, launch: Launch = run
) -> Tensor:
    """See :func:`dpt_ros.engine.scale.steps.apply_table`."""
    batch, height, width = _map("apply_table", raw_inverse_depth)
    _table("apply_table", table, batch)
    out, pixels = torch.empty_like(raw_inverse_depth), height * width
    launch(
        jit.apply_table_kernel,
        (triton.cdiv(pixels, _PIXELS), batch),
        (raw_inverse_depth, table, affine.contiguous(), out, pixels, width, COLUMNS / width),
        {"PIXELS": _PIXELS},
        4,
    )
    return out


def relative_variance(
    raw_inverse_depth: Tensor, affine: Tensor, covariance: Tensor, launch: Launch = run
) -> Tensor:
    """See :func:`dpt_ros.engine.scale.steps.relative_variance`."""
    batch, height, width = _map("relative_variance", raw_inverse_depth)
    out, pixels = torch.empty_like(raw_inverse_depth), height * width
    launch(
        jit.relative_variance_kernel,
        (triton.cdiv(pixels, _PIXELS), batch),
        (raw_inverse_depth, affine.contiguous(), covariance.contiguous(), out, pixels),
        {"PIXELS": _PIXELS},
        4,
    )
    return out


def _map(name: str, values: Tensor) -> torch.Size:
    if values.ndim != 3 or values.dtype != torch.float32 or not values.is_contiguous():
        raise ValueError(
            f"{name} takes a contiguous float32 map (B, H, W), but got {values.dtype} of shape"
            f" {tuple(values.shape)} and strides {values.stride()}."
        )
    return values.shape


def _numbers(name: str, numbers: Tensor, batch: int) -> None:
    shape, dtype = (batch, length(SCALE_FIELDS)), torch.float32
    if numbers.shape != shape or numbers.dtype != dtype or numbers.stride(1) != 1:
        raise ValueError(
            f"{name} takes numbers {shape} in float32, but got {tuple(numbers.shape)} in"
            f" {numbers.dtype}."
        )


def _table(name: str, table: Tensor, batch: int) -> None:
    shape = (batch, DEPTHS, COLUMNS)
    if table.shape != shape or table.dtype != torch.float32 or not table.is_contiguous():
        raise ValueError(f"{name} takes a float32 table {shape}, but got {tuple(table.shape)}.")
