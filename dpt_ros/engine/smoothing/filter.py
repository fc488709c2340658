# SPDX-License-Identifier: Apache-2.0
"""Temporally consistent depth and labels: a causal filter that adds no delay; one per camera.

Averaging over frames removes the flicker of monocular depth, and adds ghosts. This filter
averages only what is known to be the same point, and takes what is nearer at once. ``steps`` runs
on the device; this module decides on the host when the state is reset, how fast it is forgotten,
and what is known of the camera's motion.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
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
from dpt_ros.engine.smoothing.state import FilteredFrame, FilterGains, FilterState, Observation
from dpt_ros.engine.smoothing.steps import MIN_INVERSE_DEPTH, advance, begin, pixel_grid, resize

_FRAME_SECONDS = 1 / 30  # that process_noise is given for
_MAX_LEAK = 0.2  # of the scale per frame: also at a low frame rate several are averaged
_THUMBNAIL = (24, 32)
# Metres/s and radians/s beyond which odometry jumped: no robot moves like this.
_MAX_SPEED, _MAX_TURN_RATE = 10.0, 2 * math.pi
# Standard deviations of odometry as the prior of the refinement: constant, and per motion.
_ROTATION_SIGMA, _TRANSLATION_SIGMA = (0.005, 0.1), (0.01, 0.2)
_NO_ODOMETRY_SIGMA = 0.05  # radians and metres per 1/30 s, without odometry


@dataclass(frozen=True)
class TemporalSettings:
    """How the filter weighs the state against a frame.

    Args:
        strength: 0 passes every frame through unchanged, 1 smooths most.
        max_gap: seconds between frames beyond which the filter is reset.
        use_flow: whether optical flow is computed where it is not given to ``update``.
        measurement_noise: relative standard deviation of a frame's inverse depth.
        process_noise: relative standard deviation added to the state, per 1/30 s.
        memory: time constant of depth at most, seconds.
        label_memory: the same of labels.
        scale_memory: time constant by which scale and shift return to the network's own, seconds.
        anchor_memory: the same, to a given ``metric_affine``.
        flow_memory: upper limit of both without odometry: by flow alone, the approach to a wall
            and a growing scale look much alike.
        moving_gain: the least weight of a frame where something moves by itself.
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
        for name, value in vars(self).items():
            if name in ("strength", "moving_gain"):
                if not 0 <= value <= 1:
                    raise ValueError(f"{name} is {value}, but must be between 0 and 1.")
            elif name != "use_flow" and not value > 0:
                raise ValueError(f"{name} is {value}, but must be positive.")


