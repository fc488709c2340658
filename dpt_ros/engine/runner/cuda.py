# SPDX-License-Identifier: Apache-2.0
"""Takes batches of frames through their chain on a GPU: three lanes, pinned buffers, graphs."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NoReturn, TypeVar

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
from dpt_ros.engine.frame import Frame, Kind, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.runner.bank import Bank
from dpt_ros.engine.runner.cameras import Plan
from dpt_ros.engine.runner.chain import Chain, depth_limit
from dpt_ros.engine.runner.host import Runner, Ticket, get_or_create
from dpt_ros.engine.runner.program import EAGER_RUNS, Program, Slot
from dpt_ros.engine.runner.step import frame_numbers
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.settings import Settings

_BATCHES = (1, 2, 4)
# What a camera sends of which nothing is known.
_USUAL = Kind("rgb8", (480, 640, 3), "uint8", OutputRequest())
_KINDS_WARMED = 4
_MAX_FULL_CAPTURES = 2  # captures in a row that run out of memory before graphs are given up
_OUT_OF_MEMORY = (
    "The memory of {device} ran out. Everything that could be spared was freed and the frame is"
    " tried again. Another process may be using the device."
)
_Made = TypeVar("_Made")


class StreamRunner(Runner):
    """Uploads, computes and downloads on three lanes, so that frames overlap.

    Each kind of frames and batch size has a ring of buffers, allocated once, and after its first
    runs a graph, which is then replayed.

    Args:
        networks, settings: see ``Runner``.
        streams: the lanes.
        warn: receives a message when an acceleration is turned off or memory runs out.
    """

    in_flight = 3
    max_batch = 4

    def __init__(
        self, networks: Networks, settings: Settings, streams: Streams, warn: Callable[[str], None]
    ) -> None:
        super().__init__(networks, settings)
        self._streams = streams
        self._warn = warn
        self._graphs = settings.cuda_graphs and networks.capturable
        self._programs: OrderedDict[tuple[Kind, bool, int], Program] = OrderedDict()
        self._bank = Bank(streams.device, max(len(settings.cameras), 1))
        self._lost = ""
        self._full_captures = 0

    def _clear(self) -> None:
        self._bank.clear()

    def _state(self, source: str) -> dict[str, Tensor]:
        return self._bank.state(source, self._row(source) + self._cameras.row(source))

    @torch.inference_mode()
    def _load_state(self, source: str, tensors: dict[str, Tensor]) -> None:
        row = self._row(source)
        with self._streams.on("compute"):  # whose memory it is from then on
            self._bank.load(source, row, tensors)
        # The lanes do not wait for what is written here.
        if self._networks.device.type == "cuda":
            torch.cuda.synchronize(self._networks.device)

    @torch.inference_mode()
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
        for kind, count in list(cameras.items())[:_KINDS_WARMED]:
            for batch in (size for size in _BATCHES if size <= max(count, 1)):
                for _ in range(EAGER_RUNS):
                    if stop():
                        return
                    program, slot = self._repeated(partial(self._blank, kind, batch, settings))
                    slot.done.wait()
                    program.release(slot)
        if not known:
            self._programs.clear()

    def _blank(self, kind: Kind, batch: int, settings: Settings) -> tuple[Program, Slot]:
        """Start black frames of nobody's."""
        program = self._program(kind, batch, settings)
        return program, program.launch([np.zeros(kind.shape, kind.dtype)] * batch, [])

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
        if self._cameras.forget():
            self._clear()
        kind = Kind.of(frames[0], outputs)
        return self._repeated(partial(self._start, kind, frames, settings))

    def _repeated(self, work: Callable[[], _Made]) -> _Made:
        """The result of ``work``, which is repeated after a fault that has a remedy."""
        freed = False
        while True:
            try:
                return work()
            except Exception as error:
                remedy = _remedy(error)
                if remedy is None or (freed and remedy[1] is None):
                    self._raise(error, self._streams.synchronize)
            # Outside of the handler, whose traceback keeps the memory of the failed work alive.
            warning, turn_off = remedy
            if turn_off is None:
                freed, warning = True, warning.format(device=self._streams.device)
            else:
                turn_off()
            self._warn(warning)
            self._free()

    def _start(self, kind: Kind, frames: Sequence[Frame], settings: Settings) -> Ticket:
        first = [self._row(frame.source) for frame in frames]  # perhaps ends all programs
        program = self._program(kind, len(frames), settings)
        limit = depth_limit(self._networks, settings)
        plans = [self._cameras.plan(frame, program.chain, settings) for frame in frames]
        numbers = [
            frame_numbers(plan.numbers, limit, row + plan.before.row, row + plan.after.row)
            for plan, row in zip(plans, first, strict=True)
        ]
        sensors = []
        if kind.outputs.fused:
            sensors = [frame.sensor_depth(*program.chain.output_size) for frame in frames]
        slot = program.launch([frame.pixels for frame in frames], numbers, sensors)
        self._cameras.accept(frames, plans)
        for frame in frames:
            self._bank.hold(frame.source, program.states)
        predictions = [Prediction(frame) for frame in frames]
        return Ticket(
            partial(self._wait, slot, predictions, plans), partial(program.release, slot)
        )

    def _wait(
        self, slot: Slot, predictions: list[Prediction], plans: Sequence[Plan]
    ) -> list[Prediction]:
        try:
            slot.done.wait()
        except RuntimeError as error:
            # Not for the lanes: another thread may be capturing one.
            self._raise(error, slot.done.wait)
        for prediction in predictions:
            prediction.seconds = slot.seconds()
        assert slot.host_outputs is not None
        self._cameras.fill(predictions, plans, slot.host_outputs.arrays())
        return predictions

    def _program(self, kind: Kind, count: int, settings: Settings) -> Program:
        """The program for a number of frames of a kind, with its graph if it is time."""
        batch = next(size for size in _BATCHES if size >= count)
        smoothed = settings.smoothing_strength > 0
        program = get_or_create(
            self._programs, (kind, smoothed, batch), lambda: self._make(kind, smoothed, batch)
        )
        if self._graphs and program.wants_capture:
            self._capture(program)
        return program

    def _make(self, kind: Kind, smoothed: bool, batch: int) -> Program:
        streams = self._streams
        with streams.on("compute"):
            chain = Chain(self._networks, kind, smoothed, self._settings, streams)
            program = Program(chain, streams, self._bank, batch, self.in_flight)
        # Its memory may have been freed by an earlier frame, and other lanes will write to it.
        streams.synchronize()
        return program

    def _row(self, source: str) -> int:
        while (row := self._bank.row(source)) is None:
            self._programs.clear()  # their graphs know the old tensors
            with self._streams.on("compute"):
                self._bank.grow()
        return row

    def _capture(self, program: Program) -> None:
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
                partial(setattr, self, "_graphs", False),
            ) from error

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
        """Raise what a fault means: out of memory, the error as it is, or, if waiting for the
        device by ``synchronize`` fails, that it is lost."""
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
