# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""The Triton versions of ``flow``: float32 inside, no atomics, one program per patch or tile.

Every index is clamped to its map before it is used, so that displacements may have any value.
Needs triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpt_ros.engine import triton_launch
from dpt_ros.engine.smoothing.flow import (
    BLUE,
    GREEN,
    HALF_CONTRAST,
    ITERATIONS,
    PATCH,
    PRIOR,
    RED,
    STRIDE,
    flow_size,
)
from dpt_ros.engine.triton_launch import check_maps

_ROWS, _COLUMNS = 4, 64  # pixels of one program's tile
_TILE = 16  # pixels a side of the images that become one pixel of the smallest level
_SIZES = ["height", "width"]
_STRIDES = ["to_image", "to_channel", "to_row", "to_column"]
_LEVEL_SIZES = [*_SIZES, "rows", "columns"]  # one variant for all levels


@triton.jit
def _tile(ROWS: tl.constexpr, COLUMNS: tl.constexpr, height, width):
    # Rows and columns of a program's pixels, (ROWS, COLUMNS), and which of them there are.
    y = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    x = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    y, x = tl.broadcast(y, x)
    return tl.minimum(y, height - 1), tl.minimum(x, width - 1), (y < height) & (x < width)


@triton.jit
def _sample(image, x, y, height, width):
    # Bilinear; outside as at the edge. The maximum of NaN and 0 is 0.
    x = tl.minimum(tl.maximum(x, 0.0), (width - 1).to(tl.float32))
    y = tl.minimum(tl.maximum(y, 0.0), (height - 1).to(tl.float32))
    left, top = x.to(tl.int32), y.to(tl.int32)
    x, y = x - left.to(tl.float32), y - top.to(tl.float32)
    right, bottom = tl.minimum(left + 1, width - 1), tl.minimum(top + 1, height - 1)
    above = (1.0 - x) * tl.load(image + top * width + left) + x * tl.load(
        image + top * width + right
    )
    below = (1.0 - x) * tl.load(image + bottom * width + left) + x * tl.load(
        image + bottom * width + right
    )
    return (1.0 - y) * above + y * below


@triton.jit
def _mirrored(i, count):
    # The index inside of 0..count - 1 of one that is at most count - 1 outside.
    return (count - 1) - tl.abs((count - 1) - tl.abs(i))


@triton.jit
def _slopes(image, y, x, height, width):
    # Sobel's along x and y.
    here = image + y * width
    above = image + _mirrored(y - 1, height) * width
    below = image + _mirrored(y + 1, height) * width
    left, right = _mirrored(x - 1, width), _mirrored(x + 1, width)
    top_left, top_right = tl.load(above + left), tl.load(above + right)
    low_left, low_right = tl.load(below + left), tl.load(below + right)
    along_x = top_right + low_right - top_left - low_left
    along_x += 2.0 * (tl.load(here + right) - tl.load(here + left))
    along_y = low_left + low_right - top_left - top_right
    along_y += 2.0 * (tl.load(below + x) - tl.load(above + x))
    return along_x / 8.0, along_y / 8.0


