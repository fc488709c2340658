# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""The Triton code of ``triton_kernels``: maps in NHWC, float32 inside, no atomics."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _columns(slab, G: tl.constexpr, D: tl.constexpr, GS: tl.constexpr, DP: tl.constexpr):
    # Channels of a slab of GS groups, each padded from D to DP, and which of them there are.
    column = tl.arange(0, GS * DP)
    if D == DP:
        channel = slab * (GS * DP) + column
        return channel, channel < G * D
    group = slab * GS + column // DP
    return group * D + column % DP, (group < G) & (column % DP < D)


@triton.jit
def _group_sum(column_sums, GS: tl.constexpr, DP: tl.constexpr):
    return tl.sum(tl.reshape(column_sums, (GS, DP)), 1)


@triton.jit
def _spread(per_group, GS: tl.constexpr, DP: tl.constexpr):
    return tl.reshape(tl.broadcast_to(per_group[:, None], (GS, DP)), (GS * DP,))


@triton.jit
def _apply_norm(
    x,
    scale,
    shift,
    residual_ptr,
    out_ptr,
    offsets,
    mask,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
):
    y = x * scale[None, :] + shift[None, :]
    if RESIDUAL:
        y += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0)
    tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def group_norm_one_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    rows,
    eps,
    G: tl.constexpr,
    D: tl.constexpr,
    GS: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
):
    """GroupNorm of a small map: one program holds all pixels of its groups."""
    channel, real = _columns(tl.program_id(0), G, D, GS, DP)
    row = tl.arange(0, ROWS)
    offsets = (tl.program_id(1) * rows + row[:, None]) * (G * D) + channel[None, :]
    mask = (row[:, None] < rows) & real[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    count = rows * D * 1.0
    mean = _spread(_group_sum(tl.sum(x, 0), GS, DP) / count, GS, DP)
    difference = tl.where(mask, x - mean[None, :], 0.0)
    variance = _group_sum(tl.sum(difference * difference, 0), GS, DP) / count
    scale = _spread(1.0 / tl.sqrt(variance + eps), GS, DP)
    scale *= tl.load(weight_ptr + channel, mask=real, other=0.0).to(tl.float32)
    shift = tl.load(bias_ptr + channel, mask=real, other=0.0).to(tl.float32)
    _apply_norm(difference, scale, shift, residual_ptr, out_ptr, offsets, mask, RESIDUAL, RELU)


@triton.jit
def group_norm_stats_kernel(
    x_ptr,
    mean_ptr,
    square_ptr,
    rows,
    G: tl.constexpr,
    D: tl.constexpr,
    GS: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Mean and sum of squared differences of a part of the rows, per group.

    Tiles are merged as Chan, Golub and LeVeque (1979) do it: exact far from zero mean.
    """
    part, slab, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel, real = _columns(slab, G, D, GS, DP)
    mean = tl.zeros((GS,), tl.float32)
    square = tl.zeros((GS,), tl.float32)
    count_before = 0.0
    for tile in range(TILES):
        first = (part * TILES + tile) * ROWS
        row = first + tl.arange(0, ROWS)
        offsets = (image * rows + row[:, None]) * (G * D) + channel[None, :]
        mask = (row[:, None] < rows) & real[None, :]
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        count = (tl.minimum(tl.maximum(rows - first, 0), ROWS) * D).to(tl.float32)
        tile_mean = _group_sum(tl.sum(x, 0), GS, DP) / tl.maximum(count, 1.0)
        difference = tl.where(mask, x - _spread(tile_mean, GS, DP)[None, :], 0.0)
        total = count_before + count
        weight = count / tl.maximum(total, 1.0)
        change = tile_mean - mean
        mean += change * weight
        square += _group_sum(tl.sum(difference * difference, 0), GS, DP)
        square += change * change * count_before * weight
        count_before = total
    group = slab * GS + tl.arange(0, GS)
    target = (image * tl.num_programs(0) + part) * G + group
    tl.store(mean_ptr + target, mean, mask=group < G)
    tl.store(square_ptr + target, square, mask=group < G)


@triton.jit
def group_norm_apply_kernel(
    x_ptr,
    mean_ptr,
    square_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    rows,
    parts,
    part_rows,
    eps,
    G: tl.constexpr,
    D: tl.constexpr,
    GS: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
):
    """Merge the parts' statistics, then normalise a tile."""
    slab, image = tl.program_id(1), tl.program_id(2)
    part = tl.arange(0, PARTS)
    group = slab * GS + tl.arange(0, GS)
    source = (image * parts + part[:, None]) * G + group[None, :]
    there = (part[:, None] < parts) & (group[None, :] < G)
    means = tl.load(mean_ptr + source, mask=there, other=0.0)
    squares = tl.load(square_ptr + source, mask=there, other=0.0)
    counts = tl.minimum(tl.maximum(rows - part * part_rows, 0), part_rows) * D
    counts = tl.where(part < parts, counts, 0).to(tl.float32)
    total = rows * D * 1.0
    mean = tl.sum(means * (counts / total)[:, None], 0)
    change = means - mean[None, :]
    variance = tl.sum(squares + change * change * counts[:, None], 0) / total
    mean = _spread(mean, GS, DP)

    channel, real = _columns(slab, G, D, GS, DP)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    offsets = (image * rows + row[:, None]) * (G * D) + channel[None, :]
    mask = (row[:, None] < rows) & real[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    scale = _spread(1.0 / tl.sqrt(variance + eps), GS, DP)
    scale *= tl.load(weight_ptr + channel, mask=real, other=0.0).to(tl.float32)
    shift = tl.load(bias_ptr + channel, mask=real, other=0.0).to(tl.float32)
    _apply_norm(
        x - mean[None, :], scale, shift, residual_ptr, out_ptr, offsets, mask, RESIDUAL, RELU
    )


@triton.jit
def _bilinear(x_ptr, top_left, top_right, bottom_left, bottom_right, fy, fx, mask):
    a = tl.load(x_ptr + top_left, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + top_right, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(x_ptr + bottom_left, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(x_ptr + bottom_right, mask=mask, other=0.0).to(tl.float32)
    return (1.0 - fy) * ((1.0 - fx) * a + fx * b) + fy * ((1.0 - fx) * c + fx * d)


@triton.jit
def upsample_add_kernel(
    x_ptr,
    skip_ptr,
    residual_ptr,
    bias_ptr,
    out_ptr,
    relu_ptr,
    h,
    w,
    height,
    width,
    y_scale,
    x_scale,
    C: tl.constexpr,
    BC: tl.constexpr,
    PIXELS: tl.constexpr,
    SKIP: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
):
    """Bilinear with aligned corners, plus what is to be added; torch's order of operations."""
    image = tl.program_id(2)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = pixel < height * width
    mask = inside[:, None] & (channel < C)[None, :]
    y = (pixel // width).to(tl.float32) * y_scale
    x = (pixel % width).to(tl.float32) * x_scale
    y0 = tl.minimum(y.to(tl.int32), h - 1)
    x0 = tl.minimum(x.to(tl.int32), w - 1)
    y1 = tl.minimum(y0 + 1, h - 1)
    x1 = tl.minimum(x0 + 1, w - 1)
    fy = (y - y0.to(tl.float32))[:, None]
    fx = (x - x0.to(tl.float32))[:, None]
    top = ((image * h + y0) * w)[:, None] * C + channel[None, :]
    bottom = ((image * h + y1) * w)[:, None] * C + channel[None, :]
    left, right = (x0 * C)[:, None], (x1 * C)[:, None]
    value = _bilinear(x_ptr, top + left, top + right, bottom + left, bottom + right, fy, fx, mask)
    target = (image * height * width + pixel)[:, None] * C + channel[None, :]
    if BIAS:
        value += tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    if SKIP:
        value += tl.load(skip_ptr + target, mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual_ptr + target, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + target, value.to(out_ptr.dtype.element_ty), mask=mask)
    if RELU:
        value = tl.maximum(value, 0.0)
        tl.store(relu_ptr + target, value.to(relu_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bias_act_kernel(
    x_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    total,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
):
    """Bias, residual and ReLU after a convolution."""
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < total
    value = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias_ptr + offset % C, mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0)
    tl.store(out_ptr + offset, value.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def add_layer_norm_kernel(
    x_ptr, y_ptr, weight_ptr, bias_ptr, sum_ptr, out_ptr, width, eps, BLOCK: tl.constexpr
):
    """One token: x + y, rounded as it is stored, and its LayerNorm."""
    column = tl.arange(0, BLOCK)
    mask = column < width
    offset = tl.program_id(0) * width + column
    total = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(y_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    rounded = total.to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + offset, rounded, mask=mask)
    total = rounded.to(tl.float32)
    difference = tl.where(mask, total - tl.sum(total, 0) / width, 0.0)
    variance = tl.sum(difference * difference, 0) / width
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=mask, other=0.0).to(tl.float32)
    value = difference * (1.0 / tl.sqrt(variance + eps)) * weight + bias
    tl.store(out_ptr + offset, value.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def depth_tail_kernel(
    x_ptr,
    x_bias_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    total,
    scale,
    shift,
    least,
    K: tl.constexpr,
    KP: tl.constexpr,
    PIXELS: tl.constexpr,
    X_BIAS: tl.constexpr,
    INVERT: tl.constexpr,
):
    """The end of the depth head: a dot product per pixel, then metres."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, KP)
    inside = pixel < total
    mask = inside[:, None] & (channel < K)[None, :]
    x = tl.load(x_ptr + pixel[:, None] * K + channel[None, :], mask=mask, other=0.0)
    x = x.to(tl.float32)
    if X_BIAS:
        x += tl.load(x_bias_ptr + channel, mask=channel < K, other=0.0).to(tl.float32)[None, :]
    weight = tl.load(weight_ptr + channel, mask=channel < K, other=0.0).to(tl.float32)
    value = tl.sum(tl.maximum(x, 0.0) * weight[None, :], 1) + tl.load(bias_ptr).to(tl.float32)
    value = scale * tl.maximum(value, 0.0) + shift
    if INVERT:
        value = 1.0 / tl.maximum(value, least)
    tl.store(out_ptr + pixel, value, mask=inside)


@triton.jit
def classify_kernel(
    x_ptr,
    label_ptr,
    confidence_ptr,
    image_pixels,
    row_pixels,
    h,
    w,
    net_height,
    net_width,
    height,
    width,
    y_scale,
    x_scale,
    y_pick,
    x_pick,
    C: tl.constexpr,
    READ: tl.constexpr,
    STRIDE: tl.constexpr,
    BC: tl.constexpr,
    PIXELS: tl.constexpr,
    CONFIDENCE: tl.constexpr,
):
    """Class of each output pixel: the network's pixel it shows, whose logits lie between four."""
    image = tl.program_id(1)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    row = ((pixel // width).to(tl.float32) + 0.5) * y_pick
    column = ((pixel % width).to(tl.float32) + 0.5) * x_pick
    y = tl.minimum(row.to(tl.int32), net_height - 1).to(tl.float32) * y_scale
    x = tl.minimum(column.to(tl.int32), net_width - 1).to(tl.float32) * x_scale
    y0 = tl.minimum(y.to(tl.int32), h - 1)
    x0 = tl.minimum(x.to(tl.int32), w - 1)
    fy = (y - y0.to(tl.float32))[:, None]
    fx = (x - x0.to(tl.float32))[:, None]
    top = image * image_pixels + y0 * row_pixels
    bottom = image * image_pixels + tl.minimum(y0 + 1, h - 1) * row_pixels
    x1 = tl.minimum(x0 + 1, w - 1)
    # The distance of two pixels is known here, so that whole vectors of classes can be loaded.
    top_left = ((top + x0) * STRIDE)[:, None]
    top_right = ((top + x1) * STRIDE)[:, None]
    bottom_left = ((bottom + x0) * STRIDE)[:, None]
    bottom_right = ((bottom + x1) * STRIDE)[:, None]
    best = tl.full((PIXELS,), float("-inf"), tl.float32)
    index = tl.zeros((PIXELS,), tl.int32)
    total = tl.zeros((PIXELS,), tl.float32)
    for first in range(0, C, BC):
        channel = (first + tl.arange(0, BC))[None, :]
        mask = inside[:, None] & (channel < READ)
        value = _bilinear(
            x_ptr + channel, top_left, top_right, bottom_left, bottom_right, fy, fx, mask
        )
        value = tl.where(channel < C, value, float("-inf"))
        part = tl.max(value, 1)
        # The first of equal classes wins, in a part and across parts, as in torch.max.
        where = tl.min(tl.where(value == part[:, None], channel, C - 1), 1)
        index = tl.where(part > best, where, index)
        if CONFIDENCE:
            higher = tl.maximum(best, part)
            total = total * tl.exp(best - higher)
            total += tl.sum(tl.exp(value - higher[:, None]), 1)
        best = tl.maximum(best, part)
    target = image * height * width + pixel
    tl.store(label_ptr + target, (index + 1).to(tl.uint8), mask=inside)
    if CONFIDENCE:
        tl.store(confidence_ptr + target, (255.0 / total + 0.5).to(tl.uint8), mask=inside)
