# SPDX-License-Identifier: Apache-2.0
"""What a runner uses of a device: lanes of work, events between them, and graphs.

Three lanes follow one another for every frame (upload, compute, download) while the next frame is
already in the lane before. On a GPU a lane is a CUDA stream; on the host work
is done at once, so that the same runner can be tested without a GPU.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
LANES = ("upload", "compute", "download")


class Event:
    """A point in a lane's work, as torch.cuda.Event; here of the host."""

    time = 0.0

    def wait(self) -> None:
        """Wait until the work before the event is done, without the GIL."""

    def seconds_since(self, earlier: Any) -> float:
        """Device time between two events that are both done."""
        return self.time - earlier.time


class Streams:
    """The lanes of one device: "upload", "compute" and "download"; here of the host, where work
    is done when it is started."""

    device = torch.device("cpu")

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Page-locked host memory, as asynchronous copies need it."""
        return torch.empty(shape, dtype=dtype)

    def event(self) -> Event:
        """An event, which can be recorded again and again."""
        return Event()

    def on(self, lane: str) -> AbstractContextManager[Any]:
        """Work started in this context runs in the lane."""
        return nullcontext()

    def record_event(self, event: Any, lane: str) -> None:
        """Record the event behind the work that the lane has been given."""
        event.time = time.perf_counter()

    def wait_event(self, event: Any, lane: str) -> None:
        """Let the lane wait for the event; the host does not."""

    def branch(self) -> AbstractContextManager[Any]:
        """Work started in this context runs beside what the compute lane starts after it."""
        return nullcontext()

    def join(self) -> None:
        """Let the compute lane wait for the branches."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture the kernels of ``work`` in a graph.

        Args:
            work: reads and writes tensors that outlive the graph; what it makes lies in the
                graph's own memory.

        Returns:
            the replay of the graph.

        Raises:
            Exception: it cannot be captured. Graphs captured before must then be dropped.
        """
        return work

    def synchronize(self) -> None:
        """Wait on the host for all lanes."""


class CudaStreams(Streams):
    """CUDA streams and events of one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        self._make_streams()

    def _make_streams(self) -> None:
        # All of one priority: a frame's download must not starve behind the next one's compute,
        # and copies run on engines of their own anyway.
        self._streams = {lane: torch.cuda.Stream(self.device) for lane in (*LANES, "branch")}
        self._pool = torch.cuda.graph_pool_handle()
        self._forked = False

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def event(self) -> Event:
        return _CudaEvent()

    @contextmanager
    def on(self, lane: str) -> Iterator[None]:
        with torch.cuda.device(self.device), torch.cuda.stream(self._streams[lane]):
            yield

    def record_event(self, event: Any, lane: str) -> None:
        event.event.record(self._streams[lane])

    def wait_event(self, event: Any, lane: str) -> None:
        self._streams[lane].wait_event(event.event)

    @contextmanager
    def branch(self) -> Iterator[None]:
        """Beside the compute lane while a graph is captured, and in it otherwise.

        Launching kernels one by one takes longer than they do, so there is nothing to gain; and
        memory freed in one stream must not be reused in another that still runs.
        """
        if not torch.cuda.is_current_stream_capturing():
            yield
            return
        branch = self._streams["branch"]
        branch.wait_stream(self._streams["compute"])
        self._forked = True
        with torch.cuda.stream(branch):
            yield

    def join(self) -> None:
        # A capture must not wait for a stream that is not part of it.
        if self._forked:
            self._forked = False
            self._streams["compute"].wait_stream(self._streams["branch"])

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        if not self._graphs:
            # Once the last graph of a pool is gone, the allocator refuses the pool's id.
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        begun, inner = False, 0
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.cuda.device(self.device))
                # Other threads of the node may call CUDA meanwhile.
                captured = torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._streams["compute"],
                    capture_error_mode="thread_local",
                )
                # Each graph gets its own cuBLAS workspace, in its pool: some versions of torch
                # free the stream's when any graph is destroyed (pytorch issue 193402).
                torch._C._cuda_clearCublasWorkspaces()
                stack.enter_context(captured)
                begun = True
                try:
                    work()
                except BaseException as error:
                    inner = id(error)
                    raise
        except BaseException as error:
            if begun and id(error) != inner:
                self._end_capture()
            # A failed capture can leave its streams and pool capturing. The old streams' work is
            # done: a capture begins by waiting for the device.
            self._make_streams()
            raise
        self._graphs.add(graph)
        return graph.replay

    def _end_capture(self) -> None:
        """Release the pool, which torch before 2.14 does not do if the end of a capture fails
        (pytorch pull requests 180395 and 190348)."""
        if _VERSION >= (2, 14):
            return
        where = (torch.cuda._utils._get_device_index(self.device, optional=True), self._pool)
        for end in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
            with suppress(RuntimeError):
                end(*where)

    def synchronize(self) -> None:
        for stream in self._streams.values():
            stream.synchronize()


class _CudaEvent(Event):
    def __init__(self) -> None:
        # Blocking: a wait sleeps instead of keeping a core busy.
        self.event = torch.cuda.Event(enable_timing=True, blocking=True)

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: Any) -> float:
        return earlier.event.elapsed_time(self.event) * 1e-3
