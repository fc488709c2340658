# SPDX-License-Identifier: Apache-2.0
"""The least time that a network's arithmetic and memory traffic allow on a device."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dpt_ros.engine.inference import kernels

# No work on a GPU: memory is asked for, or looked at another way. Attention, taken apart on the
# meta device, leaves a clone behind that its one kernel does not need.
_NOTHING = {"empty", "clone", "detach", "_unsafe_view"}
# What a GPU does in one kernel and the meta device takes apart.
_ATTENTION = (F, "scaled_dot_product_attention")
FUSED = [
    (kernels, name)
    for name in ("group_norm_act", "upsample_add", "bias_act", "add_layer_norm", "depth_tail")
]


@dataclass
class Work:
    """What one forward does.

    Args:
        by_name: how many ATen operations of each name run, views left out.
        heavy: floating-point operations and bytes of each convolution, matrix product and
            attention: the operations of flop_counter. The rest can be fused into them.
    """

    by_name: Counter[str] = field(default_factory=Counter)
    heavy: list[tuple[int, int]] = field(default_factory=list)

    @property
    def operations(self) -> int:
        """How many ATen operations run, views left out."""
        return sum(self.by_name.values())

    @property
    def flops(self) -> int:
        """Floating-point operations of ``heavy``."""
        return sum(flops for flops, _ in self.heavy)

    def floor(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Seconds: the larger of arithmetic and traffic, operation by operation, summed."""
        return sum(max(f / flops_per_second, b / bytes_per_second) for f, b in self.heavy)


class _Counting(TorchDispatchMode):
    def __init__(self, work: Work, bytes_per_value: int) -> None:
        super().__init__()
        self._work, self._bytes, self._inside = work, bytes_per_value, False

    def as_one(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, counted as one operation whatever it consists of."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._count(name)
            self._inside = True
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False

        return counted

    def _count(self, name: str) -> None:
        if not self._inside:
            self._work.by_name[name] += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _NOTHING:
            self._count(name)
        flops = flop_registry.get(func.overloadpacket)
        if flops is not None:
            leaves = tree_leaves((args, kwargs, out))
            values = sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))
            self._work.heavy.append((flops(*args, **kwargs, out_val=out), self._bytes * values))
        return out


def count_work(run: Callable[[], Any], bytes_per_value: int = 2) -> Work:
    """Count what ``run`` does; with meta tensors nothing is computed.

    Attention and the fused operations of ``kernels`` count as one operation each.

    Args:
        run: a forward.
        bytes_per_value: of weights and activations, whatever the tensors are now.
    """
    work = Work()
    counting = _Counting(work, bytes_per_value)
    with torch.no_grad(), counting, ExitStack() as stack:
        for module, name in (_ATTENTION, *FUSED):
            counted = counting.as_one(name, getattr(module, name))
            stack.enter_context(patch.object(module, name, counted))
        run()
    return work


def network_work(model: nn.Module, batch: int, size: tuple[int, int]) -> Work:
    """The work of a plain network in half precision; ``model`` must be on the meta device."""
    images = torch.empty(batch, 3, *size, device="meta")
    return count_work(lambda: model(images))


def matmul_peak(device: torch.device, dtype: torch.dtype, side: int = 8192) -> float:
    """Floating-point operations per second of one large matrix product of random numbers."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * side**3 / _best_seconds(lambda: a @ b, device)


def copy_bandwidth(device: torch.device, size: int = 1 << 30) -> float:
    """Bytes per second, read and written, of a large copy inside the device's memory."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * size / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(work: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return min(times[2:])
