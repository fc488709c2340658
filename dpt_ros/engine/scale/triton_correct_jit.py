# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
# ruff: noqa: RUF005 (Triton knows no starred tuples)
"""The Triton code of the other ``triton_steps``: the filter in float64, table and maps in float32.

The formulas and their names are those of ``kalman`` and ``steps``. No atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dpt_ros.engine.packed import offsets
from dpt_ros.engine.scale import ground, kalman, plan, robust_fit, steps

_INF = tl.constexpr(float("inf"))
_FITTED = tl.constexpr(robust_fit.FITTED)
_SCALE_ONLY = tl.constexpr(robust_fit.SCALE_ONLY)
_NOT_PLAUSIBLE = tl.constexpr(float(robust_fit.NOT_PLAUSIBLE))
_NO_SPREAD = tl.constexpr(float(robust_fit.NO_SPREAD))
_MIN_SCALE = tl.constexpr(robust_fit.MIN_SCALE)
_MIN_VARIANCE = tl.constexpr(kalman.MIN_SIGMA**2)
_GATE = tl.constexpr(kalman.GATE)
_ADAPTATION = tl.constexpr(kalman.ADAPTATION)
_MIN_SURPRISE = tl.constexpr(kalman.MIN_SURPRISE)
_MAX_FACTOR = tl.constexpr(kalman.MAX_PROCESS_NOISE_FACTOR)
_MAX_STEP = tl.constexpr(kalman.MAX_STEP)
_METRIC_SIGMA = tl.constexpr(kalman.METRIC_SIGMA)
_RELATIVE_SIGMA = tl.constexpr(kalman.RELATIVE_SIGMA)
_SHIFT_SIGMA = tl.constexpr(kalman.SHIFT_SIGMA)
_PRIOR_SCALE = tl.constexpr(kalman.METRIC_SIGMA**2)
_PRIOR_SHIFT = tl.constexpr(kalman.PRIOR_SHIFT_SIGMA**2)
_PRIOR_BOTH = tl.constexpr((kalman.METRIC_SIGMA * kalman.PRIOR_SHIFT_SIGMA) ** 2)
_SCALE_WALK, _SHIFT_WALK = (tl.constexpr(walk**2) for walk in kalman.METRIC_WALK)
_RELATIVE_WALK = tl.constexpr(kalman.RELATIVE_WALK[0] ** 2)
_RELATIVE_SHIFT_WALK = tl.constexpr(kalman.RELATIVE_WALK[1] ** 2)
_HEIGHT_VARIANCE = tl.constexpr(ground.HEIGHT_SIGMA**2)

_AT = offsets(plan.SCALE_FIELDS)
_FRESH, _SECONDS = tl.constexpr(_AT["fresh"]), tl.constexpr(_AT["seconds"])
_DISABLED, _UNASKED = tl.constexpr(_AT["disabled"]), tl.constexpr(_AT["unasked"])
_GROUND_ONLY, _TILT = tl.constexpr(_AT["ground_only"]), tl.constexpr(_AT["tilt"])
_INITIAL, _ANCHORS = tl.constexpr(_AT["initial"]), tl.constexpr(_AT["anchors"])
_FLOOR = tl.constexpr(_AT["floor"])
_HELD = tl.constexpr(float(plan.HELD))
_UNCORRECTED = tl.constexpr(float(plan.UNCORRECTED))
_NOT_METRIC = tl.constexpr(float(plan.NOT_METRIC))
_STATE_DISABLED = tl.constexpr(float(plan.DISABLED))
_SOURCE_ANCHORS = tl.constexpr(plan.SOURCES.index("anchors"))  # the ground comes next

_COLUMNS, _DEPTHS = tl.constexpr(steps.COLUMNS), tl.constexpr(steps.DEPTHS)
_LOG_FAR, _LOG_STEP = tl.constexpr(steps.LOG_FAR), tl.constexpr(steps.LOG_STEP)
_ACROSS = tl.constexpr(steps.SQRT_HALF / steps.COLUMN_SIGMA)
_ALONG = tl.constexpr(steps.SQRT_HALF / steps.DEPTH_SIGMA)
_PRIOR_WEIGHT = tl.constexpr(steps.PRIOR_WEIGHT)
_MAX_LOG_RATIO = tl.constexpr(steps.MAX_LOG_RATIO)
_MAX_TABLE_STEP = tl.constexpr(steps.MAX_TABLE_STEP)
_HALF_LIFE = tl.constexpr(steps.HALF_LIFE)
_LEAST = tl.constexpr(steps.LEAST)


@triton.jit
def _chosen(values, sources, source, other):
    """The one of (2,) values that belongs to a source; ``other`` if the source is -1."""
    one = tl.sum(tl.where(sources == source, values, 0.0), 0)
    return tl.where(source >= 0, one, other)


@triton.jit
def _inverse(a, b, d):
    determinant = a * d - b * b
    return d / determinant, -b / determinant, a / determinant


@triton.jit
def _sigma(scale, shift, c00, c01, c11, center):
    x = tl.maximum((center - shift) / scale, 1e-3)
    variance = (c00 * x + 2 * c01) * x + c11
    return tl.sqrt(tl.maximum(variance, 0.0)) / center


@triton.jit
def _update(past, fit_ptr, sources, there, limited, s0, s1, METRIC: tl.constexpr):
    """As ``kalman.update``, by the fits of (2,) sources: scale, shift, covariance, factor, unit,
    and why not."""
    scale, shift, p00, p01, p11, old0, old1, factor, unit, known, fitted_before = past
    state = tl.load(fit_ptr, mask=there, other=0.0)
    f_scale = tl.load(fit_ptr + 2, mask=there, other=1.0)
    f_shift = tl.load(fit_ptr + 3, mask=there, other=1.0)
    f00 = tl.load(fit_ptr + 4, mask=there, other=1.0)
    f01 = tl.load(fit_ptr + 5, mask=there, other=1.0)
    f11 = tl.load(fit_ptr + 6, mask=there, other=1.0)
    q = tl.load(fit_ptr + 8, mask=there, other=1.0)
    fitted = state == _FITTED
    if not METRIC:
        first = fitted & (known + 0 * state == 0)
        unit = tl.where(first, f_scale, unit)
        scale = tl.where(first, 1.0, scale)
        shift = tl.where(first, f_shift, shift)
        p00 = tl.where(first, 1.0, p00)
        p01 = tl.where(first, 0.0, p01)
        p11 = tl.where(first, q * q, p11)
        limited = tl.where(first, 0.0, limited)
    inflated = old0 + old1 > s0 + s1
    p00 += tl.where(inflated, old0, 0.0)
    p11 += tl.where(inflated, old1, 0.0)
    x = tl.load(fit_ptr + 7, mask=there, other=1.0) * unit
    n00, n01, n11 = f00 / (unit * unit), f01 / unit, f11
    v0, v1 = f_scale / unit, f_shift
    if METRIC:
        m00, m01, m11 = _inverse(n00 + _PRIOR_SCALE, n01, n11 + _PRIOR_SHIFT)
        n00 = m00 * (-_PRIOR_SCALE * _PRIOR_SCALE) + _PRIOR_SCALE
        n01 = m01 * -_PRIOR_BOTH
        n11 = m11 * (-_PRIOR_SHIFT * _PRIOR_SHIFT) + _PRIOR_SHIFT
        e0 = v0 - 1
        e1 = v1
        v0 = (m00 * e0 + m01 * e1) * _PRIOR_SCALE + 1
        v1 = (m01 * e0 + m11 * e1) * _PRIOR_SHIFT
    two = tl.where(fitted, 1.0, state * 0)
    if METRIC:
        two = tl.where(sources == 1, 0.0, two)  # of the floor, the scale only
    h0, h1 = tl.where(fitted, 1.0, x), tl.where(fitted, state * 0, 1.0)
    floor1 = q * q * _MIN_VARIANCE
    n00 += scale * scale * _MIN_VARIANCE + s0
    n00 = tl.where(fitted, n00, f00 + floor1 + (x * x * s0 + s1))
    n01 = two * n01
    n11 = tl.where(two > 0, n11 + floor1 + s1, 1.0)
    y0 = tl.where(fitted, v0, q) - h0 * scale - h1 * shift
    y1 = two * (v1 - shift)
    a0, a1 = p00 * h0 + p01 * h1, p01 * h0 + p11 * h1
    b0, b1 = two * p01, two * p11
    t00, t01, t11 = h0 * a0 + h1 * a1, two * a1, two * b1
    m00, m01, m11 = _inverse(t00 + n00, t01 + n01, t11 + n11)
    surprise = (m00 * y0 * y0 + 2 * m01 * y0 * y1 + m11 * y1 * y1) / (1 + two)
    bounded = tl.minimum(tl.maximum(surprise, _MIN_SURPRISE), _GATE)
    adapted = tl.maximum(factor * tl.exp(tl.log(bounded) * _ADAPTATION), 1.0)
    before = fitted_before > 0
    factor = tl.where(before, tl.minimum(adapted, _MAX_FACTOR), factor)
    doubt = tl.where(before, tl.maximum(surprise / _GATE, 1.0), 1.0)
    m00, m01, m11 = _inverse(t00 + doubt * n00, t01 + doubt * n01, t11 + doubt * n11)
    g00, g01 = a0 * m00 + b0 * m01, a0 * m01 + b0 * m11
    g10, g11 = a1 * m00 + b1 * m01, a1 * m01 + b1 * m11
    step0, step1 = g00 * y0 + g01 * y1, g10 * y0 + g11 * y1
    now = tl.maximum(scale * x + shift, 1e-3 * q)
    change = tl.maximum(tl.abs(step0 * x + step1) / now, tl.abs(step0) / scale)
    allowed = tl.minimum(1 / tl.maximum(change, 1e-9) * _MAX_STEP, 1.0)
    allowed = tl.where(limited > 0, allowed, 1.0)
    scale += allowed * step0
    shift += allowed * step1
    less = (2 - allowed) * allowed
    p00 -= less * (g00 * a0 + g01 * b0)
    p01 -= less * (g00 * a1 + g01 * b1)
    p11 -= less * (g10 * a1 + g11 * b1)
    refused = tl.where(scale * x >= q * _MIN_SCALE, 0.0, _NOT_PLAUSIBLE)
    if not METRIC:
        refused = tl.where((known + 0 * state == 0) & (fitted == 0), _NO_SPREAD, refused)
    refused = tl.where(fitted | (state == _SCALE_ONLY), refused, state)
    return scale, shift, p00, p01, p11, factor, unit, refused


@triton.jit
def correct_kernel(
    state_ptr,
    table_ptr,
    fits_ptr,
    seen_ptr,
    numbers_ptr,
    new_state_ptr,
    new_table_ptr,
    affine_ptr,
    covariance_ptr,
    stats_ptr,
    numbers_stride,
    COUNT: tl.constexpr,
    SOURCES: tl.constexpr,
    METRIC: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A camera's Kalman filter, in each program, and some rows of its table."""
    camera = tl.program_id(1)
    numbers_ptr += camera * numbers_stride
    state_ptr += camera * 14
    fits_ptr += camera * SOURCES * 10
    fresh = tl.load(numbers_ptr + _FRESH) > 0
    seconds = tl.load(numbers_ptr + _SECONDS).to(tl.float64)
    tilt = tl.load(numbers_ptr + _TILT).to(tl.float64)
    initial_ptr = numbers_ptr + _INITIAL
    past = ()
    for k in tl.static_range(14):
        initial = tl.load(initial_ptr + k).to(tl.float64)
        past = past + (tl.where(fresh, initial, tl.load(state_ptr + k)),)
    scale, shift, c00, c01, c11, s0, s1 = past[:7]
    factor, unit, known, fitted, center, source, residual = past[7:]

    noise = seconds * factor
    if METRIC:
        n00 = c00 + noise * _SCALE_WALK
        n11 = c11 + noise * _SHIFT_WALK
        first = tl.abs(scale) / tl.sqrt(n00) * _METRIC_SIGMA
        second = 1 / tl.sqrt(n11) * _SHIFT_SIGMA
    else:
        n00 = c00 + noise * _RELATIVE_WALK
        n11 = c11 + noise * center * center * _RELATIVE_SHIFT_WALK
        first = tl.abs(scale) / tl.sqrt(n00) * _RELATIVE_SIGMA
        second = center / tl.sqrt(n11) * _RELATIVE_SIGMA
    first = tl.minimum(first, 1.0)
    second = tl.minimum(second, 1.0)
    passed = seconds > 0
    c00 = tl.where(passed, n00 * first * first, c00)
    c01 = tl.where(passed, c01 * first * second, c01)
    c11 = tl.where(passed, n11 * second * second, c11)

    sources = tl.arange(0, 2)  # anchors, ground
    limited = tl.where(fresh, 0.0, 1.0)
    there = sources < SOURCES
    fits_ptr += sources * 10
    g0 = sources * tl.full((), _HEIGHT_VARIANCE, tl.float64)
    g1 = sources * (tilt * 0 if METRIC else tilt * tilt)
    u_scale, u_shift, u00, u01, u11, u_factor, u_unit, refused = _update(
        (scale, shift, c00, c01, c11, s0, s1, factor, unit, known, fitted),
        fits_ptr, sources, there, limited, g0, g1, METRIC,
    )  # fmt: skip
    k = tl.arange(0, 512)
    inside = k < COUNT
    q = tl.load(numbers_ptr + _ANCHORS + 3 * k + 2, mask=inside, other=0.0)
    floor = tl.load(numbers_ptr + _FLOOR + k, mask=inside, other=0.0)
    share = tilt / center
    uncertain = tl.sqrt(share * share + _HEIGHT_VARIANCE)
    asked = _sigma(scale, shift, c00 + s0, c01, c11 + s1, center) > uncertain
    asked = asked | (tl.load(numbers_ptr + _GROUND_ONLY) > 0) | (known == 0)
    asked = asked & (tl.sum((floor > 0).to(tl.int32), 0) > 0) & (SOURCES == 2)
    tried = tl.where(tl.sum((q != 0).to(tl.int32), 0) > 0, 0, -1)  # the source, -1: none
    anchored = (tried == 0) & (_chosen(refused, sources, tried, -1.0) == 0)
    tried = tl.where(asked & (anchored == 0), 1, tried)
    reason = _chosen(refused, sources, tried, -1.0)
    pairs = _chosen(tl.load(fits_ptr + 1, mask=there, other=0.0), sources, tried, 0.0)
    used = tl.where(reason == 0, tried, -1)
    fit_state = _chosen(tl.load(fits_ptr, mask=there, other=0.0), sources, used, 0.0)
    scale = _chosen(u_scale, sources, used, scale)
    shift = _chosen(u_shift, sources, used, shift)
    c00 = _chosen(u00, sources, used, c00)
    c01 = _chosen(u01, sources, used, c01)
    c11 = _chosen(u11, sources, used, c11)
    s0 = _chosen(g0, sources, used, s0)
    s1 = _chosen(g1, sources, used, s1)
    factor = _chosen(u_factor, sources, used, factor)
    unit = _chosen(u_unit, sources, used, unit)
    center = _chosen(tl.load(fits_ptr + 8, mask=there, other=0.0), sources, used, center)
    residual = _chosen(tl.load(fits_ptr + 9, mask=there, other=0.0), sources, used, residual)
    known = tl.where(used >= 0, 1.0, known)
    fitted = tl.where(used >= 0, 1.0, fitted)
    source = tl.where(used >= 0, (used + _SOURCE_ANCHORS).to(tl.float64), source)
    line = scale * unit

    if tl.program_id(0) == 0:
        disabled = tl.load(numbers_ptr + _DISABLED) > 0
        now = (known > 0) & (disabled == 0)
        told = tl.where(fitted > 0, _HELD, _UNCORRECTED)
        told = tl.where(used >= 0, fit_state.to(tl.float32), told)
        told = tl.where(known > 0, told, _NOT_METRIC)
        told = tl.where(disabled, _STATE_DISABLED, told)
        idle = (tl.load(numbers_ptr + _UNASKED) > 0) & (told == _UNCORRECTED)
        idle = disabled | (idle & (reason < 0))
        sigma = _sigma(scale, shift, c00 + s0, c01, c11 + s1, center)
        told_scale = tl.where(now, line, 1.0)
        told_shift = tl.where(now, shift, 0.0)
        tl.store(affine_ptr + camera * 2, told_scale.to(tl.float32))
        tl.store(affine_ptr + camera * 2 + 1, told_shift.to(tl.float32))
        covariance = (unit * unit * (c00 + s0), unit * c01, c11 + s1)
        for i in tl.static_range(3):
            tl.store(covariance_ptr + camera * 3 + i, covariance[i].to(tl.float32))
        stats = (
            tl.where(now, 1.0, 0.0), told_scale, told_shift, tl.where(now, sigma, _INF), residual,
            pairs, tl.where(now, source, 0.0), told, tl.where(idle, 0.0, reason),
        )  # fmt: skip
        for i in tl.static_range(9):
            tl.store(stats_ptr + camera * 9 + i, stats[i].to(tl.float32))
        state = (
            scale, shift, c00, c01, c11, s0, s1, factor, unit, known, fitted, center, source,
            residual,
        )  # fmt: skip
        for i in tl.static_range(14):
            tl.store(new_state_ptr + camera * 14 + i, state[i])

    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    depths = row.to(tl.float32) * _LOG_STEP + _LOG_FAR
    centers = (column.to(tl.float32) + 0.5) / _COLUMNS
    line = line.to(tl.float32)
    offset = shift.to(tl.float32)
    weights = tl.zeros((ROWS, WIDTH), tl.float32)
    ratios = tl.zeros((ROWS, WIDTH), tl.float32)
    uses = 0
    for start in range(0, COUNT, CHUNK):
        anchor = start + tl.arange(0, CHUNK)
        valid = anchor < COUNT
        place = numbers_ptr + _ANCHORS + 3 * anchor
        at = tl.load(place, mask=valid, other=0.0)
        measured = tl.load(place + 2, mask=valid, other=0.0)
        seen = tl.load(seen_ptr + camera * COUNT + anchor, mask=valid, other=0.0)
        inverse_depth = line * seen + offset
        use = anchored & (seen > 0) & (inverse_depth > 0)
        uses += tl.sum(use.to(tl.int32), 0)
        log = tl.log(tl.where(use, inverse_depth, 1.0))
        ratio = tl.where(use, tl.log(tl.where(use, measured, 1.0)) - log, _MAX_LOG_RATIO)
        trust = tl.maximum(1 - ratio * ratio * (1 / _MAX_LOG_RATIO**2), 0.0)
        across = (centers[None, :] - at[:, None]) * _ACROSS
        across = (trust * trust)[:, None] * tl.exp(-across * across)
        along = (depths[:, None] - log[None, :]) * _ALONG
        along = tl.exp(-along * along)
        weights += tl.dot(along, across, input_precision="ieee")
        ratios += tl.dot(along, ratio[:, None] * across, input_precision="ieee")
    place = camera * _DEPTHS * _COLUMNS + row[:, None] * _COLUMNS + column[None, :]
    mask = (row < _DEPTHS)[:, None] & (column < _COLUMNS)[None, :]
    before = tl.load(table_ptr + place, mask=mask, other=0.0)
    before = tl.where(fresh, 0.0, before)
    faded = before * tl.exp2(-tl.load(numbers_ptr + _SECONDS) / _HALF_LIFE)
    target = tl.where(uses > 0, ratios / (weights + _PRIOR_WEIGHT), faded)
    step = tl.minimum(tl.maximum(target - before, -_MAX_TABLE_STEP), _MAX_TABLE_STEP)
    table = tl.where(fresh, target, before + step)
    tl.store(new_table_ptr + place, tl.where(tl.abs(table) > _LEAST, table, 0.0), mask=mask)


