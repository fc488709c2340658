# SPDX-License-Identifier: Apache-2.0
"""A frame as one function of tensors: ``step(state, pixels, numbers) -> (state, outputs)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.packed import Fields, length, pack, unpack
from dpt_ros.engine.runner.chain import Chain, Pixels
from dpt_ros.engine.scale.estimator import ScaleState, scale
from dpt_ros.engine.scale.inverse_depth import metric_inverse_depth
from dpt_ros.engine.scale.plan import SCALE_FIELDS
from dpt_ros.engine.scale.steps import relative_variance
from dpt_ros.engine.smoothing.filter import TemporalSettings
from dpt_ros.engine.smoothing.state import FILTER_FIELDS, FilterState
from dpt_ros.engine.smoothing.steps import resize, smooth

# Where a camera's state is read and written, see ``Bank``; metres beyond which depth is +Inf.
_FRAME_FIELDS: Fields = {"row": (), "new_row": (), "limit": ()}
FIELDS = {"frame": _FRAME_FIELDS, "filter": FILTER_FIELDS, "scale": SCALE_FIELDS}
"""The parts of the numbers that the host gives with a frame, in their order."""
_SIZES = [length(fields) for fields in FIELDS.values()]
NUMBERS = sum(_SIZES)
"""How many these are."""


@dataclass(frozen=True)
class State:
    """What is kept of B cameras from frame to frame, on the device."""

    filter: FilterState | None  # None without smoothing
    scale: ScaleState

    def tensors(self) -> dict[str, Tensor]:
        """By name, (B, ...) each."""
        parts = self.scale._asdict() | (vars(self.filter) if self.filter else {})
        return {name: value for name, value in parts.items() if value is not None}

    def fitted(self, chain: Chain) -> State:
        """For a chain's next frame: without smoothing, or for maps of another size, the filter's
        part is blank; grey levels are resized. ``smooth`` leaves out logits of another shape."""
        mine = self.filter
        if not chain.smoothed or mine is None or tuple(mine.maps.shape[2:]) != chain.map_size:
            blank = State.blank(chain, len(self.scale.numbers), self.scale.numbers.device)
            return State(blank.filter, self.scale)
        luma = resize(mine.luma[:, None], chain.luma_size)[:, 0]
        return State(replace(mine, luma=luma), self.scale)

    @classmethod
    def blank(cls, chain: Chain, batch: int, device: torch.device) -> State:
        """The state of cameras without a past."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros((batch, *shape), device=device)

        scale = ScaleState.empty(batch, device)
        if not chain.smoothed:
            return cls(None, scale)
        logits = zeros(*chain.label_shape) if chain.label_shape else None
        maps, luma = zeros(4, *chain.map_size), zeros(*chain.luma_size)
        return cls(FilterState(maps, logits, zeros(2), zeros(), luma), scale)

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> State:
        """From what ``tensors`` gave."""
        mine = {name: tensors[name] for name in ScaleState._fields}
        rest: dict[str, Any] = {k: one for k, one in tensors.items() if k not in mine}
        return cls(FilterState(**{"logits": None, **rest}) if rest else None, ScaleState(**mine))


def frame_numbers(plan: np.ndarray, limit: float, row: int = 0, new_row: int = 0) -> np.ndarray:
    """(NUMBERS,) float32: all that the host decides about a frame.

    Args:
        plan: ``Plan.numbers``.
        limit: metres beyond which depth is +Inf.
        row, new_row: of the states before and after the frame, see ``Bank``.
    """
    own = {"row": row, "new_row": new_row, "limit": limit}
    return np.concatenate([pack(_FRAME_FIELDS, own), plan])


def rows(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) int64 rows of the states to read, and to write."""
    own = unpack(_FRAME_FIELDS, numbers[:, : _SIZES[0]])
    return own["row"].long(), own["new_row"].long()


def _untimed(name: str) -> AbstractContextManager[None]:
    return nullcontext()


@contextmanager
def one_thread(on_host: bool) -> Iterator[None]:
    """On a CPU, run operations in the calling thread: for maps, which are small beside what the
    networks do, waiting for other threads takes longer than the work; on a busy machine much
    longer."""
    before = torch.get_num_threads()
    if not on_host or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def step(
    chain: Chain,
    state: State | None,
    pixels: Pixels,
    numbers: Callable[[], Tensor],
    timed: Callable[[str], AbstractContextManager[None]] = _untimed,
) -> tuple[State | None, dict[str, Tensor]]:
    """Process a frame of each of B cameras: the whole algorithm, one call per step.

    No step decides by the values of a tensor, and on a GPU none waits, or copies to or from the
    host: the same function is run on a CPU, launched kernel by kernel, and captured in a graph.

    Args:
        chain: made for the frames' kind.
        state: of the cameras, after their previous frames; not changed. None where depth is
            neither scaled nor smoothed.
        pixels: of the frames: B arrays, or on a GPU (B, *kind.shape), uint16 viewed as int16.
        numbers: gives (B, NUMBERS) of ``frame_numbers``; called after the networks, because on a
            CPU odometry may arrive while these run.
        timed: measures the time of a step by name.

    Returns:
        the state after the frames, and the outputs of ``Chain.finish``.
    """
    with timed("preprocess"):
        images, luma = chain.preprocess(pixels)
    with timed("network"):
        maps = chain.infer(images)
    with timed("refine"), one_thread(chain.on_host):
        own, weights, measured = numbers().split(_SIZES, 1)
        if state is not None:
            state, maps = _refine(chain, state, maps, luma, weights, measured)
    with timed("postprocess"):
        outputs = chain.finish(maps, pixels, unpack(_FRAME_FIELDS, own)["limit"].view(-1, 1, 1))
    return state, outputs


def _refine(
    chain: Chain,
    state: State,
    maps: dict[str, Tensor],
    luma: Tensor | None,
    weights: Tensor,
    measured: Tensor,
) -> tuple[State, dict[str, Tensor]]:
    """Scale to metres, and filter over time.

    Returns:
        the state; ``maps`` with new "inverse_depth" (1/m where metric) and "logits", and
        "variance" (B, h, w), relative; "reset_code" (B,) uint8; "scale" (B, k) of ``scale``.
    """
    raw, logits = maps["inverse_depth"], maps.get("logits")
    scale_state, raw, affine, covariance, stats = scale(
        state.scale, chain.bounded(raw), logits, measured, chain.scale_constants
    )
    refined = {"scale": stats}
    filter_state = state.filter
    if filter_state is not None:
        assert luma is not None
        filter_state, refined["inverse_depth"], variance, logits, *_, refined["reset_code"] = (
            smooth(filter_state, raw, affine, logits, luma, weights)
        )
        if logits is not None:
            refined["logits"] = logits
    else:
        refined["inverse_depth"] = metric_inverse_depth(raw, affine.T[..., None, None])
        refined["reset_code"] = raw.new_zeros(len(raw), dtype=torch.uint8)
        variance = torch.full_like(raw, TemporalSettings().measurement_noise ** 2)
    covariance = covariance * stats[:, :1]  # 0 without metres
    refined["variance"] = variance + relative_variance(raw, affine, covariance)
    return State(filter_state, scale_state), maps | refined
