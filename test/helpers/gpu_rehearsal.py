# SPDX-License-Identifier: Apache-2.0
"""A GPU rehearsed on the CPU: at least as strict as the real one, wherever its rules can be told.

The networks are those of a GPU (fused, channels_last). Each call of a Triton kernel goes through
its real wrapper, which checks types, shapes and memory layouts and makes the results' memory;
instead of the launch, the plain twin computes the values. OpenCV is not used on maps. What is
captured runs under the rules of a captured graph: its results hold nothing until a replay and are
written in place by each, nothing may ask for a value meanwhile, and a kernel variant may not be
loaded first by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from inspect import ismethod
from typing import Any
from weakref import WeakMethod

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from dpt_ros.engine import triton_launch
from dpt_ros.engine.inference.backend import TorchModel
from dpt_ros.engine.output import postprocess
from dpt_ros.engine.runner.chain import Chain
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.smoothing import flow
from dpt_ros.model import DPT
from helpers.plain_torch import plain_torch

_WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "item", "unique2")


class RehearsedNetwork(TorchModel):
    """A network prepared as for a GPU."""

    def _prepare_for_cpu(self, model: DPT) -> None:
        self._prepare_for_gpu(model, torch.device("cpu"))


class Kernels:
    """The Triton kernels with their launches left out.

    Attributes:
        variants: of the kernels launched so far: what Triton compiles and loads once each.
        capturing: whether a graph is being captured.
        broken: a kernel's name whose launch fails, "" for none.
        active: whether CPU tensors are treated as a GPU's.
        calls: launches by kernel.
    """

    def __init__(self) -> None:
        self.variants: set[Any] = set()
        self.capturing = False
        self.broken = ""
        self.active = True
        self.calls: dict[str, int] = {}
        self._run = triton_launch.run

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, the CPU is a CPU."""
        self.active = False
        try:
            yield
        finally:
            self.active = True

    def enabled(self) -> bool:
        """Whether Triton's versions are used."""
        return self.active and triton_launch.triton_enabled()

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        args: tuple,
        meta: dict[str, Any],
        warps: int = 4,
        fp_fusion: bool = True,
    ) -> None:
        name = kernel.__name__
        assert all(0 < side < 2**31 for side in grid), (name, grid)
        assert all(side < 2**16 for side in grid[1:]), (name, grid)
        if name == self.broken:
            self._fail(kernel, args)
        variant = (name, *sorted(meta.items()), *_specialisation(kernel, args), warps, fp_fusion)
        if self.capturing and variant not in self.variants:
            raise RuntimeError(
                f"operation not permitted when stream is capturing: {name} is loaded first"
            )
        self.variants.add(variant)
        self.calls[name] = self.calls.get(name, 0) + 1

    def _fail(self, kernel: Any, args: tuple) -> None:
        # The real launcher, whose kernel cannot run where no GPU is.
        self._run(kernel, (1,), args, {}, 4)


class _Wrappers:
    """The wrappers of a module "triton_X", with values from the plain twins in its module "X"."""

    def __init__(self, module: str) -> None:
        self._triton = import_module(module)
        self._plain = import_module(module.replace("triton_", ""))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        wrapper, plain = getattr(self._triton, name), getattr(self._plain, name)

        def call(*args: Any, **named: Any) -> Any:
            made = wrapper(*args, **named)
            with plain_torch():
                values = plain(*args, **named)
            for into, value in zip(_tensors(made), _tensors(values), strict=True):
                assert into.dtype == value.dtype, (name, into.dtype, value.dtype)
                assert into.shape == value.shape, (name, into.shape, value.shape)
                into.copy_(value)
            return made

        return call


class RehearsalStreams(Streams):
    """The host's lanes under a GPU's rules of capture."""

    def __init__(self, rehearsed: Kernels) -> None:
        self._kernels = rehearsed
        self._forked = False

    @contextmanager
    def branch(self) -> Iterator[None]:
        self._forked = self._kernels.capturing
        yield

    def join(self) -> None:
        self._forked = False

    def begin_capture(self) -> None:
        """Called in each capture."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self._kernels.capturing = True
        captured = Captured()
        try:
            with captured:
                self.begin_capture()
                work()
        except BaseException:
            # The end of a capture hides what went wrong inside of it.
            raise RuntimeError(
                "CUDA error: capturing stream has unjoined work"
                if self._forked
                else "CUDA error: operation failed due to a previous error during capture"
            ) from None
        finally:
            self._kernels.capturing = False
        if self._forked:
            raise RuntimeError("CUDA error: capturing stream has unjoined work")
        return replay_of(work, captured.outside)


def replay_of(work: Callable[[], None], outside: set[int] | None = None) -> Callable[[], None]:
    """What repeats captured work. As a graph, it keeps nothing of what it reads alive, and its own
    memory aside it knows those addresses only that its capture used: ``outside``, None where
    another check sees to that."""
    method = WeakMethod(work) if ismethod(work) else lambda: work

    def replay() -> None:
        again = method()
        assert again is not None, "what a graph reads was freed"
        with torch.inference_mode(), nullcontext() if outside is None else Touched() as touched:
            again()
        assert touched is None or touched.outside <= outside, "a graph would not use this memory"

    return replay


class Touched(TorchDispatchMode):
    """Work whose memory is watched.

    Attributes:
        outside: storages that it uses and did not make.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outside: set[int] = set()
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.outside.update(k for k in _storages((args, kwargs)) if k not in self._made)
        result = func(*args, **(kwargs or {}))
        new = _storages(result)
        self._made.update((k, one) for k, one in new.items() if k not in self.outside)
        return result


