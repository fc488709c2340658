# SPDX-License-Identifier: Apache-2.0
"""The update of the temporal filter: every pixel's place in the past, gate and Kalman gain."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from dpt_ros.engine.packed import unpack
from dpt_ros.engine.smoothing.maps import (
    Array,
    choose,
    interleaved,
    library,
    max_pool3x3,
    min_pool3x3,
    opened,
    put,
    sample,
    sample_elsewhere,
    scaled,
    square_root,
    stacked,
    tensor,
)
from dpt_ros.engine.smoothing.motion import (
    LUMA_NOISE,
    advance,
    flow_disagreement,
    outside,
    project,
)
from dpt_ros.engine.smoothing.registration import bounded_affine
from dpt_ros.engine.smoothing.state import MOTION_FIELDS, given
from dpt_ros.engine.triton_launch import has_twin

TRITON = "dpt_ros.engine.smoothing.triton_steps"
_UNKNOWN_VARIANCE = 1e3  # relative, of a state without a measurement
_GATE = (1.5, 3.0)  # standard deviations between which the state loses its weight
_FARTHER = 1.3  # factor of the deviation of what is farther: gated sooner, against ghosts
_NEARER_GATE = 2.0  # standard deviations from which on something nearer is taken at once
_CLAMP_SLACK = 1.5  # standard deviations that the state may lie outside of its neighbourhood
_TRACE_DECAY = 0.7  # of a moving object's trace, per frame
_TRACE_GAIN = 0.5  # the least gain where something has just moved away
_LUMA_OUTLIER = 20.0  # grey levels


@has_twin(TRITON)
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
        (B, H, W) each; positions in the previous frame (B, 2, H, W).
    """
    xp, n, seen, raw, maps, motion, correlation, grid = given(
        numbers, seen, raw, maps, motion, correlation
    )
    fresh, size = n["fresh"] > 0, (maps.shape[2], maps.shape[3])
    maps, exposure = choose(fresh, 1.0, maps), choose(fresh, 1.0, correlation[:, 0])
    n |= unpack(MOTION_FIELDS, motion)  # its "shift" and "has_ego" are those that apply
    begin = fresh | (n["reset_code"] > 0)
    has_flow, has_ego, reliable = n["has_flow"] > 0, n["has_ego"] > 0, n["reliable"] > 0
    current = bounded_affine(seen[:, 0], n["affine"], n["usual"])

    position = project(n["turn"], n["shift"], grid, current)
    past = interleaved(maps)
    warped = sample(past, position)
    differs, worse = flow_disagreement(seen, grid, position, warped[:, 2], exposure)
    differs &= worse > -LUMA_NOISE
    moving = choose(~(has_ego & has_flow & reliable), False, opened(differs))
    by_flow = choose(has_flow & ~reliable, True, moving)
    position, warped = sample_elsewhere(by_flow, seen[:, 3:5], position, warped, past)
    # The state follows this frame's change of scale, so that there is no step in the innovation.
    change = n["affine"][:, 0] / n["fit"][:, 0]
    moved = advance(n["form"], position, warped[:, 0])
    moved = scaled(moved, change, n["affine"][:, 1] - n["fit"][:, 1] * change, moved)

    noise = n["measurement_noise"][:, None, None]
    predicted = choose(begin, current, clamp(moved, current, noise))
    gain, taken = kalman_gain(current, predicted, moved, warped[:, 1], outside(position, size), n)
    trace = choose(~(has_ego & has_flow), 0.0, warped[:, 3])
    least = _TRACE_GAIN * trace
    put(least, moving, n["moving_gain"][:, None, None])
    xp.maximum(gain, least, out=gain)
    changed = (seen[:, 5] > _LUMA_OUTLIER) & choose(~has_ego, True, moving)
    put(gain, taken | choose(~has_flow, False, changed), 1.0)
    gain = choose(begin, 1.0, gain)

    mean = current - predicted
    mean *= gain
    mean += predicted
    # After an update with the Kalman gain K the variance is K R.
    variance, known = gain * noise**2, gain * noise**2
    invalid, left = seen[:, 1] == 0, _TRACE_DECAY * trace
    put(known, invalid, _UNKNOWN_VARIANCE)
    put(left, moving, 1.0)
    after = stacked([mean, known, seen[:, 2], left])
    put(mean, invalid, raw)
    return tuple(tensor(one) for one in (after, mean, variance, gain, position))  # type: ignore[return-value]


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
) -> tuple[Array, Array]:
    """Weight of the frame by its depth, (B, H, W), 0..1; and (B, H, W) bool, where it is so much
    nearer that the state has no weight.

    Args:
        current: (B, H, W) inverse depth of the frame, 1/m.
        predicted: (B, H, W) of the state, clamped; moved: not clamped, since that would hide half
            of the step to something nearer.
        variance: (B, H, W) relative, of the state.
        beyond: (B, H, W) bool, from ``outside``.
        n: by name, of ``FILTER_FIELDS``, (B,) each.
    """
    xp = library(current)
    variance = variance + n["process_noise"][:, None, None]
    put(variance, beyond, _UNKNOWN_VARIANCE)
    total = variance + n["measurement_noise"][:, None, None] ** 2
    unit = square_root(total)
    unit *= current
    variance /= total
    least = n["min_gain"][:, None, None]
    gain = xp.clip(variance, least, xp.ones_like(least), out=variance)
    step = xp.subtract(current, predicted, out=total)
    step /= unit
    gate = -_FARTHER * step
    xp.maximum(step, gate, out=gate)
    width = _GATE[1] - _GATE[0]
    gate = scaled(gate, 1 / width, -_GATE[0] / width, gate)
    xp.clip(gate, 0.0, 1.0, out=gate)
    xp.multiply(gain, gate, out=step)
    gain += gate
    gain -= step
    xp.subtract(current, moved, out=step)
    unit *= _NEARER_GATE
    return gain, step > unit
