# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
# ruff: noqa: RUF005 (Triton knows no starred tuples)
"""The Triton code of ``triton_steps``: float32 inside, no atomics.

The names are those of ``steps``, ``motion`` and ``registration``; matrices are tuples of scalars,
row by row.
"""

from __future__ import annotations

from collections import namedtuple
from types import ModuleType
from typing import Any

import triton
import triton.language as tl

from dpt_ros.engine.packed import offsets
from dpt_ros.engine.smoothing import motion, steps, update
from dpt_ros.engine.smoothing.state import FILTER_FIELDS, MOTION_FIELDS


def _named(values: dict[str, Any]) -> Any:
    # As a part of Triton's cache key, unlike the modules' own names.
    return tl.constexpr(namedtuple("Values", values)(**values))


def constants(*modules: ModuleType) -> Any:
    names = {k: v for module in modules for k, v in vars(module).items()}
    numbers = {k: v for k, v in names.items() if isinstance(v, int | float | tuple)}
    return _named({k.strip("_").lower(): v for k, v in numbers.items() if k.isupper()})


NUMBER, MOTION = _named(offsets(FILTER_FIELDS)), _named(offsets(MOTION_FIELDS))
REFINE, STEPS = constants(motion), constants(motion, update, steps)


@triton.jit
def _taps(at, count):
    # The two pixels around a place in pixels, and the weight of the second one; the nearest
    # pixel beyond the border, any for NaN.
    at = tl.minimum(tl.maximum(at, 0.0), (count - 1) * 1.0)
    first = tl.minimum(tl.maximum(at.to(tl.int32), 0), count - 1)
    return first, tl.minimum(first + 1, count - 1), at - first.to(tl.float32)


@triton.jit
def corners_at(x, y, height, width, stride):
    # Offsets of the four pixels around a place in pixels, and the weights of lower and right.
    top, bottom, fy = _taps(y, height)
    left, right, fx = _taps(x, width)
    top *= width
    bottom *= width
    offsets = (
        (top + left) * stride,
        (top + right) * stride,
        (bottom + left) * stride,
        (bottom + right) * stride,
    )
    return offsets, fy, fx


@triton.jit
def bilinear(ptr, corners, fy, fx, mask):
    a = tl.load(ptr + corners[0], mask=mask, other=0.0)
    b = tl.load(ptr + corners[1], mask=mask, other=0.0)
    c = tl.load(ptr + corners[2], mask=mask, other=0.0)
    d = tl.load(ptr + corners[3], mask=mask, other=0.0)
    return (1.0 - fy) * ((1.0 - fx) * a + fx * b) + fy * ((1.0 - fx) * c + fx * d)


@triton.jit
def load(ptr, COUNT: tl.constexpr):
    values = ()
    for k in tl.static_range(COUNT):
        values = values + (tl.load(ptr + k),)
    return values


@triton.jit
def flag(ptr):
    # Compared as integers: the interpreter cannot combine a float's comparison with a block's.
    return tl.load(ptr).to(tl.int32) != 0


@triton.jit
def times(a, b, COLUMNS: tl.constexpr):
    # (3, 3) times (3, COLUMNS)
    product = ()
    for i in tl.static_range(3):
        for j in tl.static_range(COLUMNS):
            total = a[3 * i] * b[j] + a[3 * i + 1] * b[COLUMNS + j]
            product = product + (total + a[3 * i + 2] * b[2 * COLUMNS + j],)
    return product


@triton.jit
def bounded(inverse_depth, affine, usual):
    own = tl.maximum(usual[0] * inverse_depth + usual[1], STEPS.value.min_inverse_depth)
    mapped = affine[0] * inverse_depth + affine[1]
    return tl.minimum(tl.maximum(mapped, 0.3 * own), 3.0 * own)


@triton.jit
def project(turn, shift, x, y, inverse_depth):
    moved = times(turn, (x, y, 1.0), 1)
    depth = tl.maximum(moved[2] + shift[2] * inverse_depth, REFINE.value.min_depth_ratio)
    x = (moved[0] + shift[0] * inverse_depth) / depth
    return x, (moved[1] + shift[1] * inverse_depth) / depth


@triton.jit
def advance(form, x, y, inverse_depth):
    ratio = form[2] + form[0] * x + form[1] * y + form[3] * inverse_depth
    return inverse_depth / tl.maximum(ratio, REFINE.value.min_depth_ratio)


