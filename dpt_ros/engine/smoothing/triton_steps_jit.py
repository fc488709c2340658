# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""The Triton code of ``triton_steps``: float32 inside, no atomics."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _finite(values):
    # NaN and infinities count as 0.
    return tl.where(tl.abs(values) < float("inf"), values, 0.0)


@triton.jit
def _grid(index, count):
    # Normalised coordinate of a pixel: -1 at the first one's centre, 1 at the last one's.
    return index.to(tl.float32) * (2.0 / (count - 1)) - 1.0


@triton.jit
def _taps(at, count):
    # The two pixels around a place in pixels, and the weight of the second one; the nearest
    # pixel beyond the border, and the first one for NaN.
    at = tl.minimum(tl.maximum(at, 0.0), (count - 1) * 1.0)
    first = tl.minimum(tl.maximum(at.to(tl.int32), 0), count - 1)
    return first, tl.minimum(first + 1, count - 1), at - first.to(tl.float32)


@triton.jit
def _corners(y, x, height, width, row, column):
    # Offsets of the four pixels around a place in pixels, and the weights of lower and right.
    top, bottom, fy = _taps(y, height)
    left, right, fx = _taps(x, width)
    top *= row
    bottom *= row
    left *= column
    right *= column
    return (top + left, top + right, bottom + left, bottom + right), fy, fx


@triton.jit
def _bilinear(ptr, corners, fy, fx, mask):
    a = tl.load(ptr + corners[0], mask=mask, other=0.0).to(tl.float32)
    b = tl.load(ptr + corners[1], mask=mask, other=0.0).to(tl.float32)
    c = tl.load(ptr + corners[2], mask=mask, other=0.0).to(tl.float32)
    d = tl.load(ptr + corners[3], mask=mask, other=0.0).to(tl.float32)
    return (1.0 - fy) * ((1.0 - fx) * a + fx * b) + fy * ((1.0 - fx) * c + fx * d)


@triton.jit
def look_kernel(
    raw_ptr, luma_ptr, flow_ptr, seen_ptr, height, width, h, w,
    LEAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pixels of a frame by themselves: image and flow, resized to the map."""
    camera, size = tl.program_id(1), height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size
    row, column = pixel // width, pixel % width
    raw = tl.load(raw_ptr + camera * size + pixel, mask=inside, other=0.0)
    valid = (raw > 0.0) & (raw < float("inf"))
    out_ptr = seen_ptr + camera * 8 * size + pixel
    tl.store(out_ptr, tl.maximum(tl.where(valid, raw, 0.0), LEAST), mask=inside)
    tl.store(out_ptr + size, valid.to(tl.float32), mask=inside)

    y = (row.to(tl.float32) + 0.5) * (h * 1.0 / height) - 0.5
    x = (column.to(tl.float32) + 0.5) * (w * 1.0 / width) - 0.5
    corners, fy, fx = _corners(y, x, h, w, w, 1)
    luma = _bilinear(luma_ptr + camera * h * w, corners, fy, fx, inside)
    tl.store(out_ptr + 2 * size, luma, mask=inside)
    flow_ptr += camera * 5 * h * w
    for k in tl.static_range(5):
        value = _bilinear(flow_ptr + k * h * w, corners, fy, fx, inside)
        if k == 0:
            value = _grid(column, width) + value * (2.0 * width / w / (width - 1))
        if k == 1:
            value = _grid(row, height) + value * (2.0 * height / h / (height - 1))
        tl.store(out_ptr + (3 + k) * size, value, mask=inside)


@triton.jit
def _load_all(ptr, COUNT: tl.constexpr):
    values = ()
    for k in tl.static_range(COUNT):
        values = values + (tl.load(ptr + k),)
    return values


@triton.jit
def _store_all(ptr, values, COUNT: tl.constexpr):
    for k in tl.static_range(COUNT):
        tl.store(ptr + k, values[k])


@triton.jit
def _times(a, b, COLUMNS: tl.constexpr):
    # (3, 3) times (3, COLUMNS), row by row
    product = ()
    for i in tl.static_range(3):
        for j in tl.static_range(COLUMNS):
            total = a[3 * i] * b[j]
            total += a[3 * i + 1] * b[COLUMNS + j]
            total += a[3 * i + 2] * b[2 * COLUMNS + j]
            product = product + (total,)
    return product


@triton.jit
def _solve(rows, N: tl.constexpr):
    # Elimination without pivots: rows of [matrix | side], the matrix is positive definite.
    for k in tl.static_range(N):
        others = ()
        for i in tl.static_range(N):
            row = ()
            for j in tl.static_range(N + 1):
                own = rows[k][j] / rows[k][k]
                row = row + (own if i == k else rows[i][j] - rows[i][k] * own,)
            others = others + (row,)
        rows = others
    solution = ()
    for i in tl.static_range(N):
        solution = solution + (rows[i][N],)
    return solution
