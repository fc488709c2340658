# SPDX-License-Identifier: Apache-2.0
"""Takes batches of frames through their chain on a GPU: three lanes, pinned buffers, graphs."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.chain import Chain, Kind, depth_limit
from dpt_ros.engine.frame import Frame, Outputs, Prediction
from dpt_ros.engine.network import Networks
from dpt_ros.engine.refinement import Refined, Refiner, is_refined
from dpt_ros.engine.runner import Ticket, as_they_are, kept_for, predictions_of
from dpt_ros.engine.settings import Settings
from dpt_ros.engine.streams import Streams

# Runs of a kind before its graphs are recorded: libraries choose their algorithms meanwhile.
_EAGER_RUNS = 2
_SEEN_AS = {"uint8": torch.uint8, "uint16": torch.int16, "float32": torch.float32}
Refine = Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], list[Refined]]]


class DeviceLostError(RuntimeError):
    """The GPU failed in a way that only a new process recovers from; the message says so."""


class StreamRunner:
    """Uploads, computes and downloads on three lanes, so that frames overlap.

    Each kind of frames and each size of a batch has a ring of buffers, made once, and after its
    first runs two graphs, of what predicts and of what finishes, which are then replayed.

    Args:
        networks: from ``load_networks``.
        settings: sizes of the network's input and of the outputs, and ``cuda_graphs``.
        streams: the lanes.
        say: takes a sentence about anything that is not as it was asked for, once.
    """

    in_flight = 3
    max_batch = 4

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        streams: Streams,
        say: Callable[[str], None],
    ) -> None:
        self._networks = networks
        self._settings = settings
        self._streams = streams
        self._say = say
        self._graphs = settings.cuda_graphs
        self._refiner = Refiner(networks, settings)
        self._programs: OrderedDict[tuple[Kind, bool, int], _Program] = OrderedDict()
        self._lost = ""

    def reset(self) -> None:
        """Forget the past of all cameras."""
        self._refiner.reset()

    def state(self) -> dict[str, Any]:
        """The past of all cameras: tensors and plain values."""
        return self._refiner.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a ``state``."""
        self._refiner.restore(state)
        # The lanes do not wait for what is written here.
        if self._networks.device.type == "cuda":
            torch.cuda.synchronize(self._networks.device)

    def start(self, frames: Sequence[Frame], outputs: Outputs, settings: Settings) -> Ticket:
        """Hand the frames to the device and return at once.

        Raises:
            ValueError: the frames cannot be read.
            torch.OutOfMemoryError: even after everything that can be spared was freed.
            DeviceLostError: now and ever after.
        """
        if self._lost:
            raise DeviceLostError(self._lost)
        kind = Kind.of(frames[0], outputs)
        try:
            try:
                return self._start(kind, frames, settings)
            except torch.OutOfMemoryError:
                self._free()
                self._say(
                    f"The memory of {self._streams.device} ran out; what could be spared was freed"
                    " and the frame tried again. Something else may be using the device."
                )
                return self._start(kind, frames, settings)
        except torch.AcceleratorError as error:
            raise self._judge(error) from error

    def _start(self, kind: Kind, frames: Sequence[Frame], settings: Settings) -> Ticket:
        key = (kind, is_refined(self._networks, settings), len(frames))
        program = kept_for(self._programs, key, lambda: self._program(*key))
        if self._graphs and program.wants_recording:
            self._record(program)
        limit = depth_limit(self._networks, settings)
        refine = partial(self._refiner.refine, frames, settings=settings) if key[1] else None
        if refine is not None:
            self._refiner.see(frames, settings)
        slot = program.launch(frames, limit, refine)
        if refine is None:
            slot.about = as_they_are(self._networks, self._settings, frames)
        return _Flight(frames, program, slot, self._judge)

    def _program(self, kind: Kind, refined: bool, batch: int) -> _Program:
        streams = self._streams
        with streams.on("compute"):
            chain = Chain(self._networks, kind, refined, self._settings, streams)
            program = _Program(chain, streams, batch, self.in_flight)
        # Its memory may be what a frame before it gave back, and other lanes will write to it.
        streams.settle()
        return program

    def _record(self, program: _Program) -> None:
        try:
            program.record()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._streams.settle()
            self._graphs = False
            self._say(
                "The work on a frame cannot be captured in a CUDA graph, so its kernels are"
                f" launched one by one, which is slower: {error}"
            )

    def _free(self) -> None:
        self._streams.settle()
        self._programs.clear()
        if self._streams.device.type == "cuda":
            torch.cuda.empty_cache()

    def _judge(self, error: Exception) -> Exception:
        """What a fault of the device means: the error itself, or that the device is lost."""
        try:
            self._streams.settle()
        except torch.AcceleratorError:
            self._lost = (
                f"{self._streams.device} is lost ({str(error).splitlines()[0]}); no frame can be"
                " computed until this process is started again."
            )
            return DeviceLostError(self._lost)
        return error


