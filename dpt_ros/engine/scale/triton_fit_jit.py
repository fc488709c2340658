# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""The Triton code of ``triton_steps.fit_frame``: float64 but for medians; no atomics.

The formulas and their names are those of ``robust_fit`` and ``steps``. Medians are found by
bisection of the numbers' bits, which needs neither sorting nor memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dpt_ros.engine.packed import offsets
from dpt_ros.engine.scale import ground, plan, robust_fit, steps

_PAIRS = tl.constexpr(512)  # MAX_PAIRS, padded
_START = tl.constexpr(robust_fit.START_PAIRS)
_ROWS = tl.constexpr(32)  # of the slopes, at a time
_BISECTIONS = tl.constexpr(32)
_LAST_KEY = tl.constexpr(2**31 - 1)
_INF = tl.constexpr(float("inf"))

_FITTED = tl.constexpr(float(robust_fit.FITTED))
_SCALE_ONLY = tl.constexpr(float(robust_fit.SCALE_ONLY))
_TOO_FEW = tl.constexpr(float(robust_fit.TOO_FEW))
_NOT_PLAUSIBLE = tl.constexpr(float(robust_fit.NOT_PLAUSIBLE))
_MIN_PAIRS = tl.constexpr(robust_fit.MIN_PAIRS)
_MIN_SPREAD = tl.constexpr(robust_fit.MIN_SPREAD)
_MIN_BASELINE = tl.constexpr(robust_fit.MIN_BASELINE)
_ITERATIONS = tl.constexpr(robust_fit.ITERATIONS)
_TUKEY = tl.constexpr(robust_fit.TUKEY)
_MAD = tl.constexpr(robust_fit.MAD)
_MIN_NOISE = tl.constexpr(robust_fit.MIN_NOISE)
_MAX_NOISE = tl.constexpr(robust_fit.MAX_NOISE)
_MIN_INLIERS = tl.constexpr(robust_fit.MIN_INLIERS)
_MAX_CONDITION = tl.constexpr(robust_fit.MAX_CONDITION)
_INDEPENDENT = tl.constexpr(robust_fit.INDEPENDENT)
_BIAS = tl.constexpr(robust_fit.BIAS)
_MAX_SCALE_SIGMA = tl.constexpr(robust_fit.MAX_SCALE_SIGMA)
_MIN_SCALE = tl.constexpr(robust_fit.MIN_SCALE)
_EDGE = tl.constexpr(1 + steps.EDGE)
_GRID_COLUMNS, _GRID_ROWS = tl.constexpr(ground.GRID_COLUMNS), tl.constexpr(ground.GRID_ROWS)
_AT = offsets(plan.SCALE_FIELDS)
_ANCHORS, _FLOOR = tl.constexpr(_AT["anchors"]), tl.constexpr(_AT["floor"])


@triton.jit
def _keys(x):
    # Integers in the order of the numbers; NaN last.
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x == x, bits ^ ((bits >> 31) & 0x7FFFFFFF), _LAST_KEY)


@triton.jit
def _ranked(keys, ranks):
    """(K, N) keys, of which rank (K,) are wanted, counted from 0: (K,) float64."""
    low = tl.zeros_like(ranks).to(tl.int64) - 2147483648
    high = tl.zeros_like(ranks).to(tl.int64) + 2147483647
    for _ in range(_BISECTIONS):
        middle = (low + high) >> 1
        below = tl.sum((keys <= middle.to(tl.int32)[:, None]).to(tl.int32), 1)
        found = below > ranks
        high = tl.where(found, middle, high)
        low = tl.where(found, low, middle + 1)
    key = high.to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def _median(values, n):
    """Of the n smallest of (N,)."""
    ranks = (n - 1 + tl.arange(0, 2)) // 2
    return tl.sum(_ranked(_keys(values.to(tl.float32))[None, :], ranks), 0) * 0.5