def _storages(given: Any) -> dict[int, Tensor]:
    """Tensors by the address of their memory."""
    found, left = {}, [given]
    while left:  # several times faster than tree_leaves, and called for every operation
        one = left.pop()
        if isinstance(one, Tensor):
            if one.layout == torch.strided:
                found[one.untyped_storage().data_ptr()] = one
        elif isinstance(one, (tuple, list)):
            left.extend(one)
        elif isinstance(one, dict):
            left.extend(one.values())
    found.pop(0, None)  # of no size
    return found


class Captured(Touched):
    """Work that is captured: it refuses what brings a value to the host, and nothing is computed:
    memory from outside is in the end as it was before."""

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        if name in _WAITS or masks:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for argument, given in zip(func._schema.arguments, args, strict=False):
            info = argument.alias_info
            if info is not None and info.is_write and isinstance(given, Tensor):
                self._keep(given)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _keep(self, given: Tensor) -> None:
        place = given.untyped_storage().data_ptr()
        if place not in self._made and place not in self._before:
            with _disable_current_modes():
                whole = torch.empty(0, dtype=torch.uint8).set_(given.untyped_storage())
                self._before[place] = (whole, whole.clone())

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        with _disable_current_modes(), torch.inference_mode():
            for whole, before in self._before.values():
                whole.copy_(before)


@contextmanager
def rehearsal() -> Iterator[Kernels]:
    """Within, CPU tensors are treated as a GPU's."""
    rehearsed = Kernels()

    def triton_of(x: Tensor, module: str) -> _Wrappers | None:
        usable = rehearsed.enabled() and not torch.compiler.is_compiling()
        return _Wrappers(module) if usable else None

    with pytest.MonkeyPatch.context() as patch, flow_of_a_device():
        patch.setattr(
            triton_launch, "_enabled", True
        )  # put back at the end, whoever turned it off
        patch.setattr(triton_launch, "triton_of", triton_of)
        patch.setattr(triton_launch, "run", rehearsed.launch)
        patch.setattr(postprocess, "on_host", lambda values: not rehearsed.active)
        yield rehearsed


@contextmanager
def flow_of_a_device() -> Iterator[None]:
    """Within, a host runner has the grey levels and the optical flow that a GPU would have."""
    make, preprocess = Chain.__init__, Chain.preprocess

    def made(self: Chain, *args: Any, **named: Any) -> None:
        make(self, *args, **named)
        if self.on_host:
            self.luma_size = flow.flow_size(*self.map_size)

    def preprocessed(self: Chain, pixels: Any) -> tuple[list[Tensor], Tensor | None]:
        images, luma = preprocess(self, pixels)
        if self.on_host and luma is not None:
            spec = self._depth.spec
            scale, offset = torch.tensor([spec.std, spec.mean]) * 255
            luma = flow.luma_of(images[-1], scale, offset)
        return images, luma

    def searched(luma: Tensor, previous: Tensor, out: Tensor | None) -> Tensor:
        found = flow.inverse_search(luma, previous)
        return found if out is None else out.copy_(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chain, "__init__", made)
        patch.setattr(Chain, "preprocess", preprocessed)
        patch.setattr(flow, "_flow_on_host", searched)
        yield


def _specialisation(kernel: Any, args: tuple) -> list[Any]:
    """What Triton makes a machine code of its own for, beside constants and number of warps."""
    free = {kernel.arg_names.index(name) for name in getattr(kernel, "do_not_specialize", ())
            if isinstance(name, str)}  # fmt: skip
    found: list[Any] = []
    for index, value in enumerate(args):
        if isinstance(value, Tensor):
            found.append((value.dtype, value.data_ptr() % 16 == 0))
        elif isinstance(value, float):
            found.append("float")
        elif index in free:
            found.append("int")
        else:
            found.append(value if value == 1 else ("int", value % 16 == 0, value >= 2**31))
    return found


def _tensors(values: Any) -> list[Tensor]:
    parts = values if isinstance(values, tuple) else (values,)
    return [one for one in parts if one is not None]
