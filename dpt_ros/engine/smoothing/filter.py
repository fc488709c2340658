# SPDX-License-Identifier: Apache-2.0
"""Steady depth and labels: a causal filter that adds no delay; one state per camera.

Averaging over frames takes the flicker out of monocular depth, and puts ghosts in. This filter
averages only what is known to be the same place, and believes at once what comes nearer. What it
does on the device stands in ``temporal_steps``; here is what the host decides: when the past may
not be used, how fast it is forgotten, and what relates a frame to the one before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.smoothing.motion import (
    EgoMotion,
    Flow,
    FlowEstimator,
    grey,
    normalisation,
    relative_pose,
)
from dpt_ros.engine.smoothing.steps import (
    FAINT,
    VERDICTS,
    FilterGains,
    FilterState,
    Observation,
    Result,
    advance,
    begin,
    places,
    resize,
)

_FRAME = 1 / 30  # seconds; what process_noise is given for
_LEAK = 0.2  # of the scale per frame, at most: at few frames a second some must be averaged, too
_THUMBNAIL = (24, 32)
# No robot moves or turns like this between two frames: odometry jumped. Metres/s, radians/s.
_FASTEST = (10.0, 2 * math.pi)
# Trust in odometry as the prior of the refinement: its own deviation, and a share of the motion.
_TURN_TRUST, _SHIFT_TRUST = (0.005, 0.1), (0.01, 0.2)
_NO_ODOMETRY = 0.05  # radians and metres per 1/30 s that a camera may move when nobody says


@dataclass(frozen=True)
class TemporalSettings:
    """How the filter weighs the past against the present.

    Args:
        strength: 0 passes every frame through bit by bit, 1 is the calmest.
        max_gap: seconds between frames beyond which the past is forgotten.
        use_flow: whether optical flow is computed where it is not given to ``update``.
        measurement_noise: relative standard deviation of a frame's inverse depth.
        process_noise: relative deviation by which the past grows old, per 1/30 s.
        memory: seconds that the past counts for at most.
        label_memory: the same for labels.
        scale_memory: seconds in which scale and shift return to what the network says.
        anchor_memory: the same to what the anchors say.
        flow_memory: both of these at most, where no odometry tells the camera's motion: found by
            flow alone, the approach to a wall and a growing scale look much alike.
        moving_gain: the least weight of a new frame on what moves by itself.
    """

    strength: float = 0.5
    max_gap: float = 0.5
    use_flow: bool = True
    measurement_noise: float = 0.06
    process_noise: float = 0.0025
    memory: float = 1.5
    label_memory: float = 0.1
    scale_memory: float = 0.5
    anchor_memory: float = 0.5
    flow_memory: float = 0.3
    moving_gain: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}, but must be between 0 and 1.")
        for name in ("max_gap", "measurement_noise", "process_noise", "memory", "label_memory",
                     "scale_memory", "anchor_memory", "flow_memory"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be positive.")
        if not 0 <= self.moving_gain <= 1:
            raise ValueError(f"moving_gain is {self.moving_gain}, but must be between 0 and 1.")


@dataclass(frozen=True)
class FilteredFrame:
    """One frame after the filter, on the device of the frame before it.

    Args:
        inverse_depth: (H, W) float32, 1/m; where the frame had none, what it had.
        variance: (H, W) float32, relative variance of the inverse depth: the standard deviation
            of the depth z is z * sqrt(variance).
        logits: (C, h, w) smoothed logits, None if none were given.
        affine: (2,) float32, scale and shift that the frame's inverse depth was given.
        gain: (H, W) float32, 0..1, weight of the frame against the past.
        verdict: () uint8, index into ``VERDICTS``: what the pixels say of the past.
        reason: why the past was forgotten before the pixels were looked at, "" if it was not.
    """

    inverse_depth: Tensor
    variance: Tensor
    logits: Tensor | None
    affine: Tensor
    gain: Tensor
    reset_code: Tensor
    reason: str

    @property
    def reset(self) -> str:
        """Why the past was forgotten, "" if it was not; waits for the device."""
        return self.reason or VERDICTS[int(self.reset_code)]

    @cached_property
    def _classes(self) -> tuple[Tensor, Tensor] | None:
        if self.logits is None:
            return None
        size = (self.inverse_depth.shape[0], self.inverse_depth.shape[1])
        full = F.interpolate(self.logits[None].float(), size, mode="bilinear", align_corners=True)
        best, index = full[0].max(dim=0)
        total = torch.exp(full[0] - best).sum(dim=0)
        return (index + 1).to(torch.uint8), (255.0 / total + 0.5).to(torch.uint8)

    @property
    def labels(self) -> Tensor | None:
        """(H, W) uint8 class ids 1..C, upsampled as DPT's head does; made when first asked for."""
        return self._classes[0] if self._classes else None

    @property
    def confidence(self) -> Tensor | None:
        """(H, W) uint8, 0..255, softmax probability of the label; made when first asked for."""
        return self._classes[1] if self._classes else None


