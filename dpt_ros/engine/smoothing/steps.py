# SPDX-License-Identifier: Apache-2.0
"""The steps of the temporal filter on the device: register, reproject, gated Kalman update.

1. ``move``: the camera's motion from odometry, made exact by optical flow, says where every
   pixel was; where flow contradicts it, something moves by itself, and flow says where it was.
2. ``register``: scale and shift of the new frame against the past (the flicker of the whole).
3. ``reproject``: the past, moved to where the camera is now, with its depth along the new axis.
4. ``clamp``: the past may not lie outside of what its neighbourhood shows now (Karis, "High
   quality temporal supersampling", SIGGRAPH 2014).
5. ``gain``: a Kalman gain per pixel, opened by a gate where past and present disagree, and fully
   where the present is nearer.
6. ``labels``: the logits by the same warp and the same gate.

Nothing here waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpt_ros.engine.output import postprocess
from dpt_ros.engine.smoothing.motion import EgoMotion, refine
from dpt_ros.engine.smoothing.registration import fit_affine

VERDICTS = ("", "scene cut", "no valid depth")
FAINT = 1e-6  # 1/m, stands for an inverse depth that is not known
_SAMPLES = 3000  # places at which a frame is registered
_UNKNOWN = 1e3  # variance of a past that there is not
_GATE = (1.5, 3.0)  # deviations between which the past loses its say
_FARTHER = 1.3  # what is said to be farther has left: doubted sooner, or a ghost stays
_NEARER = 2.0  # deviations from which something nearer is believed at once
_NEIGHBOUR = 1.5  # deviations that the past may lie outside of its neighbourhood
_ELSEWHERE = (1.5, 0.05)  # pixels, and share of the flow, that flow may differ from ego-motion
_GREY = (4.0, 20.0)  # grey levels: one pixel's noise; another thing
_LOST = (0.75, 0.25)  # share of places where flow differs, and also fits better: no ego-motion
_FADE, _LEFT = 0.7, 0.5  # of a mover's trace per frame; the least gain where it has just been
_DOUBT = (0.25, 0.25)  # gain of depth from which labels lose their past, and over how much
# Share of samples in line, and correlation of the pictures, below which the scene was cut. In
# robots' worlds, floors and walls of two scenes alone bring 50 to 70 % of the samples in line.
_CUT = (0.8, 0.5)


@dataclass(frozen=True)
class Observation:
    """A frame, on the device.

    Args:
        raw: (H, W) as it came; depth: the same with ``FAINT`` where it is not known.
        known: (H, W) 1 where it is known.
        luma: (H, W) grey levels.
        flow: (5, H, W) place in the frame before (x, y, normalised), residual, weight along x
            and y; None if there is no flow.
        ego: the camera's motion, None if nothing tells it.
        trust: (6,) of ``refine``.
        gain: () what makes the luma of the frame before as bright.
        likeness: () correlation of the two pictures.
    """

    raw: Tensor
    depth: Tensor
    known: Tensor
    luma: Tensor
    flow: Tensor | None = None
    ego: EgoMotion | None = None
    trust: Tensor | None = None
    gain: Tensor | None = None
    correlation: Tensor | float = 1.0

    def at(self, some: Any) -> Observation:
        """Some of the places: an index into (..., H, W)."""
        return Observation(
            self.raw[some[1:]],
            self.depth[some[1:]],
            self.known[some[1:]],
            self.luma[some[1:]],
            None if self.flow is None else self.flow[some],
            self.ego,
            self.trust,
            self.gain,
            self.correlation,
        )


@dataclass(frozen=True)
class FilterGains:
    """How much the past counts at this frame, from the seconds since the one before.

    Args:
        noise: relative standard deviation of a frame.
        aging: relative variance that the past gains.
        least_gain: of a frame, for depth.
        label_gain: of a frame, for labels.
        leak: share of scale and shift that goes back to the frame's own.
        flow_leak: the same while the camera's motion is not known.
        moving_gain: the least gain where something moves by itself.
    """

    noise: float
    aging: float = 0.0
    least_gain: float = 1.0
    label_gain: float = 1.0
    leak: float = 1.0
    flow_leak: float = 1.0
    moving_gain: float = 1.0


@dataclass(frozen=True)
class FilterState:
    """What is known of a camera's past, on the device.

    Args:
        maps: (4, H, W): inverse depth; its relative variance; luma; 1 where something moved,
            fading.
        logits: (C, h, w), of mean 0, or None.
        affine: (2,) scale and shift of the frame before.
        age: () frames since the past began.
    """

    maps: Tensor
    logits: Tensor | None
    affine: Tensor
    age: Tensor


@dataclass(frozen=True)
class Result:
    """What comes of a frame.

    Args:
        depth: (H, W) inverse depth, 1/m; where the frame had none, what it had.
        gain: (H, W) weight of the frame against the past, 0..1.
        logits: (C, h, w) smoothed, or None.
        verdict: () uint8, index into ``VERDICTS``.
        past: for the next frame.
    """

    depth: Tensor
    gain: Tensor
    logits: Tensor | None
    reset_code: Tensor
    past: FilterState


def advance(
    seen: Observation, logits: Tensor | None, own: Tensor, pace: FilterGains, past: FilterState
) -> Result:
    """A frame with the past behind it: steps 1 to 6.

    Args:
        seen: the frame.
        logits: (C, h, w) or None.
        own: (2,) scale and shift that it would have without a past.
        pace: how much the past counts.
        past: what is known from the frames before.
    """
    base = places(*seen.depth.shape, seen.depth.device)
    ego, still, fit, fits = register(seen, base, own, past)
    leak = torch.where(still, pace.leak, pace.flow_leak)
    leak = torch.maximum(leak, 1 / (past.age + 1))
    cut = (fits < _CUT[0]) & (seen.correlation < _CUT[1])
    empty = seen.known.sum() == 0
    reset_code = torch.maximum(cut.to(torch.uint8), 2 * empty.to(torch.uint8))
    anew = reset_code > 0
    affine = torch.where(anew, own, torch.lerp(fit, own, leak))
    now = apply_affine(affine, seen.depth, own)

    where, moving = move(seen, ego, still, base, now, past)
    was = reproject(past.maps, where, ego, still)
    # What is done to this frame's scale is done to the past, so that no step is seen.
    was[0] = (was[0] - fit[1]) * (affine[0] / fit[0]) + affine[1]
    expected = clamp(was[0], now, pace)
    weight = gain(now, expected, was, where, moving, seen, pace)
    weight = torch.maximum(weight, anew.float())
    depth = expected + weight * (now - expected)
    smooth = labels(logits, past.logits, where, weight, pace)

    fading = torch.zeros_like(depth) if moving is None else torch.maximum(moving, _FADE * was[3])
    age = torch.where(anew, torch.ones_like(past.age), past.age + 1)
    known = FilterState(remember(depth, weight, seen, fading, pace), centred(smooth), affine, age)
    return Result(torch.where(seen.known > 0, depth, seen.raw), weight, smooth, reset_code, known)


def begin(seen: Observation, logits: Tensor | None, own: Tensor, pace: FilterGains) -> Result:
    """A frame without a past: it goes out as it came."""
    depth = apply_affine(own, seen.depth, own)
    weight = torch.ones_like(depth)
    maps = remember(depth, weight, seen, torch.zeros_like(depth), pace)
    one = torch.ones((), device=depth.device)
    reset_code = torch.zeros((), dtype=torch.uint8, device=depth.device)
    known = FilterState(maps, centred(logits), own, one)
    return Result(torch.where(seen.known > 0, depth, seen.raw), weight, logits, reset_code, known)


def register(
    seen: Observation, base: Tensor, own: Tensor, past: FilterState
) -> tuple[EgoMotion | None, Tensor, Tensor, Tensor]:
    """Step 2, at some places only.

    Returns:
        The camera's motion, refined by flow; () bool, whether it can be relied on; (2,) scale and
        shift; (), the share of places in line with them.
    """
    step = max(1, round(math.sqrt(base.shape[1] * base.shape[2] / _SAMPLES)))
    some = (slice(None), slice(step // 2, None, step), slice(step // 2, None, step))
    few, base = seen.at(some), base[some]
    now = apply_affine(past.affine, few.depth, own)
    ego = few.ego
    still = torch.full((), ego is not None, device=now.device)
    where, moving = base[:2], torch.zeros_like(now)
    if ego is not None:
        if few.flow is not None and few.trust is not None:
            ego = refine(
                ego, base.flatten(1), now.flatten(), few.flow[:2].flatten(1),
                few.flow[3:].flatten(1), few.trust,
            )  # fmt: skip
            where = ego.project(base, now)
            apart, worse = contradiction(few, base, where, past)
            lost = apart * (worse > 2 * _GREY[0])
            still = ~((apart.mean() > _LOST[0]) & (lost.mean() > _LOST[1]))
            moving = apart * (worse > -_GREY[0])
            use_flow = torch.maximum(moving, (~still).float())
            where = torch.lerp(where, few.flow[:2], use_flow)
            moving = moving * still
        else:
            where = ego.project(base, now)
    elif few.flow is not None:
        where = few.flow[:2]
    was = reproject(past.maps, where, ego, still)
    usable = (was[1] < 0.1) & (few.known > 0) & (moving < 0.5)
    usable &= where.abs().amax(0) <= 1
    fit, fits = fit_affine(
        few.depth.flatten(), was[0].flatten(), usable.float().flatten(), past.affine, own
    )
    return ego, still, fit, fits


def contradiction(
    seen: Observation, base: Tensor, where: Tensor, past: FilterState
) -> tuple[Tensor, Tensor]:
    """How flow contradicts the camera's motion, which says ``where`` places were.

    Returns:
        (...) 1 where the two differ; (...) by how many grey levels the camera's motion fits worse.
    """
    assert seen.flow is not None
    assert seen.gain is not None
    height, width = past.maps.shape[1:]
    across, down = (width - 1) / 2, (height - 1) / 2
    apart = where - seen.flow[:2]
    apart = (across * apart[0]).square() + (down * apart[1]).square()
    path = seen.flow[:2] - base[:2]
    length = ((across * path[0]).square() + (down * path[1]).square()).sqrt()
    luma = sample(past.maps[2:3], where)[0]
    worse = (luma * seen.gain - seen.luma).abs() - seen.flow[2]
    return (apart > (_ELSEWHERE[0] + _ELSEWHERE[1] * length).square()).float(), worse


def move(
    seen: Observation,
    ego: EgoMotion | None,
    still: Tensor,
    base: Tensor,
    now: Tensor,
    past: FilterState,
) -> tuple[Tensor, Tensor | None]:
    """Step 1, at every place.

    Returns:
        (2, H, W) where it was, normalised; (H, W) 1 where it moves by itself, None if nothing
        could tell.
    """
    if ego is None:
        return (base[:2] if seen.flow is None else seen.flow[:2]), None
    where = ego.project(base, now)
    if seen.flow is None:
        return where, None
    apart, worse = contradiction(seen, base, where, past)
    moving = apart * (worse > -_GREY[0])
    moving = max_pool3x3(-max_pool3x3(-moving))  # single pixels are noise
    where = torch.lerp(where, seen.flow[:2], torch.maximum(moving, (~still).float()))
    return where, moving * still


def reproject(maps: Tensor, where: Tensor, ego: EgoMotion | None, still: Tensor) -> Tensor:
    """Step 3: the past where it is seen now, with the inverse depth that it must have now: what
    the camera came nearer to has grown."""
    was = sample(maps, where)
    if ego is not None:
        was[0] = torch.where(still, ego.advance(where, was[0]), was[0])
    return was


def clamp(expected: Tensor, now: Tensor, pace: FilterGains) -> Tensor:
    """Step 4: what the past says, within the 3x3 neighbourhood of now and some noise."""
    slack = _NEIGHBOUR * pace.noise * now
    return torch.minimum(
        torch.maximum(expected, -max_pool3x3(-now) - slack), max_pool3x3(now) + slack
    )


def gain(
    now: Tensor,
    expected: Tensor,
    was: Tensor,
    where: Tensor,
    moving: Tensor | None,
    seen: Observation,
    pace: FilterGains,
) -> Tensor:
    """Step 5: weight of the present, (H, W), 0..1.

    Something nearer is looked for before the clamp: it would hide half of the step.
    """
    outside = (where.abs().amax(0) > 1).float()
    variance = was[1] + pace.aging + outside * _UNKNOWN
    total = variance + pace.noise**2
    unit = 1 / (now * total.sqrt())
    nearer = (now - expected) * unit
    deviation = torch.maximum(nearer, -_FARTHER * nearer)
    weight = (variance / total).clamp(min=pace.least_gain)
    doubt = ((deviation - _GATE[0]) / (_GATE[1] - _GATE[0])).clamp(0, 1)
    weight = weight + (1 - weight) * doubt
    believe = ((now - was[0]) * unit > _NEARER).float()
    if moving is not None:
        assert seen.flow is not None
        weight = torch.maximum(weight, pace.moving_gain * moving)
        # where something has just been that is no longer there
        weight = torch.maximum(weight, _LEFT * was[3] * (1 - moving))
        believe = torch.maximum(believe, moving * (seen.flow[2] > _GREY[1]))
    elif seen.ego is None and seen.flow is not None:
        believe = torch.maximum(believe, (seen.flow[2] > _GREY[1]).float())
    return torch.maximum(weight, believe)


def labels(
    logits: Tensor | None,
    past: Tensor | None,
    where: Tensor,
    weight: Tensor,
    pace: FilterGains,
) -> Tensor | None:
    """Step 6: an average of log-odds that forgets, where the depth's past was believed."""
    if logits is None or past is None or past.shape != logits.shape:
        return logits
    size = logits.shape[-2:]
    maps = torch.cat([where, weight[None]])
    if maps.shape[-2:] != size:
        # corners on corners, as the head upsamples the logits
        maps = F.interpolate(maps[None], size, mode="bilinear", align_corners=True)[0]
    belief = (1 - (maps[2] - _DOUBT[0]) / _DOUBT[1]).clamp(0, 1) * (1 - pace.label_gain)
    fresh = centred(logits)
    assert fresh is not None
    return torch.lerp(fresh, sample(past, maps[:2]), belief)


