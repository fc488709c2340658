# SPDX-License-Identifier: Apache-2.0
"""The temporal filter on the device: register, reproject, gated Kalman update.

1. ``look``: a frame by itself, at the size of the maps.
2. ``register``: the camera's motion from odometry, refined by optical flow; scale and shift of
   the new frame against the state (the global flicker); whether the scene was cut.
3. ``blend``: by that motion every pixel's position in the previous frame; where flow contradicts
   it, something moves by itself, and flow gives the position. The state, warped into the new
   view, may not lie outside of its neighbourhood in the new frame (Karis, "High quality temporal
   supersampling", SIGGRAPH 2014). A Kalman gain per pixel, opened by a gate where state and frame
   disagree, and fully where the frame is nearer.
4. ``smooth_logits``: the logits by the same warp and the same gate.

All are functions of tensors with a leading batch of cameras, without decisions in Python that
depend on values: nothing waits for the device.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine import triton_launch
from dpt_ros.engine.packed import unpack
from dpt_ros.engine.smoothing.flow import optical_flow
from dpt_ros.engine.smoothing.maps import (
    LARGEST,
    Array,
    above,
    arrays,
    at_least,
    bands,
    centre,
    choose,
    classes,
    empty,
    identity,
    interleaved,
    length,
    library,
    max_pool3x3,
    min_pool3x3,
    opened,
    pixel_grid,
    places,
    resize,
    sample,
    select,
    square_root,
    tensor,
    thumbnail,
    weighted,
)
from dpt_ros.engine.smoothing.motion import advance, project, refine, warp
from dpt_ros.engine.smoothing.registration import fit_affine
from dpt_ros.engine.smoothing.state import FILTER_FIELDS, MOTION_FIELDS, FilterState

MIN_INVERSE_DEPTH = 1e-6  # 1/m, stands for an inverse depth that is not valid
_SAMPLES = 3000  # pixels by which a frame is registered
_UNKNOWN_VARIANCE = 1e3  # relative, of a state without a measurement
_GATE = (1.5, 3.0)  # standard deviations between which the state loses its weight
_FARTHER = 1.3  # factor of the deviation of what is farther: gated sooner, against ghosts
_NEARER_GATE = 2.0  # standard deviations from which on something nearer is taken at once
_CLAMP_SLACK = 1.5  # standard deviations that the state may lie outside of its neighbourhood
_FLOW_TOLERANCE = (1.5, 0.05)  # pixels, and share of the flow, to which flow and ego-motion agree
_LUMA_NOISE, _LUMA_OUTLIER = 4.0, 20.0  # grey levels
_THUMBNAIL = (24, 32)  # by which images are correlated
# Share of pixels where flow differs, and where it also fits better, that refute ego-motion.
_MAX_DIFFERING, _MAX_WORSE = 0.75, 0.25
_MARGIN = 2  # rows beyond those that a pixel's gain depends on
_TRACE_DECAY = 0.7  # of a moving object's trace, per frame
_TRACE_GAIN = 0.5  # the least gain where something has just moved away
_LABEL_GATE = (0.25, 0.25)  # depth gain from which on labels lose their state; over how much
# Share of inliers, and correlation of the images, below which the scene was cut. In robots'
# worlds, floors and walls of two scenes alone make 50 to 70 % inliers.
_CUT_INLIERS, _CUT_CORRELATION = 0.8, 0.5


def _triton(x: Tensor) -> Any | None:
    return triton_launch.triton_of(x, "dpt_ros.engine.smoothing.triton_steps")


def smooth(
    state: FilterState,
    raw: Tensor,
    metric_affine: Tensor,
    logits: Tensor | None,
    luma: Tensor,
    numbers: Tensor,
) -> tuple[FilterState, Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Filter a frame of each camera.

    Args:
        state: after the previous frames; not changed.
        raw: (B, H, W) inverse depth; NaN, inf and what is not positive is not valid.
        metric_affine: (B, 2) scale and shift of ``raw`` to 1/m, as the frame would have them by
            itself.
        logits: (B, C, h, w) or None.
        luma: (B, hl, wl) grey levels 0..255, of the state's size.
        numbers: (B, n) of ``FILTER_FIELDS``.

    Returns:
        the state after the frames; inverse depth (B, H, W), 1/m, as it came where it is not
        valid; its relative variance (B, H, W); logits (B, C, h, w) of mean 0, or None; the
        frames' weight against the state (B, H, W), 0..1; scale and shift applied (B, 2); why the
        pixels reset the filter (B,) uint8, an index into ``RESET_REASONS``.
    """
    flow = optical_flow(luma, state.luma)
    correlation = correlate(luma, state.luma)
    seen = look(raw, luma, flow)
    motion = register(
        seen, state.maps, state.affine, state.age, metric_affine, correlation, numbers
    )
    maps, inverse_depth, variance, gain, position = blend(
        seen, raw, state.maps, motion, correlation, numbers
    )
    if logits is not None:
        logits = smooth_logits(logits, state.logits, position, gain, numbers)
    found = unpack(MOTION_FIELDS, motion)
    after = FilterState(maps, logits, found["affine"], found["age"], luma)
    reset_code = found["reset_code"].to(torch.uint8)
    return after, inverse_depth, variance, logits, gain, found["affine"], reset_code


