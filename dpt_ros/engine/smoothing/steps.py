# SPDX-License-Identifier: Apache-2.0
"""The steps of the temporal filter on the device: register, reproject, gated Kalman update.

1. ``register``: the camera's motion from odometry, refined by optical flow; scale and shift of
   the new frame against the state (the global flicker).
2. ``correspond``: by that motion every pixel's position in the previous frame; where flow
   contradicts it, something moves by itself, and flow gives the position.
3. ``reproject``: the state, warped into the new view, with its depth along the new axis.
4. ``clamp``: the state may not lie outside of its neighbourhood in the new frame (Karis, "High
   quality temporal supersampling", SIGGRAPH 2014).
5. ``kalman_gain``: a gain per pixel, opened by a gate where state and frame disagree, and fully
   where the frame is nearer.
6. ``smooth_logits``: the logits by the same warp and the same gate.

Nothing here waits for the device.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpt_ros.engine.output import postprocess
from dpt_ros.engine.scale.inverse_depth import apply_affine
from dpt_ros.engine.smoothing.motion import EgoMotion, refine
from dpt_ros.engine.smoothing.registration import fit_affine
from dpt_ros.engine.smoothing.state import FilteredFrame, FilterGains, FilterState, Observation

MIN_INVERSE_DEPTH = 1e-6  # 1/m, stands for an inverse depth that is not valid
_SAMPLES = 3000  # pixels by which a frame is registered
_UNKNOWN_VARIANCE = 1e3  # relative, of a state without a measurement
_GATE = (1.5, 3.0)  # standard deviations between which the state loses its weight
_FARTHER = 1.3  # factor of the deviation of what is farther: gated sooner, against ghosts
_NEARER_GATE = 2.0  # standard deviations from which on something nearer is taken at once
_CLAMP_SLACK = 1.5  # standard deviations that the state may lie outside of its neighbourhood
_FLOW_TOLERANCE = (1.5, 0.05)  # pixels, and share of the flow, to which flow and ego-motion agree
_LUMA_NOISE, _LUMA_OUTLIER = 4.0, 20.0  # grey levels
# Share of pixels where flow differs, and where it also fits better, that refute ego-motion.
_MAX_DIFFERING, _MAX_WORSE = 0.75, 0.25
_TRACE_DECAY = 0.7  # of a moving object's trace, per frame
_TRACE_GAIN = 0.5  # the least gain where something has just moved away
_LABEL_GATE = (0.25, 0.25)  # depth gain from which on labels lose their state; over how much
# Share of inliers, and correlation of the images, below which the scene was cut. In robots'
# worlds, floors and walls of two scenes alone make 50 to 70 % inliers.
_CUT_INLIERS, _CUT_CORRELATION = 0.8, 0.5


def advance(
    observation: Observation,
    logits: Tensor | None,
    metric_affine: Tensor,
    gains: FilterGains,
    state: FilterState,
) -> tuple[FilteredFrame, FilterState]:
    """Filter a frame: steps 1 to 6.

    Args:
        observation: the frame.
        logits: (C, h, w) or None.
        metric_affine: (2,) scale and shift that the frame would have by itself.
        gains: weights of the frame.
        state: after the previous frame.

    Returns:
        The filtered frame, and the state after it.
    """
    grid = pixel_grid(*observation.raw.shape, observation.raw.device)
    ego, motion_reliable, fit, inliers = register(observation, grid, metric_affine, state)
    leak = torch.where(motion_reliable, gains.leak, gains.flow_leak)
    leak = torch.maximum(leak, 1 / (state.age + 1))
    cut = (inliers < _CUT_INLIERS) & (observation.correlation < _CUT_CORRELATION)
    empty = observation.valid.sum() == 0
    reset_code = torch.maximum(cut.to(torch.uint8), 2 * empty.to(torch.uint8))
    reset = reset_code > 0
    affine = torch.where(reset, metric_affine, torch.lerp(fit, metric_affine, leak))
    current = bounded_affine(observation.inverse_depth, affine, metric_affine)

    position, moving, _ = correspond(observation, ego, grid, current, state, motion_reliable)
    warped = reproject(state.maps, position, ego, motion_reliable)
    # The state follows this frame's change of scale, so that there is no step in the innovation.
    warped[0] = (warped[0] - fit[1]) * (affine[0] / fit[0]) + affine[1]
    predicted = clamp(warped[0], current, gains)
    gain = kalman_gain(current, predicted, warped, position, moving, observation, gains)
    gain = torch.maximum(gain, reset.float())
    inverse_depth = predicted + gain * (current - predicted)
    smoothed = smooth_logits(logits, state.logits, position, gain, gains)

    trace = torch.zeros_like(gain) if moving is None else moving.maximum(_TRACE_DECAY * warped[3])
    age = torch.where(reset, torch.ones_like(state.age), state.age + 1)
    return _finish(
        observation, inverse_depth, gain, smoothed, affine, reset_code, trace, age, gains
    )


def begin(
    observation: Observation, logits: Tensor | None, metric_affine: Tensor, gains: FilterGains
) -> tuple[FilteredFrame, FilterState]:
    """A frame without a previous one: it comes out as it is. Arguments as of ``advance``."""
    inverse_depth = bounded_affine(observation.inverse_depth, metric_affine, metric_affine)
    gain, trace = torch.ones_like(inverse_depth), torch.zeros_like(inverse_depth)
    age = torch.ones((), device=gain.device)
    code = torch.zeros((), dtype=torch.uint8, device=gain.device)
    return _finish(
        observation, inverse_depth, gain, logits, metric_affine, code, trace, age, gains
    )


def _finish(
    observation: Observation,
    inverse_depth: Tensor,
    gain: Tensor,
    logits: Tensor | None,
    affine: Tensor,
    reset_code: Tensor,
    trace: Tensor,
    age: Tensor,
    gains: FilterGains,
) -> tuple[FilteredFrame, FilterState]:
    # After an update with the Kalman gain K the variance is K R.
    variance = gain * gains.measurement_noise**2
    known = variance + (1 - observation.valid) * _UNKNOWN_VARIANCE
    maps = torch.stack([inverse_depth, known, observation.luma, trace])
    state = FilterState(maps, None if logits is None else centered(logits), affine, age)
    inverse_depth = torch.where(observation.valid > 0, inverse_depth, observation.raw)
    return FilteredFrame(inverse_depth, variance, logits, affine, gain, reset_code), state


def register(
    observation: Observation, grid: Tensor, metric_affine: Tensor, state: FilterState
) -> tuple[EgoMotion | None, Tensor, Tensor, Tensor]:
    """Step 1, on a subset of the pixels.

    Args:
        observation, metric_affine, state: see ``advance``.
        grid: (3, H, W), from ``pixel_grid``.

    Returns:
        The camera's motion, refined by flow; () bool, whether it is reliable; (2,) scale and
        shift; (), the share of inliers, 0..1.
    """
    step = max(1, round(math.sqrt(grid.shape[1] * grid.shape[2] / _SAMPLES)))
    subset = (slice(None), slice(step // 2, None, step), slice(step // 2, None, step))
    observation, grid = observation.at(subset), grid[subset]
    current = bounded_affine(observation.inverse_depth, state.affine, metric_affine)
    ego, flow = observation.ego, observation.flow
    if ego is not None and flow is not None and observation.prior_sigma is not None:
        ego = refine(
            ego, grid.flatten(1), current.flatten(), flow[:2].flatten(1), flow[3:].flatten(1),
            observation.prior_sigma,
        )  # fmt: skip
    position, moving, motion_reliable = correspond(observation, ego, grid, current, state)
    warped = reproject(state.maps, position, ego, motion_reliable)
    usable = (warped[1] < 0.1) & (observation.valid > 0) & (position.abs().amax(0) <= 1)
    if moving is not None:
        usable &= moving < 0.5
    fit, inliers = fit_affine(
        observation.inverse_depth.flatten(), warped[0].flatten(), usable.float().flatten(),
        state.affine, metric_affine,
    )  # fmt: skip
    return ego, motion_reliable, fit, inliers


def flow_disagreement(
    observation: Observation, grid: Tensor, position: Tensor, state: FilterState
) -> tuple[Tensor, Tensor]:
    """Where optical flow disagrees with the camera's motion.

    Args:
        observation: with flow, at the pixels of the grid.
        grid: (3, ...), from ``pixel_grid``.
        position: (2, ...) in the previous frame by the camera's motion, normalised.
        state: after the previous frame.

    Returns:
        (...) 1 where the two differ; (...) by how many grey levels the camera's motion fits worse.
    """
    assert observation.flow is not None
    assert observation.exposure_gain is not None
    height, width = state.maps.shape[1:]
    half_width, half_height = (width - 1) / 2, (height - 1) / 2
    error = position - observation.flow[:2]
    error = (half_width * error[0]).square() + (half_height * error[1]).square()
    path = observation.flow[:2] - grid[:2]
    length = ((half_width * path[0]).square() + (half_height * path[1]).square()).sqrt()
    luma = sample(state.maps[2:3], position)[0]
    worse = (luma * observation.exposure_gain - observation.luma).abs() - observation.flow[2]
    tolerance = _FLOW_TOLERANCE[0] + _FLOW_TOLERANCE[1] * length
    return (error > tolerance.square()).float(), worse


def correspond(
    observation: Observation,
    ego: EgoMotion | None,
    grid: Tensor,
    current: Tensor,
    state: FilterState,
    motion_reliable: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Step 2: positions of the pixels in the previous frame.

    Args:
        observation, state: see ``advance``.
        ego: the camera's motion.
        grid: (3, H, W), from ``pixel_grid``.
        current: (H, W) inverse depth, 1/m.
        motion_reliable: () bool, whether ``ego`` is reliable; None to decide it by a subset of the
            pixels.

    Returns:
        (2, H, W) positions, normalised; (H, W) 1 where something moves by itself, None if that is
        not known; whether the camera's motion is reliable.
    """
    flow, whole = observation.flow, motion_reliable is not None
    if motion_reliable is None:
        motion_reliable = torch.full((), ego is not None, device=current.device)
    if ego is None:
        return (grid if flow is None else flow)[:2], None, motion_reliable
    position = ego.project(grid, current)
    if flow is None:
        return position, None, motion_reliable
    differs, worse = flow_disagreement(observation, grid, position, state)
    moving = differs * (worse > -_LUMA_NOISE)
    if whole:
        moving = max_pool3x3(-max_pool3x3(-moving))  # opening: single pixels are noise
    else:
        refuted = differs * (worse > 2 * _LUMA_NOISE)
        motion_reliable = ~((differs.mean() > _MAX_DIFFERING) & (refuted.mean() > _MAX_WORSE))
    position = torch.lerp(position, flow[:2], torch.maximum(moving, (~motion_reliable).float()))
    return position, moving * motion_reliable, motion_reliable


