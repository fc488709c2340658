# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""The Triton code of ``triton_fused_depth``: float32 inside, no atomics.

The cells of all levels of a camera lie one after the other, the finest level first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dpt_ros.engine.output import fused_depth

_PRIOR = tl.constexpr(fused_depth.PRIOR)
_SHARE = tl.constexpr(fused_depth.MIRROR_SHARE)
_SPAN = tl.constexpr(2 * fused_depth.MIRROR_REACH + 1)
_SENSOR, _NETWORK = tl.constexpr(fused_depth.SENSOR), tl.constexpr(fused_depth.NETWORK)
# What is known of a pixel by itself: the sensor is wrong, right, or wrong if a mirror is near.
_KEPT, _DOUBTED = tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _place(cell, index, columns, height, width, CELL: tl.constexpr, SIDE: tl.constexpr):
    # Row and column of the pixels of cells, of which only SIDE x SIDE are used, and whether
    # they are there.
    row = (cell // columns)[:, None] * CELL + index // SIDE * (CELL // SIDE)
    column = (cell % columns)[:, None] * CELL + index % SIDE * (CELL // SIDE)
    return row, column, (index < SIDE * SIDE) & (row < height) & (column < width)


@triton.jit
def decide_kernel(
    sensor_ptr, depth_ptr, code_ptr, mirrors_ptr, height, width, rows, columns,
    near, far, mirror, edge, front, tolerance, tolerance_metres,
    CELL: tl.constexpr, CELLS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """What is known of each pixel by itself, and how many of each cell are in a mirror."""
    camera = tl.program_id(1)
    sensor_ptr += camera * height * width
    depth_ptr += camera * height * width
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    count = tl.zeros((CELLS,), tl.float32)
    for first in range(0, CELL * CELL, PIXELS):
        index = (first + tl.arange(0, PIXELS))[None, :]
        row, column, inside = _place(cell, index, columns, height, width, CELL, CELL)
        pixel = row * width + column
        sensor = tl.load(sensor_ptr + pixel, mask=inside, other=0.0)
        depth = tl.load(depth_ptr + pixel, mask=inside, other=0.0)
        valid = inside & (sensor >= near) & (sensor <= far)
        nearest, farthest = sensor, sensor
        for k in tl.static_range(9):
            if k != 4:
                dy, dx = k // 3 - 1, k % 3 - 1
                there = valid & (row + dy >= 0) & (row + dy < height)
                there = there & (column + dx >= 0) & (column + dx < width)
                beside = tl.load(sensor_ptr + pixel + dy * width + dx, mask=there, other=0.0)
                there = there & (beside >= near) & (beside <= far)
                nearest = tl.where(there & (beside < nearest), beside, nearest)
                farthest = tl.where(there & (beside > farthest), beside, farthest)
        good = valid & ((farthest <= nearest * edge) | (sensor <= nearest * front))
        in_mirror = valid & (tl.div_rn(sensor, depth) >= mirror)
        doubted = sensor - depth > tl.maximum(sensor * tolerance, tolerance_metres)
        code = tl.where(good & (in_mirror == 0), tl.where(doubted, _DOUBTED, _KEPT), 0)
        tl.store(code_ptr + camera * height * width + pixel, code.to(tl.uint8), mask=inside)
        count += tl.sum(in_mirror.to(tl.float32), 1)
    size = rows * columns
    tl.store(mirrors_ptr + camera * size + cell, count, mask=cell < size)


@triton.jit
def _count_around(ptr, cell, rows, columns):
    index = tl.arange(0, triton.next_power_of_2(_SPAN * _SPAN))[None, :]
    row = (cell // columns)[:, None] + index // _SPAN - _SPAN // 2
    column = (cell % columns)[:, None] + index % _SPAN - _SPAN // 2
    there = (index < _SPAN * _SPAN) & (row >= 0) & (row < rows)
    there = there & (column >= 0) & (column < columns)
    return tl.sum(tl.load(ptr + row * columns + column, mask=there, other=0.0), 1)


@triton.jit
def weigh_kernel(
    sensor_ptr, depth_ptr, code_ptr, mirrors_ptr, around_ptr, sums_ptr,
    height, width, rows, columns, length, other,
    CELL: tl.constexpr, STEP: tl.constexpr, CELLS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Whether a mirror is near a cell; its mean of weighted logarithms, and that of weights."""
    camera, size = tl.program_id(1), rows * columns
    sensor_ptr += camera * height * width
    depth_ptr += camera * height * width
    code_ptr += camera * height * width
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    count = _count_around(mirrors_ptr + camera * size, cell, rows, columns)
    around = count > _SHARE * (_SPAN * _SPAN * CELL * CELL)
    tl.store(around_ptr + camera * size + cell, around.to(tl.uint8), mask=cell < size)

    SIDE: tl.constexpr = CELL // STEP
    total, sum_of_weights = tl.zeros((CELLS,), tl.float32), tl.zeros((CELLS,), tl.float32)
    for first in range(0, SIDE * SIDE, PIXELS):
        index = (first + tl.arange(0, PIXELS))[None, :]
        row, column, inside = _place(cell, index, columns, height, width, CELL, SIDE)
        pixel = row * width + column
        code = tl.load(code_ptr + pixel, mask=inside, other=0)
        good = (code == _KEPT) | ((code == _DOUBTED) & (around[:, None] == 0))
        sensor = tl.load(sensor_ptr + pixel, mask=good, other=1.0)
        ratio = sensor / tl.load(depth_ptr + pixel, mask=good, other=1.0)
        # Where the network has no value, or none that can be, weight is 0.
        usable = good & (ratio > 0)
        log = tl.maximum(tl.log(tl.where(usable, ratio, 1.0)) / other, -1.0)
        weight = tl.maximum(1.0 - log * log, 0.0)
        weight = tl.where(usable, weight * weight, 0.0)
        total += tl.sum(weight * log, 1)
        sum_of_weights += tl.sum(weight, 1)
    sums_ptr += camera * 2 * length + cell
    tl.store(sums_ptr, total / (SIDE * SIDE), mask=cell < size)
    tl.store(sums_ptr + length, sum_of_weights / (SIDE * SIDE), mask=cell < size)


@triton.jit
def _level(rows, columns, LEVEL: tl.constexpr):
    # Where a level begins, and its rows and columns.
    start = 0
    for _ in tl.static_range(LEVEL):
        start += rows * columns
        rows = (rows + 1) // 2
        columns = (columns + 1) // 2
    return start, rows, columns


@triton.jit
def _halved(values, SIDE: tl.constexpr):
    values = tl.reshape(values, (SIDE // 2, 2, SIDE // 2, 2))
    return tl.sum(tl.sum(values, 3), 1) * 0.25


@triton.jit
def _tile(tile, tiles, rows, columns, SIDE: tl.constexpr):
    # Cells of a square tile, and whether they are there.
    row = tile // tiles * SIDE + tl.arange(0, SIDE)[:, None]
    column = tile % tiles * SIDE + tl.arange(0, SIDE)[None, :]
    return row * columns + column, (row < rows) & (column < columns)


@triton.jit
def pull_kernel(sums_ptr, rows, columns, length, tiles, LEVELS: tl.constexpr):
    """Means of 2 x 2 cells up to the coarsest level, a cell of that per program; beyond the
    border are zeros."""
    sums_ptr += tl.program_id(1) * length
    index, inside = _tile(tl.program_id(0), tiles, rows, columns, 1 << (LEVELS - 1))
    values = tl.load(sums_ptr + index, mask=inside, other=0.0)
    for k in tl.static_range(1, LEVELS):
        values = _halved(values, 1 << (LEVELS - k))
        start, level_rows, level_columns = _level(rows, columns, k)
        index, inside = _tile(
            tl.program_id(0), tiles, level_rows, level_columns, 1 << (LEVELS - 1 - k)
        )
        tl.store(sums_ptr + start + index, values, mask=inside)


@triton.jit
def _upsampled(ptr, row, column, rows, columns, scale, mask):
    # Bilinear, pixel centres aligned, of maps that are 1 / scale times as large.
    y = tl.maximum((row.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    x = tl.maximum((column.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    top, left = tl.minimum(y.to(tl.int32), rows - 1), tl.minimum(x.to(tl.int32), columns - 1)
    fy, fx = y - top.to(tl.float32), x - left.to(tl.float32)
    bottom, right = tl.minimum(top + 1, rows - 1) * columns, tl.minimum(left + 1, columns - 1)
    top *= columns
    a = tl.load(ptr + top + left, mask=mask, other=0.0)
    b = tl.load(ptr + top + right, mask=mask, other=0.0)
    c = tl.load(ptr + bottom + left, mask=mask, other=0.0)
    d = tl.load(ptr + bottom + right, mask=mask, other=0.0)
    return (1.0 - fy) * ((1.0 - fx) * a + fx * b) + fy * ((1.0 - fx) * c + fx * d)


@triton.jit
def _push(
    total_ptr, weight_ptr, factors_ptr, rows, columns, other,
    LEVEL: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start, level_rows, level_columns = _level(rows, columns, LEVEL)
    parent, parent_rows, parent_columns = _level(rows, columns, LEVEL + 1)
    for first in range(0, level_rows * level_columns, BLOCK):
        index = first + tl.arange(0, BLOCK)
        mask = index < level_rows * level_columns
        mean = tl.load(total_ptr + start + index, mask=mask, other=0.0)
        weight = tl.load(weight_ptr + start + index, mask=mask, other=0.0)
        if LEVEL < LEVELS - 1:
            mean += _PRIOR * _upsampled(
                factors_ptr + parent, index // level_columns, index % level_columns,
                parent_rows, parent_columns, 0.5, mask,
            )  # fmt: skip
        mean = mean / (weight + _PRIOR)
        if LEVEL == 0:
            mean = tl.exp(mean * other)
        tl.store(factors_ptr + start + index, mean, mask=mask)


@triton.jit
def push_kernel(
    sums_ptr, factors_ptr, rows, columns, length, other,
    LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From the coarsest level on the mean of each cell, at the finest the factor of depth; a
    camera per program."""
    sums_ptr += tl.program_id(0) * 2 * length
    factors_ptr += tl.program_id(0) * length
    for k in tl.static_range(LEVELS):
        _push(
            sums_ptr, sums_ptr + length, factors_ptr, rows, columns, other,
            LEVELS - 1 - k, LEVELS, BLOCK,
        )  # fmt: skip
        # Other threads read what this one has written.
        tl.debug_barrier()


@triton.jit
def select_kernel(
    sensor_ptr, depth_ptr, sigma_ptr, code_ptr, around_ptr, factors_ptr,
    fused_ptr, origin_ptr, deviation_ptr, height, width, rows, columns, length, noise,
    CELL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sensor where it is kept, elsewhere the network times the factor."""
    camera = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    row, column = pixel // width, pixel % width
    around_ptr += camera * rows * columns
    around = tl.load(around_ptr + row // CELL * columns + column // CELL, mask=inside, other=0)
    factors_ptr += camera * length
    factor = _upsampled(factors_ptr, row, column, rows, columns, 1.0 / CELL, inside)
    pixel += camera * height * width
    code = tl.load(code_ptr + pixel, mask=inside, other=0)
    good = (code == _KEPT) | ((code == _DOUBTED) & (around == 0))
    sensor = tl.load(sensor_ptr + pixel, mask=inside, other=0.0)
    fused = tl.load(depth_ptr + pixel, mask=inside, other=0.0) * factor
    origin = tl.where(good, _SENSOR, tl.where(fused > 0, _NETWORK, 0))
    sigma = tl.load(sigma_ptr + pixel, mask=inside, other=0.0) * factor
    tl.store(fused_ptr + pixel, tl.where(good, sensor, fused), mask=inside)
    tl.store(origin_ptr + pixel, origin.to(tl.uint8), mask=inside)
    tl.store(deviation_ptr + pixel, tl.where(good, sensor * sensor * noise, sigma), mask=inside)
