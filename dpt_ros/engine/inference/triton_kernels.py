# SPDX-License-Identifier: Apache-2.0
"""The Triton versions of ``kernels``: NHWC, float32 inside, no atomics, no synchronisation.

Block sizes follow from shapes alone: nothing is tuned by timing, so that a first run may be
recorded in a CUDA graph once its kernels are compiled. Needs triton; ``kernels`` does not.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
from torch import Tensor

from dpt_ros.engine import triton_launch
from dpt_ros.engine.inference import triton_jit as jit
from dpt_ros.engine.output.postprocess import resize_labels
from dpt_ros.engine.triton_launch import FLOATS, MOST_NUMBERS
from dpt_ros.model.heads import MIN_INVERSE_DEPTH

# A GroupNorm of one kernel keeps its part of the map in registers: this many values at most.
_ONE_PASS = 32768
_TILE = 8192
# Channels that one program handles: 128 bytes of a pixel in half precision, one line of cache.
_SLAB = 64
# Partial statistics per group. More would be read again by every program that applies them.
_PARTS = 128
# Channels below which a program would use less than a sector of memory, 32 bytes, per pixel.
_MIN_SLAB = 16
# Programs that keep a large GPU busy.
_PROGRAMS = 132


def group_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """See :func:`dpt_ros.engine.inference.kernels.group_norm_act`."""
    batch, channels, height, width = _nhwc("group_norm_act", x, residual)
    if channels % groups:
        raise ValueError(f"{channels} channels cannot be normalised in {groups} groups.")
    rows, out = height * width, torch.empty_like(x)
    # The plan ignores the batch: a picture's result does not depend on what comes with it.
    meta, slabs, warps, parts, tiles = _group_norm_plan(rows, channels, groups)
    last = {"RESIDUAL": residual is not None, "RELU": relu}
    residual = x if residual is None else residual
    if parts == 0:
        args = (x, weight, bias, residual, out, rows, eps)
        triton_launch.run(jit.group_norm_one_kernel, (slabs, batch), args, meta | last, warps)
        return out
    tile = meta["ROWS"]
    mean = torch.empty((batch, parts, groups), dtype=torch.float32, device=x.device)
    square = torch.empty_like(mean)
    triton_launch.run(
        jit.group_norm_stats_kernel,
        (parts, slabs, batch),
        (x, mean, square, rows),
        meta | {"TILES": tiles},
        warps,
    )
    triton_launch.run(
        jit.group_norm_apply_kernel,
        (triton.cdiv(rows, tile), slabs, batch),
        (x, mean, square, weight, bias, residual, out, rows, parts, tiles * tile, eps),
        meta | last | {"PARTS": triton.next_power_of_2(parts)},
        warps,
    )
    return out


def _group_norm_plan(
    rows: int, channels: int, groups: int
) -> tuple[dict[str, int], int, int, int, int]:
    # Constants, slabs of groups, warps; parts of the statistics, 0: one kernel does it all; tiles
    # per part.
    width = channels // groups
    padded = triton.next_power_of_2(width)
    all_groups = triton.next_power_of_2(groups)
    meta = {"G": groups, "D": width, "DP": padded}
    whole = triton.next_power_of_2(rows)
    # Small maps: as many programs as whole sectors allow, since each reads all rows alone.
    one = min(max(_MIN_SLAB // padded, 1), all_groups)
    if whole * one * padded <= _ONE_PASS:
        meta |= {"GS": one, "ROWS": whole}
        warps = min(max(whole * one * padded // 2048, 1), 16)
        return meta, triton.cdiv(groups, one), warps, 0, 0
    slab_groups = min(max(_SLAB // padded, 1), all_groups)
    slabs, slab = triton.cdiv(groups, slab_groups), slab_groups * padded
    tile = max(_TILE // slab, 1)
    while tile > 16 and triton.cdiv(rows, tile) * slabs < _PROGRAMS:
        tile //= 2
    tiles = triton.cdiv(triton.cdiv(rows, tile), _PARTS)
    meta |= {"GS": slab_groups, "ROWS": tile}
    warps = min(max(tile * slab // 1024, 1), 8)
    return meta, slabs, warps, triton.cdiv(rows, tile * tiles), tiles


def upsample_add(
    x: Tensor,
    size: tuple[int, int],
    skip: Tensor | None = None,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """See :func:`dpt_ros.engine.inference.kernels.upsample_add`."""
    batch, channels, h, w = _nhwc("upsample_add", x)
    height, width = size
    shape = (batch, channels, height, width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _nhwc("upsample_add", out, skip, residual)
    also = torch.empty_like(out) if relu else out
    block = min(triton.next_power_of_2(channels), 256)
    pixels = 4096 // block
    # What is absent is never read: any tensor stands in for it.
    added = [out if one is None else one for one in (skip, residual, bias)]
    triton_launch.run(
        jit.upsample_add_kernel,
        (triton.cdiv(height * width, pixels), triton.cdiv(channels, block), batch),
        (x, *added, out, also, h, w, height, width, _aligned(h, height), _aligned(w, width)),
        {"C": channels, "BC": block, "PIXELS": pixels, "SKIP": skip is not None}
        | {"RESIDUAL": residual is not None, "BIAS": bias is not None, "RELU": relu},
    )
    return out, also


def bias_act(
    x: Tensor, bias: Tensor | None, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """See :func:`dpt_ros.engine.inference.kernels.bias_act`."""
    _nhwc("bias_act", x, residual)
    out = torch.empty_like(x)
    args = (x, x if bias is None else bias, x if residual is None else residual, out, x.numel())
    meta = {"C": x.shape[1], "BLOCK": 2048, "BIAS": bias is not None}
    meta |= {"RESIDUAL": residual is not None, "RELU": relu}
    triton_launch.run(jit.bias_act_kernel, (triton.cdiv(x.numel(), 2048),), args, meta)
    return out


def add_layer_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See :func:`dpt_ros.engine.inference.kernels.add_layer_norm`."""
    if x.shape != y.shape or x.dtype != y.dtype or x.dtype not in FLOATS:
        raise ValueError(
            f"add_layer_norm adds tokens of one shape and floating type, but got "
            f"{tuple(x.shape)} {x.dtype} and {tuple(y.shape)} {y.dtype}."
        )
    x, y = x.contiguous(), y.contiguous()
    width = x.shape[-1]
    total, out = torch.empty_like(x), torch.empty_like(x)
    triton_launch.run(
        jit.add_layer_norm_kernel,
        (x.numel() // width,),
        (x, y, weight, bias, total, out, width, eps),
        {"BLOCK": triton.next_power_of_2(width)},
        4 if width <= 2048 else 8,
    )
    return total, out


def depth_tail(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: float,
    shift: float,
    invert: bool,
    x_bias: Tensor | None = None,
) -> Tensor:
    """See :func:`dpt_ros.engine.inference.kernels.depth_tail`."""
    batch, channels, height, width = _nhwc("depth_tail", x)
    out = torch.empty((batch, height, width), dtype=torch.float32, device=x.device)
    numbers = (out.numel(), float(scale), float(shift), MIN_INVERSE_DEPTH)
    padded = triton.next_power_of_2(channels)
    pixels = max(4096 // padded, 1)
    triton_launch.run(
        jit.depth_tail_kernel,
        (triton.cdiv(out.numel(), pixels),),
        (x, x if x_bias is None else x_bias, weight, bias, out, *numbers),
        {"K": channels, "KP": padded, "PIXELS": pixels, "X_BIAS": x_bias is not None}
        | {"INVERT": invert},
    )
    return out


def classify_upsampled(
    logits: Tensor, network_size: tuple[int, int], size: tuple[int, int], confidence: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See :func:`dpt_ros.engine.inference.kernels.classify_upsampled`."""
    batch, channels, h, w = logits.shape
    stride = logits.stride(3) if w > 1 else max(channels, 1)
    beside = channels == 1 or logits.stride(1) == 1
    whole = logits.stride(2) % stride == 0 and logits.stride(0) % stride == 0
    if logits.dtype not in FLOATS or not beside or not whole or logits.numel() >= MOST_NUMBERS:
        raise ValueError(
            f"classify_upsampled takes floating logits with a pixel's classes side by side, but "
            f"got {logits.dtype} with strides {logits.stride()}; use channels_last."
        )
    steps = (logits.stride(0) // stride, logits.stride(2) // stride)
    # Each pixel of the network is looked at once at most; the rest of a larger picture repeats.
    smaller = size[0] * size[1] <= network_size[0] * network_size[1]
    height, width = size if smaller else network_size
    labels = torch.empty((batch, height, width), dtype=torch.uint8, device=logits.device)
    sure = torch.empty_like(labels) if confidence else None
    pixels, sure_or_any = 32, labels if sure is None else sure
    sizes = (h, w, *network_size, height, width)
    scales = (_aligned(h, network_size[0]), _aligned(w, network_size[1]))
    picks = (_ratio(network_size[0], height), _ratio(network_size[1], width))
    meta = {"C": channels, "READ": _readable(logits, stride), "STRIDE": stride, "PIXELS": pixels}
    meta |= {"BC": min(32, max(triton.next_power_of_2(channels), 2)), "CONFIDENCE": confidence}
    triton_launch.run(
        jit.classify_kernel,
        (triton.cdiv(height * width, pixels), batch),
        (logits, labels, sure_or_any, *steps, *sizes, *scales, *picks),
        meta,
    )
    return resize_labels(labels, size), None if sure is None else resize_labels(sure, size)


def _readable(logits: Tensor, stride: int) -> int:
    # Classes that may be read per pixel: also the padding, if there is any, to a whole vector.
    batch, channels, h, w = logits.shape
    padded = min(stride, -(-channels // 8) * 8)
    last = (batch - 1) * logits.stride(0) + (h - 1) * logits.stride(2) + (w - 1) * stride
    end = (logits.storage_offset() + last + padded) * logits.element_size()
    return padded if end <= logits.untyped_storage().nbytes() else channels


def _aligned(source: int, target: int) -> float:
    # Distance of two samples with aligned corners, rounded as torch does.
    return float(np.float32(source - 1) / np.float32(target - 1)) if target > 1 else 0.0


def _ratio(source: int, target: int) -> float:
    return float(np.float32(source) / np.float32(target))


def _nhwc(name: str, x: Tensor, *others: Tensor | None) -> torch.Size:
    if x.ndim != 4 or x.dtype not in FLOATS or x.numel() >= MOST_NUMBERS:
        raise ValueError(
            f"{name} takes a floating map (B, C, H, W) of fewer than 2^31 numbers, but got "
            f"{x.dtype} of shape {tuple(x.shape)}."
        )
    for one in (x, *others):
        if one is None:
            continue
        if one.shape != x.shape or one.dtype != x.dtype:
            raise ValueError(
                f"{name} needs maps of one shape and type, but got {one.dtype} "
                f"{tuple(one.shape)} beside {x.dtype} {tuple(x.shape)}."
            )
        if not one.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(
                f"{name} needs channels_last, but a map of shape {tuple(one.shape)} has strides "
                f"{one.stride()}; move the network to channels_last."
            )
    return x.shape
