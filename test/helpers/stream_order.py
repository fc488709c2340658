# SPDX-License-Identifier: Apache-2.0
"""A happens-before check of a runner's lanes: which accesses of the same memory have no order.

`OrderedStreams` computes on the host at once, so every value is right whatever waits are missing.
What it checks is what a GPU would guarantee: each lane, each host thread and the branch of a
recorded graph has a vector clock; events, waits and captured graphs join them as CUDA's streams,
events and graphs do; every operation's reads and writes of storages are held against those before.

Memory that was given back is part of it: CUDA's caching allocator hands a block to the next that
asks in the same stream while other streams may still use it. Which block that will be is not
known, so every new storage is taken to lie where any storage of its pool lay before.
"""

from __future__ import annotations

import time
import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dpt_ros.engine.frame import Frame, OutputRequest, Prediction
from dpt_ros.engine.runner.host import Runner, Ticket
from dpt_ros.engine.settings import Settings
from helpers.gpu_rehearsal import Captured, replay_of
from helpers.memory_access import HostArray, HostBuffer, Watch, tensors

Clock = dict[str, int]
Accesses = dict[str, tuple[int, str]]  # by lane: when last, and what it was
ARRAYS = ("depth", "inverse", "labels", "confidence", "deviation", "points")


@dataclass(eq=False)
class _Memory:
    """A storage, or where it lay."""

    name: str
    pool: str  # "" for memory that no lane's allocator gives out again
    writes: Accesses = field(default_factory=dict)
    reads: Accesses = field(default_factory=dict)
    before: Accesses = field(default_factory=dict)  # of what may have lain here
    freed: bool = False


@dataclass(eq=False)
class _Step:
    """One thing a recorded graph does: "use", "new", "free", "fork" or "join"."""

    what: str
    lane: str = ""
    name: str = ""
    reads: Sequence[_Memory] = ()
    writes: Sequence[_Memory] = ()


class _Event:
    def __init__(self, streams: OrderedStreams) -> None:
        self._streams = streams
        self.clock: Clock = {}
        self.time = 0.0

    def wait(self) -> None:
        self._streams.host_waits(self)

    def seconds_since(self, earlier: _Event) -> float:
        self._streams.check_done(self, earlier)
        return self.time - earlier.time