@dataclass(frozen=True)
class _Before:
    """The frame before, and what is known from it."""

    past: FilterState
    stamp_ns: int
    pose: np.ndarray | None
    camera: CameraModel | None
    frame_id: str


class TemporalFilter:
    """The filter of one camera.

    Args:
        settings: may be replaced at any time through the attribute of that name.
    """

    def __init__(self, settings: TemporalSettings = TemporalSettings()) -> None:
        self.settings = settings
        self._before: _Before | None = None
        self._estimator = FlowEstimator()

    def reset(self) -> None:
        """Forget the past."""
        self._before = None
        self._estimator.reset()

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs to go on as this one would: tensors on the host, plain values."""
        before = self._before
        if before is None:
            return {}
        maps = {name: value for name, value in vars(before.past).items() if value is not None}
        return {
            "past": {name: value.detach().cpu().clone() for name, value in maps.items()},
            "stamp_ns": before.stamp_ns,
            "pose": None if before.pose is None else before.pose.tolist(),
            "camera": None if before.camera is None else vars(before.camera).copy(),
            "frame_id": before.frame_id,
        }

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on where the one with this state was, on a device."""
        self.reset()
        if state:
            maps = {name: value.to(device) for name, value in state["past"].items()}
            self._before = _Before(
                FilterState(**{"logits": None, **maps}),
                state["stamp_ns"],
                None if state["pose"] is None else np.array(state["pose"]),
                None if state["camera"] is None else CameraModel(**state["camera"]),
                state["frame_id"],
            )

    @torch.inference_mode()
    def update(
        self,
        inverse_depth: Tensor | np.ndarray,
        logits: Tensor | np.ndarray | None,
        rgb: Tensor | np.ndarray | None,
        stamp_ns: int,
        camera: CameraModel | None = None,
        odom_from_camera: np.ndarray | None = None,
        anchors: tuple[float, float] | None = None,
        *,
        flow: Flow | None = None,
        frame_id: str = "",
    ) -> FilteredFrame:
        """Take the next frame and give it back steadier.

        Args:
            inverse_depth: (H, W), 1/m; NaN, inf and what is not positive is unknown and comes
                back as it is.
            logits: (C, h, w) of any size, or None.
            rgb: (h, w, 3) uint8 picture of any size, or None: then no flow, unless it is given.
            stamp_ns: acquisition time, nanoseconds.
            camera: intrinsics of a picture of any size; without them pose is of no use.
            odom_from_camera: (4, 4) pose of the optical frame in a frame that does not jump
                (odom, not map), metres; or None.
            anchors: scale and shift that turn this frame's ``inverse_depth`` into 1/m, as
                measured by other sensors; None takes the network's word.
            flow: what a ``FlowEstimator`` says of this frame, to save computing it here; used if
                it begins at the frame of the last update.
            frame_id: the optical frame; another one is another camera.

        Raises:
            ValueError: an argument has the wrong shape.
        """
        raw = torch.as_tensor(inverse_depth)
        device = raw.device
        values = None if logits is None else torch.as_tensor(logits, device=device)
        _check(raw, values, rgb, odom_from_camera, anchors)
        if self.settings.strength == 0:
            self.reset()
            return self._untouched(raw, values)
        own = _upload(np.array(anchors or (1.0, 0.0)), device)
        if flow is None and rgb is not None and self.settings.use_flow:
            flow = self._estimator.compute(_host(rgb), stamp_ns)
        seen = _look(raw.float(), rgb, flow)
        reason = self._why_forget(seen, stamp_ns, camera, frame_id)
        if self._before is None or reason:
            result = begin(seen, values, own, FilterGains(self.settings.measurement_noise))
        else:
            before = self._before
            seconds = (stamp_ns - before.stamp_ns) * 1e-9
            if flow is not None and flow.since_ns == before.stamp_ns:
                seen = replace(seen, flow=_places_before(flow, seen))
            seen = _with_motion(seen, before, camera, odom_from_camera, seconds)
            seen = _with_likeness(seen, before.past)
            told = odom_from_camera is not None and before.pose is not None
            pace = self._pace(seconds, anchors is not None, told)
            result = advance(seen, values, own, pace, before.past)
        pose = None if odom_from_camera is None else np.array(odom_from_camera, np.float64)
        self._before = _Before(result.past, stamp_ns, pose, camera, frame_id)
        return self._steady(result, reason)

    def _why_forget(
        self, seen: Observation, stamp_ns: int, camera: CameraModel | None, frame_id: str
    ) -> str:
        """The guard: why the past cannot be used, "" if it can."""
        before = self._before
        if before is None:
            return "first frame"
        if stamp_ns <= before.stamp_ns:
            return "stamp not newer"
        if (stamp_ns - before.stamp_ns) * 1e-9 > self.settings.max_gap:
            return "gap"
        maps = before.past.maps
        if seen.raw.shape != maps.shape[1:] or seen.raw.device != maps.device:
            return "size changed"
        if camera != before.camera:
            return "camera changed"
        return "frame_id changed" if frame_id != before.frame_id else ""

    def _pace(self, seconds: float, anchored: bool, told: bool) -> FilterGains:
        s = self.settings
        calm = 3 * s.strength / (2 - s.strength)  # 1 at the middle, 3 at the end

        def gain(memory: float) -> float:
            return 1 - math.exp(-seconds / (memory * calm))

        scale = s.anchor_memory if anchored else s.scale_memory
        if not told:
            scale = min(scale, s.flow_memory)
        return FilterGains(
            noise=s.measurement_noise,
            aging=s.process_noise**2 * seconds / _FRAME / calm**2,
            least_gain=gain(s.memory),
            label_gain=gain(s.label_memory),
            leak=min(gain(scale), _LEAK) if told else gain(scale),
            flow_leak=gain(min(scale, s.flow_memory)),
            moving_gain=s.moving_gain,
        )

    def _untouched(self, raw: Tensor, logits: Tensor | None) -> FilteredFrame:
        one = torch.ones(raw.shape, device=raw.device)
        reset_code = torch.zeros((), dtype=torch.uint8, device=raw.device)
        affine = _upload(np.array([1.0, 0.0]), raw.device)
        variance = one * self.settings.measurement_noise**2
        return FilteredFrame(raw, variance, logits, affine, one, reset_code, "")

    def _steady(self, result: Result, reason: str) -> FilteredFrame:
        return FilteredFrame(
            result.depth,
            result.gain * self.settings.measurement_noise**2,
            result.logits,
            result.past.affine,
            result.gain,
            result.reset_code,
            reason,
        )