@lru_cache(maxsize=16)
def places(height: int, width: int, device: torch.device) -> Tensor:
    """(3, H, W): every pixel's normalised x and y, and 1."""
    with torch.inference_mode(False):
        y = torch.linspace(-1, 1, height, device=device).view(-1, 1).expand(height, width)
        x = torch.linspace(-1, 1, width, device=device).expand(height, width)
        return torch.stack([x, y, torch.ones_like(x)])


def remember(
    depth: Tensor, weight: Tensor, seen: Observation, moving: Tensor, pace: FilterGains
) -> Tensor:
    """The maps of the next past. After an update with the Kalman gain K the variance is K R."""
    variance = weight * pace.noise**2 + (1 - seen.known) * _UNKNOWN
    return torch.stack([depth, variance, seen.luma, moving])


def centred(logits: Tensor | None) -> Tensor | None:
    """Logits of mean 0: log-odds that can be averaged. What is not a number counts as 0."""
    if logits is None:
        return None
    values = torch.nan_to_num(logits.float(), 0.0, 0.0, 0.0)
    return values - values.mean(0, keepdim=True)


def apply_affine(affine: Tensor, depth: Tensor, own: Tensor) -> Tensor:
    """Scale and shift; a shift that fits the near may not send the far behind the camera."""
    usual = torch.addcmul(own[1], own[0], depth)
    mapped = torch.addcmul(affine[1], affine[0], depth)
    usual = usual.clamp(min=FAINT)
    return torch.minimum(torch.maximum(mapped, 0.3 * usual), 3 * usual)


def sample(maps: Tensor, where: Tensor) -> Tensor:
    """(C, H, W) at places (2, ...), normalised; beyond the border its nearest value."""
    grid = where.permute(1, 2, 0)[None]
    return F.grid_sample(
        maps[None], grid, mode="bilinear", padding_mode="border", align_corners=True
    )[0]


def max_pool3x3(values: Tensor) -> Tensor:
    """(H, W): the largest of every 3x3 neighbourhood."""
    if postprocess.on_host(values):
        return torch.from_numpy(cv2.dilate(values.numpy(), np.ones((3, 3), np.uint8)))
    return F.max_pool2d(values[None], 3, 1, 1)[0]


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) to another size, pixel centres aligned."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
