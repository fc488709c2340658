# SPDX-License-Identifier: Apache-2.0
"""A frame's way over a GPU: its buffers, the three lanes, and the graph of its work."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.input.device_preprocess import TENSOR_DTYPES
from dpt_ros.engine.runner.bank import Bank
from dpt_ros.engine.runner.chain import Chain
from dpt_ros.engine.runner.step import NUMBERS, blank_state, rows, step
from dpt_ros.engine.runner.streams import Streams

# Eager runs of a kind before its graph is captured: libraries choose their algorithms there.
EAGER_RUNS = 2
_NUMPY = {torch.uint8: np.uint8, torch.int16: np.int16, torch.float32: np.float32}
_ALIGNMENT = 16  # bytes, of the parts of a block

Parts = dict[str, tuple[tuple[int, ...], torch.dtype]]


class Block:
    """Named tensors in one piece of memory, which one copy moves.

    Args:
        layout: shape and type by name.
        make: makes memory of a shape and type.
    """

    def __init__(
        self, layout: Parts, make: Callable[[tuple[int, ...], torch.dtype], Tensor]
    ) -> None:
        self.layout, self._places, end = layout, {}, 0
        for name, (shape, dtype) in layout.items():
            size = math.prod(shape) * dtype.itemsize
            self._places[name] = slice(end, end + size)
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        self.memory = make((end,), torch.uint8)
        self.parts = {
            name: self.memory[self._places[name]].view(dtype).view(shape)
            for name, (shape, dtype) in layout.items()
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The parts of a block on the host."""
        memory = self.memory.numpy()
        return {
            name: memory[self._places[name]].view(_NUMPY[dtype]).reshape(shape)
            for name, (shape, dtype) in self.layout.items()
        }


class Slot:
    """Buffers of one batch; used by nothing else until they are released."""

    def __init__(self, streams: Streams, inputs: Parts) -> None:
        host = Block(inputs, streams.buffer)
        self.host, self.inputs = host.memory, host.arrays()
        self.device = torch.empty_like(self.host, device=streams.device)
        self.device_outputs: Tensor | None = None
        self.host_outputs: Block | None = None
        self.begun, self.uploaded, self.computing, self.computed, self.done = (
            streams.event() for _ in range(5)
        )

    def seconds(self) -> dict[str, float]:
        return {
            "upload": self.uploaded.seconds_since(self.begun),
            "network": self.computed.seconds_since(self.computing),
            "download": self.done.seconds_since(self.computed),
        }


class Program:
    """``step`` for one kind and batch size, with its buffers and, after some runs, its graph.

    A graph always reads and writes the same memory. So what is uploaded is copied into it and its
    results out of it, on the device and in the same lane, from and to the frame's own
    buffers: the next replay cannot overtake the download.

    Attributes:
        chain: of the frames' kind.
        states: the tensors of the bank that it reads and writes.
    """

    def __init__(self, chain: Chain, streams: Streams, bank: Bank, batch: int, slots: int) -> None:
        self.chain = chain
        self._streams = streams
        blank = blank_state(chain, 1, torch.device("meta")) if chain.refined else {}
        self.states = bank.tensors(blank)
        inputs: Parts = {
            "numbers": ((batch, NUMBERS), torch.float32),
            "pixels": ((batch, *chain.kind.shape), TENSOR_DTYPES[np.dtype(chain.kind.dtype).type]),
        }
        if chain.kind.outputs.fused:
            inputs["sensor"] = (batch, *chain.output_size), torch.float32
        self._free = deque(Slot(streams, inputs) for _ in range(slots))
        self._input = Block(inputs, self._make)
        self._output: Block | None = None
        self._run: Callable[[], None] = self._step
        self._runs = 0

    def _make(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._streams.device)

    @property
    def wants_capture(self) -> bool:
        return self._run == self._step and self._runs >= EAGER_RUNS

    def capture(self) -> None:
        """Capture the graph."""
        self._run = self._streams.capture(self._step)

    def _step(self) -> None:
        """Process what lies in the input's memory."""
        numbers, pixels = self._input.parts["numbers"], self._input.parts["pixels"]
        row, new_row = rows(numbers)
        state = {name: one.index_select(0, row) for name, one in self.states.items()}
        sensor = self._input.parts.get("sensor")
        measured = None if sensor is None else lambda: sensor
        after, results = step(self.chain, state or None, pixels, lambda: numbers, measured)
        if self._output is None:
            parts = {name: (tuple(one.shape), one.dtype) for name, one in results.items()}
            self._output = Block(parts, self._make)
        for name, value in results.items():
            self._output.parts[name].copy_(value)
        for name, value in (after or {}).items():
            self.states[name].index_copy_(0, new_row, value)

    def launch(
        self,
        pixels: Sequence[np.ndarray],
        numbers: Sequence[np.ndarray],
        sensors: Sequence[np.ndarray] = (),
    ) -> Slot:
        """Start a batch on the lanes, without waiting for the device."""
        slot, streams = self._free.popleft(), self._streams
        with ExitStack() as failed:
            # What was started of the frame may still use its buffers.
            failed.callback(streams.synchronize)
            failed.callback(self._free.append, slot)
            room = slot.inputs["pixels"].view(self.chain.kind.dtype)
            for k, picture in enumerate(pixels):
                room[k] = picture
            slot.inputs["numbers"][len(numbers) :] = 0.0  # row 0
            for k, own in enumerate(numbers):
                slot.inputs["numbers"][k] = own
            for k, measured in enumerate(sensors):
                slot.inputs["sensor"][k] = measured
            with streams.on("upload"):
                streams.record_event(slot.begun, "upload")
                slot.device.copy_(slot.host, non_blocking=True)
                streams.record_event(slot.uploaded, "upload")
            with streams.on("compute"):
                streams.wait_event(slot.uploaded, "compute")
                streams.record_event(slot.computing, "compute")
                self._input.memory.copy_(slot.device)
                self._run()
                self._runs += 1
                assert self._output is not None
                if slot.host_outputs is None or slot.device_outputs is None:
                    slot.host_outputs = Block(self._output.layout, streams.buffer)
                    slot.device_outputs = torch.empty_like(self._output.memory)
                slot.device_outputs.copy_(self._output.memory)
                streams.record_event(slot.computed, "compute")
            with streams.on("download"):
                streams.wait_event(slot.computed, "download")
                slot.host_outputs.memory.copy_(slot.device_outputs, non_blocking=True)
                streams.record_event(slot.done, "download")
            failed.pop_all()
        return slot

    def release(self, slot: Slot) -> None:
        self._free.append(slot)