class _Slot:
    """Buffers of one batch on its way; nothing else uses them until it is back."""

    def __init__(self, streams: Streams, batch: int, kind: Kind) -> None:
        shape = (batch, *kind.shape)
        self.host_pixels = streams.buffer(shape, _SEEN_AS[kind.dtype])
        self.pixels = torch.empty_like(self.host_pixels, device=streams.device)
        self.array = self.host_pixels.numpy().view(kind.dtype)
        self.outputs: dict[str, Tensor] = {}
        self.host_outputs: dict[str, Tensor] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.about: list[Refined] = []
        self.begun, self.uploaded, self.computing, self.computed, self.done = (
            streams.mark() for _ in range(5)
        )

    def make_outputs(self, streams: Streams, like: dict[str, Tensor]) -> None:
        for name, value in like.items():
            self.outputs[name] = torch.empty_like(value)
            self.host_outputs[name] = streams.buffer(tuple(value.shape), value.dtype)
            self.arrays[name] = self.host_outputs[name].numpy()

    def seconds(self) -> dict[str, float]:
        return {
            "upload": self.uploaded.seconds_since(self.begun),
            "network": self.computed.seconds_since(self.computing),
            "download": self.done.seconds_since(self.computed),
        }


class _Program:
    """A chain with its buffers and, in time, its graph; for one kind and one size of batch.

    A graph reads and writes always the same memory. So a frame's pixels are copied in front of it
    and its results behind it, on the device and in the same lane, into the frame's own buffers:
    the next replay cannot overtake the download.
    """

    def __init__(self, chain: Chain, streams: Streams, batch: int, slots: int) -> None:
        self._chain = chain
        self._streams = streams
        self._free = deque(_Slot(streams, batch, chain.kind) for _ in range(slots))
        self._pixels = torch.empty_like(self._free[0].pixels)
        self._limit = torch.full((), torch.inf, device=streams.device)
        self._limit_value = float("inf")
        self._replays: tuple[Callable[[], None], Callable[[], None]] | None = None
        self._said: dict[str, Tensor] = {}
        self._results: dict[str, Tensor] = {}
        self._runs = 0

    @property
    def wants_recording(self) -> bool:
        return self._replays is None and self._runs >= _EAGER_RUNS

    def record(self) -> None:
        chain, streams = self._chain, self._streams
        predict, self._said = streams.record(lambda: chain.predict(self._pixels))
        if chain.refined:
            with streams.on("compute"):
                self._said["variance"] = torch.zeros_like(self._said["depth"])
        finish, self._results = streams.record(
            lambda: chain.finish(self._said, self._pixels, self._limit)
        )
        self._replays = (predict, finish)

    def _compute(self, refine: Refine | None, slot: _Slot) -> dict[str, Tensor]:
        """Predict, refine, finish; the past cannot be in a graph, for it decides what is done."""
        if self._replays is None:
            self._runs += 1
            said = self._chain.predict(self._pixels)
        else:
            self._replays[0]()
            said = self._said
        better = said
        if refine is not None:
            better, slot.about = refine({k: v for k, v in said.items() if k != "variance"})
        if self._replays is None:
            results = self._chain.finish(better, self._pixels, self._limit)
        else:
            if refine is not None:
                for name, value in said.items():
                    value.copy_(better[name])
            self._replays[1]()
            results = self._results
        if "verdict" in better:
            results = results | {"verdict": better["verdict"]}
        return results

    def launch(self, frames: Sequence[Frame], limit: float, refine: Refine | None) -> _Slot:
        """Give a batch to the lanes; nothing here waits for the device."""
        slot = self._free.popleft()
        launched = False
        try:
            self._fill(slot, frames, limit, refine)
            launched = True
        finally:
            if not launched:
                # What was begun of the frame may still use its buffers.
                self._free.append(slot)
                self._streams.settle()
        return slot

    def _fill(
        self, slot: _Slot, frames: Sequence[Frame], limit: float, refine: Refine | None
    ) -> None:
        streams = self._streams
        for index, frame in enumerate(frames):
            slot.array[index] = frame.pixels
        with streams.on("upload"):
            streams.set(slot.begun, "upload")
            slot.pixels.copy_(slot.host_pixels, non_blocking=True)
            streams.set(slot.uploaded, "upload")
        with streams.on("compute"):
            streams.after(slot.uploaded, "compute")
            streams.set(slot.computing, "compute")
            if limit != self._limit_value:
                self._limit.fill_(limit)
                self._limit_value = limit
            self._pixels.copy_(slot.pixels)
            results = self._compute(refine, slot)
            if not slot.outputs:
                slot.make_outputs(streams, results)
            for name, value in results.items():
                slot.outputs[name].copy_(value)
            streams.set(slot.computed, "compute")
        with streams.on("download"):
            streams.after(slot.computed, "download")
            for name, value in slot.outputs.items():
                slot.host_outputs[name].copy_(value, non_blocking=True)
            streams.set(slot.done, "download")

    def release(self, slot: _Slot) -> None:
        self._free.append(slot)


class _Flight:
    """A batch on the device."""

    def __init__(
        self,
        frames: Sequence[Frame],
        program: _Program,
        slot: _Slot,
        judge: Callable[[Exception], Exception],
    ) -> None:
        self._frames = frames
        self._program = program
        self._slot = slot
        self._judge = judge

    def wait(self) -> list[Prediction]:
        try:
            self._slot.done.wait()
        except torch.AcceleratorError as error:
            raise self._judge(error) from error
        slot = self._slot
        return predictions_of(self._frames, slot.arrays, slot.seconds(), slot.about)

    def release(self) -> None:
        self._program.release(self._slot)
