# SPDX-License-Identifier: Apache-2.0
"""Between the two halves of a chain: metres first, then steadiness; one past per camera."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.frame import CameraModel, Frame
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.input.preprocess import to_rgb
from dpt_ros.engine.scale.estimator import ScaledFrame, ScaleEstimator, ScaleSettings
from dpt_ros.engine.scale.estimator import focal_factor as factor_of
from dpt_ros.engine.settings import Settings
from dpt_ros.engine.smoothing.filter import TemporalFilter, TemporalSettings
from dpt_ros.engine.smoothing.motion import FlowEstimator

# Towards the floor, in the optical frame of a camera that looks ahead (REP 103).
_LEVEL = np.array([0.0, 1.0, 0.0])


@dataclass(frozen=True)
class Refined:
    """What is known of one frame beside its maps.

    Args:
        metric: whether its depth is in metres.
        reset: why its past was forgotten before its pixels were looked at, "" if it was not.
        scale: names and values for /diagnostics.
    """

    metric: bool
    reset: str = ""
    scale: dict[str, str] = field(default_factory=dict)


@dataclass
class _Past:
    """What is kept of one camera."""

    filter: TemporalFilter
    flow: FlowEstimator
    scale: ScaleEstimator | None = None
    scaled_for: CameraModel | None = None
    picture: np.ndarray | None = None

    def copy(self) -> _Past:
        """The same past, which stays as it is while frames are taken into this one."""
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
    """Whether there is anything to do between the halves; depth is needed for all of it."""
    if networks.depth is None:
        return False
    return settings.smoothing_strength > 0 or settings.scale_source != "none"


class Refiner:
    """Scale and smoothing of all cameras, fed in the order of frames.

    Args:
        networks: from ``load_networks``.
        settings: where metres come from; live settings are given with the frames.
    """

    def __init__(self, networks: Networks, settings: Settings) -> None:
        self._networks = networks
        self._settings = settings
        self._pasts: dict[str, _Past] = {}
        self._forget = threading.Event()

    def reset(self) -> None:
        """Forget the past of all cameras before the next frame; may be called from any thread."""
        self._forget.set()

    def state_dict(self) -> dict[str, Any]:
        """The past of all cameras, for ``load_state_dict``: tensors on the host and plain values.

        Call it between frames, when the device is done with those before.
        """
        return {source: past.state_dict() for source, past in self._pasts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict`` with the same networks and settings."""
        self._pasts.clear()
        for source, parts in state.items():
            past = self._pasts[source] = _Past(TemporalFilter(), FlowEstimator())
            past.filter.load_state_dict(parts["filter"], self._networks.device)
            past.flow.load_state_dict(parts["flow"])
            if parts["scale"] is not None:
                camera = parts["scaled_for"]
                past.scaled_for = None if camera is None else CameraModel(**camera)
                past.scale = self._estimator(past.scaled_for)
                past.scale.load_state_dict(parts["scale"])

    def see(self, frames: Sequence[Frame], settings: Settings) -> None:
        """Begin with the optical flow of frames, on threads beside the networks."""
        if self._forget.is_set():
            self._forget.clear()
            self._pasts.clear()
        for frame in frames:
            past = self._pasts.setdefault(frame.source, _Past(TemporalFilter(), FlowEstimator()))
            past.picture = None
            if settings.smoothing_strength > 0:
                past.picture = to_rgb(frame.pixels, frame.encoding)
                past.flow.submit(past.picture, frame.stamp_ns)

    def snapshot(self, frames: Sequence[Frame]) -> dict[str, _Past | None]:
        """The pasts of the frames' cameras, for ``roll_back``."""
        pasts = ((frame.source, self._pasts.get(frame.source)) for frame in frames)
        return {source: None if past is None else past.copy() for source, past in pasts}

    def roll_back(self, snapshot: dict[str, _Past | None]) -> None:
        """Forget the frames refined since; they can be refined again."""
        for source, past in snapshot.items():
            if past is None:
                self._pasts.pop(source, None)
            else:
                self._pasts[source] = past.copy()

    def withdraw(self, frames: Sequence[Frame]) -> None:
        """Forget frames that were seen and will not be refined."""
        for frame in frames:
            if frame.source in self._pasts:
                self._pasts[frame.source].flow.withdraw()

    def refine(
        self, frames: Sequence[Frame], said: dict[str, Tensor], settings: Settings
    ) -> tuple[dict[str, Tensor], list[Refined]]:
        """Take what the networks say of frames that were seen, and give it back better.

        Args:
            frames: one per camera.
            said: as ``Chain.predict`` returns it, with "depth".
            settings: the live ones.

        Returns:
            the same with "variance" (B, h, w), relative, and "reset_code" (B,) uint8, an index
            into ``RESET_REASONS``; and what there is to say of each frame.
        """
        parts = [
            self._refine(frame, {name: maps[k] for name, maps in said.items()}, settings)
            for k, frame in enumerate(frames)
        ]
        maps = [part for part, _ in parts]
        together = {name: torch.stack([one[name] for one in maps]) for name in maps[0]}
        return together, [about for _, about in parts]

    def _refine(
        self, frame: Frame, said: dict[str, Tensor], settings: Settings
    ) -> tuple[dict[str, Tensor], Refined]:
        past = self._pasts[frame.source]
        inverse = self._inverse(said["depth"])
        scaled = self._scale(past, frame, inverse, said.get("labels"))
        network = scaled.raw_inverse_depth
        variance = torch.full_like(network, TemporalSettings().measurement_noise ** 2)
        reset_code = torch.zeros((), dtype=torch.uint8, device=network.device)
        correction = (scaled.scale, scaled.shift)
        reset, refined = "", dict(said)
        if settings.smoothing_strength > 0:
            past.filter.settings = TemporalSettings(
                strength=settings.smoothing_strength,
                max_gap=settings.smoothing_max_gap,
                use_flow=False,  # it was begun beside the network
            )
            steady = past.filter.update(
                network,
                said.get("labels"),
                past.picture,
                frame.stamp_ns,
                frame.camera,
                # Without metres a way travelled cannot be compared with depth.
                frame.pose() if scaled.metric else None,
                correction if scaled.metric else None,
                flow=past.flow.result(),
                frame_id=frame.frame_id,
            )
            refined["depth"] = self._as_network(steady.inverse_depth)
            variance, reset_code, reset = steady.variance, steady.reset_code, steady.reason
            if steady.logits is not None:
                refined["labels"] = steady.logits.to(said["labels"].dtype)
        elif scaled.metric and (correction != (1.0, 0.0) or network is not inverse):
            refined["depth"] = self._as_network(scaled.inverse_depth)
        if scaled.metric:
            variance = variance + scaled.relative_variance()
        refined |= {"variance": variance, "reset_code": reset_code}
        return refined, Refined(scaled.metric, reset, scaled.diagnostics())

    def _scale(
        self, past: _Past, frame: Frame, network: Tensor, logits: Tensor | None
    ) -> ScaledFrame:
        s, depth = self._settings, self._networks.depth
        assert depth is not None
        if past.scale is None or past.scaled_for != frame.camera:
            # Another camera, another focal length; what was fitted holds for the old one.
            past.scale = self._estimator(frame.camera)
            past.scaled_for = frame.camera
        labels = None
        if s.scale_camera_height > 0 and logits is not None:
            labels = logits.argmax(0).add(1).to(torch.uint8)
        down = _LEVEL if frame.down is None else frame.down
        # Waits for the network on a GPU, when there are anchors or a floor to compare with.
        return past.scale.update(
            network, frame.stamp_ns, frame.camera, frame.anchors, labels, down
        )

    def _estimator(self, camera: CameraModel | None) -> ScaleEstimator:
        s, depth = self._settings, self._networks.depth
        assert depth is not None
        focal = 1.0
        if camera is not None:
            width = depth.input_size(camera.height, camera.width, s)[1]
            focal = factor_of(depth.spec.focal, camera, width)
        return ScaleEstimator(
            ScaleSettings(
                source=s.scale_source,
                depth_scale=s.scale_factor,
                camera_height=s.scale_camera_height,
            ),
            self._networks.metric,
            focal,
            self._networks.floor,
        )

    def _inverse(self, depth: Tensor) -> Tensor:
        """Inverse depth; 0, which is unknown, where the network can only say "far"."""
        if not self._networks.metric:
            return depth
        return torch.where(depth < self._networks.farthest, depth.reciprocal(), 0.0)

    def _as_network(self, inverse: Tensor) -> Tensor:
        """As the depth network says it: metres, or inverse depth."""
        return inverse.reciprocal() if self._networks.metric else inverse
