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

import torch
from torch import Tensor
from torch.nn import functional as F

from dpt_ros.engine import triton_launch
from dpt_ros.engine.packed import unpack
from dpt_ros.engine.smoothing.flow import optical_flow
from dpt_ros.engine.smoothing.maps import max_pool3x3, opened, pixel_grid, resize, sample
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
    images = torch.stack([luma, previous], 1)
    small = F.interpolate(images, _THUMBNAIL, mode="area").flatten(2)
    mean = small.mean(2, keepdim=True)
    small = small - mean
    products = small @ small.transpose(1, 2)
    power = (products[:, 0, 0] * products[:, 1, 1]).sqrt()
    correlation = products[:, 0, 1] / power.clamp(min=1e-3)
    exposure = (mean[:, 0, 0] / mean[:, 1, 0].clamp(min=1.0)).clamp(0.1, 10.0)
    return torch.stack([exposure, correlation], 1)


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
    height, width = raw.shape[1:]
    valid = torch.isfinite(raw) & (raw > 0)
    inverse_depth = torch.where(valid, raw, MIN_INVERSE_DEPTH).clamp(min=MIN_INVERSE_DEPTH)
    maps = resize(torch.cat([luma[:, None], flow], 1), (height, width))
    grid = pixel_grid(height, width, raw.device)
    x = grid[0] + maps[:, 1] * (2 * width / flow.shape[3] / (width - 1))
    y = grid[1] + maps[:, 2] * (2 * height / flow.shape[2] / (height - 1))
    front = torch.stack([inverse_depth, valid.float(), maps[:, 0], x, y], 1)
    return torch.cat([front, maps[:, 3:]], 1)


