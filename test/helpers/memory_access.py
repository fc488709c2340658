# SPDX-License-Identifier: Apache-2.0
"""Who touches which memory: every operation of torch on this thread, and the arrays of buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_UNTOUCHED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Log(Protocol):
    """What is told of each use of memory."""

    host: str
    lane: str

    def memory_of(self, given: Any) -> list[Any]:
        """The storages behind an argument."""

    def new_memory_of(self, out: Any, name: str) -> list[Any]:
        """The storages that an operation made."""

    def use(self, lane: str, name: str, reads: Sequence[Any], writes: Sequence[Any]) -> None:
        """An operation given to a lane, or done by a host thread."""


class HostBuffer(Tensor):
    """Pinned memory, whose arrays tell what the host does with them."""

    # Results are plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl
    log: Log
    memory: Any

    def numpy(self, *, force: bool = False) -> np.ndarray:
        array = super().numpy(force=force).view(HostArray)
        array.log, array.memory = self.log, self.memory
        return array


class HostArray(np.ndarray):
    log: Log | None
    memory: Any

    def __array_finalize__(self, parent: object) -> None:
        self.log = getattr(parent, "log", None)
        self.memory = getattr(parent, "memory", None)
        if self.base is None:  # a copy
            self.log = self.memory = None

    def __getitem__(self, key: Any) -> Any:
        self.touch(writes=False)
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.touch(writes=True)
        super().__setitem__(key, value)

    def touch(self, writes: bool) -> None:
        if self.log is not None and self.memory is not None:
            here = [self.memory]
            name = "write" if writes else "read"
            self.log.use(self.log.host, name, *(([], here) if writes else (here, [])))


class Watch(TorchDispatchMode):
    """Tells the log of every operation on this thread."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        reads, writes = [], []
        for k, argument in enumerate(func._schema.arguments):
            given = kwargs.get(argument.name, args[k] if k < len(args) else None)
            info = argument.alias_info
            into = writes if info is not None and info.is_write else reads
            into += self._log.memory_of(given)
        fresh = self._log.new_memory_of(out, name)
        if func.is_view and not fresh:  # some, such as aten::to, may or may not copy
            return out
        self._log.use(
            self._log.lane,
            name,
            [one for one in reads if one not in writes],
            writes + ([] if name in _UNTOUCHED else fresh),
        )
        return out


def tensors(given: Any) -> Iterator[Tensor]:
    for leaf in tree_leaves(given):
        # What oneDNN has packed is no memory that anybody else could see.
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
            yield leaf
