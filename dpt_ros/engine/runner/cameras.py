# SPDX-License-Identifier: Apache-2.0
"""What the host knows of each camera from frame to frame, and decides about the next one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dpt_ros.engine.frame import CameraModel, Frame, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.output.point_cloud import POINT
from dpt_ros.engine.packed import offsets, pack
from dpt_ros.engine.runner.chain import FUSED, Chain
from dpt_ros.engine.scale.plan import ScaleHistory, describe, focal_factor, plan_scale
from dpt_ros.engine.settings import Settings
from dpt_ros.engine.smoothing.filter import (
    FrameHistory,
    TemporalSettings,
    plain_history,
    plan_frame,
    restored_history,
)
from dpt_ros.engine.smoothing.flow import MIN_SIZE
from dpt_ros.engine.smoothing.state import FILTER_FIELDS, RESET_REASONS

# Towards the floor, in the optical frame of a camera that looks ahead (REP 103).
_LEVEL = np.array([0.0, 1.0, 0.0])
_LABEL_GAIN = offsets(FILTER_FIELDS)["label_gain"]
_IN_METRES = ("depth", "deviation", "points", "uncertain", *FUSED)


@dataclass(frozen=True)
class Record:
    """A camera after a frame.

    Args:
        filter, scale: past of the filter and of the scale; None where they have none.
        labels: shape (C, h, w) of the logits in the filter's state, () without.
        row: of the camera's two rows in the bank, the one with its state: 0 or 1.
    """

    filter: FrameHistory | None = None
    scale: ScaleHistory | None = None
    labels: tuple[int, ...] = ()
    row: int = 0


@dataclass(frozen=True)
class Plan:
    """What the host decides about a frame.

    Args:
        numbers: those of the filter and of the scale, see ``step.frame_numbers``.
        reset: why the filter's past is not used, "" if it is.
        reason: why the frame gives no scale, "" if it may.
        before, after: of the camera.
    """

    numbers: np.ndarray
    reset: str
    reason: str
    before: Record
    after: Record


class Cameras:
    """The records of all cameras, in the order of the frames.

    Args:
        networks: from ``load_networks``.
        settings: where metres come from; live settings are passed with the frames.
    """

    def __init__(self, networks: Networks, settings: Settings) -> None:
        self._networks, self._settings = networks, settings
        self._records: dict[str, Record] = {}
        self._always_metric = networks.metric and settings.scale_source != "none"
        self._metric: set[str] = set()  # cameras whose depth has been in metres
        self._reset = threading.Event()

    def reset(self) -> None:
        """Forget all cameras before the next frame; thread-safe."""
        self._reset.set()

    def forget(self) -> bool:
        """Forget all cameras if that was asked for, and whether it was."""
        asked = self._reset.is_set()
        if asked:
            self._reset.clear()
            self._records.clear()
            self._metric.clear()
        return asked

    def plan(self, frame: Frame, chain: Chain, settings: Settings) -> Plan:
        """Decide about a camera's next frame, by the live settings; changes nothing."""
        before = self._records.get(frame.source, Record())
        measured, reason, scale = plan_scale(
            before.scale, self._settings, self._networks.metric, self._focal(frame.camera),
            frame.stamp_ns, frame.camera, frame.anchors,
            _LEVEL if frame.down is None else frame.down,
            bool(chain.label_shape and self._networks.floor), chain.seen,
        )  # fmt: skip
        weights, reset, history = pack(FILTER_FIELDS, {}), "", None
        if chain.smoothed:
            known = self._always_metric or frame.source in self._metric
            filter_settings = TemporalSettings(
                strength=settings.smoothing_strength, max_gap=settings.smoothing_max_gap
            )
            # Without metres the camera's translation cannot be compared with depth.
            pose = frame.pose() if known else None
            weights, reset, history = plan_frame(
                before.filter, filter_settings, frame.stamp_ns, frame.camera, pose,
                frame.frame_id, chain.map_size, min(chain.luma_size) >= MIN_SIZE, known,
            )  # fmt: skip
            if before.labels != chain.label_shape:
                weights[_LABEL_GAIN] = 1.0
        after = replace(
            before,
            filter=history,
            scale=scale if chain.refined else None,
            labels=chain.label_shape,
            row=1 - before.row,
        )
        return Plan(np.concatenate([weights, measured]), reset, reason, before, after)

    def accept(self, frames: Sequence[Frame], plans: Sequence[Plan]) -> None:
        """The frames are being computed: what was planned is each camera's past from now on."""
        for frame, plan in zip(frames, plans, strict=True):
            self._records[frame.source] = plan.after

    def row(self, source: str) -> int:
        """Which of a camera's two rows in the bank has its state."""
        return self._records[source].row

    def fill(
        self, predictions: Sequence[Prediction], plans: Sequence[Plan], arrays: dict[str, Any]
    ) -> None:
        """Add the arrays of a batch, (B, ...) each, and what they say about scale and filter.

        A prediction that is not metric gets no arrays in metres.
        """
        for k, (prediction, plan) in enumerate(zip(predictions, plans, strict=True)):
            parts = {name: array[k] for name, array in arrays.items()}
            self._describe(prediction, plan, parts)
            if "points" in parts:
                parts["points"] = parts["points"].view(POINT)[..., 0]
            for name, part in parts.items():
                if prediction.metric or name not in _IN_METRES:
                    setattr(prediction, name, part)
            maps = (prediction.depth, prediction.inverse, prediction.deviation)
            shapes = [one.shape for one in maps if one is not None]
            camera = prediction.frame.camera
            if camera is not None and shapes:
                prediction.camera = camera.scaled(width=shapes[0][1], height=shapes[0][0])

    def _describe(self, prediction: Prediction, plan: Plan, parts: dict[str, Any]) -> None:
        if "scale" not in parts:  # neither scaled nor smoothed
            prediction.metric = self._always_metric
            return
        prediction.metric, prediction.scale = describe(parts.pop("scale"), plan.reason)
        code = int(parts.pop("reset_code"))
        prediction.reset = plan.reset or RESET_REASONS[code]
        change = self._metric.add if prediction.metric else self._metric.discard
        change(prediction.frame.source)

    def _focal(self, camera: CameraModel | None) -> float:
        depth = self._networks.depth
        if camera is None or depth is None:
            return 1.0
        width = depth.input_size(camera.height, camera.width, self._settings)[1]
        return focal_factor(depth.spec.focal, camera, width)

    def state_dict(self) -> dict[str, Any]:
        """The records, by source, as plain values."""
        return {
            source: {
                "filter": record.filter and plain_history(record.filter),
                "scale": record.scale and plain_history(record.scale),
                "labels": list(record.labels),
                "metric": source in self._metric,
            }
            for source, record in self._records.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the result of ``state_dict``."""
        self._metric = {source for source, values in state.items() if values["metric"]}
        self._records = {
            source: Record(
                values["filter"] and restored_history(FrameHistory, values["filter"]),
                values["scale"] and restored_history(ScaleHistory, values["scale"]),
                tuple(values["labels"]),
            )
            for source, values in state.items()
        }
