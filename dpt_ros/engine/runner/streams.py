# SPDX-License-Identifier: Apache-2.0
"""What a runner needs of a device: lanes of work, marks between them, and recorded graphs.

Three lanes follow one another for every frame (upload, compute, download) while the next frame is
already in the lane before. On a GPU a lane is a CUDA stream and a mark an event; on the host work
is done at once, so that the same runner can be tested without a GPU.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
LANES = ("upload", "compute", "download")


class Mark(Protocol):
    """A point in a lane's work."""

    def wait(self) -> None:
        """Wait until the work before the mark is done; other Python threads run meanwhile."""

    def seconds_since(self, earlier: Mark) -> float:
        """Device time between two marks that are both done."""


class Streams(Protocol):
    """The lanes of one device."""

    device: torch.device

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory that the device can copy from and to by itself."""

    def mark(self) -> Mark:
        """A mark to be set again and again."""

    def on(self, lane: str) -> AbstractContextManager[Any]:
        """Work given in this context goes to the lane."""

    def set(self, mark: Mark, lane: str) -> None:
        """Set a mark behind what the lane was given so far."""

    def after(self, mark: Mark, lane: str) -> None:
        """Let the lane wait for a mark; the host does not."""

    def branch(self) -> AbstractContextManager[Any]:
        """Work given in this context runs beside what the compute lane is given after it."""

    def join(self) -> None:
        """Let the compute lane wait for the branches that there are."""

    def record(
        self, work: Callable[[], dict[str, Tensor]]
    ) -> tuple[Callable[[], None], dict[str, Tensor]]:
        """Record the kernels of ``work``: what repeats them, and where their results lie.

        The results hold nothing until they are repeated for the first time, and each time they
        are written in place. After an error what was recorded before must be let go.
        """

    def settle(self) -> None:
        """Wait for all lanes, after something went wrong."""


class CudaStreams:
    """CUDA streams and events of one GPU.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        self._renew()

    def _renew(self) -> None:
        # All of one priority: a frame's download must not starve behind the next one's compute,
        # and copies run on engines of their own anyway.
        self._streams = {lane: torch.cuda.Stream(self.device) for lane in (*LANES, "branch")}
        self._pool = torch.cuda.graph_pool_handle()
        self._forked = False

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def mark(self) -> Mark:
        return _CudaMark()

    @contextmanager
    def on(self, lane: str) -> Iterator[None]:
        with torch.cuda.device(self.device), torch.cuda.stream(self._streams[lane]):
            yield

    def set(self, mark: Mark, lane: str) -> None:
        assert isinstance(mark, _CudaMark)
        mark.event.record(self._streams[lane])

    def after(self, mark: Mark, lane: str) -> None:
        assert isinstance(mark, _CudaMark)
        self._streams[lane].wait_event(mark.event)

    @contextmanager
    def branch(self) -> Iterator[None]:
        """Beside the compute lane while a graph is recorded, and in it otherwise.

        Kernels launched one by one keep a GPU waiting for Python, so there is nothing to win;
        and memory that one stream frees must not be given to another that still runs.
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
        # A stream that is no part of a capture must not be waited for in it.
        if self._forked:
            self._forked = False
            self._streams["compute"].wait_stream(self._streams["branch"])

    def record(
        self, work: Callable[[], dict[str, Tensor]]
    ) -> tuple[Callable[[], None], dict[str, Tensor]]:
        if not self._graphs:
            # The allocator takes a pool for dead once its last graph is, and its name with it.
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        begun, inner = False, 0
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.cuda.device(self.device))
                # Threads of the node that have nothing to do with this may call CUDA meanwhile.
                capture = torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._streams["compute"],
                    capture_error_mode="thread_local",
                )
                # A workspace of cuBLAS belongs to a stream and is shared by what is launched
                # there. Each graph gets its own, inside of its pool: some versions of torch free
                # the stream's when any graph is destroyed (pytorch issue 193402).
                torch._C._cuda_clearCublasWorkspaces()
                stack.enter_context(capture)
                begun = True
                try:
                    results = work()
                except BaseException as error:
                    inner = id(error)
                    raise
        except BaseException as error:
            if begun and id(error) != inner:
                self._end_capture()
            # A capture that failed can leave its streams and its pool in the middle of it. What
            # the old streams had to do is done: a capture begins with waiting for the device.
            self._renew()
            raise
        self._graphs.add(graph)
        return graph.replay, results

    def _end_capture(self) -> None:
        """What older versions of torch leave out when the end of a capture fails: until then the
        allocator would give nothing back (pytorch pull requests 180395 and 190348)."""
        if _VERSION >= (2, 14):
            return
        where = (torch.cuda._utils._get_device_index(self.device, optional=True), self._pool)
        for end in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
            with suppress(RuntimeError):
                end(*where)

    def settle(self) -> None:
        for stream in self._streams.values():
            stream.synchronize()


class _CudaMark:
    def __init__(self) -> None:
        # Blocking: a wait sleeps instead of keeping a core busy.
        self.event = torch.cuda.Event(enable_timing=True, blocking=True)

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _CudaMark)
        return earlier.event.elapsed_time(self.event) * 1e-3


class HostStreams:
    """The same on the host, where all work is done when it is given."""

    device = torch.device("cpu")

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def mark(self) -> Mark:
        return _HostMark()

    def on(self, lane: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def set(self, mark: Mark, lane: str) -> None:
        assert isinstance(mark, _HostMark)
        mark.time = time.perf_counter()

    def after(self, mark: Mark, lane: str) -> None:
        pass

    def branch(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def join(self) -> None:
        pass

    def record(
        self, work: Callable[[], dict[str, Tensor]]
    ) -> tuple[Callable[[], None], dict[str, Tensor]]:
        # As on a GPU: a graph's results are what the work itself made, hold nothing until the
        # first replay, and are inference tensors if the work makes such.
        results, again = work(), work()
        for name, value in results.items():
            if value.data_ptr() != again[name].data_ptr():  # else it is the work's input
                _spoil(value)

        def repeat() -> None:
            with torch.inference_mode():
                for name, value in work().items():
                    results[name].copy_(value)

        return repeat, results

    def settle(self) -> None:
        pass


@torch.inference_mode()
def _spoil(values: Tensor) -> None:
    values.fill_(torch.nan if values.is_floating_point() else 255)


class _HostMark:
    time = 0.0

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _HostMark)
        return self.time - earlier.time
