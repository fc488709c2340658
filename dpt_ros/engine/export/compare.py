# SPDX-License-Identifier: Apache-2.0
"""ONNX files beside PyTorch: networks, frames and steps, on the CPU and the same images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.export.file import open_session
from dpt_ros.engine.export.frame import FrameModule, all_outputs
from dpt_ros.engine.export.session import StepSession
from dpt_ros.engine.frame import Frame, Prediction
from dpt_ros.engine.inference.fold import Outputs
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.output.postprocess import torch_only
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.settings import Settings
from dpt_ros.model.dpt import DPT
from dpt_ros.model.heads import MIN_INVERSE_DEPTH
from dpt_ros.model.zoo import ModelSpec

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
"""Largest difference of inverse depth and logits, relative to their largest value."""

# Batch, rows and columns of an open input; the sides in units of the spec's ``multiple_of``.
_CASES = (
    (1, 1, 1),
    (1, 2, 3),
    (3, 3, 2),
    (2, 5, 5),
    (4, 1, 2),
    (1, 7, 4),
    (2, 4, 9),
    (1, 10, 3),
    (5, 2, 2),
    (1, 6, 11),
)
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


@dataclass(frozen=True)
class Difference:
    """Of a file from PyTorch on one batch of images; None for what the network does not predict.

    Args:
        shape: batch, height, width.
        inverse_depth, depth, logits: largest difference relative to the largest value; depth, in
            metres, of a metric network only.
        labels: share of pixels with the same label.
        clear_labels: the same among pixels whose label is no tie, that is whose two largest
            logits are farther apart than twice the tolerance times the largest logit.
    """

    shape: tuple[int, int, int]
    inverse_depth: float | None = None
    depth: float | None = None
    logits: float | None = None
    labels: float | None = None
    clear_labels: float | None = None

    def within(self, tolerance: float) -> bool:
        """Whether inverse depth and logits differ by no more, depth by no more than three times
        that (the reciprocal magnifies what is far), and no clear label differs."""
        depth = None if self.depth is None else self.depth / 3
        errors = [error for error in (self.inverse_depth, depth, self.logits) if error is not None]
        return all(error <= tolerance for error in errors) and self.clear_labels in (None, 1.0)


def compare_network(
    path: str | os.PathLike[str], model: DPT, tolerance: float
) -> Iterator[Difference]:
    """Run an exported network beside the model that it was made of, at its own shape or, where
    batch or size are open, at ten shapes and the size that the network was trained at.

    Args:
        path: of ``export_network``.
        model: as ``create_model`` gives it, float32.
        tolerance: within which logits are a tie.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    runs = open_session(path, threads=torch.get_num_threads())
    reference = Outputs(model)
    for shape in _shapes(runs.get_inputs()[0].shape, model.spec):
        images = _images(*shape)
        with torch.inference_mode():
            expected = reference(images)
        actual = map(torch.from_numpy, runs.run(None, {"images": images.numpy()}))
        pairs = dict(zip(model.spec.tasks, zip(actual, expected, strict=True), strict=True))
        yield _difference(shape, pairs, model.spec.invert, tolerance)


def _shapes(given: list[int | str], spec: ModelSpec) -> list[tuple[int, int, int]]:
    step = spec.multiple_of
    wanted = [(batch, rows * step, columns * step) for batch, rows, columns in _CASES]
    wanted.append((1, spec.net_height, spec.net_width))
    mine, shapes = (given[0], *given[2:]), dict[tuple[int, int, int], None]()
    for shape in wanted:
        b, h, w = (a if isinstance(a, int) else n for a, n in zip(mine, shape, strict=True))
        shapes[b, h, w] = None
    return list(shapes)


def _images(batch: int, height: int, width: int) -> Tensor:
    """Coarse and fine patterns in [-1, 1]."""
    random = torch.Generator().manual_seed(height * width + batch)
    coarse = torch.rand(batch, 3, -(-height // 16), -(-width // 16), generator=random)
    fine = torch.rand(batch, 3, height, width, generator=random)
    coarse = torch.nn.functional.interpolate(coarse, scale_factor=16.0)
    return (0.7 * coarse[..., :height, :width] + 0.3 * fine) * 2 - 1


def _difference(
    shape: tuple[int, int, int],
    pairs: dict[str, tuple[Tensor, Tensor]],
    metric: bool,
    tolerance: float,
) -> Difference:
    found: dict[str, float] = {}
    if "depth" in pairs:
        found["inverse_depth"] = _relative(*pairs["depth"])
        if metric:
            metres = [x.clamp(min=MIN_INVERSE_DEPTH).reciprocal() for x in pairs["depth"]]
            found["depth"] = _relative(*metres)
    if "labels" in pairs:
        actual, expected = pairs["labels"]
        found["logits"] = _relative(actual, expected)
        same = actual.argmax(1) == expected.argmax(1)
        clear = torch.ones_like(same)
        if expected.shape[1] > 1:
            first, second = expected.topk(2, dim=1).values.unbind(1)
            clear = first - second > 2 * tolerance * expected.abs().max()
        found["labels"] = float(same.float().mean())
        found["clear_labels"] = float(same[clear].float().mean()) if clear.any() else 1.0
    return Difference(shape, **found)


def _relative(actual: Tensor, expected: Tensor) -> float:
    """NaN where either has one, which no tolerance allows."""
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
