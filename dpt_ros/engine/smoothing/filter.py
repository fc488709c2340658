# SPDX-License-Identifier: Apache-2.0
"""Temporally consistent depth and labels: a causal filter that adds no delay.

Averaging over frames removes the flicker of monocular depth, and adds ghosts. This filter
averages only what is known to be the same point, and takes what is nearer at once. ``steps`` runs
on the device; this module decides on the host when the state is reset, how fast it is forgotten,
and what is known of the camera's motion.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.packed import pack
from dpt_ros.engine.smoothing.flow import grey
from dpt_ros.engine.smoothing.motion import relative_pose
from dpt_ros.engine.smoothing.state import FILTER_FIELDS, FilteredFrame, FilterState
from dpt_ros.engine.smoothing.steps import resize, smooth

_FRAME_SECONDS = 1 / 30  # that process_noise is given for
_MAX_LEAK = 0.2  # of the scale per frame: also at a low frame rate several are averaged
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
        use_flow: whether optical flow is used.
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
class FrameHistory:
    """What the host remembers of a camera's last frame; arguments as of ``plan_frame``."""

    stamp_ns: int
    camera: CameraModel | None
    pose: np.ndarray | None
    frame_id: str
    size: tuple[int, int]
    has_image: bool


def plain_history(history: Any) -> dict[str, Any]:
    """A history, of whatever class, as plain values."""
    values = asdict(history)
    for name, value in values.items():
        if isinstance(value, np.ndarray | tuple):
            values[name] = np.asarray(value).tolist()
    return values


def restored_history(kind: Any, values: dict[str, Any]) -> Any:
    """A history of a class from the result of ``plain_history``."""
    values = dict(values)
    if values["camera"] is not None:
        values["camera"] = CameraModel(**values["camera"])
    if values.get("pose") is not None:
        values["pose"] = np.array(values["pose"])
    if "size" in values:
        values["size"] = tuple(values["size"])
    return kind(**values)


def plan_frame(
    history: FrameHistory | None,
    settings: TemporalSettings,
    stamp_ns: int,
    camera: CameraModel | None,
    pose: np.ndarray | None,
    frame_id: str,
    size: tuple[int, int],
    has_image: bool,
    anchored: bool = False,
) -> tuple[np.ndarray, str, FrameHistory]:
    """Decide how the next frame of a camera is filtered.

    Args:
        history: from the previous frame; None if there is none.
        settings: the live ones.
        stamp_ns: acquisition time, nanoseconds.
        camera: intrinsics of an image of any size; without them the pose is not used.
        pose: (4, 4) of the optical frame in a frame that does not jump, metres; or None.
        frame_id: the optical frame; another one is another camera.
        size: (H, W) of the maps.
        has_image: whether there is an image for optical flow.
        anchored: whether scale and shift of the frame are measured by other sensors.

    Returns:
        the numbers of ``FILTER_FIELDS``; why the state is not used, "" if it is; what to give
        with the next frame.
    """
    now = FrameHistory(
        stamp_ns, camera, None if pose is None else np.array(pose, np.float64), frame_id, size,
        has_image,
    )  # fmt: skip
    reason = _reset_reason(history, now, settings.max_gap)
    values = {"measurement_noise": settings.measurement_noise, "fresh": bool(reason)}
    if history is not None and not reason:
        seconds = (stamp_ns - history.stamp_ns) * 1e-9
        has_odometry = pose is not None and history.pose is not None
        values |= _gains(settings, seconds, anchored, has_odometry)
        values["has_flow"] = settings.use_flow and has_image and history.has_image
        values |= _motion(history, now, seconds)
    return pack(FILTER_FIELDS, values), reason, now


