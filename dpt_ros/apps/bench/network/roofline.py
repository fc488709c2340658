# SPDX-License-Identifier: Apache-2.0
"""The least time that a network's arithmetic and memory traffic allow on a device."""

from __future__ import annotations

import timeit
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dpt_ros.engine.inference import kernels

# No work on a GPU: memory is asked for, or looked at another way. Attention, taken apart on the
# meta device, leaves a clone behind that its one kernel does not need.
_NOTHING = {"empty", "clone", "detach", "_unsafe_view"}
# What a GPU does in one kernel and the meta device takes apart.
_FUSED = ("group_norm_act", "upsample_add", "bias_act", "add_layer_norm", "depth_tail")
_ONE = [(F, "scaled_dot_product_attention"), *((kernels, name) for name in _FUSED)]


class Work(TorchDispatchMode):
    """Counts what runs while it is entered.

    Attributes:
        by_name: how many ATen operations of each name run, views left out.
        heavy: floating-point operations and bytes (in half precision, whatever the tensors are
            now) of each convolution, matrix product and attention: the operations of
            flop_counter. The rest can be fused into them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.heavy: list[tuple[int, int]] = []
        self._inside = False

    def floor(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Seconds: the larger of arithmetic and traffic, operation by operation, summed."""
        return sum(max(f / flops_per_second, b / bytes_per_second) for f, b in self.heavy)

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
            self.by_name[name] += 1

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
            self.heavy.append((flops(*args, **kwargs, out_val=out), 2 * values))
        return out


def count_work(run: Callable[[], Any]) -> Work:
    """Count what a forward does; with meta tensors nothing is computed. Attention and the fused
    operations of ``kernels`` count as one operation each."""
    with torch.no_grad(), Work() as work, ExitStack() as stack:
        for module, name in _ONE:
            counted = work.as_one(name, getattr(module, name))
            stack.enter_context(patch.object(module, name, counted))
        run()
    return work


def peaks(device: str) -> dict[str, float]:
    """What a device reaches per second: floating-point operations of one large matrix product of
    random numbers in half precision, bytes read and written by one large copy inside it."""
    on_gpu = torch.device(device).type == "cuda"
    half, side, size = (torch.float16, 8192, 1 << 30) if on_gpu else (torch.float32, 512, 1 << 22)
    a, b = (torch.randn(side, side, device=device, dtype=half) for _ in range(2))
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def best_seconds(work: Callable[[], object]) -> float:
        def finished() -> None:
            work()
            if on_gpu:
                torch.cuda.synchronize(device)

        return min(timeit.repeat(finished, number=1, repeat=20)[2:])

    return {
        "matmul (FLOP/s)": 2.0 * side**3 / best_seconds(lambda: a @ b),
        "copy (B/s)": 2.0 * size / best_seconds(lambda: target.copy_(source)),
    }
