# SPDX-License-Identifier: Apache-2.0
"""The steps between inference and outputs that depend on a camera's past: flow, scale, smooth."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.frame import CameraModel, Frame, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.input.preprocess import to_rgb
from dpt_ros.engine.scale.estimator import ScaledFrame, ScaleEstimator
from dpt_ros.engine.scale.plan import ScaleSettings, focal_factor
from dpt_ros.engine.settings import Settings
from dpt_ros.engine.smoothing.filter import TemporalFilter, TemporalSettings
from dpt_ros.engine.smoothing.motion import Flow, FlowEstimator

# Towards the floor, in the optical frame of a camera that looks ahead (REP 103).
_LEVEL = np.array([0.0, 1.0, 0.0])


@dataclass
class _CameraState:
    """What is kept of one camera from frame to frame."""

    filter: TemporalFilter
    flow: FlowEstimator
    scale: ScaleEstimator | None = None
    scaled_for: CameraModel | None = None
    picture: np.ndarray | None = None  # of the current frame, (H, W, 3) uint8

    def copy(self) -> _CameraState:
        """A copy that later frames do not change."""
        scale = None if self.scale is None else self.scale.copy()
        return replace(self, filter=copy(self.filter), scale=scale)

    def state_dict(self) -> dict[str, Any]:
        return {
            "filter": self.filter.state_dict(),
            "flow": self.flow.state_dict(),
            "scale": None if self.scale is None else self.scale.state_dict(),
            "scaled_for": None if self.scaled_for is None else vars(self.scaled_for).copy(),
        }


def is_refined(networks: Networks, settings: Settings) -> bool:
    """Whether depth is to be scaled or smoothed."""
    if networks.depth is None:
        return False
    return settings.smoothing_strength > 0 or settings.scale_source != "none"


class Refiner:
    """Optical flow, scale and temporal filter of all cameras, fed in the order of the frames.

    Args:
        networks: from ``load_networks``.
        settings: where metres come from; live settings are passed with the frames.
    """

    def __init__(self, networks: Networks, settings: Settings) -> None:
        self._networks = networks
        self._settings = settings
        self._cameras: dict[str, _CameraState] = {}
        self._reset = threading.Event()

    def reset(self) -> None:
        """Forget the past of all cameras before the next frame; thread-safe."""
        self._reset.set()

    def state_dict(self) -> dict[str, Any]:
        """The state of all cameras, by source: tensors on the host and plain values.

        Call it when no frame is being computed.
        """
        return {source: camera.state_dict() for source, camera in self._cameras.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the result of ``state_dict`` with the same networks and settings."""
        self._cameras.clear()
        for source, parts in state.items():
            camera = self._cameras[source] = _CameraState(TemporalFilter(), FlowEstimator())
            camera.filter.load_state_dict(parts["filter"], self._networks.device)
            camera.flow.load_state_dict(parts["flow"])
            if parts["scale"] is not None:
                model = parts["scaled_for"]
                camera.scaled_for = None if model is None else CameraModel(**model)
                camera.scale = self._estimator(camera.scaled_for)
                camera.scale.load_state_dict(parts["scale"])

    def snapshot(self, frames: Sequence[Frame]) -> dict[str, _CameraState | None]:
        """The states of the frames' cameras, for ``roll_back``."""
        cameras = ((frame.source, self._cameras.get(frame.source)) for frame in frames)
        return {source: None if one is None else one.copy() for source, one in cameras}

    def roll_back(self, snapshot: dict[str, _CameraState | None]) -> None:
        """Forget the frames processed since the snapshot, so that they can be tried again."""
        for source, camera in snapshot.items():
            if camera is None:
                self._cameras.pop(source, None)
            else:
                self._cameras[source] = camera.copy()

    def start_flow(self, frames: Sequence[Frame], settings: Settings) -> None:
        """Start the optical flow of frames, on threads beside the networks."""
        if self._reset.is_set():
            self._reset.clear()
            self._cameras.clear()
        for frame in frames:
            camera = self._cameras.setdefault(
                frame.source, _CameraState(TemporalFilter(), FlowEstimator())
            )
            camera.picture = None
            if settings.smoothing_strength > 0:
                camera.picture = to_rgb(frame.pixels, frame.encoding)
                camera.flow.submit(camera.picture, frame.stamp_ns)

    def withdraw_flow(self, frames: Sequence[Frame]) -> None:
        """Forget frames whose flow was started and that will not be processed."""
        for frame in frames:
            if frame.source in self._cameras:
                self._cameras[frame.source].flow.withdraw()

    def flow(self, frames: Sequence[Frame], settings: Settings) -> list[Flow | None]:
        """Wait for the flow started last; None without smoothing or a frame before."""
        if settings.smoothing_strength == 0:
            return [None] * len(frames)
        return [self._cameras[frame.source].flow.result() for frame in frames]

    def scale(self, frames: Sequence[Frame], maps: dict[str, Tensor]) -> list[ScaledFrame]:
        """Estimate scale and shift of the inverse depth from anchors, floor and past.

        On a GPU it waits for the networks if there are anchors or a floor to compare with.

        Args:
            frames: one per camera.
            maps: from ``Chain.infer``.
        """
        raw = maps["inverse_depth"]
        if self._networks.metric:
            # A metric network's output saturates: beyond that, unknown.
            raw = torch.where(raw > 1 / self._networks.farthest, raw, 0.0)
        logits = maps.get("logits")
        return [
            self._scale(frame, raw[k], None if logits is None else logits[k])
            for k, frame in enumerate(frames)
        ]

    def _scale(self, frame: Frame, raw: Tensor, logits: Tensor | None) -> ScaledFrame:
        camera = self._cameras[frame.source]
        if camera.scale is None or camera.scaled_for != frame.camera:
            # Another focal length: the past fit does not apply.
            camera.scale = self._estimator(frame.camera)
            camera.scaled_for = frame.camera
        down = _LEVEL if frame.down is None else frame.down
        return camera.scale.update(raw, frame.stamp_ns, frame.camera, frame.anchors, logits, down)

    def smooth(
        self,
        frames: Sequence[Frame],
        maps: dict[str, Tensor],
        flows: Sequence[Flow | None],
        scales: Sequence[ScaledFrame],
        settings: Settings,
    ) -> list[Prediction]:
        """Filter depth and labels over time, in place; without smoothing, only scale the depth.

        Args:
            frames: one per camera.
            maps: from ``Chain.infer``. "inverse_depth" (1/m where metric) and "logits" are
                replaced; "variance", relative, and "reset_code", an index into
                ``RESET_REASONS``, are filled in.
            flows, scales: from ``flow`` and ``scale``.
            settings: the live ones.

        Returns:
            a prediction per frame that has no arrays yet.
        """
        return [
            self._smooth(frame, {name: m[k] for name, m in maps.items()}, flow, scaled, settings)
            for k, (frame, flow, scaled) in enumerate(zip(frames, flows, scales, strict=True))
        ]

    def _smooth(
        self,
        frame: Frame,
        maps: dict[str, Tensor],
        flow: Flow | None,
        scaled: ScaledFrame,
        settings: Settings,
    ) -> Prediction:
        camera = self._cameras[frame.source]
        affine, reset = (scaled.stats.scale, scaled.stats.shift), ""
        # Before the maps are replaced: the raw inverse depth may lie in them.
        scale_variance = scaled.relative_variance() if scaled.metric else None
        if settings.smoothing_strength > 0:
            camera.filter.settings = TemporalSettings(
                strength=settings.smoothing_strength,
                max_gap=settings.smoothing_max_gap,
                use_flow=False,
            )
            filtered = camera.filter.update(
                scaled.raw_inverse_depth,
                maps.get("logits"),
                camera.picture,
                frame.stamp_ns,
                frame.camera,
                # Without metres the camera's translation cannot be compared with depth.
                frame.pose() if scaled.metric else None,
                affine if scaled.metric else None,
                flow=flow,
                frame_id=frame.frame_id,
            )
            maps["inverse_depth"].copy_(filtered.inverse_depth)
            if filtered.logits is not None:
                maps["logits"].copy_(filtered.logits)
            maps["variance"].copy_(filtered.variance)
            maps["reset_code"].copy_(filtered.reset_code)
            reset = filtered.reason
        else:
            if scaled.metric and affine != (1.0, 0.0):
                maps["inverse_depth"].copy_(scaled.inverse_depth)
            maps["variance"].fill_(TemporalSettings().measurement_noise ** 2)
            maps["reset_code"].zero_()
        if scale_variance is not None:
            maps["variance"].add_(scale_variance)
        return Prediction(frame, metric=scaled.metric, reset=reset, scale=scaled.diagnostics())

    def unrefined(self, frames: Sequence[Frame]) -> list[Prediction]:
        """Predictions without arrays of frames that are neither scaled nor smoothed."""
        metric = self._networks.metric and self._settings.scale_source != "none"
        return [Prediction(frame, metric=metric) for frame in frames]

    def _estimator(self, camera: CameraModel | None) -> ScaleEstimator:
        s, depth = self._settings, self._networks.depth
        assert depth is not None
        focal = 1.0
        if camera is not None:
            width = depth.input_size(camera.height, camera.width, s)[1]
            focal = focal_factor(depth.spec.focal, camera, width)
        return ScaleEstimator(
            ScaleSettings(
                source=s.scale_source,
                depth_scale=s.scale_factor,
                camera_height=s.scale_camera_height,
            ),
            self._networks.metric,
            focal,
            self._networks.floor if s.scale_camera_height > 0 else (),
            self._networks.device,
        )