@dataclass(frozen=True)
class _Previous:
    """The previous frame, and the state after it."""

    state: FilterState
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
        self._previous: _Previous | None = None
        self._estimator = FlowEstimator()

    def reset(self) -> None:
        """Forget all frames."""
        self._previous = None
        self._estimator.reset()

    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs to continue identically: tensors on the host, plain
        values; {} before the first frame."""
        previous = self._previous
        if previous is None:
            return {}
        maps = {name: value for name, value in vars(previous.state).items() if value is not None}
        return {
            "past": {name: value.detach().cpu().clone() for name, value in maps.items()},
            "stamp_ns": previous.stamp_ns,
            "pose": None if previous.pose is None else previous.pose.tolist(),
            "camera": None if previous.camera is None else vars(previous.camera).copy(),
            "frame_id": previous.frame_id,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a ``state_dict``, on a device."""
        self.reset()
        if state:
            maps = {name: value.to(device) for name, value in state["past"].items()}
            self._previous = _Previous(
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
        metric_affine: tuple[float, float] | None = None,
        *,
        flow: Flow | None = None,
        frame_id: str = "",
        anchors: tuple[float, float] | None = None,
    ) -> FilteredFrame:
        """Filter the next frame.

        Args:
            inverse_depth: (H, W), 1/m; NaN, inf and what is not positive is not valid and comes
                back as it is.
            logits: (C, h, w) of any size, or None.
            rgb: (h, w, 3) uint8 image of any size, or None: then no flow, unless it is given.
            stamp_ns: acquisition time, nanoseconds.
            camera: intrinsics of an image of any size; without them the pose is not used.
            odom_from_camera: (4, 4) pose of the optical frame in a frame that does not jump
                (odom, not map), metres; or None.
            metric_affine: scale and shift of this frame's ``inverse_depth`` to 1/m, as measured
                by other sensors; None where it is in 1/m already.
            flow: of this frame by a ``FlowEstimator``, instead of computing it here; used if
                it begins at the frame of the last update.
            frame_id: the optical frame; another one is another camera.
            anchors: deprecated name of ``metric_affine``.

        Raises:
            ValueError: an argument has the wrong shape.
        """
        if anchors is not None:
            warnings.warn(
                "The argument anchors of TemporalFilter.update is deprecated: use metric_affine.",
                DeprecationWarning,
                stacklevel=3,
            )
            metric_affine = anchors
        raw = torch.as_tensor(inverse_depth)
        device = raw.device
        values = None if logits is None else torch.as_tensor(logits, device=device)
        _check(raw, values, rgb, odom_from_camera, metric_affine)
        if self.settings.strength == 0:
            self.reset()
            return self._pass_through(raw, values)
        affine = _upload(np.array(metric_affine or (1.0, 0.0)), device)
        if flow is None and rgb is not None and self.settings.use_flow:
            flow = self._estimator.compute(_host(rgb), stamp_ns)
        observation = _observe(raw.float(), rgb, flow)
        previous = self._previous
        reason = self._reset_reason(observation, stamp_ns, camera, frame_id)
        if previous is None or reason:
            gains = FilterGains(self.settings.measurement_noise)
            filtered, state = begin(observation, values, affine, gains)
        else:
            seconds = (stamp_ns - previous.stamp_ns) * 1e-9
            if flow is not None and flow.since_ns == previous.stamp_ns:
                observation = replace(observation, flow=_flow_maps(flow, observation))
            observation = _with_ego_motion(
                observation, previous, camera, odom_from_camera, seconds
            )
            observation = _with_correlation(observation, previous.state)
            has_odometry = odom_from_camera is not None and previous.pose is not None
            gains = self._gains(seconds, metric_affine is not None, has_odometry)
            filtered, state = advance(observation, values, affine, gains, previous.state)
        pose = None if odom_from_camera is None else np.array(odom_from_camera, np.float64)
        self._previous = _Previous(state, stamp_ns, pose, camera, frame_id)
        return replace(filtered, reason=reason)

    def _reset_reason(
        self, observation: Observation, stamp_ns: int, camera: CameraModel | None, frame_id: str
    ) -> str:
        """Why the state cannot be used, "" if it can."""
        previous = self._previous
        if previous is None:
            return "first frame"
        if stamp_ns <= previous.stamp_ns:
            return "stamp not newer"
        if (stamp_ns - previous.stamp_ns) * 1e-9 > self.settings.max_gap:
            return "gap"
        maps, raw = previous.state.maps, observation.raw
        if raw.shape != maps.shape[1:] or raw.device != maps.device:
            return "size changed"
        if camera != previous.camera:
            return "camera changed"
        return "frame_id changed" if frame_id != previous.frame_id else ""

    def _gains(self, seconds: float, anchored: bool, has_odometry: bool) -> FilterGains:
        s = self.settings
        stretch = 3 * s.strength / (2 - s.strength)  # of time constants: 1 at strength 0.5, 3 at 1

        def gain(memory: float) -> float:
            return 1 - math.exp(-seconds / (memory * stretch))

        scale = s.anchor_memory if anchored else s.scale_memory
        if not has_odometry:
            scale = min(scale, s.flow_memory)
        return FilterGains(
            measurement_noise=s.measurement_noise,
            process_noise=s.process_noise**2 * seconds / _FRAME_SECONDS / stretch**2,
            min_gain=gain(s.memory),
            label_gain=gain(s.label_memory),
            leak=min(gain(scale), _MAX_LEAK) if has_odometry else gain(scale),
            flow_leak=gain(min(scale, s.flow_memory)),
            moving_gain=s.moving_gain,
        )

    def _pass_through(self, raw: Tensor, logits: Tensor | None) -> FilteredFrame:
        one = torch.ones(raw.shape, device=raw.device)
        reset_code = torch.zeros((), dtype=torch.uint8, device=raw.device)
        affine = _upload(np.array([1.0, 0.0]), raw.device)
        variance = one * self.settings.measurement_noise**2
        return FilteredFrame(raw, variance, logits, affine, one, reset_code)


