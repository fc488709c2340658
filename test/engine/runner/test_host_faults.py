# SPDX-License-Identifier: Apache-2.0
"""A device that fails: full memory at each stage, graphs that cannot be, a lost device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from helpers.networks import embedded_networks
from helpers.runner_frames import (
    EVERYTHING,
    SMALL,
    frame,
    gpu_runner,
    on_streams,
    one,
    run,
    same,
)

from dpt_ros.engine.faults import DeviceLostError
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.runner.streams import Streams


@pytest.fixture(scope="module")
def networks() -> Networks:
    return embedded_networks()


@dataclass
class Faulty(Streams):
    """The host's streams, with one fault to come."""

    at: str
    error: Exception
    times: int = 1
    settled: int = 0
    dead: bool = False
    waited: list[str] = field(default_factory=list)

    def _fault(self, where: str) -> None:
        if where == self.at and self.times:
            self.times -= 1
            raise self.error

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self._fault("capture")
        return super().capture(work)

    def record_event(self, event, lane: str) -> None:
        if lane == "upload":
            self._fault(lane)

    def wait_event(self, event, lane: str) -> None:
        self._fault(lane)

    def synchronize(self) -> None:
        self.settled += 1
        if self.dead:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_a_graph_that_cannot_be_captured_is_a_warning_once_and_frames_go_on(networks):
    notes: list[str] = []
    streams = Faulty("capture", RuntimeError("operation not permitted when stream is capturing"))
    runner = on_streams(networks, streams, notes)
    for number in range(6):
        seen = frame(number)
        same(run(runner, seen, EVERYTHING)[0], one(networks, seen, EVERYTHING))
    assert len(notes) == 1
    assert "cannot be captured in a CUDA graph" in notes[0]
    assert "operation not permitted" in notes[0]


@pytest.mark.parametrize("stage", ["capture", "upload", "compute", "download"])
def test_out_of_memory_frees_what_it_can_and_tries_the_frame_again(networks, stage):
    notes: list[str] = []
    runner = on_streams(networks, Faulty(stage, torch.OutOfMemoryError("full")), notes)
    for number in range(6):  # the first ones before there is a graph
        seen = frame(number)
        same(run(runner, seen, EVERYTHING)[0], one(networks, seen, EVERYTHING))
    assert ["The memory of cpu ran out" in note for note in notes] == [True]


def test_out_of_memory_twice_fails_the_frame_and_leaves_room_for_the_next(networks):
    streams = Faulty("download", torch.OutOfMemoryError("full"), times=2)
    runner = on_streams(networks, streams)
    with pytest.raises(torch.OutOfMemoryError):
        runner.start([frame(1)], EVERYTHING, SMALL)
    for _ in range(3):
        tickets = [runner.start([frame(2)], EVERYTHING, SMALL) for _ in range(runner.in_flight)]
        for ticket in tickets:
            ticket.release()


def test_a_lost_device_is_told_from_a_failed_call(networks):
    error = torch.AcceleratorError("CUDA error: invalid argument\nmore lines")
    streams = Faulty("compute", error)
    runner = on_streams(networks, streams)
    with pytest.raises(torch.AcceleratorError):
        runner.start([frame(1)], EVERYTHING, SMALL)
    run(runner, frame(1), EVERYTHING)

    streams.times, streams.dead = 1, True
    with pytest.raises(DeviceLostError, match=r"cpu is lost \(CUDA error: .*\); .* started again"):
        runner.start([frame(1)], EVERYTHING, SMALL)
    before = streams.settled
    with pytest.raises(DeviceLostError):
        runner.start([frame(1)], EVERYTHING, SMALL)
    assert streams.settled == before  # a lost device is not touched again


_TAKES_THE_MEMORY = """
import torch
held = []
for size in 2**26, 2**21:
    try:
        while True:
            held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        pass
print("taken", flush=True)
input()
"""


@pytest.mark.gpu
def test_memory_that_another_process_takes_fails_frames_until_it_is_back():
    networks = embedded_networks(shared=False, device=torch.device("cuda"), dtype=torch.float16)
    runner = gpu_runner(networks, [])
    expected = run(runner, frame(1), EVERYTHING)[0]
    large = frame(2, pixels=np.zeros((4000, 4000, 3), np.uint8), camera=None)
    torch.cuda.empty_cache()
    command = [sys.executable, "-c", _TAKES_THE_MEMORY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(torch.OutOfMemoryError):
            run(runner, large, EVERYTHING)
        other.communicate("\n")
    run(runner, large, EVERYTHING)
    np.testing.assert_array_equal(run(runner, frame(1), EVERYTHING)[0].depth, expected.depth)
