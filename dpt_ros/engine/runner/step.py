# SPDX-License-Identifier: Apache-2.0
"""A frame as one function of tensors: ``step(state, pixels, numbers) -> (state, outputs)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.packed import Fields, length, pack, unpack
from dpt_ros.engine.runner.chain import Chain, Pixels
from dpt_ros.engine.scale.estimator import ScaleState, metric_inverse_depth, scale
from dpt_ros.engine.scale.plan import SCALE_FIELDS
from dpt_ros.engine.scale.steps import relative_variance
from dpt_ros.engine.smoothing.filter import TemporalSettings
from dpt_ros.engine.smoothing.state import FILTER_FIELDS, FilterState
from dpt_ros.engine.smoothing.steps import resize, smooth

# Rows are those of a camera's state before and after the frame, see ``Bank``.
_FRAME_FIELDS: Fields = {
    "row": ((), "not used in a file"),
    "new_row": ((), "not used in a file"),
    "limit": ((), "metres beyond which depth is +Inf"),
}
FIELDS = {"frame": _FRAME_FIELDS, "filter": FILTER_FIELDS, "scale": SCALE_FIELDS}
"""The parts of the numbers that the host gives with a frame, in their order."""
_SIZES = [length(fields) for fields in FIELDS.values()]
NUMBERS = sum(_SIZES)
"""How many these are."""


State = dict[str, Tensor]
"""What is kept of B cameras from frame to frame, on the device: the fields of ``ScaleState``, and
with smoothing those of ``FilterState``, (B, ...) each."""


def blank_state(chain: Chain, batch: int, device: torch.device) -> State:
    """The state of cameras without a past."""
    shapes: dict[str, tuple[int, ...]] = {}
    if chain.smoothed:
        shapes["maps"] = (4, *chain.map_size)
        if chain.label_shape:
            shapes["logits"] = chain.label_shape
        shapes |= {"affine": (2,), "age": (), "luma": chain.luma_size}
    made = {name: torch.zeros((batch, *one), device=device) for name, one in shapes.items()}
    return ScaleState.empty(batch, device)._asdict() | made


def fitted_state(state: State, chain: Chain) -> State:
    """A state for a chain's next frame: without smoothing, or for maps of another size, the
    filter's part is blank; grey levels are resized. ``smooth`` leaves out logits of another
    shape."""
    maps = state.get("maps")
    if not chain.smoothed or maps is None or tuple(maps.shape[2:]) != chain.map_size:
        own = {name: state[name] for name in ScaleState._fields}
        return blank_state(chain, len(own["numbers"]), own["numbers"].device) | own
    return state | {"luma": resize(state["luma"][:, None], chain.luma_size)[:, 0]}


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
    sensor: Callable[[], Tensor] | None = None,
    timed: Callable[[str], AbstractContextManager[Any]] = nullcontext,
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
        sensor: gives (B, *chain.output_size) float32, metres of a depth camera, NaN unknown; if
            fused depth is requested.
        timed: measures the time of a step by name.

    Returns:
        the state after the frames, and the outputs of ``Chain.finish``.
    """
    with timed("preprocess"):
        pixels = chain.rectify(pixels)
        images, luma = chain.preprocess(pixels)
    with timed("network"):
        maps = chain.infer(images)
    with timed("refine"), one_thread(chain.on_host):
        own, weights, measured = numbers().split(_SIZES, 1)
        if state is not None:
            state, maps = _refine(chain, state, maps, luma, weights, measured)
    with timed("postprocess"):
        limit = unpack(_FRAME_FIELDS, own)["limit"].view(-1, 1, 1)
        outputs = chain.finish(maps, pixels, limit, sensor() if sensor else None)
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
    past = dict(state)
    scale_past = ScaleState(*(past.pop(name) for name in ScaleState._fields))
    scale_state, raw, affine, covariance, stats = scale(
        scale_past, chain.bounded(raw), logits, measured, chain.metric, chain.floor
    )
    after: State = scale_state._asdict()
    refined = {"scale": stats}
    if past:
        assert luma is not None
        filter_past = FilterState(**{"logits": None, **past})  # type: ignore[arg-type]
        filter_state, refined["inverse_depth"], variance, logits, *_, refined["reset_code"] = (
            smooth(filter_past, raw, affine, logits, luma, weights)
        )
        after |= {name: one for name, one in vars(filter_state).items() if one is not None}
        if logits is not None:
            refined["logits"] = logits
    else:
        refined["inverse_depth"] = metric_inverse_depth(raw, affine.T[..., None, None])
        refined["reset_code"] = raw.new_zeros(len(raw), dtype=torch.uint8)
        variance = torch.full_like(raw, TemporalSettings().measurement_noise ** 2)
    covariance = covariance * stats[:, :1]  # 0 without metres
    refined["variance"] = variance + relative_variance(raw, affine, covariance)
    return after, maps | refined