def _observe(raw: Tensor, rgb: Tensor | np.ndarray | None, flow: Flow | None) -> Observation:
    """A frame by itself."""
    valid = (torch.isfinite(raw) & (raw > 0)).float()
    inverse_depth = torch.nan_to_num(raw, 0.0, 0.0, 0.0).clamp(min=MIN_INVERSE_DEPTH)
    if flow is None and rgb is None:
        return Observation(raw, inverse_depth, valid, torch.zeros_like(raw))
    luma = flow.luma if flow is not None else grey(_host(rgb))
    luma_map = resize(_upload(luma[None], raw.device), (raw.shape[0], raw.shape[1]))[0]
    return Observation(raw, inverse_depth, valid, luma_map)


def _flow_maps(flow: Flow, observation: Observation) -> Tensor:
    """``Observation.flow`` from a ``Flow`` of any size."""
    height, width = observation.raw.shape
    parts = (np.moveaxis(flow.displacement, 2, 0), flow.residual[None], flow.weight)
    maps = _upload(np.concatenate(parts), observation.raw.device)
    x_scale = 2 * width / maps.shape[2] / (width - 1)
    y_scale = 2 * height / maps.shape[1] / (height - 1)
    maps = resize(maps, (height, width))
    grid = pixel_grid(height, width, maps.device)
    maps[0].mul_(x_scale).add_(grid[0])
    maps[1].mul_(y_scale).add_(grid[1])
    return maps


def _with_ego_motion(
    observation: Observation,
    previous: _Previous,
    camera: CameraModel | None,
    pose: np.ndarray | None,
    seconds: float,
) -> Observation:
    """Add the camera's motion by odometry; without it, or where it jumped, no motion with a wide
    prior, to be refined by flow."""
    if camera is None:
        return observation
    height, width = observation.raw.shape
    rotation, shift, has_odometry = np.eye(3), np.zeros(3), False
    rotation_sigma = shift_sigma = _NO_ODOMETRY_SIGMA * seconds / _FRAME_SECONDS
    if pose is not None and previous.pose is not None:
        odom_rotation, odom_shift = relative_pose(previous.pose, pose)
        angle = math.acos(min(1.0, max(-1.0, (np.trace(odom_rotation) - 1) / 2)))
        distance = float(np.linalg.norm(odom_shift))
        has_odometry = distance < _MAX_SPEED * seconds and angle < _MAX_TURN_RATE * seconds
        if has_odometry:
            rotation, shift = odom_rotation, odom_shift
            rotation_sigma = _ROTATION_SIGMA[0] + _ROTATION_SIGMA[1] * angle
            shift_sigma = _TRANSLATION_SIGMA[0] + _TRANSLATION_SIGMA[1] * distance
    if not has_odometry and observation.flow is None:
        return observation
    to_grid = normalisation(width, height) @ camera.scaled(width, height).matrix()
    sigma = np.repeat([rotation_sigma, shift_sigma], 3)
    matrices = (rotation, shift, to_grid, np.linalg.inv(to_grid), sigma)
    numbers = _upload(np.concatenate([np.ravel(m) for m in matrices]), observation.raw.device)
    ego = EgoMotion(
        numbers[:9].view(3, 3), numbers[9:12], numbers[12:21].view(3, 3), numbers[21:30].view(3, 3)
    )
    return replace(observation, ego=ego, prior_sigma=numbers[30:])


def _with_correlation(observation: Observation, state: FilterState) -> Observation:
    """Add exposure gain and correlation of thumbnails of this image and the previous one."""
    images = torch.stack([observation.luma, state.maps[2]])[None]
    small = F.interpolate(images, _THUMBNAIL, mode="area")[0].flatten(1)
    mean = small.mean(1, keepdim=True)
    small = small - mean
    power = small.square().sum(1)
    correlation = (small[0] * small[1]).sum() / (power[0] * power[1]).sqrt().clamp(min=1e-3)
    exposure_gain = (mean[0, 0] / mean[1, 0].clamp(min=1.0)).clamp(0.1, 10.0)
    return replace(observation, exposure_gain=exposure_gain, correlation=correlation)


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
    metric_affine: tuple[float, float] | None,
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
    if metric_affine and (len(metric_affine) != 2 or not np.isfinite(metric_affine).all()):
        raise ValueError(f"metric_affine must be finite scale and shift, not {metric_affine}.")