@triton.jit
def compare(
    seen, maps_ptr, turn, along, affine, usual, exposure, row, column, height, width, mask
):
    # Positions in the previous frame by flow and by the camera's motion, whether these differ,
    # and by how many grey levels the latter fits worse.
    size = height * width
    grid_x, grid_y = column.to(tl.float32), row.to(tl.float32)
    flow_x = tl.load(seen + 3 * size, mask=mask, other=0.0)
    flow_y = tl.load(seen + 4 * size, mask=mask, other=0.0)
    current = bounded(tl.load(seen, mask=mask, other=1.0), affine, usual)
    x, y = project(turn, along, grid_x, grid_y, current)
    error_x, error_y, path_x, path_y = x - flow_x, y - flow_y, flow_x - grid_x, flow_y - grid_y
    tolerance = STEPS.value.flow_tolerance[0]
    tolerance += STEPS.value.flow_tolerance[1] * tl.sqrt(path_x * path_x + path_y * path_y)
    differs = error_x * error_x + error_y * error_y > tolerance * tolerance
    corners, fy, fx = corners_at(x, y, height, width, 1)
    worse = bilinear(maps_ptr + 2 * size, corners, fy, fx, mask) * exposure
    worse = tl.abs(worse - tl.load(seen + 2 * size, mask=mask, other=0.0))
    worse -= tl.load(seen + 5 * size, mask=mask, other=0.0)
    return (flow_x, flow_y), (x, y), differs, worse


@triton.jit
def look_kernel(
    raw_ptr, luma_ptr, flow_ptr, seen_ptr, height, width, h, w, BLOCK: tl.constexpr,
):  # fmt: skip
    """See ``steps.look``: a block of a frame's pixels."""
    camera, size = tl.program_id(1), height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size
    row, column = pixel // width, pixel % width
    raw = tl.load(raw_ptr + camera * size + pixel, mask=inside, other=0.0)
    valid = (raw > 0.0) & (raw <= STEPS.value.max_inverse_depth)
    raw = tl.maximum(tl.where(valid, raw, 0.0), STEPS.value.min_inverse_depth)
    seen = seen_ptr + camera * 8 * size + pixel
    tl.store(seen, raw, mask=inside)
    tl.store(seen + size, valid.to(tl.float32), mask=inside)

    y = (row.to(tl.float32) + 0.5) * (h * 1.0 / height) - 0.5
    x = (column.to(tl.float32) + 0.5) * (w * 1.0 / width) - 0.5
    corners, fy, fx = corners_at(x, y, h, w, 1)
    luma = bilinear(luma_ptr + camera * h * w, corners, fy, fx, inside)
    tl.store(seen + 2 * size, luma, mask=inside)
    flow_ptr += camera * 5 * h * w
    for k in tl.static_range(5):
        value = bilinear(flow_ptr + k * h * w, corners, fy, fx, inside)
        if k == 0:
            value = column + value * (width * 1.0 / w)
        if k == 1:
            value = row + value * (height * 1.0 / h)
        tl.store(seen + (3 + k) * size, value, mask=inside)


