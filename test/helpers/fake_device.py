# SPDX-License-Identifier: Apache-2.0
"""Fake CUDA tensors: devices, shapes and memory layouts of a GPU, without one and without values.

torch itself refuses operations that mix devices, and those whose result depends on values (truth
of a tensor, ``item``, boolean indexing). What goes to the host is counted as a wait, what comes
from it as an upload, and everything that starts a kernel as a launch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from dpt_ros.engine import triton_launch
from dpt_ros.engine.inference.network import Network
from dpt_ros.model import create_model
from helpers.gpu_rehearsal import RehearsedNetwork
from helpers.networks import CPU, pair

CUDA = torch.device("cuda")
# Operations that make or describe memory and start nothing.
_FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view",
    "lift_fresh", "_reshape_alias", "is_pinned", "set_", "resize_",
}  # fmt: skip


class Counts(TorchDispatchMode):
    """What the operations in its context do to the device.

    Attributes:
        launches: kernels started, by name; of an operation of torch at least one.
        waits: values brought to the host.
        uploads: values brought from the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: list[str] = []
        self.uploads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        sources = [one for one in _tensors(args) if isinstance(one, Tensor)]
        results = _tensors(result)
        on_gpu = any(one.is_cuda for one in sources)
        to_gpu = any(one.is_cuda for one in results)
        if on_gpu and results and not to_gpu:
            self.waits.append(name)
        elif to_gpu and sources and not on_gpu:
            self.uploads += 1
        elif to_gpu and name not in _FREE and not func.is_view:
            self.launches[name] += 1
        return result

    def total(self) -> int:
        return sum(self.launches.values())


class FakeGpu:
    """Networks and counters of a GPU that is not there."""

    def __init__(self, counts: Counts, shared: bool, dtype: torch.dtype) -> None:
        self.counts = counts

        def make() -> Network:
            with unset_fake_temporarily():
                model = create_model("dpt_hybrid_embedded")
                backend = RehearsedNetwork(model, CPU, dtype)
            _move(model)
            return Network(model.spec, CUDA, backend)

        self.networks = pair(make, shared, device=CUDA, precision="fp16")


def _move(model: torch.nn.Module) -> None:
    """Fake CUDA tensors of the same shapes and layouts in the place of all real ones."""

    def fake(values: Tensor) -> Tensor:
        layout = {"dtype": values.dtype, "device": CUDA}
        return torch.empty_strided(values.shape, values.stride(), **layout)

    for module in model.modules():
        for name, values in list(module._parameters.items()):
            if values is not None:
                module._parameters[name] = torch.nn.Parameter(fake(values), requires_grad=False)
        for held in (module._buffers, vars(module)):
            for name, values in list(held.items()):
                if isinstance(values, Tensor):
                    held[name] = fake(values)


@contextmanager
def fake_gpu(shared: bool = True, dtype: torch.dtype = torch.float16) -> Iterator[FakeGpu]:
    """Within, tensors are fake, and those on "cuda" count what is done with them."""
    counts = Counts()

    def launch(kernel: Any, grid: Any, args: tuple, *rest: Any, **named: Any) -> None:
        assert all(one.is_cuda for one in args if isinstance(one, Tensor)), kernel.__name__
        counts.launches[kernel.__name__] += 1

    def cpu(values: Tensor) -> Tensor:
        counts.waits.append("cpu")
        with unset_fake_temporarily():
            return torch.ones(tuple(values.shape))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_launch, "_enabled", True)
        patch.setattr(triton_launch, "run", launch)
        patch.setattr(
            triton_launch,
            "triton_of",
            lambda x, module: import_module(module) if x.is_cuda else None,
        )
        with FakeTensorMode(allow_non_fake_inputs=True):
            gpu = FakeGpu(counts, shared, dtype)
            patch.setattr(Tensor, "cpu", cpu)
            with counts:
                yield gpu


def _tensors(values: Any) -> list[Tensor]:
    return [one for one in torch.utils._pytree.tree_leaves(values) if isinstance(one, Tensor)]
