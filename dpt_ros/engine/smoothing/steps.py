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
from torch.nn import functional as F

from dpt_ros.engine import triton_launch
from dpt_ros.engine.packed import unpack
from dpt_ros.engine.smoothing.flow import optical_flow
from dpt_ros.engine.smoothing.maps import (
    LARGEST,
    Array,
    above,
    arrays,
    choose,
    empty,
    identity,
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
    x, y = arrays(*pixel_grid(height, width, raw.device))
    inverse_depth, raw, luma, flow = arrays(
        torch.nan_to_num(raw, 0.0, 0.0, 0.0), raw,
        *(resize(maps, (height, width)) for maps in (luma[:, None], flow)),
    )  # fmt: skip
    seen = empty(raw, len(raw), 8, height, width)
    seen[:, 0] = inverse_depth.clip(MIN_INVERSE_DEPTH, LARGEST)
    seen[:, 1] = above(raw, 0.0) - above(raw, LARGEST)
    seen[:, 2] = luma[:, 0]
    seen[:, 3] = flow[:, 0] * (2 * width / columns / (width - 1)) + x
    seen[:, 4] = flow[:, 1] * (2 * height / rows / (height - 1)) + y
    seen[:, 5:] = flow[:, 2:]
    return tensor(seen)


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
    grid, seen = (grid[0][:, part], grid[1][part]), 1.0 * seen[..., part, part]
    current = bounded_affine(seen[:, 0], affine, metric_affine)

    has_flow, has_odometry = n["has_flow"] > 0, n["has_odometry"] > 0
    has_ego = (n["has_ego"] > 0) & (has_flow | has_odometry)
    both, known, still = has_ego & has_flow, has_ego & has_odometry, identity(3, seen)[None]
    rotation = choose(known, n["rotation"], still)
    shift = choose(~known, 0.0, n["shift"])
    zero = 0 * current[:1]
    places_ = xp.stack([grid[0] + zero, grid[1] + zero, 1 + zero], 1)
    refined = refine(
        rotation, shift, n["from_grid"], places_.reshape(3, -1), _flat(current),
        _flat(seen[:, 3:5]), _flat(seen[:, 6:8]),
        choose(known, n["prior_sigma"], n["free_sigma"][:, None]),
    )  # fmt: skip
    rotation, shift = choose(both, refined[0], rotation), choose(both, refined[1], shift)
    turn, along, form = warp(rotation, shift, n["to_grid"], n["from_grid"])
    turn, along = choose(has_ego, turn, still), choose(~has_ego, 0.0, along)

    x, y = project(turn, along, grid, current)
    differs, worse = flow_disagreement(seen, grid, x, y, maps, correlation[:, 0])
    moving = differs * above(worse, -_LUMA_NOISE)
    refuted = (differs * above(worse, 2 * _LUMA_NOISE)).mean((1, 2)) > _MAX_WORSE
    refuted = refuted & (differs.mean((1, 2)) > _MAX_DIFFERING)
    reliable = has_ego & ~(has_flow & refuted)
    moving = choose(both & reliable, moving, 0 * moving)
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
    xp, n, seen, raw, maps, motion, correlation, grid = _given(
        numbers, seen, raw, maps, motion, correlation
    )
    m = unpack(MOTION_FIELDS, motion)
    fresh, has_flow, has_ego = n["fresh"] > 0, n["has_flow"] > 0, m["has_ego"] > 0
    reliable, begin, both = m["reliable"] > 0, fresh | (m["reset_code"] > 0), has_flow & has_ego
    maps, exposure = choose(fresh, 1.0, maps), choose(fresh, 1.0, correlation[:, 0])
    current = bounded_affine(seen[:, 0], m["affine"], m["usual"])

    x, y = project(m["turn"], m["shift"], grid, current)
    differs, worse = flow_disagreement(seen, grid, x, y, maps, exposure)
    differs *= above(worse, -_LUMA_NOISE)
    moving = choose(both & reliable, opened(differs), 0 * differs)
    x, y = follow_flow(x, y, seen, moving, has_flow & ~reliable)
    warped = sample(maps, places(x, y, (maps.shape[2], maps.shape[3])))
    # The state follows this frame's change of scale, so that there is no step in the innovation.
    change = m["affine"][:, 0] / m["fit"][:, 0]
    moved = advance(m["form"], x, y, warped[:, 0])
    moved *= change[:, None, None]
    moved += (m["affine"][:, 1] - m["fit"][:, 1] * change)[:, None, None]

    noise = n["measurement_noise"][:, None, None]
    predicted = choose(begin, current, clamp(moved, current, noise))
    gain = kalman_gain(current, predicted, moved, warped[:, 1], outside(x, y), n)
    trace = choose(both, warped[:, 3], 0 * moving)
    gain = xp.maximum(gain, n["moving_gain"][:, None, None] * moving)
    gain = xp.maximum(gain, _TRACE_GAIN * trace * (1 - moving))
    changed = above(seen[:, 5], _LUMA_OUTLIER) * choose(has_ego, moving, 1 + 0 * moving)
    gain = xp.maximum(gain, choose(has_flow, changed, 0 * changed))
    gain = choose(begin, 1.0, gain)

    step = gain * (current - predicted)
    step += predicted
    after = empty(maps, *maps.shape)
    # After an update with the Kalman gain K the variance is K R.
    variance = gain * noise**2
    after[:, 0], after[:, 2] = step, seen[:, 2]
    after[:, 1] = variance + (1 - seen[:, 1]) * _UNKNOWN_VARIANCE
    after[:, 3] = xp.maximum(moving, _TRACE_DECAY * trace)
    found = (after, select(seen[:, 1], step, raw), variance, gain, xp.stack([x, y], 1))
    return tuple(tensor(one) for one in found)  # type: ignore[return-value]


def sample_step(height: int, width: int) -> int:
    """Distance of the pixels by which a frame is registered."""
    return max(1, round(math.sqrt(height * width / _SAMPLES)))


def flow_disagreement(
    seen: Array, grid: tuple[Array, Array], x: Array, y: Array, maps: Array, exposure: Array
) -> tuple[Array, Array]:
    """Where optical flow disagrees with the camera's motion.

    Args:
        seen: (B, 8, h, w), from ``look``, at the pixels of the grid.
        grid: x (1, w) and y (h, 1), normalised.
        x, y: (B, h, w) in the previous frame by the camera's motion, normalised.
        maps: (B, 4, H, W) of the state.
        exposure: (B,) factor of the state's grey levels.

    Returns:
        (B, h, w) 1 where the two differ, else 0; (B, h, w) by how many grey levels the camera's
        motion fits worse.
    """
    size = (maps.shape[2], maps.shape[3])
    way = error = 0.0
    for k, position in enumerate((x, y)):
        half = (size[1 - k] - 1) / 2
        path, off = seen[:, 3 + k] - grid[k], seen[:, 3 + k] - position
        path *= half
        off *= half
        path *= path
        off *= off
        way, error = path + way, off + error
    tolerance = _FLOW_TOLERANCE[1] * square_root(way)
    tolerance += _FLOW_TOLERANCE[0]
    tolerance *= tolerance
    error -= tolerance
    worse = sample(maps[:, 2:3], places(x, y, size))[:, 0]
    worse *= exposure[:, None, None]
    worse -= seen[:, 2]
    return above(error, 0.0), abs(worse) - seen[:, 5]


def follow_flow(
    x: Array, y: Array, seen: Array, moving: Array, everywhere: Array
) -> tuple[Array, Array]:
    """Positions (B, h, w) by flow where something moves by itself: where ``moving`` (B, h, w) is
    1, and everywhere in frames (B,)."""
    to_x, to_y = seen[:, 3] - x, seen[:, 4] - y
    to_x *= choose(everywhere, 1.0, moving)
    to_y *= choose(everywhere, 1.0, moving)
    return x + to_x, y + to_y


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
    return xp.minimum(xp.maximum(predicted, lowest), highest)


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
        n: by name, of ``FILTER_FIELDS``.
    """
    xp = library(current)
    process, measured, least = (
        n[name][:, None, None] for name in ("process_noise", "measurement_noise", "min_gain")
    )
    variance = variance + process
    variance += _UNKNOWN_VARIANCE * beyond
    total = variance + measured**2
    unit = current * square_root(total)
    nearer = (current - predicted) / unit
    gate = xp.maximum(nearer, -_FARTHER * nearer)
    gate -= _GATE[0]
    gate *= 1 / (_GATE[1] - _GATE[0])
    gain = xp.maximum(variance / total, least)
    gain += (1 - gain) * gate.clip(0.0, 1.0)
    return xp.maximum(gain, above((current - moved) / unit, _NEARER_GATE))


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
    current = centered(logits)
    if previous is None or previous.shape != logits.shape:
        return current
    size = (logits.shape[2], logits.shape[3])
    maps = torch.cat([position, gain[:, None]], 1)
    if tuple(maps.shape[2:]) != size:
        # corners aligned, as the head upsamples the logits
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)
    label_gain = unpack(FILTER_FIELDS, numbers)["label_gain"][:, None, None]
    weight = (1 - (maps[:, 2] - _LABEL_GATE[0]) / _LABEL_GATE[1]).clamp(0, 1) * (1 - label_gain)
    weight = weight[:, None]
    x, y, past = arrays(maps[:, 0], maps[:, 1], previous)
    mixed = torch.lerp(current, tensor(sample(past, places(x, y, size))), weight)
    return torch.where(weight > 0, mixed, current)


def centered(logits: Tensor) -> Tensor:
    """Logits (B, C, h, w) of mean 0: log-odds that can be averaged; NaN counts as 0."""
    values = torch.nan_to_num(logits.float(), 0.0, 0.0, 0.0)
    return values - values.mean(1, keepdim=True)


def bounded_affine(inverse_depth: Array, affine: Array, metric_affine: Array) -> Array:
    """Inverse depth (B, H, W) by an affine map (B, 2), within 0.3 to 3 times of that by another:
    a shift that fits what is near may not send what is far behind the camera."""
    xp, (own, given) = (
        library(inverse_depth),
        (x[:, :, None, None] for x in (metric_affine, affine)),
    )
    usual, mapped = own[:, 0] * inverse_depth, given[:, 0] * inverse_depth
    usual += own[:, 1]
    mapped += given[:, 1]
    usual = usual.clip(MIN_INVERSE_DEPTH, LARGEST)
    return xp.minimum(xp.maximum(mapped, 0.3 * usual), 3 * usual)


def _given(numbers: Tensor, *tensors: Tensor) -> tuple[Any, ...]:
    """The library to compute with, the numbers by name, arrays of tensors, and the grid of maps
    of the first one's size."""
    grid = pixel_grid(*tensors[0].shape[-2:], numbers.device)
    numbers, x, y, *found = arrays(numbers, *grid, *tensors)
    return library(numbers), unpack(FILTER_FIELDS, numbers), *found, (x, y)


def _flat(maps: Array) -> Array:
    """(..., h, w) -> (..., h * w)."""
    return maps.reshape(*maps.shape[:-2], -1)