def correlate(luma: Tensor, previous: Tensor) -> Tensor:
    """Compare the thumbnails of two images each.

    Args:
        luma, previous: (B, hl, wl) grey levels.

    Returns:
        (B, 2): the factor of the previous image's grey levels that makes it as bright; and the
        correlation, -1..1.
    """
    small, mean = [], []
    for image in arrays(luma, previous):
        values = thumbnail(image, _THUMBNAIL)
        mean.append(values.mean((1, 2)))
        small.append(values - mean[-1][:, None, None])
    power = [(values * values).sum((1, 2)) for values in small]
    product = (small[0] * small[1]).sum((1, 2))
    correlation = product / (power[0] * power[1]).clip(1e-6, LARGEST) ** 0.5
    exposure = (mean[0] / mean[1].clip(1.0, LARGEST)).clip(0.1, 10.0)
    return tensor(library(product).stack([exposure, correlation], 1))


def look(raw: Tensor, luma: Tensor, flow: Tensor) -> Tensor:
    """A frame by itself.

    Args:
        raw: (B, H, W) inverse depth as it came.
        luma: (B, hl, wl) grey levels.
        flow: (B, 5, hl, wl), from ``optical_flow``.

    Returns:
        (B, 8, H, W): inverse depth, > 0 also where it is not valid; 1 where it is; grey levels;
        position in the previous frame by flow (x, y, normalised), residual in grey levels, weight
        along x and y.
    """
    if triton := _triton(raw):
        return triton.look(raw, luma, flow)
    (height, width), (rows, columns) = raw.shape[1:], flow.shape[2:]
    grid, inverse_depth, raw, luma, flow = arrays(
        pixel_grid(height, width, raw.device),
        torch.nan_to_num(raw, 0.0, 0.0, 0.0), raw,
        *(resize(maps, (height, width)) for maps in (luma[:, None], flow)),
    )  # fmt: skip
    seen = empty(raw, len(raw), 8, height, width)
    seen[:, 0] = inverse_depth.clip(MIN_INVERSE_DEPTH, LARGEST)
    seen[:, 1] = above(raw, 0.0) - above(raw, LARGEST)
    seen[:, 2] = luma[:, 0]
    seen[:, 3] = flow[:, 0] * (2 * width / columns / (width - 1)) + grid[0]
    seen[:, 4] = flow[:, 1] * (2 * height / rows / (height - 1)) + grid[1]
    seen[:, 5:] = flow[:, 2:]
    return tensor(seen)


def sample_step(height: int, width: int) -> int:
    """Distance of the pixels by which a frame is registered."""
    return max(1, round(math.sqrt(height * width / _SAMPLES)))