@triton.jit
def _repeated_median(x, q, usable, n):
    picked = tl.minimum(n, _START)
    number = tl.arange(0, _START)
    step = (n - 1).to(tl.float64) / (picked - 1).to(tl.float64)
    place = number.to(tl.float64) * step
    # To the nearest whole number, halves to the even one.
    rank = (place + 0.5).to(tl.int32)
    rank = tl.where((rank.to(tl.float64) == place + 0.5) & (rank % 2 == 1), rank - 1, rank)
    rank = tl.minimum(rank, n - 1)
    # The first place at which so many usable ones have been counted, by bisection.
    total = tl.cumsum(usable.to(tl.int32), 0)
    low = tl.zeros_like(rank)
    high = low + (_PAIRS - 1)
    for _ in range(9):
        between = (low + high) >> 1
        reached = tl.gather(total, between, 0) > rank
        high = tl.where(reached, between, high)
        low = tl.where(reached, low, between + 1)
    there = number < picked
    x = tl.gather(x, high, 0)
    q = tl.gather(q, high, 0)
    least = _median(tl.where(there, q, _INF), picked) * _MIN_BASELINE
    rows = 0
    slopes = tl.full((_START,), _INF, tl.float32)
    for block in range(_START // _ROWS):
        row = block * _ROWS + tl.arange(0, _ROWS)
        baseline = tl.gather(q, row, 0)[:, None] - q[None, :]
        enough = (tl.abs(baseline) > least.to(tl.float32)) & there[None, :]
        enough = enough & (row < picked)[:, None]
        slope = (tl.gather(x, row, 0)[:, None] - x[None, :]) / tl.where(enough, baseline, 1.0)
        count = tl.sum(enough.to(tl.int32), 1)
        keys = tl.where(enough, _keys(slope), _LAST_KEY)
        middle = _ranked(keys, tl.maximum(count - 1, 0) // 2).to(tl.float32)
        middle = tl.gather(tl.where(count > 0, middle, _INF), number % _ROWS, 0)
        slopes = tl.where(number // _ROWS == block, middle, slopes)
        rows += tl.sum((count > 0).to(tl.int32), 0)
    return _median(slopes, tl.maximum(rows, 2))


@triton.jit
def fit_kernel(
    raw_ptr,
    logits_ptr,
    numbers_ptr,
    labels_ptr,
    fits_ptr,
    seen_ptr,
    numbers_stride,
    height,
    width,
    reach,
    h,
    w,
    stride_batch,
    stride_class,
    stride_row,
    stride_column,
    classes,
    COUNT: tl.constexpr,
    SOURCES: tl.constexpr,
    LABELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One robust fit: of a camera to its anchors (source 0) or to the floor (source 1)."""
    source = tl.program_id(0)
    camera = tl.program_id(1)
    raw_ptr += camera.to(tl.int64) * height * width
    numbers_ptr += camera * numbers_stride
    k = tl.arange(0, _PAIRS)
    inside = k < COUNT
    if source == 0:
        place = numbers_ptr + _ANCHORS + 3 * k
        column = (tl.load(place, mask=inside, other=0.0) * width).to(tl.int32)
        row = (tl.load(place + 1, mask=inside, other=0.0) * height).to(tl.int32)
        q = tl.load(place + 2, mask=inside, other=0.0)
        here = tl.minimum(tl.maximum(column, 0), width - 1)
        left = tl.minimum(tl.maximum(column - reach, 0), width - 1)
        right = tl.minimum(tl.maximum(column + reach, 0), width - 1)
        same = tl.minimum(tl.maximum(row, 0), height - 1) * width
        up = tl.minimum(tl.maximum(row - reach, 0), height - 1) * width
        down = tl.minimum(tl.maximum(row + reach, 0), height - 1) * width
        x = tl.load(raw_ptr + same + here)
        a = tl.load(raw_ptr + same + left)
        b = tl.load(raw_ptr + same + right)
        c = tl.load(raw_ptr + up + here)
        d = tl.load(raw_ptr + down + here)
        largest = tl.maximum(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), x)
        smallest = tl.minimum(tl.minimum(tl.minimum(a, b), tl.minimum(c, d)), x)
        known = (a == a) & (b == b) & (c == c) & (d == d)
        usable = inside & known & (largest <= smallest * _EDGE)
    else:
        grid_row = 2 * (k // _GRID_COLUMNS) + 1
        grid_column = 2 * (k % _GRID_COLUMNS) + 1
        pixel = grid_row * height // (2 * _GRID_ROWS) * width
        pixel += grid_column * width // (2 * _GRID_COLUMNS)
        x = tl.load(raw_ptr + pixel, mask=inside, other=0.0)
        q = tl.load(numbers_ptr + _FLOOR + k, mask=inside, other=0.0)
        logit = (grid_row * h // (2 * _GRID_ROWS)).to(tl.int64) * stride_row
        logit += grid_column * w // (2 * _GRID_COLUMNS) * stride_column
        logits_ptr += camera.to(tl.int64) * stride_batch
        best = tl.full((_PAIRS,), -_INF, tl.float32)
        label = tl.zeros((_PAIRS,), tl.int32)
        for first in range(0, classes, BLOCK):
            number = first + tl.arange(0, BLOCK)
            mask = inside[:, None] & (number < classes)[None, :]
            address = logit[:, None] + number[None, :].to(tl.int64) * stride_class
            value = tl.load(logits_ptr + address, mask=mask, other=-_INF).to(tl.float32)
            part = tl.max(value, 1)
            # The first of equal classes wins.
            first_best = tl.min(tl.where(value == part[:, None], number[None, :], classes - 1), 1)
            label = tl.where(part > best, first_best, label)
            best = tl.maximum(best, part)
        usable = k < 0
        for i in tl.static_range(LABELS):
            usable = usable | (label + 1 == tl.load(labels_ptr + i).to(tl.int32))
        usable = usable & inside
    usable = usable & (x > 0) & (x < _INF) & (q > 0) & (q < _INF)
    if source == 0:
        tl.store(seen_ptr + camera * COUNT + k, tl.where(usable, x, 0.0), mask=inside)

    pairs = tl.sum(usable.to(tl.int32), 0)
    n = tl.maximum(pairs, 2)
    count = n.to(tl.float64)
    first_x = tl.where(usable, x, 1.0)
    first_q = tl.where(usable, q, 1.0)
    xs = tl.where(usable, x, _INF)
    raw = _median(xs, n)
    qs = tl.where(usable, q, _INF)
    measured = _median(qs, n)
    share = tl.arange(0, 4)
    place = (count - 1) * (tl.where(share < 2, 1, 9).to(tl.float64) / 10)  # percentiles
    index = place.to(tl.int32)
    part = place - index.to(tl.float64)
    part = tl.where(share % 2 == 0, 1 - part, part)
    spread = _ranked(_keys(qs)[None, :], index + share % 2) * part
    spread = tl.sum(tl.where(share < 2, -spread, spread), 0)
    unit = measured / raw
    a = _repeated_median(first_x, first_q, usable, n) * unit
    q = first_q.to(tl.float64)
    x = first_x.to(tl.float64) * unit
    b = _median(tl.where(usable, x - a * q, _INF), n)
    good = (spread >= measured * _MIN_SPREAD) & (a > 0) & (a < _INF)
    one = count * 0
    m0, m1, m2, noise, determinant, inliers = one, one, one, one, one, pairs
    for _ in range(_ITERATIONS):
        # Errors are relative to the fitted value, bounded from below near its zero.
        slope = a * q
        line = slope + b
        size = tl.maximum(line, slope * 0.1)
        error = tl.abs((x - line) / size)
        noise = tl.maximum(_median(tl.where(usable, error, _INF), n) * _MAD, _MIN_NOISE)
        error = error / (noise * _TUKEY)
        root = tl.where(usable, tl.maximum(1 - error * error, 0.0), 0.0)
        weight = root / size
        weight = weight * weight
        m0 = tl.sum(weight, 0)
        m1 = tl.sum(weight * q, 0)
        m2 = tl.sum(weight * q * q, 0)
        y0 = tl.sum(weight * x, 0)
        y1 = tl.sum(weight * q * x, 0)
        determinant = m0 * m2 - m1 * m1
        a = (m0 * y1 - m1 * y0) / determinant
        b = (m2 * y0 - m1 * y1) / determinant
        inliers = tl.sum((root > 0).to(tl.int32), 0)
    sigma = tl.maximum(noise, _BIAS)
    factor = sigma * sigma * tl.maximum(count / _INDEPENDENT, 1.0) / determinant
    c00, c01, c11 = m0 * factor, -m1 * factor, m2 * factor
    trace = m0 + m2
    limit = a * _MAX_SCALE_SIGMA
    good = good & (determinant * _MAX_CONDITION > trace * trace) & (noise <= _MAX_NOISE)
    good = good & (a > _MIN_SCALE) & (a < 1 / _MIN_SCALE) & (c00 <= limit * limit)
    good = good & (inliers.to(tl.float64) >= count * _MIN_INLIERS)
    by_b = -1 / a
    scale, shift = -unit * by_b, b * by_b
    scale_by_a, shift_by_a = scale * by_b, shift * by_b
    # The median ratio, unless the pairs do not agree on it.
    ratio = q / x
    agreed = _median(tl.where(usable, ratio, _INF), n)
    apart = _median(tl.where(usable, tl.abs(ratio / agreed - 1), _INF), n)
    doubt = tl.maximum(apart * _MAD, _MIN_NOISE)
    center = agreed * measured
    sigma = tl.maximum(doubt, _BIAS) * center
    state = tl.where(doubt > _MAX_NOISE, _NOT_PLAUSIBLE, _SCALE_ONLY)
    state = tl.where(pairs < _MIN_PAIRS, _TOO_FEW, tl.where(good, _FITTED, state))
    variance = shift_by_a * (shift_by_a * c00 + 2 * by_b * c01) + by_b * by_b * c11
    covariance = scale_by_a * (shift_by_a * c00 + by_b * c01)
    fits_ptr += (camera * SOURCES + source) * 10
    tl.store(fits_ptr, state)
    tl.store(fits_ptr + 1, pairs.to(tl.float64))
    tl.store(fits_ptr + 2, tl.where(good, scale, agreed * unit))
    tl.store(fits_ptr + 3, tl.where(good, shift, 0.0))
    variance_of_scale = scale_by_a * scale_by_a * c00
    tl.store(fits_ptr + 4, tl.where(good, variance_of_scale, sigma * sigma / _INDEPENDENT))
    tl.store(fits_ptr + 5, tl.where(good, covariance, 0.0))
    tl.store(fits_ptr + 6, tl.where(good, variance, 0.0))
    tl.store(fits_ptr + 7, raw)
    tl.store(fits_ptr + 8, tl.where(good, measured, center))
    tl.store(fits_ptr + 9, tl.where(good, noise, doubt))
