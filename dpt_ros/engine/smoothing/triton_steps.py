# SPDX-License-Identifier: Apache-2.0
"""The Triton versions of ``steps``: float32 inside, no atomics, no synchronisation.

Block sizes follow from shapes alone. Needs triton; ``steps`` does not.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dpt_ros.engine import triton_launch
from dpt_ros.engine.packed import length
from dpt_ros.engine.smoothing import triton_register_jit
from dpt_ros.engine.smoothing import triton_steps_jit as jit
from dpt_ros.engine.smoothing.state import FILTER_FIELDS, MOTION_FIELDS
from dpt_ros.engine.smoothing.steps import sample_step
from dpt_ros.engine.triton_launch import FLOATS, MOST_NUMBERS, check_maps, check_rows

_BLOCK = 256  # pixels of one program
_SAMPLES_BLOCK, _SAMPLES_WARPS = 512, 8  # two samples per thread: the sums stay in registers
_TILE = 512  # logits of one program at a time


def look(raw: Tensor, luma: Tensor, flow: Tensor) -> Tensor:
    """See :func:`dpt_ros.engine.smoothing.steps.look`."""
    batch, height, width = check_maps("look", raw)
    h, w = luma.shape[1:]
    check_maps("look", luma, shape=(batch, h, w))
    check_maps("look", flow, shape=(batch, 5, h, w))
    seen = raw.new_empty(batch, 8, height, width)
    grid = (triton.cdiv(height * width, _BLOCK), batch)
    triton_launch.run(
        jit.look_kernel, grid, (raw, luma, flow, seen, height, width, h, w), {"BLOCK": _BLOCK}
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
) -> Tensor:
    """See :func:`dpt_ros.engine.smoothing.steps.register`."""
    batch, _, height, width = seen.shape
    check_maps("register", seen, shape=(batch, 8, height, width))
    check_maps("register", maps, shape=(batch, 4, height, width))
    vectors = (affine, age[:, None], metric_affine, correlation, numbers)
    lengths = (2, 1, 2, 2, length(FILTER_FIELDS))
    rows = check_rows("register", batch, *zip(vectors, lengths, strict=True))
    step = sample_step(height, width)
    columns = len(range(step // 2, width, step))
    count = columns * len(range(step // 2, height, step))
    samples = seen.new_empty(batch, 3, count)
    motion = seen.new_empty(batch, length(MOTION_FIELDS))
    triton_launch.run(
        triton_register_jit.register_kernel,
        (batch,),
        (seen, maps, *vectors, samples, motion, *rows, height, width, step, columns, count),
        {"LENGTH": length(MOTION_FIELDS), "BLOCK": _SAMPLES_BLOCK},
        _SAMPLES_WARPS,
    )
    return motion


def blend(
    seen: Tensor, raw: Tensor, maps: Tensor, motion: Tensor, correlation: Tensor, numbers: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`dpt_ros.engine.smoothing.steps.blend`."""
    batch, _, height, width = seen.shape
    check_maps("blend", seen, shape=(batch, 8, height, width))
    check_maps("blend", raw, shape=(batch, height, width))
    check_maps("blend", maps, shape=(batch, 4, height, width))
    check_maps("blend", motion, shape=(batch, length(MOTION_FIELDS)))
    correlation_row, numbers_row = check_rows(
        "blend", batch, (correlation, 2), (numbers, length(FILTER_FIELDS))
    )
    grid = (triton.cdiv(height * width, _BLOCK), batch)
    meta = {"LENGTH": motion.shape[1], "BLOCK": _BLOCK}
    moving = torch.empty_like(raw, dtype=torch.uint8)
    triton_launch.run(
        jit.moving_kernel,
        grid,
        (seen, maps, motion, correlation, moving, correlation_row, height, width),
        meta,
    )
    after, position = torch.empty_like(maps), raw.new_empty(batch, 2, height, width)
    inverse_depth, variance, gain = (torch.empty_like(raw) for _ in range(3))
    outputs = (after, inverse_depth, variance, gain, position)
    triton_launch.run(
        jit.update_kernel,
        grid,
        (seen, raw, maps, motion, numbers, moving, *outputs, numbers_row, height, width),
        meta,
    )
    return outputs


def smooth_logits(
    logits: Tensor, previous: Tensor | None, position: Tensor, gain: Tensor, numbers: Tensor
) -> Tensor:
    """See :func:`dpt_ros.engine.smoothing.steps.smooth_logits`; in the logits' memory format."""
    batch, classes, h, w = logits.shape
    _, height, width = gain.shape
    check_maps("smooth_logits", gain, shape=(batch, height, width))
    check_maps("smooth_logits", position, shape=(batch, 2, height, width))
    (numbers_row,) = check_rows("smooth_logits", batch, (numbers, length(FILTER_FIELDS)))
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
    triton_launch.run(
        jit.smooth_logits_kernel,
        (triton.cdiv(h * w, pixels), batch),
        (logits, before, position, gain, numbers, out, *strides, numbers_row, *sizes, *scales),
        {"C": classes, "BC": block, "PIXELS": pixels, "PREVIOUS": known},
    )
    return out


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Distances of images, classes and pixels in memory."""
    _, _, h, w = x.shape
    pixel = x.stride(3) if w > 1 else x.stride(2)
    if x.dtype not in FLOATS or x.numel() >= MOST_NUMBERS or (h > 1 and x.stride(2) != w * pixel):
        raise ValueError(
            f"smooth_logits takes floating logits of fewer than 2^31 numbers with evenly spaced"
            f" pixels, but got {x.dtype} of shape {tuple(x.shape)} with strides {x.stride()}."
        )
    return x.stride(0), x.stride(1), pixel