def _look(raw: Tensor, rgb: Tensor | np.ndarray | None, flow: Flow | None) -> Observation:
    """A frame by itself."""
    known = (torch.isfinite(raw) & (raw > 0)).float()
    depth = torch.nan_to_num(raw, 0.0, 0.0, 0.0).clamp(min=FAINT)
    if flow is None and rgb is None:
        return Observation(raw, depth, known, torch.zeros_like(raw))
    picture = flow.luma if flow is not None else grey(_host(rgb))
    luma = resize(_upload(picture[None], raw.device), (raw.shape[0], raw.shape[1]))
    return Observation(raw, depth, known, luma[0])


def _places_before(flow: Flow, seen: Observation) -> Tensor:
    """``Seen.flow`` from a ``Flow`` of any size."""
    height, width = seen.raw.shape
    parts = (np.moveaxis(flow.displacement, 2, 0), flow.residual[None], flow.weight)
    maps = _upload(np.concatenate(parts), seen.raw.device)
    across = 2 * width / maps.shape[2] / (width - 1)
    down = 2 * height / maps.shape[1] / (height - 1)
    maps = resize(maps, (height, width))
    base = places(height, width, maps.device)
    maps[0].mul_(across).add_(base[0])
    maps[1].mul_(down).add_(base[1])
    return maps


