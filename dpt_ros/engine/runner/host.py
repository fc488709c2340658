# SPDX-License-Identifier: Apache-2.0
"""Runners take batches of frames through their steps: the interface, and the one of a CPU."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from dpt_ros.engine.frame import Frame, Kind, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.input.preprocess import to_rgb
from dpt_ros.engine.runner.cameras import Cameras, Plan
from dpt_ros.engine.runner.chain import Chain, depth_limit
from dpt_ros.engine.runner.step import State, blank_state, fitted_state, frame_numbers, step
from dpt_ros.engine.settings import Settings

# Chains kept. A camera that changes its size again and again must not fill the memory.
_CHAINS_KEPT = 8
_CPU = torch.device("cpu")
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
    """Takes frames through their steps on one device.

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
        self._cameras = Cameras(networks, settings)

    @abstractmethod
    def start(self, frames: Sequence[Frame], outputs: OutputRequest, settings: Settings) -> Ticket:
        """Start a batch of one kind, one frame per source; always called from one thread.

        A frame that fails does not change its camera's state.
        """

    @abstractmethod
    def warm_up(
        self, known: Mapping[str, Kind], settings: Settings, stop: Callable[[], bool]
    ) -> None:
        """Prepare for frames of known kinds, by source; called on the thread that calls
        ``start``, returns early once ``stop()`` is true."""

    def reset(self) -> None:
        """Forget the past of all cameras; thread-safe."""
        self._cameras.reset()

    def state_dict(self) -> dict[str, Any]:
        """The state of all cameras, by source: tensors on the host and plain values.

        Call it when no ticket is out.
        """
        records = self._cameras.state_dict()
        return {name: {"record": records[name], "state": self._state(name)} for name in records}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the result of ``state_dict`` with the same networks and settings."""
        self._clear()
        self._cameras.load_state_dict({name: parts["record"] for name, parts in state.items()})
        for name, parts in state.items():
            self._load_state(name, parts["state"])

    @abstractmethod
    def _clear(self) -> None:
        """Forget the states of all cameras."""

    @abstractmethod
    def _state(self, source: str) -> dict[str, Tensor]:
        """A camera's state on the host, by names of ``State``."""

    @abstractmethod
    def _load_state(self, source: str, tensors: dict[str, Tensor]) -> None:
        """Continue with a camera's state."""


class HostRunner(Runner):
    """Computes on the CPU, on the calling thread."""

    in_flight = 2
    max_batch = 1  # a batch gains nothing on a CPU, and its first frame would wait for the last

    def __init__(self, networks: Networks, settings: Settings) -> None:
        super().__init__(networks, settings)
        self._threads = torch.get_num_threads()
        self._chains: OrderedDict[tuple[Kind, bool], Chain] = OrderedDict()
        self._states: dict[str, State] = {}

    def warm_up(
        self, known: Mapping[str, Kind], settings: Settings, stop: Callable[[], bool]
    ) -> None:
        """Nothing: a CPU's first frame costs little more than the second."""

    def start(self, frames: Sequence[Frame], outputs: OutputRequest, settings: Settings) -> Ticket:
        """Compute the frames; the arrays of the predictions are the caller's.

        Raises:
            ValueError: a frame cannot be read.
        """
        predictions = [self._predict(frame, outputs, settings) for frame in frames]
        return Ticket(lambda: predictions)

    def _predict(self, frame: Frame, outputs: OutputRequest, settings: Settings) -> Prediction:
        # A thread may have begun with the one thread that another had set, see ``one_thread``.
        torch.set_num_threads(self._threads)
        prediction = Prediction(frame)
        measure = partial(_timed, prediction.seconds)
        with measure("convert"):
            # Once for the networks, the optical flow and the points: none of them converts rgb8.
            pixels = to_rgb(frame.pixels, frame.encoding)
        kind = Kind.of(replace(frame, pixels=pixels, encoding="rgb8"), outputs)
        smoothed = settings.smoothing_strength > 0
        chain = get_or_create(
            self._chains,
            (kind, smoothed),
            lambda: Chain(self._networks, kind, smoothed, self._settings),
        )
        if self._cameras.forget():
            self._clear()
        plans: list[Plan] = []

        def numbers() -> Tensor:
            plans.append(self._cameras.plan(frame, chain, settings))
            limit = depth_limit(self._networks, settings)
            return torch.from_numpy(frame_numbers(plans[0].numbers, limit))[None]

        state = self._states.get(frame.source) if chain.refined else None
        if chain.refined:
            state = fitted_state(state, chain) if state else blank_state(chain, 1, _CPU)

        def sensor() -> Tensor:
            return torch.from_numpy(frame.sensor_depth(*chain.output_size))[None]

        measured = sensor if kind.outputs.fused else None
        after, results = step(chain, state, [pixels], numbers, measured, measure)
        self._cameras.accept([frame], plans)
        if after is not None:
            self._states[frame.source] = after
        arrays = {name: value.numpy() for name, value in results.items()}
        self._cameras.fill([prediction], plans, arrays)
        return prediction

    def _clear(self) -> None:
        self._states.clear()

    def _state(self, source: str) -> dict[str, Tensor]:
        form = torch.contiguous_format
        state = self._states.get(source, {})
        return {name: one.clone(memory_format=form) for name, one in state.items()}

    def _load_state(self, source: str, tensors: dict[str, Tensor]) -> None:
        if tensors:
            self._states[source] = dict(tensors)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def get_or_create(kept: OrderedDict[_Key, _Made], key: _Key, make: Callable[[], _Made]) -> _Made:
    """The value of the key, made if it is missing; the least recently used are dropped."""
    if key not in kept:
        kept[key] = make()
        while len(kept) > _CHAINS_KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