def _reset_reason(history: FrameHistory | None, now: FrameHistory, max_gap: float) -> str:
    if history is None:
        return "first frame"
    if now.stamp_ns <= history.stamp_ns:
        return "stamp not newer"
    if (now.stamp_ns - history.stamp_ns) * 1e-9 > max_gap:
        return "gap"
    if now.size != history.size:
        return "size changed"
    if now.camera != history.camera:
        return "camera changed"
    return "frame_id changed" if now.frame_id != history.frame_id else ""


def _gains(
    s: TemporalSettings, seconds: float, anchored: bool, has_odometry: bool
) -> dict[str, float]:
    stretch = 3 * s.strength / (2 - s.strength)  # of time constants: 1 at strength 0.5, 3 at 1

    def gain(memory: float) -> float:
        return 1 - math.exp(-seconds / (memory * stretch))

    scale = s.anchor_memory if anchored else s.scale_memory
    flow_leak = gain(min(scale, s.flow_memory))
    return {
        "process_noise": s.process_noise**2 * seconds / _FRAME_SECONDS / stretch**2,
        "min_gain": gain(s.memory),
        "label_gain": gain(s.label_memory),
        "leak": min(gain(scale), _MAX_LEAK) if has_odometry else flow_leak,
        "flow_leak": flow_leak,
        "moving_gain": s.moving_gain,
    }


def _motion(history: FrameHistory, now: FrameHistory, seconds: float) -> dict[str, Any]:
    """The camera's motion by odometry, if it did not jump."""
    if now.camera is None:
        return {}
    to_grid, from_grid = _grid_matrices(now.camera, now.size)
    values: dict[str, Any] = {
        "has_ego": True,
        "to_grid": to_grid,
        "from_grid": from_grid,
        "free_sigma": _NO_ODOMETRY_SIGMA * seconds / _FRAME_SECONDS,
    }
    if now.pose is not None and history.pose is not None:
        rotation, shift = relative_pose(history.pose, now.pose)
        trace = rotation[0, 0] + rotation[1, 1] + rotation[2, 2]
        angle, distance = math.acos(min(1.0, max(-1.0, (trace - 1) / 2))), math.hypot(*shift)
        if distance < _MAX_SPEED * seconds and angle < _MAX_TURN_RATE * seconds:
            rotation_sigma = _ROTATION_SIGMA[0] + _ROTATION_SIGMA[1] * angle
            shift_sigma = _TRANSLATION_SIGMA[0] + _TRANSLATION_SIGMA[1] * distance
            sigma = [rotation_sigma] * 3 + [shift_sigma] * 3
            values |= {"has_odometry": True, "rotation": rotation, "shift": shift}
            values |= {"prior_sigma": sigma}
    return values