def _with_motion(
    seen: Observation,
    before: _Before,
    camera: CameraModel | None,
    pose: np.ndarray | None,
    seconds: float,
) -> Observation:
    """Add the camera's motion: what odometry says; none, to be found by flow, if it says nothing
    or what cannot be."""
    if camera is None:
        return seen
    height, width = seen.raw.shape
    rotation, shift, told = np.eye(3), np.zeros(3), False
    turn = move = _NO_ODOMETRY * seconds / _FRAME
    if pose is not None and before.pose is not None:
        turned, shifted = relative_pose(before.pose, pose)
        angle = math.acos(min(1.0, max(-1.0, (np.trace(turned) - 1) / 2)))
        distance = float(np.linalg.norm(shifted))
        told = distance < _FASTEST[0] * seconds and angle < _FASTEST[1] * seconds
        if told:
            rotation, shift = turned, shifted
            turn = _TURN_TRUST[0] + _TURN_TRUST[1] * angle
            move = _SHIFT_TRUST[0] + _SHIFT_TRUST[1] * distance
    if not told and seen.flow is None:
        return seen
    to_grid = normalisation(width, height) @ camera.scaled(width, height).matrix()
    matrices = (rotation, shift, to_grid, np.linalg.inv(to_grid), np.repeat([turn, move], 3))
    numbers = _upload(np.concatenate([np.ravel(m) for m in matrices]), seen.raw.device)
    ego = EgoMotion(
        numbers[:9].view(3, 3), numbers[9:12], numbers[12:21].view(3, 3), numbers[21:30].view(3, 3)
    )
    return replace(seen, ego=ego, trust=numbers[30:])


def _with_likeness(seen: Observation, past: FilterState) -> Observation:
    """Add how the picture compares with the one before, both seen very small."""
    pictures = torch.stack([seen.luma, past.maps[2]])[None]
    small = F.interpolate(pictures, _THUMBNAIL, mode="area")[0].flatten(1)
    mean = small.mean(1, keepdim=True)
    small = small - mean
    spread = small.square().sum(1)
    correlation = (small[0] * small[1]).sum() / (spread[0] * spread[1]).sqrt().clamp(min=1e-3)
    gain = (mean[0, 0] / mean[1, 0].clamp(min=1.0)).clamp(0.1, 10.0)
    return replace(seen, gain=gain, correlation=correlation)


def _upload(values: np.ndarray, device: torch.device) -> Tensor:
    """float32 on a device, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def _host(rgb: Tensor | np.ndarray | None) -> np.ndarray:
    assert rgb is not None
    return rgb.cpu().numpy() if isinstance(rgb, Tensor) else rgb


def _check(
    raw: Tensor,
    logits: Tensor | None,
    rgb: Tensor | np.ndarray | None,
    pose: np.ndarray | None,
    anchors: tuple[float, float] | None,
) -> None:
    if raw.ndim != 2 or min(raw.shape) < 8:
        raise ValueError(
            f"inverse_depth must be (H, W) of at least 8 x 8 pixels, but is {tuple(raw.shape)}."
        )
    if logits is not None and (logits.ndim != 3 or 0 in logits.shape):
        raise ValueError(f"logits must be (C, h, w), but are {tuple(logits.shape)}.")
    if rgb is not None and (rgb.ndim != 3 or rgb.shape[2] != 3 or min(rgb.shape[:2]) < 8):
        raise ValueError(f"rgb must be (h, w, 3), 8 x 8 or more, but is {tuple(rgb.shape)}.")
    if pose is not None and np.shape(pose) != (4, 4):
        raise ValueError(f"odom_from_camera must be (4, 4), but is {np.shape(pose)}.")
    if anchors is not None and (len(anchors) != 2 or not all(map(math.isfinite, anchors))):
        raise ValueError(f"anchors must be a finite scale and shift, but are {anchors}.")
