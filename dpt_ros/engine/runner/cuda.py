# SPDX-License-Identifier: Apache-2.0
"""Takes batches of frames through their chain on a GPU: three lanes, pinned buffers, graphs."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

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
from dpt_ros.engine.runner.chain import Chain, Kind, depth_limit
from dpt_ros.engine.runner.host import Ticket, get_or_create, predictions_of, unrefined
from dpt_ros.engine.runner.refinement import Refined, Refiner, is_refined
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.settings import Settings

# Runs of a kind before its graphs are recorded: libraries choose their algorithms meanwhile.
_EAGER_RUNS = 2
_PERIOD_NS = 33_000_000  # between blank frames
_USUAL = Kind(
    "rgb8", (480, 640, 3), "uint8", OutputRequest()
)  # of a camera that nothing is known of
_KINDS_WARMED = 4
_FULL_CAPTURES = 2  # that meet full memory, one after another, until there are no more
_SEEN_AS = {"uint8": torch.uint8, "uint16": torch.int16, "float32": torch.float32}
Refine = Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], list[Refined]]]


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
        self._full_captures = 0

    def reset(self) -> None:
        """Forget the past of all cameras."""
        self._refiner.reset()

    def state_dict(self) -> dict[str, Any]:
        """The past of all cameras: tensors and plain values."""
        return self._refiner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict``."""
        self._refiner.load_state_dict(state)
        # The lanes do not wait for what is written here.
        if self._networks.device.type == "cuda":
            torch.cuda.synchronize(self._networks.device)

    def warm_up(
        self, known: Mapping[str, Kind], settings: Settings, stop: Callable[[], bool]
    ) -> None:
        """Take blank frames through, so that the first real ones need not wait for libraries.

        On the thread that calls ``start``, for cuDNN keeps its plans per thread, and in batches
        of 1, 2 and 4 as far as there are cameras for them. Frames of these kinds then pay for
        nothing but the capture of their graphs. Without any, the libraries at least are loaded.

        Args:
            known: the kinds of frames to come, by source.
            settings: the live ones.
            stop: asked before every blank frame whether to leave it at that.

        Raises:
            Exception: as ``start``.
        """
        cameras = Counter(known.values()) or {_USUAL: max(len(settings.cameras), 1)}
        past, self._refiner = self._refiner, Refiner(self._networks, self._settings)
        try:
            for kind, count in list(cameras.items())[:_KINDS_WARMED]:
                for batch in (size for size in (1, 2, 4) if size <= max(count, 1)):
                    for number in range(_EAGER_RUNS):
                        if stop():
                            return
                        frames = [kind.blank(str(k), number * _PERIOD_NS) for k in range(batch)]
                        ticket = self.start(frames, self._possible(kind.outputs), settings)
                        ticket.wait()
                        ticket.release()
        finally:
            self._refiner = past
            if not known:
                self._programs.clear()

    def _possible(self, outputs: OutputRequest) -> OutputRequest:
        networks = self._networks
        return replace(
            outputs,
            depth=outputs.depth and networks.depth is not None,
            labels=outputs.labels and networks.labels is not None,
        )

    @torch.inference_mode()
    def start(self, frames: Sequence[Frame], outputs: OutputRequest, settings: Settings) -> Ticket:
        """Hand the frames to the device and return at once.

        A frame that fails is tried again after what can be done about it: memory that can be
        spared is freed, an acceleration that cannot be used is turned off. A frame that fails for
        good leaves no trace in its camera's past.

        Raises:
            ValueError: the frames cannot be read.
            torch.OutOfMemoryError: even after everything that can be spared was freed; also for
                memory of the host that the device reads.
            RuntimeError: the device refuses the work.
            DeviceLostError: now and ever after.
        """
        if self._lost:
            raise DeviceLostError(self._lost)
        key = (Kind.of(frames[0], outputs), is_refined(self._networks, settings), len(frames))
        past, freed = None, False
        while True:
            try:
                if past is None:
                    if key[1]:
                        self._refiner.see(frames, settings)
                    past = self._refiner.snapshot(frames)
                return self._start(key, frames, settings)
            except Exception as error:
                self._refiner.roll_back(past or {})
                remedy = _remedy(error)
                if remedy is None or (freed and remedy.frees):
                    self._refiner.withdraw(frames)
                    judged = self._judged(error, self._streams.settle)
                    if judged is error:
                        raise
                    raise judged from error
            # Outside of the handler: its traceback would keep the memory of the failed work.
            freed |= remedy.frees
            remedy.turn_off()
            self._say(remedy.message.format(device=self._streams.device))
            self._free()

    def _start(
        self, key: tuple[Kind, bool, int], frames: Sequence[Frame], settings: Settings
    ) -> Ticket:
        program = get_or_create(self._programs, key, lambda: self._program(*key))
        if self._graphs and program.wants_recording:
            self._record(program)
        limit = depth_limit(self._networks, settings)
        refine = partial(self._refiner.refine, frames, settings=settings) if key[1] else None
        slot = program.launch(frames, limit, refine)
        if refine is None:
            slot.about = unrefined(self._networks, self._settings, frames)
        return _Flight(frames, program, slot, self._judged)

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
            self._full_captures = 0
        except Exception as error:
            if any(isinstance(one, AccelerationError) for one in causes(error)):
                raise
            full = is_out_of_memory(error)
            self._full_captures += full
            if full and self._full_captures < _FULL_CAPTURES:
                raise
            # The memory of graphs is their own: it may be too little where that of frames is not.
            raise AccelerationError(
                "The work on a frame cannot be captured in a CUDA graph, so its kernels are"
                f" launched one by one, which is slower: {innermost_line(error)}",
                self._use_no_graphs,
            ) from error

    def _use_no_graphs(self) -> None:
        self._graphs = False

    def _free(self) -> None:
        try:
            self._streams.settle()
        except RuntimeError as error:
            raise self._judged(error, self._streams.settle) from None
        # Those on their way keep what they need until they are back.
        self._programs.clear()
        if self._streams.device.type == "cuda":
            torch.cuda.empty_cache()

    def _judged(self, error: Exception, again: Callable[[], None]) -> Exception:
        """The error to raise for a fault of the device: of full memory, that the device is lost,
        or as it is.

        Args:
            error: what was raised.
            again: waits for the device, which is lost if it fails.
        """
        if is_out_of_memory(error):
            return torch.OutOfMemoryError(first_line(error))
        if isinstance(error, RuntimeError):
            try:
                again()
            except RuntimeError:
                self._lost = (
                    f"{self._streams.device} is lost ({first_line(error)}); no frame can be"
                    " computed until this process is started again."
                )
                return DeviceLostError(self._lost)
        return error


