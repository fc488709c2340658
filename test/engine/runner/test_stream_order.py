# SPDX-License-Identifier: Apache-2.0
"""The order of a GPU's lanes: every access of shared memory waits for those it conflicts with."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.gpu_rehearsal import Kernels, RehearsedNetwork, rehearsal
from helpers.networks import embedded_networks
from helpers.runner_frames import EVERYTHING, SMALL, SMOOTH, frame, one, picture, same
from helpers.stream_order import OrderedStreams, drive

from dpt_ros.engine.frame import Frame, OutputRequest
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.scale.anchors import Anchors
from dpt_ros.engine.settings import Settings

ALL = replace(EVERYTHING, deviation=True, points=True)
Batches = list[list[Frame]]


class Careless(OrderedStreams):
    """Leaves out what ``left_out`` names: a lane's waits, a step, or the calls of one function."""

    def __init__(self, left_out: str = "") -> None:
        super().__init__()
        self.left_out = left_out

    def wait_event(self, event: Any, lane: str) -> None:
        if self.left_out != f"{lane} waits":
            super().wait_event(event, lane)

    def host_waits(self, event: Any) -> None:
        if self.left_out != "host waits":
            super().host_waits(event)

    def check_done(self, *events: Any) -> None:
        if self.left_out != "host waits":  # what it leads to is to be found, not this
            super().check_done(*events)

    def synchronize(self) -> None:
        if self.left_out not in (
            "synchronize",
            f"synchronize in {sys._getframe(1).f_code.co_name}",
        ):
            super().synchronize()

    @contextmanager
    def branch(self) -> Iterator[None]:
        if self.left_out == "fork":
            with self.on("branch" if self._recording is not None else self.lane):
                yield
            return
        with super().branch():
            yield

    def join(self) -> None:
        if self.left_out != "join":
            super().join()


class Full(Careless):
    """A device that fails once, at the given time that the given stage is reached."""

    error: Exception = torch.OutOfMemoryError("full")

    def __init__(self, stage: str, number: int, left_out: str = "") -> None:
        super().__init__(left_out)
        self.stage, self.left = stage, number

    def _fault(self, stage: str) -> None:
        if stage == self.stage:
            self.left -= 1
            if self.left == 0:
                raise self.error

    def wait_event(self, event: Any, lane: str) -> None:
        self._fault(lane)
        super().wait_event(event, lane)

    def record_event(self, event: Any, lane: str) -> None:
        super().record_event(event, lane)
        if lane == "upload":
            self._fault(lane)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self._fault("capture")
        return super().capture(work)


@pytest.fixture(scope="module")
def networks() -> Networks:
    return embedded_networks(RehearsedNetwork, shared=False)


@pytest.fixture(autouse=True)
def rehearsed() -> Iterator[Kernels]:
    """The steps of a GPU: no lane would see what OpenCV touches."""
    with rehearsal() as kernels:
        yield kernels


def seen(number: int, source: str = "", width: int = 64) -> Frame:
    stamp = 1_000_000_000 + number * 33_000_000
    return frame(stamp, pixels=picture(number % 5, 48, width), source=source)


def one_by_one(count: int = 9) -> Batches:
    return [[seen(number)] for number in range(count)]


def four_cameras() -> Batches:
    """Batches of 1 to 4, each often enough to be recorded."""
    return [
        [seen(4 * turn + k, f"camera{c}") for c in range(k + 1)]
        for turn in range(4)
        for k in range(4)
    ]


def ten_sizes() -> Batches:
    """More kinds than are kept, in turn, so that programs are let go and made again."""
    return [[seen(30 * turn + k, width=64 + k)] for turn in range(2) for k in range(10)]


def long_for_each_size() -> Batches:
    """The same with graphs: each kind is recorded before the next one comes."""
    return [[seen(3 * k + turn, width=64 + k)] for k in range(10) for turn in range(3)]


def with_a_scan() -> Batches:
    v, u = (a.ravel().astype("f4") for a in np.mgrid[8:40:8, 4:60:4])
    return [
        [replace(one, anchors=Anchors(u, v, np.full_like(u, 2.0), one.stamp_ns, 64, 48))]
        for (one,) in one_by_one()
    ]


CASES: dict[str, Callable[[], Batches]] = {
    "one camera": one_by_one,
    "batches of 1 to 4": four_cameras,
    "ten sizes in turn": ten_sizes,
    "ten sizes, recorded": long_for_each_size,
    "a scan": with_a_scan,
}
SETTINGS = {
    "smoothed": SMOOTH,
    "as predicted": replace(SMALL, scale_source="none"),
    "no graphs": replace(SMOOTH, cuda_graphs=False),
}


