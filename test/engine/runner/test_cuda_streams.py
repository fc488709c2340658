# SPDX-License-Identifier: Apache-2.0
"""CudaStreams on a model of torch.cuda's graphs, pools, forks and workspaces."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from helpers.cuda_rules import Cuda, modelled_cuda

from dpt_ros.engine.faults import innermost_line
from dpt_ros.engine.runner.streams import CudaStreams, Streams


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    with modelled_cuda() as made:
        yield made


def work(cuda: Cuda, streams: CudaStreams, fails: str = ""):
    """A network on the branch and one beside it, as a chain runs them."""

    def run() -> None:
        try:
            with streams.branch():
                cuda.matmul()
                if fails == "branch":
                    raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
            cuda.matmul()
            if fails == "beside":
                raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        finally:
            streams.join()

    return run


def test_graphs_that_come_and_go_never_use_a_dead_pool_or_freed_workspace(cuda):
    streams = CudaStreams(torch.device("cuda"))
    alive = []
    for number in range(12):
        with streams.on("compute"):
            work(cuda, streams)()  # launched one by one, as before every capture
        alive.append(streams.capture(work(cuda, streams)))
        if number % 3 == 2:
            del alive[: 1 + number % 2]  # programs that are let go
        if number == 7:
            alive.clear()  # full memory: all of them
        gc.collect()
        with streams.on("compute"):
            work(cuda, streams)()
        for index in range(len(alive)):
            alive[index]()
    assert cuda.violations == 0
    assert cuda.dead  # there were some


@pytest.mark.parametrize("where", ["branch", "beside"])
def test_an_error_in_a_capture_shows_its_cause_and_the_next_capture_works(cuda, where):
    streams = CudaStreams(torch.device("cuda"))
    keep = streams.capture(work(cuda, streams))
    before = dict(streams._streams), streams._pool
    with pytest.raises(RuntimeError) as caught:
        streams.capture(work(cuda, streams, where))
    assert "previous error" in str(caught.value)  # not "unjoined work"
    assert innermost_line(caught.value) == "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"
    assert streams._pool != before[1]
    assert all(streams._streams[lane] is not stream for lane, stream in before[0].items())
    streams.synchronize()
    again = streams.capture(work(cuda, streams))
    again()
    keep()
    assert cuda.violations == 0


def test_joining_without_a_branch_waits_for_nothing(cuda):
    streams = CudaStreams(torch.device("cuda"))

    def alone() -> None:
        streams.join()

    streams.capture(alone)()
    streams.join()


def test_the_model_finds_what_it_is_there_for(cuda):
    pool = cuda.pool()
    stream, branch = torch.cuda.Stream(None), torch.cuda.Stream(None)
    with torch.cuda.stream(stream):
        cuda.matmul()
    first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    for graph in (first, second):
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            cuda.matmul()  # finds the stream's workspace, which lies in no pool
    del graph, first
    second.replay()
    assert cuda.violations == 1
    del second
    with (
        pytest.raises(RuntimeError, match="use_count > 0"),
        torch.cuda.graph(torch.cuda.CUDAGraph(), pool=pool, stream=stream),
    ):
        pass
    with (
        pytest.raises(RuntimeError, match="unjoined work"),
        torch.cuda.graph(torch.cuda.CUDAGraph(), pool=cuda.pool(), stream=stream),
    ):
        branch.wait_stream(stream)
    stream.capture = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="uncaptured work"):
        stream.wait_stream(torch.cuda.Stream(None))


def test_a_gpu_s_lanes_and_events_take_no_work_of_the_host_s_that_they_derive_from(
    cuda: Cuda,
) -> None:
    streams = CudaStreams(torch.device("cuda"))
    for host, own in ((Streams, CudaStreams), (type(Streams().event()), type(streams.event()))):
        methods = {name for name, one in vars(host).items() if callable(one)}
        assert methods
        assert methods <= vars(own).keys()