@dataclass(frozen=True)
class _Remedy:
    """What can be done about a fault before the frame is tried again."""

    message: str
    frees: bool
    turn_off: Callable[[], None] = lambda: None


def _remedy(error: Exception) -> _Remedy | None:
    for one in causes(error):
        if isinstance(one, AccelerationError):
            return _Remedy(str(one).replace("{", "{{").replace("}", "}}"), False, one.turn_off)
    if not is_out_of_memory(error):
        return None
    message = (
        "The memory of {device} ran out. Everything that could be spared was freed and the frame"
        " is tried again. Another process may be using the device."
    )
    return _Remedy(message, frees=True)


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
        predict, said = streams.record(lambda: chain.predict(self._pixels))
        if chain.refined:
            with streams.on("compute"):
                said["variance"] = torch.zeros_like(said["depth"])
        finish, self._results = streams.record(
            lambda: chain.finish(said, self._pixels, self._limit)
        )
        self._said, self._replays = said, (predict, finish)

    def _compute(self, refine: Refine | None, slot: _Slot) -> dict[str, Tensor]:
        """Predict, refine, finish; the past cannot be in a graph, for it decides what is done.

        What was refined takes the place of what was predicted, so that the second half finds the
        same memory layout, and loads the same kernels, in a graph and before there is one.
        """
        if self._replays is None:
            said = self._chain.predict(self._pixels)
        else:
            self._replays[0]()
            said = self._said
        better = said
        if refine is not None:
            better, slot.about = refine({k: v for k, v in said.items() if k != "variance"})
            if "variance" not in said:
                said["variance"] = torch.empty_like(better["variance"])
            for name, value in said.items():
                if value is not better[name]:
                    value.copy_(better[name])
        if self._replays is None:
            results = self._chain.finish(said, self._pixels, self._limit)
            self._runs += 1
        else:
            self._replays[1]()
            results = self._results
        if "reset_code" in better:
            results = results | {"reset_code": better["reset_code"]}
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
        judged: Callable[[Exception, Callable[[], None]], Exception],
    ) -> None:
        self._frames = frames
        self._program = program
        self._slot = slot
        self._judged = judged

    def wait(self) -> list[Prediction]:
        try:
            self._slot.done.wait()
        except RuntimeError as error:
            # Not the lanes: another thread may be capturing one.
            judged = self._judged(error, self._slot.done.wait)
            if judged is error:
                raise
            raise judged from error
        slot = self._slot
        return predictions_of(self._frames, slot.arrays, slot.seconds(), slot.about)

    def release(self) -> None:
        self._program.release(self._slot)