def run(
    networks: Networks,
    streams: OrderedStreams,
    batches: Batches,
    settings: Settings = SMOOTH,
    outputs: OutputRequest = ALL,
):
    notes: list[str] = []
    runner = StreamRunner(networks, settings, streams, notes.append)
    return drive(runner, streams, batches, outputs, settings), notes


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        *((case, "smoothed") for case in CASES),
        ("one camera", "as predicted"),
        ("ten sizes in turn", "as predicted"),
        ("batches of 1 to 4", "no graphs"),
    ],
)
def test_no_two_accesses_of_the_same_memory_are_without_an_order(networks, case, settings):
    streams, batches = OrderedStreams(), CASES[case]()
    done, notes = run(networks, streams, batches, SETTINGS[settings])
    assert streams.races == []
    assert notes == []
    assert [len(one) for one in done] == [len(one) for one in batches]
    # The check saw all of it: pinned memory from both sides, and nothing outside of the lanes.
    lanes = {"begin", "upload", "compute", "download", "finish"}
    branched = settings != "no graphs" and case != "ten sizes in turn"
    assert set(streams.counts) == lanes | ({"branch"} if branched else set())
    assert streams.counts["begin"] >= sum(map(len, batches))
    assert streams.counts["finish"] >= sum(map(len, batches))


def test_what_is_computed_beside_the_clocks_is_right(networks, rehearsed):
    done, _ = run(networks, OrderedStreams(), one_by_one(6), SMALL, EVERYTHING)
    with rehearsed.paused():
        on_host = embedded_networks()
        for (found,), (given,) in zip(done, one_by_one(6), strict=True):
            same(found, one(on_host, given, EVERYTHING))


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("upload", 1),
        ("compute", 2),
        ("download", 4),
        ("download", 1),
        ("capture", 1),
    ],
)
def test_a_frame_tried_again_after_full_memory_waits_for_what_was_begun_of_it(
    networks, stage, number
):
    streams = Full(stage, number)
    done, notes = run(networks, streams, one_by_one(6))
    assert len(done) == 6
    assert len(notes) == 1
    assert streams.races == []


def test_a_frame_that_fails_leaves_its_slot_when_the_device_is_done_with_it(networks):
    found = {}
    for left_out in ("", "synchronize"):
        streams = Full("compute", 1, left_out)
        streams.error = RuntimeError("no such kernel")
        runner = StreamRunner(networks, SMALL, streams, print)
        with streams.watch:
            with pytest.raises(RuntimeError, match="no such kernel"):
                runner.start([seen(0)], EVERYTHING, SMALL)
            flying = [
                runner.start([seen(number)], EVERYTHING, SMALL)
                for number in range(runner.in_flight)
            ]
        found[left_out] = list(streams.races)
        del flying  # or their memory would be taken to be another's already
    assert found[""] == []
    assert matches(found["synchronize"], "begin write into buffer .* a read: upload copy_")


@pytest.mark.parametrize(
    ("left_out", "case", "race"),
    [
        ("compute waits", "one camera", "compute copy_ of .* a write: upload copy_"),
        ("download waits", "one camera", "download copy_ of .* a write: compute copy_"),
        ("host waits", "one camera", "finish read of buffer .* a write: download copy_"),
        (
            "synchronize in _make",
            "ten sizes in turn",
            "upload copy_ of .* its former owner: comp",
        ),
        ("fork", "one camera", "branch .* is done once, while a graph is captured, not in it"),
        ("join", "one camera", "a graph is captured with a branch that is not joined"),
        ("join", "one camera", "compute .* a write: branch"),
    ],
)
def test_a_wait_that_is_left_out_is_found(networks, left_out, case, race):
    streams = Careless(left_out)
    # Groups: something in the compute lane that reads what the branch found.
    run(replace(networks, groups=torch.eye(10)), streams, CASES[case]())
    assert matches(streams.races, race), "\n".join(streams.races)


def test_a_slot_used_again_before_it_is_back_is_found(networks):
    streams = OrderedStreams()
    runner = StreamRunner(networks, SMALL, streams, print)
    with streams.watch:
        for number in range(8):
            runner.start([seen(number)], EVERYTHING, SMALL).release()
    assert matches(streams.races, "begin write into buffer does not wait for a read: upload")


def test_memory_that_another_lane_still_uses_when_it_is_given_back_is_found():
    streams = OrderedStreams()
    with streams.watch:
        with streams.on("upload"):
            lent = torch.ones(8)
        copied = streams.event()
        streams.record_event(copied, "upload")
        streams.wait_event(copied, "compute")
        with streams.on("compute"):
            lent.sum()
        del lent
        with streams.on("upload"):
            torch.ones(8)
    assert matches(streams.races, "upload ones of ones .* its former owner: compute sum")


def test_a_graph_that_reads_what_was_given_back_is_found():
    streams = OrderedStreams()
    with streams.watch:
        with streams.on("compute"):
            held = [torch.ones(8)]
        replay = streams.capture(lambda: held[0] + 1)
        replay()
        assert streams.races == []
        held[0] = torch.zeros(8)
        replay()
    assert matches(streams.races, "compute add uses ones .*, which was given back")


def matches(races: list[str], pattern: str) -> bool:
    return any(re.search(pattern, race) for race in races)
