# SPDX-License-Identifier: Apache-2.0
"""The step as an ONNX file: a frame with scale and temporal filter, its state in and out."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.export.file import FIELDS, ExportError
from dpt_ros.engine.export.frame import FrameModule
from dpt_ros.engine.frame import Frame, Kind
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.runner.cameras import Cameras
from dpt_ros.engine.runner.chain import Chain, depth_limit, is_refined
from dpt_ros.engine.runner.step import FIELDS as PARTS
from dpt_ros.engine.runner.step import NUMBERS, blank_state, frame_numbers, step
from dpt_ros.engine.scale.arrays import double as as_double
from dpt_ros.engine.scale.arrays import single_precision
from dpt_ros.engine.scale.plan import ScaleStats
from dpt_ros.engine.settings import Settings
from dpt_ros.engine.smoothing.state import RESET_REASONS

STATE, NEW_STATE = "state.", "new_state."
_LARGEST = float(np.finfo(np.float32).max)
_PERIOD = 33_333_333  # nanoseconds between the frames of the examples in the metadata


class StepModule(FrameModule):
    """``runner.step.step`` of a kind: pixels, numbers (B, NUMBERS) and the parts of ``State`` in;
    the outputs of ``names``, "reset_code", "scale" and the parts of the new state out.

    Its file has the inputs "pixels"; "numbers" (B, NUMBERS) float32, the host's decisions, whose
    table is in the metadata "dpt_ros.fields"; "state.NAME", the parts of ``State``, zeros before
    the first frame. Outputs: those of ``FrameModule``, "deviation" (B, H, W) float32, metres,
    "reset_code" (B,) uint8, "scale" (B, 9) float32 of ``ScaleStats``, and "new_state.NAME", which
    are the next frame's "state.NAME". Before there are metres ("scale" is 0 at "metric"), depth
    and deviation mean nothing.

    Args:
        networks, kind, settings: see ``FrameModule``.
        double: whether scale and shift are estimated in float64, as in the node, or in float32:
            TensorRT has no float64.

    Attributes:
        state_names: names in the ``State``, in the order of the inputs.

    Raises:
        ExportError: depth is neither scaled nor smoothed, so that there is no state.
    """

    what = "step"

    def __init__(
        self, networks: Networks, kind: Kind, settings: Settings, double: bool = True
    ) -> None:
        if not is_refined(networks, settings):
            raise ExportError(
                "A step needs a depth network, and smoothing.strength above 0 or a scale.source;"
                " export with --frame instead."
            )
        super().__init__(networks, kind, settings, settings.smoothing_strength > 0)
        self._numbers_in = nullcontext if double else single_precision
        self.state_names = list(self._blank(1))

    def _blank(self, batch: int) -> dict[str, Tensor]:
        blank = blank_state(self.chain, batch, torch.device("cpu"))
        with self._numbers_in():
            return {
                k: as_double(one) if one.dtype == torch.float64 else one
                for k, one in blank.items()
            }

    def example(self, batch: int) -> tuple[Tensor, ...]:
        state = self._blank(batch)
        return *super().example(batch), torch.zeros(batch, NUMBERS), *state.values()

    def arguments(self) -> tuple[list[str], list[str], dict[str, Any]]:
        state = self.state_names
        inputs = ["pixels", "numbers", *(STATE + name for name in state)]
        outputs = [*self.names, "reset_code", "scale", *(NEW_STATE + name for name in state)]
        table = {
            "numbers": numbers_table(self._networks, self.chain, self._settings),
            "scale": ScaleStats._fields,
            "reset_code": RESET_REASONS,
        }
        return inputs, outputs, {FIELDS: table}

    def forward(self, pixels: Tensor, *more: Tensor) -> list[Tensor]:
        numbers, *state = more
        before = dict(zip(self.state_names, state, strict=True))
        with self._numbers_in():
            after, outputs = step(self.chain, before, self.bits(pixels), lambda: numbers)
        assert after is not None
        told = [outputs[name] for name in (*self.names, "reset_code", "scale")]
        return told + list(after.values())


def numbers_table(networks: Networks, chain: Chain, settings: Settings) -> dict[str, Any]:
    """Of every part of the numbers: its place, its meaning, and, where they are not 0, its values
    in a camera's first frame and in one 1/30 s later, both without calibration, odometry and
    anchors."""
    cameras, examples = Cameras(networks, settings), []
    for k in range(2):
        frame = Frame(np.empty(0), chain.kind.encoding, k * _PERIOD)
        plan = cameras.plan(frame, chain, settings)
        cameras.accept([frame], [plan])
        limit = min(depth_limit(networks, settings), _LARGEST)
        examples.append(frame_numbers(plan.numbers, limit))
    table = number_places()
    for place in table.values():
        part = slice(place["offset"], place["offset"] + math.prod(place["shape"]))
        for key, example in zip(("first", "next"), examples, strict=True):
            if example[part].any():
                place[key] = example[part].tolist()
    return table


def number_places() -> dict[str, dict[str, Any]]:
    """Offset, shape and meaning of every part of the numbers, by name, as JSON has them."""
    table, at = {}, 0
    for part, fields in PARTS.items():
        for name, (shape, meaning) in fields.items():
            table[f"{part}.{name}"] = {"offset": at, "shape": list(shape), "meaning": meaning}
            at += math.prod(shape)
    return table
