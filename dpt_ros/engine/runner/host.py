# SPDX-License-Identifier: Apache-2.0
"""Takes batches of frames through their chain: what any device offers, and how a CPU does it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np

from dpt_ros.engine.frame import Frame, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.input.preprocess import to_rgb
from dpt_ros.engine.output.point_cloud import POINT
from dpt_ros.engine.runner.chain import Chain, Kind, depth_limit
from dpt_ros.engine.runner.refinement import Refined, Refiner, is_refined
from dpt_ros.engine.settings import Settings
from dpt_ros.engine.smoothing.state import RESET_REASONS

# Kinds of frames kept ready. A camera that changes its size again and again must not fill memory.
_KINDS_KEPT = 8
_IN_METRES = ("depth", "deviation", "points")
_Key = TypeVar("_Key")
_Made = TypeVar("_Made")


class Ticket(Protocol):
    """Frames on their way."""

    def wait(self) -> list[Prediction]:
        """The predictions, when they are there. Other Python threads run meanwhile.

        Their arrays may be used until ``release``.
        """

    def release(self) -> None:
        """Give the buffers back for the next frames."""


class Runner(Protocol):
    """One device's way of taking frames through their chains.

    Attributes:
        in_flight: how many tickets there may be at a time.
        max_batch: how many frames of one kind may go together.
    """

    in_flight: int
    max_batch: int

    def start(self, frames: Sequence[Frame], outputs: OutputRequest, settings: Settings) -> Ticket:
        """Begin with frames of one kind, one per source; called from one thread."""

    def warm_up(
        self, known: Mapping[str, Kind], settings: Settings, stop: Callable[[], bool]
    ) -> None:
        """Make ready for frames to come, by source; on the thread that calls ``start``, and only
        until ``stop`` says so."""

    def reset(self) -> None:
        """Forget the past of all cameras; may be called from any thread."""

    def state_dict(self) -> dict[str, Any]:
        """The past of all cameras, for ``load_state_dict``; call it when no ticket is out."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict`` with the same networks and settings."""


class HostRunner:
    """Computes on the CPU, on the caller's thread; publishing goes on beside it.

    Args:
        networks: from ``load_networks``.
        settings: sizes of the network's input and of the outputs.
    """

    in_flight = 2
    max_batch = 1  # a CPU wins nothing by a batch, and the first frame would wait for the last

    def __init__(self, networks: Networks, settings: Settings) -> None:
        self._networks = networks
        self._settings = settings
        self._refiner = Refiner(networks, settings)
        self._chains: OrderedDict[tuple[Kind, bool], Chain] = OrderedDict()

    def warm_up(
        self, known: Mapping[str, Kind], settings: Settings, stop: Callable[[], bool]
    ) -> None:
        """Nothing: a CPU's first frame costs little more than the second."""

    def reset(self) -> None:
        """Forget the past of all cameras."""
        self._refiner.reset()

    def state_dict(self) -> dict[str, Any]:
        """The past of all cameras: tensors and plain values."""
        return self._refiner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict``."""
        self._refiner.load_state_dict(state)

    def start(self, frames: Sequence[Frame], outputs: OutputRequest, settings: Settings) -> Ticket:
        """Compute the frames; their arrays belong to whoever takes them."""
        seconds: dict[str, float] = {}
        begin = time.perf_counter()
        # Once for the networks, the optical flow and the points: none of them converts rgb8.
        seen = [
            replace(frame, pixels=to_rgb(frame.pixels, frame.encoding), encoding="rgb8")
            for frame in frames
        ]
        seconds["convert"] = time.perf_counter() - begin
        key = (Kind.of(seen[0], outputs), is_refined(self._networks, settings))
        chain = get_or_create(
            self._chains, key, lambda: Chain(self._networks, *key, settings=self._settings)
        )
        about = unrefined(self._networks, self._settings, frames)
        pixels = [frame.pixels for frame in seen]
        if chain.refined:
            self._refiner.see(seen, settings)
        said = chain.predict(pixels, seconds)
        if chain.refined:
            start = time.perf_counter()
            said, about = self._refiner.refine(seen, said, settings)
            seconds["refine"] = time.perf_counter() - start
        results = chain.finish(said, pixels, depth_limit(self._networks, settings), seconds)
        results |= {"reset_code": said["reset_code"]} if chain.refined else {}
        arrays = {name: value.numpy() for name, value in results.items()}
        return _Done(predictions_of(frames, arrays, seconds, about))


class _Done:
    def __init__(self, predictions: list[Prediction]) -> None:
        self._predictions = predictions

    def wait(self) -> list[Prediction]:
        return self._predictions

    def release(self) -> None:
        pass


def unrefined(networks: Networks, settings: Settings, frames: Sequence[Frame]) -> list[Refined]:
    """What there is to say of frames that nothing refines."""
    return [Refined(networks.metric and settings.scale_source != "none")] * len(frames)


def predictions_of(
    frames: Sequence[Frame],
    arrays: dict[str, np.ndarray],
    seconds: dict[str, float],
    about: list[Refined],
) -> list[Prediction]:
    """One prediction per frame; ``arrays`` hold those of a batch, (B, H, W) each.

    Of a frame without metres only what needs none is kept.
    """
    predictions = []
    for index, frame in enumerate(frames):
        refined = about[index]
        parts = {name: array[index] for name, array in arrays.items()}
        reset_code = int(parts.pop("reset_code", 0))
        if "points" in parts:
            parts["points"] = parts["points"].view(POINT)[..., 0]
        if not refined.metric:
            parts = {name: part for name, part in parts.items() if name not in _IN_METRES}
        prediction = Prediction(
            frame,
            metric=refined.metric,
            reset=refined.reset or RESET_REASONS[reset_code],
            scale=refined.scale,
            seconds=dict(seconds),
            **parts,
        )
        maps = [part for name, part in parts.items() if name in ("depth", "inverse", "deviation")]
        if frame.camera is not None and maps:
            height, width = maps[0].shape
            prediction.camera = frame.camera.scaled(width, height)
        predictions.append(prediction)
    return predictions


def get_or_create(kept: OrderedDict[_Key, _Made], key: _Key, make: Callable[[], _Made]) -> _Made:
    """What was made for this key, or is made now; those not used for longest are let go."""
    if key not in kept:
        kept[key] = make()
        while len(kept) > _KINDS_KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
