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

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.packed import unpack
from dpt_ros.engine.smoothing.flow import optical_flow
from dpt_ros.engine.smoothing.maps import (
    LARGEST,
    Array,
    arrays,
    choose,
    classes,
    empty,
    finite,
    identity,
    in_numpy,
    interleaved,
    library,
    pixel_grid,
    put,
    resize,
    sample,
    sample_elsewhere,
    tensor,
    thumbnail,
)
from dpt_ros.engine.smoothing.motion import (
    LUMA_NOISE,
    advance,
    flow_disagreement,
    outside,
    project,
    refine,
    warp,
)
from dpt_ros.engine.smoothing.registration import (
    MAX_INVERSE_DEPTH,
    MIN_INVERSE_DEPTH,
    bounded_affine,
    fit_affine,
)
from dpt_ros.engine.smoothing.state import FILTER_FIELDS, MOTION_FIELDS, FilterState, given
from dpt_ros.engine.smoothing.update import TRITON, blend
from dpt_ros.engine.triton_launch import has_twin

_SAMPLES = 3000  # pixels by which a frame is registered
_THUMBNAIL = (24, 32)  # by which images are correlated
# Share of pixels where flow differs, and where it also fits better, that refute ego-motion.
_MAX_DIFFERING, _MAX_WORSE = 0.75, 0.25
_LABEL_GATE = (0.25, 0.25)  # depth gain from which on labels lose their state; over how much
# Share of inliers, and correlation of the images, below which the scene was cut. In robots'
# worlds, floors and walls of two scenes alone make 50 to 70 % inliers.
_CUT_INLIERS, _CUT_CORRELATION = 0.8, 0.5


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
        raw: (B, H, W) inverse depth; NaN, what is not positive and what is larger than
            ``MAX_INVERSE_DEPTH`` is not valid.
        metric_affine: (B, 2) scale and shift of ``raw`` to 1/m, as the frame would have them by
            itself.
        logits: (B, C, h, w) or None.
        luma: (B, hl, wl) grey levels 0..255, of the state's size.
        numbers: (B, n) of ``FILTER_FIELDS``.

    Returns:
        the state after the frames; inverse depth (B, H, W), 1/m, as it came where it is not
        valid; its relative variance (B, H, W); logits (B, C, h, w), or None; the
        frames' weight against the state (B, H, W), 0..1; scale and shift applied (B, 2); why the
        pixels reset the filter (B,) uint8, an index into ``RESET_REASONS``.
    """
    correlation = correlate(luma, state.luma)
    # Flow of the size of the maps is computed where it is needed.
    alike = in_numpy(raw) and raw.shape == luma.shape
    room = [raw.new_empty(len(raw), 8, *raw.shape[1:])] if alike else []
    flow = optical_flow(luma, state.luma, *(one[:, 3:] for one in room))
    seen = look(raw, luma, flow, *room)
    motion = register(
        seen, state.maps, state.affine, state.age, metric_affine, correlation, numbers
    )
    maps, inverse_depth, variance, gain, position = blend(
        seen, raw, state.maps, motion, correlation, numbers
    )
    if logits is not None:
        logits = smooth_logits(logits, state.logits, position, gain, numbers)
    found = unpack(MOTION_FIELDS, arrays(motion)[0])
    affine, age, code = (tensor(found[name]) for name in ("affine", "age", "reset_code"))
    after = FilterState(maps, logits, affine, age, luma)
    return after, inverse_depth, variance, logits, gain, affine, code.to(torch.uint8)


def correlate(luma: Tensor, previous: Tensor) -> Tensor:
    """Compare the thumbnails of two images each.

    Args:
        luma, previous: (B, hl, wl) grey levels.

    Returns:
        (B, 2): the factor of the previous image's grey levels that makes it as bright; and the
        correlation, -1..1.
    """
    small = [_flat(thumbnail(image, _THUMBNAIL)) for image in arrays(luma, previous)]
    both = library(small[0]).stack(small, 1)
    mean = both.mean(2)
    both = both - mean[:, :, None]
    moments = both @ both.swapaxes(1, 2)
    power = moments[:, 0, 0] * moments[:, 1, 1]
    correlation = moments[:, 0, 1] / power.clip(1e-6, LARGEST) ** 0.5
    exposure = (mean[:, 0] / mean[:, 1].clip(1.0, LARGEST)).clip(0.1, 10.0)
    return tensor(library(both).stack([exposure, correlation], 1))


@has_twin(TRITON)
def look(raw: Tensor, luma: Tensor, flow: Tensor, seen: Tensor | None = None) -> Tensor:
    """A frame by itself.

    Args:
        raw: (B, H, W) inverse depth as it came.
        luma: (B, hl, wl) grey levels.
        flow: (B, 5, hl, wl), from ``optical_flow``.
        seen: on a CPU, for the result, whose last five maps are the flow.

    Returns:
        (B, 8, H, W): inverse depth, > 0 also where it is not valid; 1 where it is; grey levels;
        position in the previous frame by flow (x, y), residual in grey levels, weight along x and
        y.
    """
    (height, width), (rows, columns) = raw.shape[1:], flow.shape[2:]
    raw, grid, luma, flow = arrays(
        raw, pixel_grid(height, width, raw.device),
        *(resize(maps, (height, width)) for maps in (luma[:, None], flow)),
    )  # fmt: skip
    out = empty(raw, len(raw), 8, height, width) if seen is None else seen.numpy()
    valid = (raw > 0) & (raw <= MAX_INVERSE_DEPTH)
    out[:, 0], out[:, 1], out[:, 2] = raw, valid, luma[:, 0]
    put(out[:, 0], ~valid, MIN_INVERSE_DEPTH)
    library(raw).clip(out[:, 0], MIN_INVERSE_DEPTH, LARGEST, out=out[:, 0])
    if seen is None:
        library(raw).multiply(flow[:, 0], width / columns, out=out[:, 3])
        library(raw).multiply(flow[:, 1], height / rows, out=out[:, 4])
        out[:, 5:] = flow[:, 2:]
    out[:, 3:5] += grid[:2]
    return tensor(out)


def sample_step(height: int, width: int) -> int:
    """Distance of the pixels by which a frame is registered."""
    return max(1, round(math.sqrt(height * width / _SAMPLES)))


@has_twin(TRITON)
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
    xp, n, seen, maps, affine, age, metric_affine, correlation, grid = given(
        numbers, seen, maps, affine, age, metric_affine, correlation
    )
    fresh = n["fresh"] > 0
    maps, age = choose(fresh, 1.0, maps), choose(fresh, 0.0, age)
    affine, correlation = choose(fresh, metric_affine, affine), choose(fresh, 1.0, correlation)
    nothing = xp.amax(seen[:, 1], (1, 2)) == 0
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

    position = project(turn, along, grid, current)
    past = interleaved(maps)
    warped = sample(past, position)
    differs, worse = flow_disagreement(seen, grid, position, warped[:, 2], correlation[:, 0])
    moving = differs & (worse > -LUMA_NOISE)
    refuted = (1.0 * (differs & (worse > 2 * LUMA_NOISE))).mean((1, 2)) > _MAX_WORSE
    refuted = refuted & ((1.0 * differs).mean((1, 2)) > _MAX_DIFFERING)
    reliable = has_ego & ~(has_flow & refuted)
    moving = choose(~(both & reliable), False, moving)
    by_flow = choose(has_flow & ~reliable, True, moving)
    position, warped = sample_elsewhere(by_flow, seen[:, 3:5], position, warped, past)
    form = choose(reliable, form, identity(4, seen)[None, 2])
    usable = seen[:, 1] * ~((warped[:, 1] > 0.1) | moving | outside(position, size))
    fit, inliers = fit_affine(
        _flat(seen[:, 0]), _flat(advance(form, position, warped[:, 0])), _flat(usable), affine,
        metric_affine,
    )  # fmt: skip

    cut = (inliers < _CUT_INLIERS) & (correlation[:, 1] < _CUT_CORRELATION)
    reset_code = xp.where(nothing, 2.0, xp.where(cut, 1.0, 0.0 * age))
    reset_code = choose(fresh, 0.0, reset_code)
    begin = fresh | (reset_code > 0)
    leak = xp.maximum(xp.where(reliable, n["leak"], n["flow_leak"]), 1 / (age + 1))[:, None]
    # in the order of MOTION_FIELDS
    found = [
        turn, along, form, 1.0 * has_ego, 1.0 * reliable, fit,
        choose(begin, metric_affine, fit + leak * (metric_affine - fit)), metric_affine,
        reset_code, inliers, choose(begin, 1.0, age + 1),
    ]  # fmt: skip
    return tensor(xp.concatenate([one.reshape(len(age), -1) for one in found], 1))


@has_twin(TRITON)
def smooth_logits(
    logits: Tensor, previous: Tensor | None, position: Tensor, gain: Tensor, numbers: Tensor
) -> Tensor:
    """A moving average of logits, (B, C, h, w), gated as the depth.

    What all logits of a pixel have in common does not change its classes, and is averaged, too.

    Args:
        logits: (B, C, h, w) of the frame; previous: of the state, or None.
        position: (B, 2, H, W) in the previous frame, in pixels of the depth.
        gain: (B, H, W) of the depth.
        numbers: (B, n) of ``FILTER_FIELDS``.
    """
    current = finite(logits)
    if previous is None or previous.shape != logits.shape:
        return tensor(1.0 * current)
    size = (logits.shape[2], logits.shape[3])
    height, width = gain.shape[1:]
    here = pixel_grid(*size, gain.device, (height, width))[None, :2]
    position, gain, past, numbers, here = arrays(position, gain[:, None], previous, numbers, here)
    if (height, width) != size:
        # corners aligned, as the head upsamples the logits
        position, gain = sample(position, here), sample(gain, here)
        position[:, 0] *= (size[1] - 1) / max(width - 1, 1)
        position[:, 1] *= (size[0] - 1) / max(height - 1, 1)
    n = unpack(FILTER_FIELDS, numbers)
    past = choose(n["fresh"] > 0, 0.0, past)
    weight = (1 - (gain - _LABEL_GATE[0]) / _LABEL_GATE[1]).clip(0.0, 1.0)
    weight *= 1 - n["label_gain"][:, None, None, None]
    smoothed = empty(past, *past.shape)
    for part in classes(past):
        now = current[:, part]
        found = sample(interleaved(past[:, part]), position, smoothed[:, part])
        found -= now
        found *= weight
        found += now
    return tensor(smoothed)


def _flat(maps: Array) -> Array:
    """(..., h, w) -> (..., h * w)."""
    return maps.reshape(*maps.shape[:-2], -1)
