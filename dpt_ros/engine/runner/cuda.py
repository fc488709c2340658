# SPDX-License-Identifier: Apache-2.0
"""Takes batches of frames through their chain on a GPU: three lanes, pinned buffers, graphs."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.faults import (
    AccelerationError,
    DeviceLostError,
    causes,
    first_line,
    innermost_line,
    is_out_of_memory,
)
from dpt_ros.engine.frame import Frame, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.runner.chain import Chain, Kind, Pixels, Steps, depth_limit, process
from dpt_ros.engine.runner.host import Runner, Ticket, fill, get_or_create
from dpt_ros.engine.runner.refinement import Refiner, is_refined
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.settings import Settings

# Eager runs of a kind before its graphs are captured: libraries choose their algorithms there.
_EAGER_RUNS = 2
_PERIOD_NS = 33_000_000  # between blank frames
# What a camera sends of which nothing is known.
_USUAL = Kind("rgb8", (480, 640, 3), "uint8", OutputRequest())
_KINDS_WARMED = 4
_MAX_FULL_CAPTURES = 2  # captures in a row that run out of memory before graphs are given up
_OUT_OF_MEMORY = (
    "The memory of {device} ran out. Everything that could be spared was freed and the frame is"
    " tried again. Another process may be using the device."
)
_VIEWED_AS = {"uint8": torch.uint8, "uint16": torch.int16, "float32": torch.float32}


class StreamRunner(Runner):
    """Uploads, computes and downloads on three lanes, so that frames overlap.

    Each kind of frames and batch size has a ring of buffers, allocated once, and after its first
    runs two graphs, which are then replayed.

    Args:
        networks, settings: see ``Runner``.
        streams: the lanes.
        warn: receives a message when an acceleration is turned off or memory runs out.
    """

    in_flight = 3
    max_batch = 4

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        streams: Streams,
        warn: Callable[[str], None],
    ) -> None:
        super().__init__(networks, settings)
        self._streams = streams
        self._warn = warn
        self._graphs = settings.cuda_graphs
        self._programs: OrderedDict[tuple[Kind, bool, int], _Program] = OrderedDict()
        self._lost = ""
        self._full_captures = 0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        # The lanes do not wait for what is written here.
        if self._networks.device.type == "cuda":
            torch.cuda.synchronize(self._networks.device)

    def warm_up(
        self, known: Mapping[str, Kind], settings: Settings, stop: Callable[[], bool]
    ) -> None:
        """Compute blank frames, so that the first real ones need not wait for libraries.

        cuDNN keeps its plans per thread and size: the batch sizes 1, 2 and 4 as far as there are
        cameras. Frames of these kinds then only wait for the capture of their graphs.

        Args:
            known: the kinds of frames to come, by source; without any, the libraries are loaded.
            settings: the live ones.
            stop: called before every blank frame; true ends the warm-up.

        Raises:
            Exception: as ``start``.
        """
        cameras = Counter(known.values()) or {_USUAL: max(len(settings.cameras), 1)}
        refiner, self._refiner = self._refiner, Refiner(self._networks, self._settings)
        try:
            for kind, count in list(cameras.items())[:_KINDS_WARMED]:
                for batch in (size for size in (1, 2, 4) if size <= max(count, 1)):
                    for number in range(_EAGER_RUNS):
                        if stop():
                            return
                        frames = [kind.blank(str(k), number * _PERIOD_NS) for k in range(batch)]
                        ticket = self.start(frames, kind.outputs, settings)
                        ticket.wait()
                        ticket.release()
        finally:
            self._refiner = refiner
            if not known:
                self._programs.clear()

    @torch.inference_mode()
    def start(self, frames: Sequence[Frame], outputs: OutputRequest, settings: Settings) -> Ticket:
        """Start the frames on the device, without waiting for it.

        After a fault that has a remedy (memory is freed, an acceleration is turned off) the
        frames are tried again. A frame that fails does not change its camera's state.

        Raises:
            ValueError: the frames cannot be read.
            torch.OutOfMemoryError: of the device, or of page-locked host memory, although all
                that can be spared was freed.
            RuntimeError: the device reports an error.
            DeviceLostError: now and for every later frame.
        """
        if self._lost:
            raise DeviceLostError(self._lost)
        key = (Kind.of(frames[0], outputs), is_refined(self._networks, settings), len(frames))
        snapshot, freed = None, False
        while True:
            try:
                if snapshot is None:
                    if key[1]:
                        self._refiner.start_flow(frames, settings)
                    snapshot = self._refiner.snapshot(frames)
                return self._start(key, frames, settings)
            except Exception as error:
                self._refiner.roll_back(snapshot or {})
                remedy = _remedy(error)
                if remedy is None or (freed and remedy[1] is None):
                    self._refiner.withdraw_flow(frames)
                    self._raise(error, self._streams.synchronize)
            # Outside of the handler, whose traceback keeps the memory of the failed work alive.
            warning, turn_off = remedy
            if turn_off is None:
                freed, warning = True, warning.format(device=self._streams.device)
            else:
                turn_off()
            self._warn(warning)
            self._free()

    def _start(
        self, key: tuple[Kind, bool, int], frames: Sequence[Frame], settings: Settings
    ) -> Ticket:
        program = get_or_create(self._programs, key, lambda: self._program(*key))
        if self._graphs and program.wants_capture:
            self._capture(program)
        limit = depth_limit(self._networks, settings)
        slot = program.launch(frames, limit, self._refiner, settings)
        return Ticket(partial(self._wait, slot), partial(program.release, slot))

    def _wait(self, slot: _Slot) -> list[Prediction]:
        try:
            slot.done.wait()
        except RuntimeError as error:
            # Not for the lanes: another thread may be capturing one.
            self._raise(error, slot.done.wait)
        fill(slot.predictions, slot.arrays, slot.seconds())
        return slot.predictions

    def _program(self, kind: Kind, refined: bool, batch: int) -> _Program:
        streams = self._streams
        with streams.on("compute"):
            chain = Chain(self._networks, kind, refined, self._settings, streams)
            program = _Program(chain, streams, batch, self.in_flight)
        # Its memory may have been freed by an earlier frame, and other lanes will write to it.
        streams.synchronize()
        return program

    def _capture(self, program: _Program) -> None:
        try:
            program.capture()
            self._full_captures = 0
        except Exception as error:
            if any(isinstance(one, AccelerationError) for one in causes(error)):
                raise
            full = is_out_of_memory(error)
            self._full_captures += full
            if full and self._full_captures < _MAX_FULL_CAPTURES:
                raise
            # Graphs need memory of their own: without them there may be enough.
            raise AccelerationError(
                "The work on a frame cannot be captured in a CUDA graph, so its kernels are"
                f" launched one by one, which is slower: {innermost_line(error)}",
                self._use_no_graphs,
            ) from error

    def _use_no_graphs(self) -> None:
        self._graphs = False

    def _free(self) -> None:
        try:
            self._streams.synchronize()
        except RuntimeError as error:
            self._raise(error, self._streams.synchronize)
        # Tickets keep their programs until they are released.
        self._programs.clear()
        if self._streams.device.type == "cuda":
            torch.cuda.empty_cache()

    def _raise(self, error: Exception, synchronize: Callable[[], None]) -> NoReturn:
        """Raise what a fault means: out of memory, the device is lost, or the error as it is.

        Args:
            error: what was raised.
            synchronize: waits for the device, which is lost if this fails.
        """
        if is_out_of_memory(error):
            raise torch.OutOfMemoryError(first_line(error)) from error
        if isinstance(error, RuntimeError):
            try:
                synchronize()
            except RuntimeError:
                self._lost = (
                    f"{self._streams.device} is lost ({first_line(error)}); no frame can be"
                    " computed until this process is started again."
                )
                raise DeviceLostError(self._lost) from error
        raise error


def _remedy(error: Exception) -> tuple[str, Callable[[], None] | None] | None:
    """A warning, and what turns an acceleration off, or None if memory is to be freed; None for
    a fault without a remedy."""
    for one in causes(error):
        if isinstance(one, AccelerationError):
            return str(one), one.turn_off
    return (_OUT_OF_MEMORY, None) if is_out_of_memory(error) else None


class _Slot:
    """Buffers of one batch; used by nothing else until they are released."""

    def __init__(self, streams: Streams, batch: int, kind: Kind) -> None:
        shape = (batch, *kind.shape)
        self.host_pixels = streams.buffer(shape, _VIEWED_AS[kind.dtype])
        self.pixels = torch.empty_like(self.host_pixels, device=streams.device)
        self.array = self.host_pixels.numpy().view(kind.dtype)
        self.outputs: dict[str, Tensor] = {}
        self.host_outputs: dict[str, Tensor] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.predictions: list[Prediction] = []
        self.begun, self.uploaded, self.computing, self.computed, self.done = (
            streams.event() for _ in range(5)
        )

    def make_outputs(self, streams: Streams, like: dict[str, Tensor]) -> None:
        outputs = {name: torch.empty_like(value) for name, value in like.items()}
        for name, value in like.items():
            self.host_outputs[name] = streams.buffer(tuple(value.shape), value.dtype)
            self.arrays[name] = self.host_outputs[name].numpy()
        self.outputs = outputs  # last: memory may run out before

    def seconds(self) -> dict[str, float]:
        return {
            "upload": self.uploaded.seconds_since(self.begun),
            "network": self.computed.seconds_since(self.computing),
            "download": self.done.seconds_since(self.computed),
        }


class _CapturedChain:
    """A chain's steps as two CUDA graphs: preprocess and infer are one, finish is the other.

    Scale and smoothing are in neither, because what they do depends on each camera's past.
    """

    def __init__(self, chain: Steps, streams: Streams, pixels: Tensor, limit: Tensor) -> None:
        self.refined = chain.refined
        self._chain = chain  # its constants, which the graphs read and do not own
        self._replay_infer, maps = streams.capture(lambda: chain.infer(chain.preprocess(pixels)))
        self._replay_finish, self._outputs = streams.capture(
            lambda: chain.finish(maps, pixels, limit)
        )
        self._maps = maps

    def preprocess(self, pixels: Pixels) -> list[Tensor]:
        return []

    def infer(self, images: list[Tensor]) -> dict[str, Tensor]:
        self._replay_infer()
        return self._maps

    def finish(
        self, maps: dict[str, Tensor], pixels: Pixels, limit: Tensor | float
    ) -> dict[str, Tensor]:
        self._replay_finish()
        return self._outputs


class _Program:
    """A chain with its buffers and, after some runs, its graphs; for one kind and batch size.

    A graph always reads and writes the same memory. So a frame's pixels are copied into it and
    its results out of it, on the device and in the same lane, from and to the frame's own
    buffers: the next replay cannot overtake the download.
    """

    def __init__(self, chain: Chain, streams: Streams, batch: int, slots: int) -> None:
        self._chain: Steps = chain
        self._streams = streams
        self._free = deque(_Slot(streams, batch, chain.kind) for _ in range(slots))
        self._pixels = torch.empty_like(self._free[0].pixels)
        self._limit = torch.full((), torch.inf, device=streams.device)
        self._limit_value = float("inf")
        self._runs = 0

    @property
    def wants_capture(self) -> bool:
        return isinstance(self._chain, Chain) and self._runs >= _EAGER_RUNS

    def capture(self) -> None:
        self._chain = _CapturedChain(self._chain, self._streams, self._pixels, self._limit)

    def launch(
        self, frames: Sequence[Frame], limit: float, refiner: Refiner, settings: Settings
    ) -> _Slot:
        """Start a batch on the lanes, without waiting for the device."""
        slot = self._free.popleft()
        launched = False
        try:
            self._fill(slot, frames, limit, refiner, settings)
            launched = True
        finally:
            if not launched:
                # What was started of the frame may still use its buffers.
                self._free.append(slot)
                self._streams.synchronize()
        return slot

    def _fill(
        self,
        slot: _Slot,
        frames: Sequence[Frame],
        limit: float,
        refiner: Refiner,
        settings: Settings,
    ) -> None:
        streams = self._streams
        for index, frame in enumerate(frames):
            slot.array[index] = frame.pixels
        with streams.on("upload"):
            streams.record_event(slot.begun, "upload")
            slot.pixels.copy_(slot.host_pixels, non_blocking=True)
            streams.record_event(slot.uploaded, "upload")
        with streams.on("compute"):
            streams.wait_event(slot.uploaded, "compute")
            streams.record_event(slot.computing, "compute")
            if limit != self._limit_value:
                self._limit.fill_(limit)
                self._limit_value = limit
            self._pixels.copy_(slot.pixels)
            results, slot.predictions = process(
                self._chain, refiner, frames, self._pixels, self._limit, settings, {}
            )
            self._runs += 1
            if not slot.outputs:
                slot.make_outputs(streams, results)
            for name, value in results.items():
                slot.outputs[name].copy_(value)
            streams.record_event(slot.computed, "compute")
        with streams.on("download"):
            streams.wait_event(slot.computed, "download")
            for name, value in slot.outputs.items():
                slot.host_outputs[name].copy_(value, non_blocking=True)
            streams.record_event(slot.done, "download")

    def release(self, slot: _Slot) -> None:
        slot.predictions = []
        self._free.append(slot)