def reproject(
    maps: Tensor, position: Tensor, ego: EgoMotion | None, motion_reliable: Tensor
) -> Tensor:
    """Step 3: the state's maps (4, ...) at positions (2, ...), normalised, with the inverse depth
    that static points have after the camera's motion."""
    warped = sample(maps, position)
    if ego is not None:
        warped[0] = torch.where(motion_reliable, ego.advance(position, warped[0]), warped[0])
    return warped


def clamp(predicted: Tensor, current: Tensor, gains: FilterGains) -> Tensor:
    """Step 4: the predicted inverse depth (H, W), 1/m, within the range of the current one's 3x3
    neighbourhoods and some noise."""
    slack = _CLAMP_SLACK * gains.measurement_noise * current
    return torch.minimum(
        torch.maximum(predicted, -max_pool3x3(-current) - slack), max_pool3x3(current) + slack
    )


def kalman_gain(
    current: Tensor,
    predicted: Tensor,
    warped: Tensor,
    position: Tensor,
    moving: Tensor | None,
    observation: Observation,
    gains: FilterGains,
) -> Tensor:
    """Step 5: weight of the frame, (H, W), 0..1.

    Something nearer is compared before the clamp, which would hide half of the step.

    Args:
        current: (H, W) inverse depth of the frame, 1/m.
        predicted: (H, W) of the state, clamped.
        warped: (4, H, W), from ``reproject``.
        position: (2, H, W), moving: (H, W) or None, from ``correspond``.
        observation, gains: see ``advance``.
    """
    outside = (position.abs().amax(0) > 1).float()
    variance = warped[1] + gains.process_noise + outside * _UNKNOWN_VARIANCE
    total = variance + gains.measurement_noise**2
    unit = 1 / (current * total.sqrt())
    nearer = (current - predicted) * unit
    deviation = torch.maximum(nearer, -_FARTHER * nearer)
    gain = (variance / total).clamp(min=gains.min_gain)
    gate = ((deviation - _GATE[0]) / (_GATE[1] - _GATE[0])).clamp(0, 1)
    gain = gain + (1 - gain) * gate
    replaced = ((current - warped[0]) * unit > _NEARER_GATE).float()
    flow = observation.flow
    if moving is not None:
        assert flow is not None
        gain = torch.maximum(gain, gains.moving_gain * moving)
        gain = torch.maximum(gain, _TRACE_GAIN * warped[3] * (1 - moving))
        replaced = torch.maximum(replaced, moving * (flow[2] > _LUMA_OUTLIER))
    elif observation.ego is None and flow is not None:
        replaced = torch.maximum(replaced, (flow[2] > _LUMA_OUTLIER).float())
    return torch.maximum(gain, replaced)


