# SPDX-License-Identifier: Apache-2.0
"""Frames and steps as ONNX files compared with PyTorch's results of the same function."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import torch

from dpt_ros.engine.export.file import open_session
from dpt_ros.engine.export.frame import FrameModule, all_outputs
from dpt_ros.engine.export.session import StepSession
from dpt_ros.engine.frame import Frame, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.output.postprocess import torch_only
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.settings import Settings

_MAPS = ("depth", "inverse", "deviation", "labels", "confidence")
TOLERANCE = 1e-4
_MOST = 0.999  # of a frame's pixels


def difference(one: np.ndarray, other: np.ndarray, most: float = 1.0) -> float:
    """Of numbers the largest difference over the largest value, inf where one is finite and the
    other is not; of labels and confidence the share of the pixels that differ.

    Args:
        most: share of the pixels; the rest, which differ most, is left out.
    """
    if one.dtype.kind in "iu":
        return float((one != other).mean())
    finite = np.isfinite(other)
    if not np.array_equal(np.nan_to_num(one)[~finite], np.nan_to_num(other)[~finite]):
        return float("inf")
    if not np.isfinite(one[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    error = np.quantile(abs(one - other)[finite], most)
    return float(error / max(abs(other[finite]).max(), 1e-30))


def compare_frame(
    path: str | os.PathLike[str], module: FrameModule, frames: Iterable[np.ndarray]
) -> dict[str, float]:
    """The largest ``difference`` by output.

    Args:
        path: the module's file.
        module: of a frame.
        frames: pixels (B, \\*kind.shape) each.
    """
    session, worst = open_session(path), dict[str, float]()
    for pixels in frames:
        found = session.run(module.names, {"pixels": pixels})
        with torch_only(), torch.inference_mode():
            wanted = module(torch.from_numpy(pixels))
        for name, one, other in zip(module.names, found, wanted, strict=True):
            worst[name] = max(worst.get(name, 0.0), difference(one, other.numpy()))
    return worst


def compare_step(
    session: StepSession, networks: Networks, settings: Settings, frames: Iterable[Frame]
) -> dict[str, float]:
    """A video's predictions compared.

    The filter's gates open at thresholds, so a rounding error can put single pixels on the other
    side of one for a few frames. By output, over all frames, therefore: the largest ``difference``
    of 99.9 % of a frame's pixels; "single NAME", the largest share of a frame's pixels that differ
    by more than ``TOLERANCE`` of the largest value. And "reset" and "scale": how many frames
    differ in why the filter began anew, and in the state of the scale.

    Args:
        session: a new one.
        networks, settings: of the export.
        frames: of one camera, in their order.
    """
    worst = {"reset": 0.0, "scale": 0.0}
    with torch_only():
        runner = StreamRunner(networks, settings, Streams(), lambda text: None)
        for frame in frames:
            [found] = session([frame])
            ticket = runner.start([frame], all_outputs(networks, True), settings)
            [wanted] = ticket.wait()
            for name, value in _differences(found, wanted).items():
                past = worst.get(name, 0.0)
                counted = name in ("reset", "scale")
                worst[name] = past + value if counted else max(past, value)
            ticket.release()
    return worst


def _differences(one: Prediction, other: Prediction) -> dict[str, float]:
    state = "scale state"
    found = {
        "reset": float(one.reset != other.reset),
        "scale": float(one.scale[state] != other.scale[state] or one.metric != other.metric),
    }
    for name in _MAPS:
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine is not None and theirs is not None:
            found[name] = difference(mine, theirs, _MOST)
            if mine.dtype == np.float32:
                highest = TOLERANCE * abs(theirs[np.isfinite(theirs)]).max(initial=0.0)
                found[f"single {name}"] = float((abs(mine - theirs) > highest).mean())
        elif mine is not theirs:
            found[name] = float("inf")
    return found