def sample_step(height: int, width: int) -> int:
    """Distance of the pixels by which a frame is registered."""
    return max(1, round(math.sqrt(height * width / _SAMPLES)))


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
    n = unpack(FILTER_FIELDS, numbers)
    height, width = maps.shape[2:]
    step = sample_step(height, width)
    subset = (..., slice(step // 2, None, step), slice(step // 2, None, step))
    empty = seen[:, 1].sum((1, 2)) == 0
    grid = pixel_grid(height, width, maps.device)[subset].contiguous()
    seen = seen[subset].contiguous()
    current = bounded_affine(seen[:, 0], affine, metric_affine)

    has_flow, has_odometry = n["has_flow"] > 0, n["has_odometry"] > 0
    has_ego = (n["has_ego"] > 0) & (has_flow | has_odometry)
    identity = torch.eye(3, device=maps.device)
    known = (has_ego & has_odometry)[:, None]
    rotation = torch.where(known[:, None], n["rotation"], identity)
    shift = torch.where(known, n["shift"], 0.0)
    sigma = torch.where(known, n["prior_sigma"], n["free_sigma"][:, None])
    refined = refine(
        rotation, shift, n["from_grid"], grid.flatten(1), current.flatten(1),
        seen[:, 3:5].flatten(2), seen[:, 6:8].flatten(2), sigma,
    )  # fmt: skip
    both = (has_ego & has_flow)[:, None]
    rotation = torch.where(both[:, None], refined[0], rotation)
    shift = torch.where(both, refined[1], shift)

    turn, along, form = warp(rotation, shift, n["to_grid"], n["from_grid"])
    turn = torch.where(has_ego[:, None, None], turn, identity)
    along = torch.where(has_ego[:, None], along, 0.0)

    position = project(turn, along, grid, current)
    differs, worse = flow_disagreement(seen, grid, position, maps, correlation[:, 0])
    moving = differs & (worse > -_LUMA_NOISE) & both[:, :, None]
    refuted = (differs & (worse > 2 * _LUMA_NOISE)).float().mean((1, 2)) > _MAX_WORSE
    refuted = refuted & (differs.float().mean((1, 2)) > _MAX_DIFFERING)
    reliable = has_ego & ~(has_flow & refuted)
    by_flow = moving | (has_flow & ~reliable)[:, None, None]
    position = torch.where(by_flow[:, None], seen[:, 3:5], position)
    form = torch.where(reliable[:, None], form, torch.eye(4, device=maps.device)[2])
    warped = sample(maps, position)
    usable = (warped[:, 1] < 0.1) & (seen[:, 1] > 0) & (position.abs().amax(1) <= 1)
    usable = usable & ~(moving & reliable[:, None, None])
    fit, inliers = fit_affine(
        seen[:, 0].flatten(1), advance(form, position, warped[:, 0]).flatten(1),
        usable.float().flatten(1), affine, metric_affine,
    )  # fmt: skip

    fresh = n["fresh"] > 0
    cut = (inliers < _CUT_INLIERS) & (correlation[:, 1] < _CUT_CORRELATION)
    reset_code = torch.where(fresh, 0.0, torch.maximum(cut.float(), 2 * empty.float()))
    begin = fresh | (reset_code > 0)
    leak = torch.maximum(torch.where(reliable, n["leak"], n["flow_leak"]), 1 / (age + 1))
    mixed = torch.lerp(fit, metric_affine, leak[:, None])
    mixed = torch.where(begin[:, None], metric_affine, mixed)
    # in the order of MOTION_FIELDS
    found = [
        turn.flatten(1), along, form, has_ego, reliable, fit, mixed, metric_affine, reset_code,
        inliers, torch.where(begin, 1.0, age + 1),
    ]  # fmt: skip
    return torch.cat([x.float() if x.ndim > 1 else x.float()[:, None] for x in found], 1)


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
    n = {name: value[:, None, None] for name, value in unpack(FILTER_FIELDS, numbers).items()}
    m = unpack(MOTION_FIELDS, motion)
    grid = pixel_grid(raw.shape[1], raw.shape[2], raw.device)
    current = bounded_affine(seen[:, 0], m["affine"], m["usual"])
    fresh = n["fresh"] > 0
    begin = fresh | (m["reset_code"][:, None, None] > 0)
    has_flow = n["has_flow"] > 0
    has_ego, reliable = (m[name][:, None, None] > 0 for name in ("has_ego", "reliable"))
    both = has_flow & has_ego

    position = project(m["turn"], m["shift"], grid, current)
    differs, worse = flow_disagreement(seen, grid, position, maps, correlation[:, 0])
    moving = opened((differs & (worse > -_LUMA_NOISE)).float()) * (both & reliable)
    by_flow = (moving > 0) | (has_flow & ~reliable)
    position = torch.where(by_flow[:, None], seen[:, 3:5], position)
    position = torch.where(fresh[:, None], grid[:2], position)
    warped = sample(maps, position)
    # The state follows this frame's change of scale, so that there is no step in the innovation.
    change = m["affine"][:, 0] / m["fit"][:, 0]
    moved = advance(m["form"], position, warped[:, 0])
    moved = (moved - m["fit"][:, 1, None, None]) * change[:, None, None]
    moved = moved + m["affine"][:, 1, None, None]

    predicted = clamp(moved, current, n["measurement_noise"])
    gain = kalman_gain(current, predicted, moved, warped[:, 1], position, n)
    trace = torch.where(both, warped[:, 3], 0.0)
    gain = torch.maximum(gain, n["moving_gain"] * moving)
    gain = torch.maximum(gain, _TRACE_GAIN * trace * (1 - moving))
    changed = (seen[:, 5] > _LUMA_OUTLIER) & has_flow & ((moving > 0) | ~has_ego)
    gain = torch.where(changed | begin, 1.0, gain)
    trace = torch.where(fresh, 0.0, torch.maximum(moving, _TRACE_DECAY * trace))

    inverse_depth = torch.where(begin, current, predicted + gain * (current - predicted))
    # After an update with the Kalman gain K the variance is K R.
    variance = gain * n["measurement_noise"].square()
    known = variance + (1 - seen[:, 1]) * _UNKNOWN_VARIANCE
    after = torch.stack([inverse_depth, known, seen[:, 2], trace], 1)
    inverse_depth = torch.where(seen[:, 1] > 0, inverse_depth, raw)
    return after, inverse_depth, variance, gain, position


def flow_disagreement(
    seen: Tensor, grid: Tensor, position: Tensor, maps: Tensor, exposure: Tensor
) -> tuple[Tensor, Tensor]:
    """Where optical flow disagrees with the camera's motion.

    Args:
        seen: (B, 8, ...), from ``look``, at the pixels of the grid.
        grid: (3, ...), from ``pixel_grid``.
        position: (B, 2, ...) in the previous frame by the camera's motion, normalised.
        maps: (B, 4, H, W) of the state.
        exposure: (B,) factor of the state's grey levels.

    Returns:
        (B, ...) bool, where the two differ; (B, ...) by how many grey levels the camera's motion
        fits worse.
    """
    height, width = maps.shape[2:]
    half_width, half_height = (width - 1) / 2, (height - 1) / 2
    error = position - seen[:, 3:5]
    error = (half_width * error[:, 0]).square() + (half_height * error[:, 1]).square()
    path = seen[:, 3:5] - grid[:2]
    way = ((half_width * path[:, 0]).square() + (half_height * path[:, 1]).square()).sqrt()
    luma = sample(maps[:, 2:3], position)[:, 0]
    worse = (luma * exposure[:, None, None] - seen[:, 2]).abs() - seen[:, 5]
    return error > (_FLOW_TOLERANCE[0] + _FLOW_TOLERANCE[1] * way).square(), worse


def clamp(predicted: Tensor, current: Tensor, noise: Tensor) -> Tensor:
    """The predicted inverse depth (B, H, W), 1/m, within the range of the current one's 3x3
    neighbourhoods and some of the relative noise (B, 1, 1)."""
    slack = _CLAMP_SLACK * noise * current
    return torch.minimum(
        torch.maximum(predicted, -max_pool3x3(-current) - slack), max_pool3x3(current) + slack
    )


def kalman_gain(
    current: Tensor,
    predicted: Tensor,
    moved: Tensor,
    variance: Tensor,
    position: Tensor,
    n: dict[str, Tensor],
) -> Tensor:
    """Weight of the frame by its depth, (B, H, W), 0..1.

    Args:
        current: (B, H, W) inverse depth of the frame, 1/m.
        predicted: (B, H, W) of the state, clamped; moved: not clamped, since that would hide half
            of the step to something nearer.
        variance: (B, H, W) relative, of the state.
        position: (B, 2, H, W) in the previous frame, normalised.
        n: (B, 1, 1) each, of ``FILTER_FIELDS``.
    """
    outside = (position.abs().amax(1) > 1).float()
    variance = variance + n["process_noise"] + outside * _UNKNOWN_VARIANCE
    total = variance + n["measurement_noise"].square()
    unit = 1 / (current * total.sqrt())
    nearer = (current - predicted) * unit
    deviation = torch.maximum(nearer, -_FARTHER * nearer)
    gain = torch.maximum(variance / total, n["min_gain"])
    gate = ((deviation - _GATE[0]) / (_GATE[1] - _GATE[0])).clamp(0, 1)
    gain = gain + (1 - gain) * gate
    return torch.where((current - moved) * unit > _NEARER_GATE, 1.0, gain)


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
    size = logits.shape[-2:]
    maps = torch.cat([position, gain[:, None]], 1)
    if maps.shape[-2:] != size:
        # corners aligned, as the head upsamples the logits
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)
    label_gain = unpack(FILTER_FIELDS, numbers)["label_gain"][:, None, None]
    weight = (1 - (maps[:, 2] - _LABEL_GATE[0]) / _LABEL_GATE[1]).clamp(0, 1) * (1 - label_gain)
    weight = weight[:, None]
    mixed = torch.lerp(current, sample(previous, maps[:, :2]), weight)
    return torch.where(weight > 0, mixed, current)


def centered(logits: Tensor) -> Tensor:
    """Logits (B, C, h, w) of mean 0: log-odds that can be averaged; NaN counts as 0."""
    values = torch.nan_to_num(logits.float(), 0.0, 0.0, 0.0)
    return values - values.mean(1, keepdim=True)


def bounded_affine(inverse_depth: Tensor, affine: Tensor, metric_affine: Tensor) -> Tensor:
    """Inverse depth (B, H, W) by an affine map (B, 2), within 0.3 to 3 times of that by another:
    a shift that fits what is near may not send what is far behind the camera."""
    own, given = metric_affine[:, :, None, None], affine[:, :, None, None]
    usual = torch.addcmul(own[:, 1], own[:, 0], inverse_depth).clamp(min=MIN_INVERSE_DEPTH)
    mapped = torch.addcmul(given[:, 1], given[:, 0], inverse_depth)
    return torch.minimum(torch.maximum(mapped, 0.3 * usual), 3 * usual)