class OrderedStreams:
    """Lanes on the host, as `dpt_ros.engine.runner.streams.Streams` wants them, that keep clocks.

    Attributes:
        races: sentences on accesses of the same memory without an order between them, and on
            what CUDA would refuse; each once.
        counts: how many accesses each lane and host thread had.
        host: the host thread that is at work: "begin" or "finish", as a pipeline's.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.races: list[str] = []
        self.counts: Counter[str] = Counter()
        self.host = "begin"
        self.lane = "default"
        self.watch = Watch(self)
        self._clocks: defaultdict[str, Clock] = defaultdict(dict)
        self._memory: dict[int, _Memory] = {}
        self._given_back: defaultdict[str, Accesses] = defaultdict(dict)
        self._recording: list[_Step] | None = None
        self._replaying = False

    # What a runner calls

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with _disable_current_modes():
            made = torch.empty(shape, dtype=dtype).as_subclass(HostBuffer)
        made.log, made.memory = self, self._remember(made, "buffer", pool="")
        return made

    def event(self) -> _Event:
        return _Event(self)

    @contextmanager
    def on(self, lane: str) -> Iterator[None]:
        outer, self.lane = self.lane, lane
        try:
            yield
        finally:
            self.lane = outer

    def record_event(self, event: _Event, lane: str) -> None:
        self._issue(lane)
        event.clock, event.time = dict(self._clocks[lane]), time.perf_counter()

    def wait_event(self, event: _Event, lane: str) -> None:
        self._issue(lane)
        _join(self._clocks[lane], event.clock)

    @contextmanager
    def branch(self) -> Iterator[None]:
        """As CUDA's: beside the compute lane while a graph is captured, in it otherwise."""
        if self._recording is None:
            yield
            return
        self._recording.append(_Step("fork"))
        with self.on("branch"):
            yield

    def join(self) -> None:
        if self._recording is not None:
            self._recording.append(_Step("join"))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        steps: list[_Step] = []
        self._recording = steps
        try:
            with self.on("compute"), Captured():
                work()
        finally:
            self._recording = None
        if _forked(steps):
            self._report("a graph is captured with a branch that is not joined")
        again = replay_of(work)

        def replay() -> None:
            self._replay(steps)
            self._replaying = True
            try:
                with _disable_current_modes():
                    again()
            finally:
                self._replaying = False

        return replay

    def synchronize(self) -> None:
        for lane in list(self._clocks):
            _join(self._clocks[self.host], self._clocks[lane])

    # What a test calls

    @contextmanager
    def on_thread(self, name: str, since: Clock) -> Iterator[None]:
        """Another host thread, which knows of everything up to ``since``."""
        outer, self.host = self.host, name
        _join(self._clocks[name], since)
        try:
            yield
        finally:
            self.host = outer

    def moment(self, host: str) -> Clock:
        """All that has happened for a host thread; ``on_thread`` and ``tell`` hand it on."""
        return dict(self._clocks[host])

    def tell(self, host: str, moment: Clock) -> None:
        """Let a host thread know, as a lock or a queue between two threads does."""
        _join(self._clocks[host], moment)

    # What events, arrays and operations call

    def host_waits(self, event: _Event) -> None:
        _join(self._clocks[self.host], event.clock)

    def check_done(self, *events: _Event) -> None:
        clock = self._clocks[self.host]
        for event in events:
            if any(when > clock.get(lane, 0) for lane, when in event.clock.items()):
                self._report("an event's time is read before the host waited for it")

    def memory_of(self, given: Any) -> list[_Memory]:
        """The storages behind an argument."""
        found = []
        for tensor in tensors(given):
            key = tensor.untyped_storage()._cdata
            # Of before the streams were watched (weights), or the host's own: nobody's to reuse.
            found.append(self._memory.get(key) or self._remember(tensor, "made before", pool=""))
        return found

    def new_memory_of(self, out: Any, name: str) -> list[_Memory]:
        """The storages that an operation made."""
        pool = ("graphs/" if self._recording is not None else "lanes/") + self.lane
        fresh = []
        for tensor in tensors(out):
            if tensor.untyped_storage()._cdata not in self._memory:
                memory = self._remember(tensor, f"{name} {tuple(tensor.shape)}", pool)
                fresh.append(memory)
                if self._recording is not None:
                    self._recording.append(_Step("new", writes=[memory]))
                else:
                    memory.before = dict(self._given_back[pool])
        return fresh

    def use(
        self, lane: str, name: str, reads: Sequence[_Memory], writes: Sequence[_Memory]
    ) -> None:
        """An operation given to a lane, or done by a host thread."""
        if self._recording is not None and lane != self.host:
            if lane != "compute" and not _forked(self._recording):
                self._report(f"{lane} {name} is done once, while a graph is captured, not in it")
            self._recording.append(_Step("use", lane, name, reads, writes))
            return
        self._issue(lane)
        self._access(self._clocks[lane], lane, name, reads, writes)

    # Clocks

    def _issue(self, lane: str) -> None:
        """What the host gives to a lane comes after all that the host has waited for."""
        if lane != self.host:
            _join(self._clocks[lane], self._clocks[self.host])

    def _access(
        self,
        clock: Clock,
        lane: str,
        name: str,
        reads: Sequence[_Memory],
        writes: Sequence[_Memory],
    ) -> None:
        clock[lane] = now = clock.get(lane, 0) + 1
        self.counts[lane] += len(reads) + len(writes)
        for memory in (*reads, *writes):
            if memory.freed:
                self._report(f"{lane} {name} uses {memory.name}, which was given back")
            self._check(clock, lane, f"{name} of {memory.name}", memory.before, "its former owner")
            self._check(clock, lane, f"{name} of {memory.name}", memory.writes, "a write")
        for memory in writes:
            self._check(clock, lane, f"{name} into {memory.name}", memory.reads, "a read")
            memory.writes[lane] = now, name
        for memory in reads:
            memory.reads[lane] = now, name

    def _check(self, clock: Clock, lane: str, name: str, others: Accesses, what: str) -> None:
        for other, (when, their) in others.items():
            if other != lane and when > clock.get(other, 0):
                self._report(f"{lane} {name} does not wait for {what}: {other} {their}")

    def _report(self, sentence: str) -> None:
        if sentence not in self.races:
            self.races.append(sentence)

    def _replay(self, steps: Sequence[_Step]) -> None:
        """A graph: after all that its lane was given, in the order of its own edges."""
        self._issue("compute")
        main = self._clocks["compute"]
        beside = dict(main)
        beside["branch"] = self._clocks["branch"].get("branch", 0)
        clocks = {"compute": main, "branch": beside}
        for step in steps:
            if step.what == "fork":
                _join(beside, main)
            elif step.what == "join":
                _join(main, beside)
            elif step.what == "new":
                for memory in step.writes:
                    memory.before, memory.freed = dict(self._given_back[memory.pool]), False
            elif step.what == "free":
                for memory in step.writes:
                    self._give_back(memory)
            else:
                clock = clocks[step.lane]
                self._access(clock, step.lane, step.name, step.reads, step.writes)
        _join(main, beside)
        self._clocks["branch"] = dict(main)

    # Memory

    def _remember(self, tensor: Tensor, name: str, pool: str) -> _Memory:
        storage = tensor.untyped_storage()
        memory = self._memory[storage._cdata] = _Memory(name, pool)
        weakref.finalize(storage, self._freed, storage._cdata).atexit = False
        return memory

    def _freed(self, key: int) -> None:
        memory = self._memory.pop(key)
        if self._recording is not None and memory.pool.startswith("graphs/"):
            self._recording.append(_Step("free", writes=[memory]))
        else:
            self._give_back(memory)

    def _give_back(self, memory: _Memory) -> None:
        memory.freed = True
        if not memory.pool:
            return
        known, pool = self._clocks[self.host], self._given_back[memory.pool]
        for accesses in (memory.before, memory.reads, memory.writes):
            for lane, (when, name) in accesses.items():
                # What the thread that gives it back has waited for is over.
                if when > max(known.get(lane, 0), pool.get(lane, (0, ""))[0]):
                    pool[lane] = when, f"{name} of {memory.name}"


