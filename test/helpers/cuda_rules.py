# SPDX-License-Identifier: Apache-2.0
"""A model of what torch.cuda does about graphs: pools with use counts, forks, cuBLAS workspaces.

It computes nothing. It keeps the rules that only a GPU would enforce and counts their violations:

* A pool whose last graph has died is dead, and capturing into it again fails, as the assertion on
  ``use_count`` in CUDACachingAllocator does.
* A capture cannot end while a stream that was forked from it is not joined, and a capturing stream
  cannot wait for one that is no part of the capture.
* cuBLAS keeps a workspace per stream. One made during a capture lies in the graph's pool, any
  other is the allocator's own. Destroying a graph clears those of its stream (torch 2.12 to 2.14,
  pytorch issue 193402); a graph that holds the address of a freed one that lay in no pool would
  write to memory of somebody else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch


class Workspace:
    """Memory of cuBLAS; ``pool`` is that of the graph during whose capture it was made."""

    def __init__(self, pool: int | None) -> None:
        self.pool, self.freed = pool, False


class Cuda:
    """The state of the model.

    Attributes:
        violations: replays of graphs that would have written to memory of somebody else.
        graphs: how many are alive, by pool.
        dead: pools that must not be used again.
    """

    def __init__(self) -> None:
        self.violations = 0
        self.graphs: Counter[int] = Counter()
        self.dead: set[int] = set()
        self.workspaces: dict[Any, Workspace] = {}
        self.current: Stream | None = None
        self._pools = 0

    def pool(self) -> int:
        self._pools += 1
        return self._pools

    def clear_workspaces(self, stream: Any = None) -> None:
        for key in [stream] if stream in self.workspaces else list(self.workspaces):
            self.workspaces.pop(key).freed = True

    def matmul(self) -> None:
        """What any matrix product does on the current stream."""
        stream = self.current
        assert stream is not None
        capture = stream.capture
        made = Workspace(None if capture is None else capture.pool)
        workspace = self.workspaces.setdefault(stream, made)
        if capture is not None:
            capture.workspaces.append(workspace)


class Stream:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.capture = cuda, None  # the graph that it is being captured into

    def wait_stream(self, other: Stream) -> None:
        if self.capture is None:
            self.capture = other.capture
            if other.capture is not None:
                other.capture.forked.add(self)
        elif other.capture is not self.capture:
            raise RuntimeError("CUDA error: dependency created on uncaptured work")
        else:
            self.capture.forked.discard(other)
            other.capture = None

    def synchronize(self) -> None:
        if self.capture is not None:
            raise torch.AcceleratorError("CUDA error: operation not permitted when capturing")


class Graph:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.pool, self.stream = cuda, None, None
        self.forked: set[Stream] = set()
        self.workspaces: list[Workspace] = []

    def replay(self) -> None:
        self.cuda.violations += any(w.freed and w.pool is None for w in self.workspaces)

    def __del__(self) -> None:
        if self.pool is not None:
            self.cuda.graphs[self.pool] -= 1
            if not self.cuda.graphs[self.pool]:
                self.cuda.dead.add(self.pool)
            self.cuda.clear_workspaces(self.stream)


@contextmanager
def modelled_cuda() -> Iterator[Cuda]:
    """Within, torch.cuda's streams and graphs are the model's."""
    cuda = Cuda()

    @contextmanager
    def capturing(graph: Graph, pool: int, stream: Stream, **options: Any) -> Iterator[None]:
        if pool in cuda.dead:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        stream.capture = graph
        graph.pool, graph.stream = pool, stream
        cuda.graphs[pool] += 1
        before, cuda.current = cuda.current, stream
        failed = True
        try:
            yield
            failed = False
        finally:
            stream.capture, cuda.current = None, before
            if graph.forked:
                raise RuntimeError("CUDA error: capturing stream has unjoined work")
            if failed:
                raise RuntimeError(
                    "CUDA error: operation failed due to a previous error during capture"
                )

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, cuda.current = cuda.current, stream
        yield
        cuda.current = before

    def is_capturing() -> bool:
        return cuda.current is not None and cuda.current.capture is not None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Stream", lambda device: Stream(cuda))
        patch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(cuda))
        patch.setattr(torch.cuda, "graph_pool_handle", cuda.pool)
        patch.setattr(torch.cuda, "graph", capturing)
        patch.setattr(torch.cuda, "stream", on)
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        patch.setattr(torch.cuda, "is_current_stream_capturing", is_capturing)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", cuda.clear_workspaces)
        yield cuda