def smooth_logits(
    logits: Tensor | None,
    previous: Tensor | None,
    position: Tensor,
    gain: Tensor,
    gains: FilterGains,
) -> Tensor | None:
    """Step 6: a moving average of log-odds, (C, h, w), gated as the depth.

    Args:
        logits: (C, h, w) of the frame; previous: of the state; or None.
        position: (2, H, W) in the previous frame, normalised.
        gain: (H, W) of the depth.
        gains: weights of the frame.
    """
    if logits is None or previous is None or previous.shape != logits.shape:
        return logits
    size = logits.shape[-2:]
    maps = torch.cat([position, gain[None]])
    if maps.shape[-2:] != size:
        # corners aligned, as the head upsamples the logits
        maps = F.interpolate(maps[None], size, mode="bilinear", align_corners=True)[0]
    weight = (1 - (maps[2] - _LABEL_GATE[0]) / _LABEL_GATE[1]).clamp(0, 1)
    return torch.lerp(
        centered(logits), sample(previous, maps[:2]), weight * (1 - gains.label_gain)
    )


@lru_cache(maxsize=16)
def pixel_grid(height: int, width: int, device: torch.device) -> Tensor:
    """(3, H, W): every pixel's x and y, normalised to -1..1 with corners aligned, and 1."""
    with torch.inference_mode(False):
        y = torch.linspace(-1, 1, height, device=device).view(-1, 1).expand(height, width)
        x = torch.linspace(-1, 1, width, device=device).expand(height, width)
        return torch.stack([x, y, torch.ones_like(x)])