@triton.jit(do_not_specialize=[*_SIZES, "source_height", "source_width", *_STRIDES])
def luma_kernel(
    images, scale, offset, out, to_image, to_channel, to_row, to_column,
    source_height, source_width, height, width, down, right,
    DOWN: tl.constexpr, RIGHT: tl.constexpr, R: tl.constexpr, G: tl.constexpr, B: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grey levels; each pixel is the mean of down x right pixels of the source."""
    image = tl.program_id(2).to(tl.int64)
    y, x, there = _tile(ROWS, COLUMNS, height, width)
    top, left = y.to(tl.float32) * down, x.to(tl.float32) * right
    first_row, first_column = top.to(tl.int32), left.to(tl.int32)
    red = tl.load(scale) * R
    green = tl.load(scale + 1) * G
    blue = tl.load(scale + 2) * B
    level = tl.load(offset) * R + tl.load(offset + 1) * G + tl.load(offset + 2) * B
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for i in range(DOWN):
        row = tl.minimum(first_row + i, source_height - 1)
        edge = (first_row + i).to(tl.float32)
        tall = tl.minimum(top + down, edge + 1.0) - tl.maximum(top, edge)
        for j in range(RIGHT):
            column = tl.minimum(first_column + j, source_width - 1)
            edge = (first_column + j).to(tl.float32)
            wide = tl.minimum(left + right, edge + 1.0) - tl.maximum(left, edge)
            pixel = images + image * to_image + row * to_row + column * to_column
            value = red * tl.load(pixel).to(tl.float32)
            value += green * tl.load(pixel + to_channel).to(tl.float32)
            value += blue * tl.load(pixel + 2 * to_channel).to(tl.float32)
            total += tl.maximum(tall, 0.0) * tl.maximum(wide, 0.0) * value
    target = out + (image * height + y) * width + x
    tl.store(target, total / (down * right) + level, mask=there)


@triton.jit(do_not_specialize=_SIZES)
def pyramid_kernel(luma, previous, half, quarter, eighth, last, height, width, TILE: tl.constexpr):
    """Averages of one tile of one image: 8 x 8, 4 x 4, 2 x 2 and 1 pixel."""
    image = tl.program_id(2)
    y = tl.program_id(1) * TILE + tl.arange(0, TILE)
    x = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = (y < height)[:, None] & (x < width)[None, :]
    source = (image // 2 * height + y[:, None]) * width + x[None, :]
    if image % 2 == 0:
        value = tl.load(luma + source, mask=there, other=0.0)
    else:
        value = tl.load(previous + source, mask=there, other=0.0)
    value = _halve(value, half, image, height // 2, width // 2, TILE // 2)
    value = _halve(value, quarter, image, height // 4, width // 4, TILE // 4)
    value = _halve(value, eighth, image, height // 8, width // 8, TILE // 8)
    _halve(value, last, image, height // 16, width // 16, TILE // 16)


@triton.jit
def _halve(value, out, image, height, width, SIDE: tl.constexpr):
    # Store the means of 2 x 2 pixels of a tile where the map has them, and return them.
    value = tl.reshape(value, (SIDE, 2, SIDE, 2))
    value = tl.sum(tl.sum(value, 3), 1) * 0.25
    y = (tl.program_id(1) * SIDE + tl.arange(0, SIDE))[:, None]
    x = (tl.program_id(0) * SIDE + tl.arange(0, SIDE))[None, :]
    target = out + (image * height + y) * width + x
    tl.store(target, value, mask=(y < height) & (x < width))
    return value


@triton.jit
def _match(previous, template, slope_x, slope_y, x, y, u, v, du, dv, height, width, prior):
    # Error of the displacement u, v, which is du, dv from where it began, and its slope.
    found = _sample(previous, x + u, y + v, height, width)
    found = found - tl.sum(found, 0) / found.shape[0] - template
    error = tl.sum(found * found, 0) + prior * (du * du + dv * dv)
    down_x = tl.sum(slope_x * found, 0) + prior * du
    down_y = tl.sum(slope_y * found, 0) + prior * dv
    return error, down_x, down_y


@triton.jit(do_not_specialize=_LEVEL_SIZES)
def search_kernel(
    level, coarse, out, height, width, rows, columns,
    PATCH: tl.constexpr, STRIDE: tl.constexpr, ITERATIONS: tl.constexpr, PRIOR: tl.constexpr,
):  # fmt: skip
    """One patch: the best of nine displacements of the coarser level, then Gauss-Newton."""
    column, row, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pixel = tl.arange(0, PATCH * PATCH)
    y = row * STRIDE + pixel // PATCH
    x = column * STRIDE + pixel % PATCH
    luma = level + image * 2 * height * width
    previous = luma + height * width
    template = tl.load(luma + y * width + x)
    slope_x, slope_y = _slopes(luma, y, x, height, width)
    template -= tl.sum(template, 0) / (PATCH * PATCH)
    slope_x -= tl.sum(slope_x, 0) / (PATCH * PATCH)
    slope_y -= tl.sum(slope_y, 0) / (PATCH * PATCH)
    a = tl.sum(slope_x * slope_x, 0) + PRIOR
    b = tl.sum(slope_y * slope_y, 0) + PRIOR
    c = tl.sum(slope_x * slope_y, 0)
    determinant = a * b - c * c
    x, y = x.to(tl.float32), y.to(tl.float32)

    coarse += image * 2 * rows * columns
    error, down_x, down_y = float("inf"), 0.0, 0.0
    begin_u, begin_v = 0.0, 0.0
    for k in range(9):
        near_row = tl.minimum(row // 2, rows - 1) + k // 3 - 1
        near_column = tl.minimum(column // 2, columns - 1) + k % 3 - 1
        near_row = tl.minimum(tl.maximum(near_row, 0), rows - 1)
        near_column = tl.minimum(tl.maximum(near_column, 0), columns - 1)
        place = near_row * columns + near_column
        u = 2.0 * tl.load(coarse + place)
        v = 2.0 * tl.load(coarse + rows * columns + place)
        its_error, its_x, its_y = _match(
            previous, template, slope_x, slope_y, x, y, u, v, 0.0, 0.0, height, width, PRIOR
        )
        lower = its_error < error
        error = tl.where(lower, its_error, error)
        begin_u, begin_v = tl.where(lower, u, begin_u), tl.where(lower, v, begin_v)
        down_x, down_y = tl.where(lower, its_x, down_x), tl.where(lower, its_y, down_y)

    best_u, best_v = begin_u, begin_v
    step_u = (c * down_y - b * down_x) / determinant
    step_v = (c * down_x - a * down_y) / determinant
    for _ in range(ITERATIONS):
        u, v = best_u + step_u, best_v + step_v
        its_error, its_x, its_y = _match(
            previous, template, slope_x, slope_y, x, y, u, v, u - begin_u, v - begin_v,
            height, width, PRIOR,
        )  # fmt: skip
        lower = its_error < error
        error = tl.where(lower, its_error, error)
        best_u, best_v = tl.where(lower, u, best_u), tl.where(lower, v, best_v)
        step_u = tl.where(lower, (c * its_y - b * its_x) / determinant, 0.5 * step_u)
        step_v = tl.where(lower, (c * its_x - a * its_y) / determinant, 0.5 * step_v)
    count = tl.num_programs(0) * tl.num_programs(1)
    target = out + image * 2 * count + row * tl.num_programs(0) + column
    tl.store(target, best_u)
    tl.store(target + count, best_v)


@triton.jit(do_not_specialize=_LEVEL_SIZES)
def dense_kernel(
    level, flow, out, height, width, rows, columns,
    STRIDE: tl.constexpr, CONTRAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Displacement of the patches that cover a pixel, and texture around it."""
    image = tl.program_id(2)
    y, x, there = _tile(ROWS, COLUMNS, height, width)
    luma = level + image * 2 * height * width
    here = tl.load(luma + y * width + x)
    flow += image * 2 * rows * columns
    total_u = tl.zeros((ROWS, COLUMNS), tl.float32)
    total_v = tl.zeros((ROWS, COLUMNS), tl.float32)
    weights = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in tl.static_range(4):
        row = tl.minimum(tl.maximum(y // STRIDE - 1 + k // 2, 0), rows - 1)
        column = tl.minimum(tl.maximum(x // STRIDE - 1 + k % 2, 0), columns - 1)
        u = tl.load(flow + row * columns + column)
        v = tl.load(flow + (rows + row) * columns + column)
        there_x, there_y = x.to(tl.float32) + u, y.to(tl.float32) + v
        found = _sample(luma + height * width, there_x, there_y, height, width)
        weight = 1.0 / tl.maximum(tl.abs(found - here), 1.0)
        total_u += u * weight
        total_v += v * weight
        weights += weight
    square_x = tl.zeros((ROWS, COLUMNS), tl.float32)
    square_y = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(9):
        near_y, near_x = _mirrored(y + k // 3 - 1, height), _mirrored(x + k % 3 - 1, width)
        slope_x, slope_y = _slopes(luma, near_y, near_x, height, width)
        square_x += slope_x * slope_x
        square_y += slope_y * slope_y
    noise = square_x + square_y + 9.0 * CONTRAST * CONTRAST
    target = out + (image * 4 * height + y) * width + x
    tl.store(target, total_u / weights, mask=there)
    tl.store(target + height * width, total_v / weights, mask=there)
    tl.store(target + 2 * height * width, square_x / noise, mask=there)
    tl.store(target + 3 * height * width, square_y / noise, mask=there)


@triton.jit(do_not_specialize=[*_LEVEL_SIZES, "count"])
def finish_kernel(
    luma, previous, small, half, out, height, width, rows, columns, count,
    COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Everything at full size, and the photometric error."""
    image = tl.program_id(2)
    pixel = tl.arange(0, COUNT)
    small += image * 2 * count + pixel
    mean = tl.sum(tl.load(small, mask=pixel < count, other=0.0), 0) / count
    before = tl.sum(tl.load(small + count, mask=pixel < count, other=0.0), 0) / count
    gain = mean / tl.maximum(before, 1.0)
    y, x, there = _tile(ROWS, COLUMNS, height, width)
    column, row = x.to(tl.float32) * 0.5 - 0.25, y.to(tl.float32) * 0.5 - 0.25
    half += image * 4 * rows * columns
    u = 2.0 * _sample(half, column, row, rows, columns)
    v = 2.0 * _sample(half + rows * columns, column, row, rows, columns)
    there_x, there_y = x.to(tl.float32) + u, y.to(tl.float32) + v
    moved = _sample(previous + image * height * width, there_x, there_y, height, width)
    now = tl.load(luma + (image * height + y) * width + x)
    target = out + (image * 5 * height + y) * width + x
    tl.store(target, u, mask=there)
    tl.store(target + height * width, v, mask=there)
    tl.store(target + 2 * height * width, tl.abs(now - gain * moved), mask=there)
    for k in tl.static_range(2):
        texture = _sample(half + (2 + k) * rows * columns, column, row, rows, columns)
        tl.store(target + (3 + k) * height * width, texture, mask=there)


def luma_of(images: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """See :func:`dpt_ros.engine.smoothing.flow.luma_of`."""
    batch, _, source_height, source_width = images.shape
    height, width = flow_size(source_height, source_width)
    out = torch.empty((batch, height, width), dtype=torch.float32, device=images.device)
    check_maps("luma_of", scale, offset, out)
    sizes = (source_height, source_width, height, width)
    ratios = (source_height / height, source_width / width)
    triton_launch.run(
        luma_kernel,
        _tiles(batch, height, width),
        (images, scale, offset, out, *images.stride(), *sizes, *ratios),
        {"DOWN": _taps(source_height, height), "RIGHT": _taps(source_width, width)}
        | {"R": RED, "G": GREEN, "B": BLUE, "ROWS": _ROWS, "COLUMNS": _COLUMNS},
    )
    return out


def pyramid(luma: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`dpt_ros.engine.smoothing.flow.pyramid`."""
    batch, height, width = check_maps("pyramid", luma, previous)
    half, quarter, eighth, last = (
        torch.empty((batch, 2, height // k, width // k), device=luma.device) for k in (2, 4, 8, 16)
    )
    grid = (triton.cdiv(width, _TILE), triton.cdiv(height, _TILE), 2 * batch)
    args = (luma, previous, half, quarter, eighth, last, height, width)
    triton_launch.run(pyramid_kernel, grid, args, {"TILE": _TILE}, 1)
    return half, quarter, eighth, last


def search(level: Tensor, coarse: Tensor) -> Tensor:
    """See :func:`dpt_ros.engine.smoothing.flow.search`."""
    batch, _, height, width = check_maps("search", level, coarse)
    rows, columns = ((side - PATCH) // STRIDE + 1 for side in (height, width))
    out = torch.empty((batch, 2, rows, columns), dtype=torch.float32, device=level.device)
    triton_launch.run(
        search_kernel,
        (columns, rows, batch),
        (level, coarse, out, height, width, *coarse.shape[2:]),
        {"PATCH": PATCH, "STRIDE": STRIDE, "ITERATIONS": ITERATIONS, "PRIOR": PRIOR},
        1,
    )
    return out


def dense(level: Tensor, flow: Tensor) -> Tensor:
    """See :func:`dpt_ros.engine.smoothing.flow.dense`."""
    batch, _, height, width = check_maps("dense", level, flow)
    out = torch.empty((batch, 4, height, width), dtype=torch.float32, device=level.device)
    triton_launch.run(
        dense_kernel,
        _tiles(batch, height, width),
        (level, flow, out, height, width, *flow.shape[2:]),
        {"STRIDE": STRIDE, "CONTRAST": HALF_CONTRAST, "ROWS": _ROWS, "COLUMNS": _COLUMNS},
    )
    return out


def finish(luma: Tensor, previous: Tensor, small: Tensor, half: Tensor) -> Tensor:
    """See :func:`dpt_ros.engine.smoothing.flow.finish`."""
    batch, height, width = check_maps("finish", luma, previous, small, half)
    out = torch.empty((batch, 5, height, width), dtype=torch.float32, device=luma.device)
    count = small.shape[2] * small.shape[3]
    triton_launch.run(
        finish_kernel,
        _tiles(batch, height, width),
        (luma, previous, small, half, out, height, width, *half.shape[2:], count),
        {"COUNT": triton.next_power_of_2(count), "ROWS": _ROWS, "COLUMNS": _COLUMNS},
    )
    return out


def _tiles(batch: int, height: int, width: int) -> tuple[int, int, int]:
    return triton.cdiv(width, _COLUMNS), triton.cdiv(height, _ROWS), batch


def _taps(source: int, target: int) -> int:
    # Pixels of the source that one of the target can overlap.
    return 1 if source == target else -(-source // target) + 1