@triton.jit
def apply_table_kernel(
    raw_ptr, table_ptr, affine_ptr, out_ptr, pixels, width, column_step, PIXELS: tl.constexpr
):
    """The local correction of raw inverse depth, from four entries of the table a pixel."""
    camera = tl.program_id(1)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    table_ptr += camera * _DEPTHS * _COLUMNS
    scale = tl.load(affine_ptr + camera * 2)
    offset = tl.load(affine_ptr + camera * 2 + 1) / scale
    place = camera.to(tl.int64) * pixels + pixel
    raw = tl.load(raw_ptr + place, mask=inside, other=0.0)
    moved = raw + offset
    usable = (raw > 0) & (moved > 0)
    y = (tl.log(tl.where(usable, moved * scale, 1.0)) - _LOG_FAR) / _LOG_STEP
    y = tl.minimum(tl.maximum(y, 0.0), _DEPTHS - 1.0)
    x = ((pixel % width).to(tl.float32) + 0.5) * column_step - 0.5
    x = tl.minimum(tl.maximum(x, 0.0), _COLUMNS - 1.0)
    row = tl.minimum(y.to(tl.int32), _DEPTHS - 2)
    column = tl.minimum(x.to(tl.int32), _COLUMNS - 2)
    y -= row.to(tl.float32)
    x -= column.to(tl.float32)
    at = table_ptr + row * _COLUMNS + column
    top = tl.load(at) * (1 - x) + tl.load(at + 1) * x
    bottom = tl.load(at + _COLUMNS) * (1 - x) + tl.load(at + _COLUMNS + 1) * x
    corrected = moved * tl.exp(top * (1 - y) + bottom * y) - offset
    out = tl.where(usable & (corrected > 0), corrected, raw)
    tl.store(out_ptr + place, out, mask=inside)


@triton.jit
def relative_variance_kernel(
    raw_ptr, affine_ptr, covariance_ptr, out_ptr, pixels, PIXELS: tl.constexpr
):
    """Relative variance of inverse depth due to scale and shift."""
    camera = tl.program_id(1)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    place = camera.to(tl.int64) * pixels + pixel
    raw = tl.load(raw_ptr + place, mask=inside, other=1.0)
    covariance_ptr += camera * 3
    c00 = tl.load(covariance_ptr)
    c01 = tl.load(covariance_ptr + 1)
    c11 = tl.load(covariance_ptr + 2)
    size = tl.load(affine_ptr + camera * 2) * raw + tl.load(affine_ptr + camera * 2 + 1)
    size = tl.where(size == size, tl.maximum(size, 1e-6), size)
    variance = (c00 * raw + 2 * c01) * raw + c11
    tl.store(out_ptr + place, variance / (size * size), mask=inside)