def centered(logits: Tensor) -> Tensor:
    """Logits (C, h, w) of mean 0: log-odds that can be averaged; NaN counts as 0."""
    values = torch.nan_to_num(logits.float(), 0.0, 0.0, 0.0)
    return values - values.mean(0, keepdim=True)


def bounded_affine(inverse_depth: Tensor, affine: Tensor, metric_affine: Tensor) -> Tensor:
    """Inverse depth (...) by an affine map (2,), within 0.3 to 3 times of that by another: a
    shift that fits what is near may not send what is far behind the camera."""
    usual = apply_affine(inverse_depth, metric_affine).clamp(min=MIN_INVERSE_DEPTH)
    mapped = apply_affine(inverse_depth, affine)
    return torch.minimum(torch.maximum(mapped, 0.3 * usual), 3 * usual)


def sample(maps: Tensor, position: Tensor) -> Tensor:
    """(C, H, W) at positions (2, ...), normalised; the nearest value beyond the border."""
    grid = position.permute(1, 2, 0)[None]
    return F.grid_sample(
        maps[None], grid, mode="bilinear", padding_mode="border", align_corners=True
    )[0]


def max_pool3x3(values: Tensor) -> Tensor:
    """(H, W): the maximum of every 3x3 neighbourhood."""
    if postprocess.on_host(values):
        return torch.from_numpy(cv2.dilate(values.numpy(), np.ones((3, 3), np.uint8)))
    return F.max_pool2d(values[None], 3, 1, 1)[0]


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) to another (height, width), pixel centres aligned."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