@np.errstate(all="ignore")
def register(
    seen: Tensor,
    maps: Tensor,
    affine: Tensor,
    age: Tensor,
    metric_affine: Tensor,
    correlation: Tensor,
    numbers: Tensor,
) -> Tensor:
    """The camera's motion, scale and shift, on a subset of the pixels.

    Args:
        seen: (B, 8, H, W), from ``look``.
        maps, affine, age: of the state.
        metric_affine: (B, 2), see ``smooth``.
        correlation: (B, 2), from ``correlate``.
        numbers: (B, n) of ``FILTER_FIELDS``.

    Returns:
        (B, m) of ``MOTION_FIELDS``.
    """
    if triton := _triton(seen):
        return triton.register(seen, maps, affine, age, metric_affine, correlation, numbers)
    xp, n, seen, maps, affine, age, metric_affine, correlation, grid = _given(
        numbers, seen, maps, affine, age, metric_affine, correlation
    )
    fresh = n["fresh"] > 0
    maps, age = choose(fresh, 1.0, maps), choose(fresh, 0.0, age)
    affine, correlation = choose(fresh, metric_affine, affine), choose(fresh, 1.0, correlation)
    nothing = seen[:, 1].sum((1, 2)) == 0
    size = (maps.shape[2], maps.shape[3])
    step = sample_step(*size)
    part = slice(step // 2, None, step)
    grid, seen = 1.0 * grid[..., part, part], 1.0 * seen[..., part, part]
    current = bounded_affine(seen[:, 0], affine, metric_affine)

    has_flow, has_odometry = n["has_flow"] > 0, n["has_odometry"] > 0
    has_ego = (n["has_ego"] > 0) & (has_flow | has_odometry)
    both, known, still = has_ego & has_flow, has_ego & has_odometry, identity(3, seen)[None]
    rotation = choose(known, n["rotation"], still)
    shift = choose(~known, 0.0, n["shift"])
    refined = refine(
        rotation, shift, n["from_grid"], _flat(grid), _flat(current),
        _flat(seen[:, 3:5]), _flat(seen[:, 6:8]),
        choose(known, n["prior_sigma"], n["free_sigma"][:, None]),
    )  # fmt: skip
    rotation, shift = choose(both, refined[0], rotation), choose(both, refined[1], shift)
    turn, along, form = warp(rotation, shift, n["to_grid"], n["from_grid"])
    turn, along = choose(has_ego, turn, still), choose(~has_ego, 0.0, along)

    x, y = project(turn, along, grid, current)
    differs, worse = flow_disagreement(seen, grid, x, y, maps[:, 2:3], correlation[:, 0])
    moving = differs * above(worse, -_LUMA_NOISE)
    refuted = (differs * above(worse, 2 * _LUMA_NOISE)).mean((1, 2)) > _MAX_WORSE
    refuted = refuted & (differs.mean((1, 2)) > _MAX_DIFFERING)
    reliable = has_ego & ~(has_flow & refuted)
    moving = choose(~(both & reliable), 0.0, moving)
    x, y = follow_flow(x, y, seen, moving, has_flow & ~reliable)
    form = choose(reliable, form, identity(4, seen)[None, 2])
    warped = sample(maps[:, :2], places(x, y, size))
    usable = (1 - above(warped[:, 1], 0.1)) * seen[:, 1] * (1 - moving) * (1 - outside(x, y))
    fit, inliers = fit_affine(
        _flat(seen[:, 0]), _flat(advance(form, x, y, warped[:, 0])), _flat(usable), affine,
        metric_affine,
    )  # fmt: skip

    cut = (inliers < _CUT_INLIERS) & (correlation[:, 1] < _CUT_CORRELATION)
    reset_code = xp.where(nothing, 2.0, xp.where(cut, 1.0, 0.0 * age))
    reset_code = choose(fresh, 0.0, reset_code)
    begin = fresh | (reset_code > 0)
    leak = xp.maximum(xp.where(reliable, n["leak"], n["flow_leak"]), 1 / (age + 1))[:, None]
    # in the order of MOTION_FIELDS
    found = [
        turn, along, form, has_ego, reliable, fit,
        choose(begin, metric_affine, fit + leak * (metric_affine - fit)), metric_affine,
        reset_code, inliers, choose(begin, 1.0, age + 1),
    ]  # fmt: skip
    return tensor(xp.concatenate([x.reshape(len(age), -1) + 0 * age[:, None] for x in found], 1))


@np.errstate(all="ignore")
def blend(
    seen: Tensor, raw: Tensor, maps: Tensor, motion: Tensor, correlation: Tensor, numbers: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Correspond, reproject, clamp and update by the gated Kalman gain, for every pixel.

    Args:
        seen: (B, 8, H, W), from ``look``.
        raw: (B, H, W) inverse depth as it came.
        maps: (B, 4, H, W) of the state.
        motion: (B, m), from ``register``.
        correlation: (B, 2), from ``correlate``.
        numbers: (B, n) of ``FILTER_FIELDS``.

    Returns:
        maps (B, 4, H, W) of the state after the frame; inverse depth, relative variance and gain
        (B, H, W) each; positions in the previous frame (B, 2, H, W), normalised.
    """
    if triton := _triton(seen):
        return triton.blend(seen, raw, maps, motion, correlation, numbers)
    _, n, seen, raw, maps, motion, correlation, grid = _given(
        numbers, seen, raw, maps, motion, correlation
    )
    maps = choose(n["fresh"] > 0, 1.0, maps)
    exposure = choose(n["fresh"] > 0, 1.0, correlation[:, 0])
    n |= unpack(MOTION_FIELDS, motion)
    batch, _, height, width = maps.shape
    size = height, width
    past, luma = interleaved(maps), maps[:, 2:3]
    after, position = empty(maps, *maps.shape), empty(maps, batch, 2, *size)
    inverse_depth, variance, gain = (empty(maps, batch, *size) for _ in range(3))
    planes = [*(after[:, k] for k in range(4)), inverse_depth, variance, gain]
    planes += [position[:, 0], position[:, 1]]
    for rows, inner, own in bands(raw, _MARGIN):
        part = seen[:, :, rows], raw[:, rows], past, luma, n, exposure, grid[:, rows]
        for into, values in zip(planes, _blend(*part, size), strict=True):
            into[:, own] = values[:, inner]
    found = after, inverse_depth, variance, gain, position
    return tuple(tensor(one) for one in found)  # type: ignore[return-value]


def _blend(
    seen: Array,
    raw: Array,
    past: Any,
    luma: Array,
    n: dict[str, Array],
    exposure: Array,
    grid: Array,
    size: tuple[int, int],
) -> tuple[Array, ...]:
    """``blend`` of some rows; of the first and last, ``_MARGIN`` may not be right."""
    xp, begin = library(raw), (n["fresh"] > 0) | (n["reset_code"] > 0)
    has_flow, has_ego, reliable = n["has_flow"] > 0, n["has_ego"] > 0, n["reliable"] > 0
    current = bounded_affine(seen[:, 0], n["affine"], n["usual"])

    x, y = project(n["turn"], n["shift"], grid, current)
    differs, worse = flow_disagreement(seen, grid, x, y, luma, exposure)
    differs *= above(worse, -_LUMA_NOISE)
    moving = choose(~(has_ego & has_flow & reliable), 0.0, opened(differs))
    x, y = follow_flow(x, y, seen, moving, has_flow & ~reliable)
    warped = sample(past, places(x, y, size))
    # The state follows this frame's change of scale, so that there is no step in the innovation.
    change = n["affine"][:, 0] / n["fit"][:, 0]
    moved = advance(n["form"], x, y, warped[:, 0])
    moved *= change[:, None, None]
    moved += (n["affine"][:, 1] - n["fit"][:, 1] * change)[:, None, None]

    noise = n["measurement_noise"][:, None, None]
    predicted = choose(begin, current, clamp(moved, current, noise))
    gain = kalman_gain(current, predicted, moved, warped[:, 1], outside(x, y), n)
    trace = choose(~(has_ego & has_flow), 0.0, warped[:, 3])
    floor = _TRACE_GAIN * (1 - moving)
    floor *= trace
    floor += n["moving_gain"][:, None, None] * moving
    xp.maximum(gain, floor, out=gain)
    changed = above(seen[:, 5], _LUMA_OUTLIER)
    changed *= choose(~has_ego, 1.0, moving)
    xp.maximum(gain, choose(~has_flow, 0.0, changed), out=gain)
    gain = choose(begin, 1.0, gain)

    inverse_depth = gain * (current - predicted)
    inverse_depth += predicted
    # After an update with the Kalman gain K the variance is K R.
    variance = gain * noise**2
    known = 1 - seen[:, 1]
    known *= _UNKNOWN_VARIANCE
    known += variance
    trace = _TRACE_DECAY * trace
    xp.maximum(moving, trace, out=trace)
    shown = select(seen[:, 1], inverse_depth, raw)
    return inverse_depth, known, seen[:, 2], trace, shown, variance, gain, x, y


def flow_disagreement(
    seen: Array, grid: Array, x: Array, y: Array, luma: Array, exposure: Array
) -> tuple[Array, Array]:
    """Where optical flow disagrees with the camera's motion.

    Args:
        seen: (B, 8, h, w), from ``look``, at the pixels of the grid.
        grid: (3, h, w), from ``pixel_grid``.
        x, y: (B, h, w) in the previous frame by the camera's motion, normalised.
        luma: (B, 1, H, W) grey levels of the state.
        exposure: (B,) factor of them.

    Returns:
        (B, h, w) 1 where the two differ, else 0; (B, h, w) by how many grey levels the camera's
        motion fits worse.
    """
    size = (luma.shape[2], luma.shape[3])
    x_half, y_half = (size[1] - 1) / 2, (size[0] - 1) / 2
    to_x, to_y = seen[:, 3] - grid[0], seen[:, 4] - grid[1]
    to_x *= x_half
    to_y *= y_half
    error = length(
        weighted(seen[:, 3], x_half, x, -x_half), weighted(seen[:, 4], y_half, y, -y_half)
    )
    error = weighted(error, 1.0, length(to_x, to_y), -_FLOW_TOLERANCE[1])
    worse = sample(luma, places(x, y, size))[:, 0]
    worse *= exposure[:, None, None]
    worse -= seen[:, 2]
    return above(error, _FLOW_TOLERANCE[0]), abs(worse) - seen[:, 5]


def follow_flow(
    x: Array, y: Array, seen: Array, moving: Array, everywhere: Array
) -> tuple[Array, Array]:
    """Positions (B, h, w) by flow where something moves by itself: where ``moving`` (B, h, w) is
    1, and everywhere in frames (B,)."""
    mask = choose(everywhere, 1.0, moving)
    return select(mask, seen[:, 3], x), select(mask, seen[:, 4], y)


def outside(x: Array, y: Array) -> Array:
    """(B, h, w) 1 where a position is outside of the previous frame, else 0."""
    return above(library(x).maximum(abs(x), abs(y)), 1.0)


def clamp(predicted: Array, current: Array, noise: Array) -> Array:
    """The predicted inverse depth (B, H, W), 1/m, within the range of the current one's 3x3
    neighbourhoods and some of the relative noise (B, 1, 1)."""
    xp, slack = library(current), _CLAMP_SLACK * noise * current
    lowest, highest = min_pool3x3(current), max_pool3x3(current)
    lowest -= slack
    highest += slack
    xp.maximum(lowest, predicted, out=lowest)
    return xp.minimum(lowest, highest, out=lowest)


def kalman_gain(
    current: Array,
    predicted: Array,
    moved: Array,
    variance: Array,
    beyond: Array,
    n: dict[str, Array],
) -> Array:
    """Weight of the frame by its depth, (B, H, W), 0..1.

    Args:
        current: (B, H, W) inverse depth of the frame, 1/m.
        predicted: (B, H, W) of the state, clamped; moved: not clamped, since that would hide half
            of the step to something nearer.
        variance: (B, H, W) relative, of the state.
        beyond: (B, H, W), from ``outside``.
        n: by name, of ``FILTER_FIELDS``, (B,) each.
    """
    xp = library(current)
    variance = variance + n["process_noise"][:, None, None]
    variance += _UNKNOWN_VARIANCE * beyond
    total = variance + n["measurement_noise"][:, None, None] ** 2
    unit = square_root(total)
    unit *= current
    nearer = current - predicted
    nearer /= unit
    gate = -_FARTHER * nearer
    xp.maximum(nearer, gate, out=gate)
    gate -= _GATE[0]
    gate /= _GATE[1] - _GATE[0]
    variance /= total
    gain = at_least(variance, n["min_gain"])
    gate = gate.clip(0.0, 1.0)
    gate *= 1 - gain
    gain += gate
    step = current - moved
    step /= unit
    return xp.maximum(gain, above(step, _NEARER_GATE), out=gain)


def smooth_logits(
    logits: Tensor, previous: Tensor | None, position: Tensor, gain: Tensor, numbers: Tensor
) -> Tensor:
    """A moving average of log-odds, (B, C, h, w) of mean 0, gated as the depth.

    Args:
        logits: (B, C, h, w) of the frame; previous: of the state, or None.
        position: (B, 2, H, W) in the previous frame, normalised.
        gain: (B, H, W) of the depth.
        numbers: (B, n) of ``FILTER_FIELDS``.
    """
    if triton := _triton(logits):
        return triton.smooth_logits(logits, previous, position, gain, numbers)
    current, mean = centre(logits)
    if previous is None or previous.shape != logits.shape:
        return tensor(current - mean)
    size = (logits.shape[2], logits.shape[3])
    values = (position, gain[:, None], previous, numbers, pixel_grid(*size, gain.device))
    position, gain, past, numbers, grid = arrays(*values)
    if tuple(gain.shape[2:]) != size:
        # corners aligned, as the head upsamples the logits
        x, y = (one + 0 * current[:, 0] for one in grid[:2])
        here = places(x, y, (gain.shape[2], gain.shape[3]))
        position, gain = sample(position, here), sample(gain, here)
    n = unpack(FILTER_FIELDS, numbers)
    past = choose(n["fresh"] > 0, 0.0, past)
    where = places(position[:, 0], position[:, 1], size)
    weight = (1 - (gain - _LABEL_GATE[0]) / _LABEL_GATE[1]).clip(0.0, 1.0)
    weight *= 1 - n["label_gain"][:, None, None, None]
    smoothed = empty(past, *past.shape)
    for part in classes(past):
        now, change = smoothed[:, part], sample(interleaved(past[:, part]), where)
        library(now).subtract(current[:, part], mean, out=now)
        change -= now
        change *= weight
        now += change
    return tensor(smoothed)


def bounded_affine(inverse_depth: Array, affine: Array, metric_affine: Array) -> Array:
    """Inverse depth (B, H, W) by an affine map (B, 2), within 0.3 to 3 times of that by another:
    a shift that fits what is near may not send what is far behind the camera."""
    xp = library(inverse_depth)
    own, given = metric_affine[:, :, None, None], affine[:, :, None, None]
    usual, mapped = own[:, 0] * inverse_depth, given[:, 0] * inverse_depth
    usual += own[:, 1]
    mapped += given[:, 1]
    usual = usual.clip(MIN_INVERSE_DEPTH, LARGEST)
    xp.maximum(mapped, 0.3 * usual, out=mapped)
    usual *= 3
    return xp.minimum(mapped, usual, out=mapped)


def _given(numbers: Tensor, *tensors: Tensor) -> tuple[Any, ...]:
    """The library to compute with, the numbers by name, arrays of tensors, and the grid of maps
    of the first one's size."""
    height, width = tensors[0].shape[-2:]
    found = arrays(numbers, *tensors, pixel_grid(height, width, numbers.device))
    return library(found[0]), unpack(FILTER_FIELDS, found[0]), *found[1:]


def _flat(maps: Array) -> Array:
    """(..., h, w) -> (..., h * w)."""
    return maps.reshape(*maps.shape[:-2], -1)
