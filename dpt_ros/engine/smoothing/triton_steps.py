# SPDX-License-Identifier: Apache-2.0
"""The Triton versions of ``steps``: float32 inside, no atomics, no synchronisation.

Block sizes follow from shapes alone. Needs triton; ``steps`` does not.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dpt_ros.engine.packed import length
from dpt_ros.engine.smoothing import triton_register_jit
from dpt_ros.engine.smoothing import triton_steps_jit as jit
from dpt_ros.engine.smoothing.state import FILTER_FIELDS, MOTION_FIELDS
from dpt_ros.engine.smoothing.steps import sample_step
from dpt_ros.engine.triton_launch import Launch, run

_BLOCK = 256  # pixels of one program
_SAMPLES_BLOCK, _SAMPLES_WARPS = 512, 8  # two samples per thread: the sums stay in registers
_TILE = 512  # logits of one program at a time
_LIMIT = 2**31  # offsets are 32-bit
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def look(raw: Tensor, luma: Tensor, flow: Tensor, launch: Launch = run) -> Tensor:
    """See :func:`dpt_ros.engine.smoothing.steps.look`."""
    batch, height, width = raw.shape
    h, w = luma.shape[1:]
    _maps("look", (batch, height, width), raw)
    _maps("look", (batch, h, w), luma)
    _maps("look", (batch, 5, h, w), flow)
    seen = raw.new_empty(batch, 8, height, width)
    grid = (triton.cdiv(height * width, _BLOCK), batch)
    launch(
        jit.look_kernel, grid, (raw, luma, flow, seen, height, width, h, w), {"BLOCK": _BLOCK}, 4
    )
    return seen


def register(
    seen: Tensor,
    maps: Tensor,
    affine: Tensor,
    age: Tensor,
    metric_affine: Tensor,
    correlation: Tensor,
    numbers: Tensor,
    launch: Launch = run,
) -> Tensor:
    """See :func:`dpt_ros.engine.smoothing.steps.register`."""
    batch, _, height, width = seen.shape
    _maps("register", (batch, 8, height, width), seen)
    _maps("register", (batch, 4, height, width), maps)
    vectors = (affine, age[:, None], metric_affine, correlation, numbers)
    rows = _rows("register", batch, vectors, (2, 1, 2, 2, length(FILTER_FIELDS)))
    step = sample_step(height, width)
    columns = len(range(step // 2, width, step))
    count = columns * len(range(step // 2, height, step))
    samples = seen.new_empty(batch, 3, count)
    motion = seen.new_empty(batch, length(MOTION_FIELDS))
    launch(
        triton_register_jit.register_kernel,
        (batch,),
        (seen, maps, *vectors, samples, motion, *rows, height, width, step, columns, count),
        {"LENGTH": length(MOTION_FIELDS), "BLOCK": _SAMPLES_BLOCK},
        _SAMPLES_WARPS,
    )
    return motion


def blend(
    seen: Tensor,
    raw: Tensor,
    maps: Tensor,
    motion: Tensor,
    correlation: Tensor,
    numbers: Tensor,
    launch: Launch = run,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`dpt_ros.engine.smoothing.steps.blend`."""
    batch, _, height, width = seen.shape
    _maps("blend", (batch, 8, height, width), seen)
    _maps("blend", (batch, height, width), raw)
    _maps("blend", (batch, 4, height, width), maps)
    _maps("blend", (batch, length(MOTION_FIELDS)), motion)
    widths = (2, length(FILTER_FIELDS))
    correlation_row, numbers_row = _rows("blend", batch, (correlation, numbers), widths)
    grid = (triton.cdiv(height * width, _BLOCK), batch)
    meta = {"LENGTH": motion.shape[1], "BLOCK": _BLOCK}
    moving = torch.empty_like(raw, dtype=torch.uint8)
    launch(
        jit.moving_kernel,
        grid,
        (seen, maps, motion, correlation, moving, correlation_row, height, width),
        meta,
        4,
    )
    after, position = torch.empty_like(maps), raw.new_empty(batch, 2, height, width)
    inverse_depth, variance, gain = (torch.empty_like(raw) for _ in range(3))
    outputs = (after, inverse_depth, variance, gain, position)
    launch(
        jit.update_kernel,
        grid,
        (seen, raw, maps, motion, numbers, moving, *outputs, numbers_row, height, width),
        meta,
        4,
    )
    return outputs


def smooth_logits(
    logits: Tensor,
    previous: Tensor | None,
    position: Tensor,
    gain: Tensor,
    numbers: Tensor,
    launch: Launch = run,
) -> Tensor:
    """See :func:`dpt_ros.engine.smoothing.steps.smooth_logits`; in the logits' memory format."""
    batch, classes, h, w = logits.shape
    _, height, width = gain.shape
    _maps("smooth_logits", (batch, height, width), gain)
    _maps("smooth_logits", (batch, 2, height, width), position)
    (numbers_row,) = _rows("smooth_logits", batch, (numbers,), (length(FILTER_FIELDS),))
    # What is absent is never read: any tensor stands in for it.
    known = previous is not None and previous.shape == logits.shape
    before = previous if known and previous is not None else logits
    beside = logits.stride(1) == 1 and classes > 1
    form = torch.channels_last if beside else torch.contiguous_format
    out = torch.empty(logits.shape, device=logits.device, memory_format=form)
    strides = (*_strides(logits), *_strides(before), *_strides(out))
    block = min(triton.next_power_of_2(classes), 32)
    pixels = _TILE // block
    scales = ((height - 1) / max(h - 1, 1), (width - 1) / max(w - 1, 1))
    sizes = (h, w, height, width)
    launch(
        jit.smooth_logits_kernel,
        (triton.cdiv(h * w, pixels), batch),
        (logits, before, position, gain, numbers, out, *strides, numbers_row, *sizes, *scales),
        {"C": classes, "BC": block, "PIXELS": pixels, "PREVIOUS": known},
        4,
    )
    return out


def _maps(name: str, shape: tuple[int, ...], x: Tensor) -> None:
    if tuple(x.shape) != shape or x.dtype != torch.float32 or x.numel() >= _LIMIT:
        raise ValueError(
            f"{name} takes float32 values of shape {shape}, fewer than 2^31, but got {x.dtype} of"
            f" shape {tuple(x.shape)}."
        )
    if not x.is_contiguous():
        raise ValueError(f"{name} needs contiguous values, but strides are {x.stride()}.")


def _rows(
    name: str, batch: int, vectors: tuple[Tensor, ...], widths: tuple[int, ...]
) -> list[int]:
    """Distances of the cameras' vectors in memory."""
    for x, width in zip(vectors, widths, strict=True):
        beside = width == 1 or x.stride(1) == 1
        if x.dtype != torch.float32 or x.shape != (batch, width) or not beside:
            raise ValueError(
                f"{name} takes float32 vectors of shape {(batch, width)}, each in one piece, but"
                f" got {x.dtype} of shape {tuple(x.shape)} with strides {x.stride()}."
            )
    return [x.stride(0) for x in vectors]


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Distances of images, classes and pixels in memory."""
    _, _, h, w = x.shape
    pixel = x.stride(3) if w > 1 else x.stride(2)
    if x.dtype not in _FLOATS or x.numel() >= _LIMIT or (h > 1 and x.stride(2) != w * pixel):
        raise ValueError(
            f"smooth_logits takes floating logits of fewer than 2^31 numbers with evenly spaced"
            f" pixels, but got {x.dtype} of shape {tuple(x.shape)} with strides {x.stride()}."
        )
    return x.stride(0), x.stride(1), pixel
