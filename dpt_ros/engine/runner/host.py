# SPDX-License-Identifier: Apache-2.0
"""Runners take batches of frames through their chain: the interface, and the one of a CPU."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from dpt_ros.engine.frame import Frame, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.input.preprocess import to_rgb
from dpt_ros.engine.output.point_cloud import POINT
from dpt_ros.engine.runner.chain import Chain, Kind, depth_limit, process
from dpt_ros.engine.runner.refinement import Refiner, is_refined
from dpt_ros.engine.settings import Settings
from dpt_ros.engine.smoothing.state import RESET_REASONS

# Chains kept. A camera that changes its size again and again must not fill the memory.
_CHAINS_KEPT = 8
_IN_METRES = ("depth", "deviation", "points")
_Key = TypeVar("_Key")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Ticket:
    """A batch of frames that is being computed.

    Args:
        wait: returns the predictions when they are done, without the GIL meanwhile; raises what
            the device reports. Their arrays are valid until ``release``.
        release: returns the buffers for later frames.
    """

    wait: Callable[[], list[Prediction]]
    release: Callable[[], None] = lambda: None


class Runner(ABC):
    """Takes frames through their chains on one device.

    Args:
        networks: from ``load_networks``.
        settings: sizes of the network's input and of the outputs; live settings are passed with
            the frames.

    Attributes:
        in_flight: how many tickets there may be at a time.
        max_batch: how many frames of one kind may form a batch.
    """

    in_flight: int
    max_batch: int

    def __init__(self, networks: Networks, settings: Settings) -> None:
        self._networks = networks
        self._settings = settings
        self._refiner = Refiner(networks, settings)

    @abstractmethod
    def start(self, frames: Sequence[Frame], outputs: OutputRequest, settings: Settings) -> Ticket:
        """Start a batch of one kind, one frame per source; always called from one thread."""

    @abstractmethod
    def warm_up(
        self, known: Mapping[str, Kind], settings: Settings, stop: Callable[[], bool]
    ) -> None:
        """Prepare for frames of known kinds, by source; called on the thread that calls
        ``start``, returns early once ``stop()`` is true."""

    def reset(self) -> None:
        """Forget the past of all cameras; thread-safe."""
        self._refiner.reset()

    def state_dict(self) -> dict[str, Any]:
        """The state of all cameras: tensors and plain values. Call it when no ticket is out."""
        return self._refiner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the result of ``state_dict`` with the same networks and settings."""
        self._refiner.load_state_dict(state)


class HostRunner(Runner):
    """Computes on the CPU, on the calling thread."""

    in_flight = 2
    max_batch = 1  # a batch gains nothing on a CPU, and its first frame would wait for the last

    def __init__(self, networks: Networks, settings: Settings) -> None:
        super().__init__(networks, settings)
        self._chains: OrderedDict[tuple[Kind, bool], Chain] = OrderedDict()

    def warm_up(
        self, known: Mapping[str, Kind], settings: Settings, stop: Callable[[], bool]
    ) -> None:
        """Nothing: a CPU's first frame costs little more than the second."""

    def start(self, frames: Sequence[Frame], outputs: OutputRequest, settings: Settings) -> Ticket:
        """Compute the frames; the arrays of the predictions are the caller's.

        Raises:
            ValueError: the frames cannot be read.
        """
        seconds: dict[str, float] = {}
        begin = time.perf_counter()
        # Once for the networks, the optical flow and the points: none of them converts rgb8.
        converted = [
            replace(frame, pixels=to_rgb(frame.pixels, frame.encoding), encoding="rgb8")
            for frame in frames
        ]
        seconds["convert"] = time.perf_counter() - begin
        key = (Kind.of(converted[0], outputs), is_refined(self._networks, settings))
        chain = get_or_create(
            self._chains, key, lambda: Chain(self._networks, *key, settings=self._settings)
        )
        if chain.refined:
            self._refiner.start_flow(converted, settings)
        pixels = [frame.pixels for frame in converted]
        limit = depth_limit(self._networks, settings)
        results, predictions = process(
            chain, self._refiner, converted, pixels, limit, settings, seconds
        )
        arrays = {name: value.numpy() for name, value in results.items()}
        for prediction, frame in zip(predictions, frames, strict=True):
            prediction.frame = frame
        fill(predictions, arrays, seconds)
        return Ticket(lambda: predictions)


def fill(
    predictions: list[Prediction], arrays: dict[str, np.ndarray], seconds: dict[str, float]
) -> None:
    """Add the arrays of a batch, (B, ...) each, to its predictions.

    A prediction that is not metric gets no arrays in metres.
    """
    for k, prediction in enumerate(predictions):
        parts = {name: array[k] for name, array in arrays.items()}
        reset_code = int(parts.pop("reset_code", 0))
        prediction.reset = prediction.reset or RESET_REASONS[reset_code]
        prediction.seconds = dict(seconds)
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


def get_or_create(kept: OrderedDict[_Key, _Made], key: _Key, make: Callable[[], _Made]) -> _Made:
    """The value of the key, made if it is missing; the least recently used are dropped."""
    if key not in kept:
        kept[key] = make()
        while len(kept) > _CHAINS_KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