@lru_cache(maxsize=64)
def _grid_matrices(camera: CameraModel, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rays -> pixels of the maps, and back; not to be changed."""
    height, width = size
    to_grid = camera.scaled(width, height).matrix()
    return to_grid, np.linalg.inv(to_grid)


class TemporalFilter:
    """The filter of one camera.

    Args:
        settings: may be replaced at any time through the attribute of that name.
    """

    def __init__(self, settings: TemporalSettings = TemporalSettings()) -> None:
        self.settings = settings
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self._history: FrameHistory | None = None
        self._state: FilterState | None = None

    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs to continue identically: tensors on the host, plain
        values; {} before the first frame."""
        history = self._history
        if history is None or self._state is None:
            return {}
        past = {name: value for name, value in vars(self._state).items() if value is not None}
        form = torch.contiguous_format
        past = {name: value[0].cpu().clone(memory_format=form) for name, value in past.items()}
        kept = plain_history(history)
        del kept["size"]  # that of the maps
        return {"past": past, **kept}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from the ``state`` that ``state_dict`` gave, on a ``device``."""
        self.reset()
        if state:
            past = {name: value.to(device)[None] for name, value in state["past"].items()}
            maps = past["maps"]
            # Earlier versions did not keep the image itself.
            self._state = FilterState(**{"logits": None, "luma": maps[:, 2], **past})
            state = {"has_image": True, "size": maps.shape[2:], **state}
            del state["past"]
            self._history = restored_history(FrameHistory, state)

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
        flow: object | None = None,
        frame_id: str = "",
        anchors: tuple[float, float] | None = None,
    ) -> FilteredFrame:
        """Filter the next frame.

        Args:
            inverse_depth: (H, W), 1/m; NaN, inf and what is not positive is not valid and comes
                back as it is.
            logits: (C, h, w) of any size, or None.
            rgb: (h, w, 3) uint8 image of any size, or None: then no flow.
            stamp_ns: acquisition time, nanoseconds.
            camera: intrinsics of an image of any size; without them the pose is not used.
            odom_from_camera: (4, 4) pose of the optical frame in a frame that does not jump
                (odom, not map), metres; or None.
            metric_affine: scale and shift of this frame's ``inverse_depth`` to 1/m, as measured
                by other sensors; None where it is in 1/m already.
            frame_id: the optical frame; another one is another camera.
            flow: deprecated and ignored: flow is always computed here.
            anchors: deprecated name of ``metric_affine``.

        Returns:
            The frame's depth and labels after the filter, with their uncertainty.

        Raises:
            ValueError: an argument has the wrong shape.
        """
        if flow is not None:
            warnings.warn(
                "The argument flow of TemporalFilter.update is deprecated and ignored: optical"
                " flow is computed from rgb.",
                DeprecationWarning,
                stacklevel=3,
            )
        if anchors is not None:
            warnings.warn(
                "The argument anchors of TemporalFilter.update is deprecated: use metric_affine.",
                DeprecationWarning,
                stacklevel=3,
            )
            metric_affine = anchors
        raw = torch.as_tensor(inverse_depth)
        values = None if logits is None else torch.as_tensor(logits, device=raw.device)
        _check(raw, values, rgb, odom_from_camera, metric_affine)
        if self.settings.strength == 0:
            self.reset()
            return self._pass_through(raw, values)
        if self._state is not None and self._state.maps.device != raw.device:
            self.reset()
        numbers, reason, self._history = plan_frame(
            self._history, self.settings, stamp_ns, camera, odom_from_camera, frame_id,
            (raw.shape[0], raw.shape[1]), rgb is not None, metric_affine is not None,
        )  # fmt: skip
        luma = torch.zeros(1, 8, 8)
        if rgb is not None:
            image = rgb.cpu().numpy() if isinstance(rgb, Tensor) else rgb
            luma = torch.from_numpy(grey(image)[None]).float()
        luma, raw = luma.to(raw.device), raw[None].float()
        state = self._state
        if state is None or reason:
            maps, affine = raw.new_zeros(1, 4, *raw.shape[1:]), raw.new_zeros(1, 2)
            state = FilterState(maps, None, affine, raw.new_zeros(1), luma)
        elif state.luma.shape != luma.shape:
            previous = resize(state.luma[:, None], (luma.shape[1], luma.shape[2]))[:, 0]
            state = replace(state, luma=previous)
        affine = torch.tensor([metric_affine or (1.0, 0.0)]).to(raw)
        self._state, inverse, variance, smoothed, gain, applied, code = smooth(
            state, raw, affine, None if values is None else values[None], luma,
            torch.from_numpy(numbers[None]).to(raw.device),
        )  # fmt: skip
        smoothed = None if smoothed is None else smoothed[0]
        return FilteredFrame(
            inverse[0], variance[0], smoothed, applied[0], gain[0], code[0], reason
        )

    def _pass_through(self, raw: Tensor, logits: Tensor | None) -> FilteredFrame:
        one = torch.ones(raw.shape, device=raw.device)
        reset_code = torch.zeros((), dtype=torch.uint8, device=raw.device)
        affine = torch.tensor([1.0, 0.0]).to(raw.device)
        variance = one * self.settings.measurement_noise**2
        return FilteredFrame(raw, variance, logits, affine, one, reset_code)


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
