# SPDX-License-Identifier: Apache-2.0
"""The scale of one camera, frame by frame, as the tests feed it."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.scale.anchors import Anchors
from dpt_ros.engine.scale.estimator import ScaleState, metric_inverse_depth, scale
from dpt_ros.engine.scale.plan import (
    SOURCES,
    STATES,
    ScaleHistory,
    ScaleStats,
    describe,
    plan_scale,
)
from dpt_ros.engine.scale.robust_fit import FIT_STATES
from dpt_ros.engine.scale.steps import relative_variance
from dpt_ros.engine.settings import Settings

_DEFAULTS = Settings()


@dataclass(frozen=True)
class ScaledFrame:
    """A frame and its scale.

    Args:
        raw_inverse_depth: (H, W) float32 of the network, corrected beside anchors.
        affine: (2,) float32: inverse_depth = affine[0] * raw_inverse_depth + affine[1].
        covariance: (3,) float32 of scale and shift: [0, 0], [0, 1], [1, 1].
        stats: what else there is to tell.
        hint: from ``plan_scale``: why there were no anchors.
    """

    raw_inverse_depth: Tensor
    affine: Tensor
    covariance: Tensor
    stats: ScaleStats
    hint: str

    @property
    def metric(self) -> bool:
        """Whether ``inverse_depth`` is in 1/m."""
        return bool(self.stats.metric)

    @property
    def source(self) -> str:
        """ "network", "anchors", "ground" or "none": what the scale comes from."""
        return SOURCES[int(self.stats.source)]

    @property
    def state(self) -> str:
        """ "fitted", "scale only" (the pairs fix one number), "held" (the last fit),
        "uncorrected", "not metric yet" or "disabled"."""
        return STATES[int(self.stats.state)]

    @property
    def reason(self) -> str:
        """Why the frame itself was not used: "no anchors", "anchors 0.40 s from the frame", "too
        few pairs", "no spread", "not plausible"; "" if it was, or need not be."""
        known = self.stats.reason >= 0
        return FIT_STATES[int(self.stats.reason)] if known else self.hint

    @property
    def inverse_depth(self) -> Tensor:
        """(H, W) float32: 1/m, 0 beyond range, NaN unknown; raw if it is not metric."""
        if not self.metric:
            return self.raw_inverse_depth
        return metric_inverse_depth(self.raw_inverse_depth, self.affine)

    def relative_variance(self) -> Tensor:
        """(H, W) float32: relative variance of the (inverse) depth due to scale and shift."""
        one = self.raw_inverse_depth, self.affine, self.covariance
        return relative_variance(*(part[None] for part in one))[0]

    def diagnostics(self) -> dict[str, str]:
        """Names and values for /diagnostics."""
        return describe(np.array(self.stats), self.hint)[1]


class ScaleEstimator:
    """The correction of one camera's depth network; ``scale`` for a batch of one.

    Args:
        settings: where metres come from; a source that the network allows.
        metric: whether the network predicts 1/m by itself.
        focal: from ``focal_factor``, > 0; used with a metric network.
        floor: label ids of the floor, for the ground.
        device: where the frames are.
    """

    def __init__(
        self,
        settings: Settings = _DEFAULTS,
        metric: bool = True,
        focal: float = 1.0,
        floor: tuple[int, ...] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings, self._focal = settings, focal
        ids = torch.tensor(floor, device=device) if floor else None
        self._constants = (metric, ids)
        self._state = ScaleState.empty(1, device)
        self._history: ScaleHistory | None = None

    def copy(self) -> ScaleEstimator:
        """A copy whose state is independent of this one."""
        return copy(self)

    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs to continue identically: tensors on the host and
        plain values."""
        camera = None if self._history is None else self._history.camera
        return {
            "stamp": None if self._history is None else self._history.stamp_ns,
            "camera": None if camera is None else vars(camera).copy(),
            "numbers": self._state.numbers.cpu(),
            "table": self._state.table.cpu(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the ``state_dict`` of an estimator made with the same arguments."""
        device, camera = self._state.numbers.device, state["camera"]
        self._state = ScaleState(*(state[part].to(device) for part in ScaleState._fields))
        self._history = None
        if state["stamp"] is not None:
            model = None if camera is None else CameraModel(**camera)
            self._history = ScaleHistory(state["stamp"], model)

    @torch.inference_mode()
    def update(
        self,
        raw_inverse_depth: Tensor | np.ndarray,
        stamp_ns: int,
        camera: CameraModel | None = None,
        anchors: Anchors | None = None,
        logits: Tensor | None = None,
        down: np.ndarray | None = None,
    ) -> ScaledFrame:
        """Update the correction by a frame and its sensors; waits for the result.

        Args:
            raw_inverse_depth: (H, W), relative, or 1/m of a metric network; 0 beyond range, NaN
                unknown.
            stamp_ns: of the frame, nanoseconds.
            camera: intrinsics; for the ground. Other ones begin anew.
            anchors: measured at about the same time, None if there are none.
            logits: (C, h, w) of the labels; for the ground.
            down: (3,) unit vector, see ``scale.ground.down_direction``; for the ground.

        Returns:
            The frame and its scale, on its device.

        Raises:
            ValueError: ``raw_inverse_depth`` is not (H, W).
        """
        raw = torch.as_tensor(raw_inverse_depth, dtype=torch.float32)
        if raw.ndim != 2:
            raise ValueError(f"Inverse depth has shape {tuple(raw.shape)}, but must be (H, W).")
        metric, floor = self._constants
        has_labels = floor is not None and logits is not None
        frame = stamp_ns, camera, anchors, down, has_labels
        numbers, hint, history = plan_scale(
            self._history, self.settings, metric, self._focal, *frame
        )
        self._state, raw, affine, covariance, stats = scale(
            self._state,
            raw[None],
            None if logits is None else logits[None],
            torch.from_numpy(numbers).to(raw.device)[None],
            *self._constants,
        )
        self._history = history
        return ScaledFrame(raw[0], affine[0], covariance[0], ScaleStats(*stats[0].tolist()), hint)