def _forked(steps: Sequence[_Step]) -> bool:
    """Whether a branch is part of the graph now."""
    marks = [step.what for step in steps if step.what in ("fork", "join")]
    return marks[-1:] == ["fork"]


def _join(clock: Clock, other: Clock) -> None:
    for lane, when in other.items():
        clock[lane] = max(clock.get(lane, 0), when)


def drive(
    runner: Runner,
    streams: OrderedStreams,
    batches: Iterable[Sequence[Frame]],
    outputs: OutputRequest,
    settings: Settings,
) -> list[list[Prediction]]:
    """Give batches to a runner as a pipeline does, as many in flight as it takes.

    One thread begins frames, another waits for them and reads what came of them.

    Returns:
        the predictions, with arrays of their own.
    """
    flying: deque[tuple[Ticket, Clock]] = deque()
    done: list[list[Prediction]] = []

    def finish() -> None:
        ticket, begun = flying.popleft()
        with streams.on_thread("finish", begun):
            done.append([_own(prediction) for prediction in ticket.wait()])
            ticket.release()
            del ticket
        streams.tell("begin", streams.moment("finish"))

    with streams.watch:
        for batch in batches:
            if len(flying) == runner.in_flight:
                finish()
            flying.append((runner.start(batch, outputs, settings), streams.moment("begin")))
        while flying:
            finish()
    return done


def _own(prediction: Prediction) -> Prediction:
    """Read the arrays as late as a subscriber would: when the prediction has been handed out."""
    for name in ARRAYS:
        array = getattr(prediction, name)
        if isinstance(array, HostArray):
            array.touch(writes=False)
            setattr(prediction, name, np.array(array))
    return prediction