@triton.jit
def moving_kernel(
    seen_ptr, maps_ptr, motion_ptr, correlation_ptr, moving_ptr, correlation_row,
    height, width, LENGTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where flow contradicts the camera's motion, for every pixel."""
    camera, size = tl.program_id(1), height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size
    seen, motion = seen_ptr + camera * 8 * size + pixel, motion_ptr + camera * LENGTH
    affine, usual = load(motion + MOTION.value.affine, 2), load(motion + MOTION.value.usual, 2)
    turn, along = load(motion + MOTION.value.turn, 9), load(motion + MOTION.value.shift, 3)
    exposure = tl.load(correlation_ptr + camera * correlation_row)
    _, _, differs, worse = compare(
        seen, maps_ptr + camera * 4 * size, turn, along, affine, usual, exposure,
        pixel // width, pixel % width, height, width, inside,
    )  # fmt: skip
    moving = differs & (worse > -STEPS.value.luma_noise)
    tl.store(moving_ptr + camera * size + pixel, moving.to(tl.uint8), mask=inside)


@triton.jit
def _opened(moving_ptr, row, column, height, width, inside):
    # Whether a pixel lies in 3x3 pixels that are all 1; what is outside of the map counts as 1.
    left = tl.where(column > 0, 1, 0)
    right = tl.where(column < width - 1, 4, 0)
    found = tl.zeros(row.shape, tl.int32)
    above = found
    here = found
    for k in tl.static_range(5):
        y = row + k - 2
        there = inside & (y >= 0) & (y < height)
        bits = tl.zeros(row.shape, tl.int32)
        for i in tl.static_range(5):
            x = column + i - 2
            one = tl.load(moving_ptr + y * width + x, mask=there & (x >= 0) & (x < width), other=1)
            bits |= one.to(tl.int32) << i
        # Bit 0 to 2: the three neighbours of the pixel on the left, of itself, on the right
        bits = bits & (bits >> 1) & (bits >> 2) & (left | 2 | right)
        if k >= 2:
            centre = (y - 1 >= 0) & (y - 1 < height)
            found |= tl.where(centre, above & here & bits, 0)
        above = here
        here = bits
    return found > 0


@triton.jit
def update_kernel(
    seen_ptr, raw_ptr, maps_ptr, motion_ptr, numbers_ptr, moving_ptr,
    after_ptr, inverse_depth_ptr, variance_ptr, gain_ptr, position_ptr,
    numbers_row, height, width, LENGTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See ``steps.blend``: a block of a frame's pixels."""
    camera, size = tl.program_id(1), height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size
    row, column = pixel // width, pixel % width
    seen, motion = seen_ptr + camera * 8 * size + pixel, motion_ptr + camera * LENGTH
    maps_ptr += camera * 4 * size
    numbers = numbers_ptr + camera * numbers_row
    affine, usual = load(motion + MOTION.value.affine, 2), load(motion + MOTION.value.usual, 2)
    turn, along = load(motion + MOTION.value.turn, 9), load(motion + MOTION.value.shift, 3)
    form, fit = load(motion + MOTION.value.form, 4), load(motion + MOTION.value.fit, 2)
    noise = tl.load(numbers + NUMBER.value.measurement_noise)
    begin = flag(numbers + NUMBER.value.fresh) | flag(motion + MOTION.value.reset_code)
    has_flow = flag(numbers + NUMBER.value.has_flow)
    has_ego = flag(motion + MOTION.value.has_ego)
    reliable = flag(motion + MOTION.value.reliable)
    both = has_flow & has_ego

    # Position in the previous frame
    current = bounded(tl.load(seen, mask=inside, other=1.0), affine, usual)
    x, y = project(turn, along, column.to(tl.float32), row.to(tl.float32), current)
    moving = _opened(moving_ptr + camera * size, row, column, height, width, inside)
    moving = moving & both & reliable
    follows = moving | (has_flow & ~reliable)
    flow_x = tl.load(seen + 3 * size, mask=inside, other=0.0)
    flow_y = tl.load(seen + 4 * size, mask=inside, other=0.0)
    x, y = tl.where(follows, flow_x, x), tl.where(follows, flow_y, y)
    position_ptr += camera * 2 * size + pixel
    tl.store(position_ptr, x, mask=inside)
    tl.store(position_ptr + size, y, mask=inside)

    # The state there; it follows this frame's change of scale.
    corners, fy, fx = corners_at(x, y, height, width, 1)
    moved = advance(form, x, y, bilinear(maps_ptr, corners, fy, fx, inside))
    moved = (moved - fit[1]) * (affine[0] / fit[0]) + affine[1]
    variance = bilinear(maps_ptr + size, corners, fy, fx, inside)
    trace = bilinear(maps_ptr + 3 * size, corners, fy, fx, inside)
    trace = tl.where(both, trace, 0.0)

    # Within its neighbourhood
    least, most = current, current
    for k in tl.static_range(9):
        dy, dx = k // 3 - 1, k % 3 - 1
        there = inside & (row + dy >= 0) & (row + dy < height)
        there = there & (column + dx >= 0) & (column + dx < width)
        beside = tl.load(seen + dy * width + dx, mask=there, other=1.0)
        beside = tl.where(there, bounded(beside, affine, usual), current)
        least, most = tl.minimum(least, beside), tl.maximum(most, beside)
    slack = STEPS.value.clamp_slack * noise * current
    predicted = tl.minimum(tl.maximum(moved, least - slack), most + slack)

    # Kalman's gain and its gate
    outside = (x < -0.5) | (x > width - 0.5) | (y < -0.5) | (y > height - 0.5)
    variance += tl.load(numbers + NUMBER.value.process_noise)
    variance = tl.where(outside, STEPS.value.unknown_variance, variance)
    total = variance + noise * noise
    unit = 1.0 / (current * tl.sqrt(total))
    nearer = (current - predicted) * unit
    deviation = tl.maximum(nearer, -STEPS.value.farther * nearer)
    gain = tl.maximum(variance / total, tl.load(numbers + NUMBER.value.min_gain))
    gate = (deviation - STEPS.value.gate[0]) / (STEPS.value.gate[1] - STEPS.value.gate[0])
    gain += (1.0 - gain) * tl.minimum(tl.maximum(gate, 0.0), 1.0)
    gain = tl.where((current - moved) * unit > STEPS.value.nearer_gate, 1.0, gain)
    # What moves by itself, and where it was
    moving_gain = tl.load(numbers + NUMBER.value.moving_gain)
    least_gain = tl.where(moving, moving_gain, STEPS.value.trace_gain * trace)
    gain = tl.maximum(gain, least_gain)
    residual = tl.load(seen + 5 * size, mask=inside, other=0.0)
    changed = (residual > STEPS.value.luma_outlier) & has_flow & (moving | ~has_ego)
    gain = tl.where(changed | begin, 1.0, gain)

    inverse_depth = tl.where(begin, current, predicted + gain * (current - predicted))
    variance = gain * noise * noise
    trace = tl.where(moving, 1.0, STEPS.value.trace_decay * trace)
    valid = tl.load(seen + size, mask=inside, other=0.0)
    after = after_ptr + camera * 4 * size + pixel
    tl.store(after, inverse_depth, mask=inside)
    known = tl.where(valid > 0, variance, STEPS.value.unknown_variance)
    tl.store(after + size, known, mask=inside)
    tl.store(after + 2 * size, tl.load(seen + 2 * size, mask=inside), mask=inside)
    tl.store(after + 3 * size, trace, mask=inside)
    pixel += camera * size
    raw = tl.load(raw_ptr + pixel, mask=inside)
    tl.store(inverse_depth_ptr + pixel, tl.where(valid > 0, inverse_depth, raw), mask=inside)
    tl.store(variance_ptr + pixel, variance, mask=inside)
    tl.store(gain_ptr + pixel, gain, mask=inside)


@triton.jit
def _logits(ptr, mask):
    # NaN and infinities count as 0.
    values = tl.load(ptr, mask=mask, other=0.0).to(tl.float32)
    return tl.where(tl.abs(values) < float("inf"), values, 0.0)


@triton.jit
def smooth_logits_kernel(
    logits_ptr, previous_ptr, position_ptr, gain_ptr, numbers_ptr, out_ptr,
    logits_image, logits_class, logits_pixel, previous_image, previous_class, previous_pixel,
    out_image, out_class, out_pixel, numbers_row, h, w, height, width, y_scale, x_scale,
    C: tl.constexpr, BC: tl.constexpr, PIXELS: tl.constexpr, PREVIOUS: tl.constexpr,
):  # fmt: skip
    """See ``steps.smooth_logits``: all classes of some pixels."""
    camera, size = tl.program_id(1), height * width
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < h * w
    logits = logits_ptr + camera * logits_image + pixel[:, None] * logits_pixel
    if PREVIOUS:
        y = (pixel // w).to(tl.float32) * y_scale
        x = (pixel % w).to(tl.float32) * x_scale
        corners, fy, fx = corners_at(x, y, height, width, 1)
        gain = bilinear(gain_ptr + camera * size, corners, fy, fx, inside)
        position_ptr += camera * 2 * size
        x = bilinear(position_ptr, corners, fy, fx, inside)
        y = bilinear(position_ptr + size, corners, fy, fx, inside)
        weight = 1.0 - (gain - STEPS.value.label_gate[0]) / STEPS.value.label_gate[1]
        weight = tl.minimum(tl.maximum(weight, 0.0), 1.0)
        numbers_ptr += camera * numbers_row
        weight *= 1.0 - tl.load(numbers_ptr + NUMBER.value.label_gain)
        previous_ptr += camera * previous_image
        corners, fy, fx = corners_at(x / x_scale, y / y_scale, h, w, previous_pixel)
        corners = (
            corners[0][:, None], corners[1][:, None], corners[2][:, None], corners[3][:, None],
        )  # fmt: skip
        fy, fx, weight = fy[:, None], fx[:, None], weight[:, None]
    out = out_ptr + camera * out_image + pixel[:, None] * out_pixel
    for first in range(0, C, BC):
        channel = (first + tl.arange(0, BC))[None, :]
        mask = inside[:, None] & (channel < C)
        value = _logits(logits + channel * logits_class, mask)
        if PREVIOUS:
            before = previous_ptr + channel * previous_class
            before = bilinear(before, corners, fy, fx, mask & (weight > 0))
            value += tl.where(weight > 0, weight * (before - value), 0.0)
        tl.store(out + channel * out_class, value, mask=mask)
