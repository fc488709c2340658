# SPDX-License-Identifier: Apache-2.0
"""Triton kernels in the interpreter, with every access to memory checked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from dpt_ros.engine import triton_launch
from helpers.places import ROOT, TEST

_NOBODY, _SEVERAL = -1, -2


def run_interpreted(file: str, call: str, timeout: float = 300) -> str:
    """Call a function of a test's file in a process where Triton interprets; what it prints."""
    path = [ROOT, TEST, Path(file).parent]
    environment = dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    done = subprocess.run(
        [sys.executable, "-c", f"import {Path(file).stem} as test; test.{call}()"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def launched_by(launch: Callable[..., None]) -> Iterator[None]:
    """Within, Triton wrappers launch kernels by a function like ``triton_launch.run``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_launch, "run", launch)
        yield


class Interpreter:
    """Launches kernels in the interpreter. All accesses must stay within the tensors given, and
    no program may touch what another one writes: the order of programs is not defined.

    Attributes:
        calls: names of the kernels launched.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._memory: list[_Memory] = []

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        args: tuple,
        meta: dict[str, Any],
        warps: int = 4,
        fp_fusion: bool = True,
    ) -> None:
        """Takes the place of ``triton_launch.run``."""
        from triton.runtime import interpreter

        Builder = interpreter.InterpreterBuilder
        self.calls.append(kernel.__name__)
        # A tensor may stand in for one that is absent.
        tensors = {x.data_ptr(): x for x in args if isinstance(x, Tensor)}
        memory = [_Memory(x) for x in tensors.values()]
        load, store = Builder.create_masked_load, Builder.create_masked_store

        def check(builder: Any, pointers: Any, mask: Any, write: bool) -> None:
            addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].ravel()
            if addresses.size:
                owners = [one for one in memory if one.has(addresses)]
                assert owners, f"{kernel.__name__} leaves its tensors"
                owners[0].touch(addresses, _program(builder), write)

        def checked_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            check(builder, pointers, mask, False)
            return load(builder, pointers, mask, *rest)

        def checked_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            check(builder, pointers, mask, True)
            return store(builder, pointers, value, mask, *rest)

        replace_language, done = interpreter._patch_lang, set[Any]()

        def replace_once(function: Any) -> Any:
            # Each call that a kernel makes would do it again, which takes half of the time.
            if function in done:
                return None
            done.add(function)
            return replace_language(function)

        Builder.create_masked_load, Builder.create_masked_store = checked_load, checked_store
        interpreter._patch_lang = replace_once
        try:
            kernel[grid](*args, **meta, num_warps=warps, enable_fp_fusion=fp_fusion)
        finally:
            Builder.create_masked_load, Builder.create_masked_store = load, store
            interpreter._patch_lang = replace_language


class _Memory:
    """Who has read and written the values of a tensor."""

    def __init__(self, x: Tensor) -> None:
        self._size = x.element_size()
        self._start = x.data_ptr()
        count = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
        self._readers, self._writers = (np.full(count, _NOBODY) for _ in range(2))

    def has(self, addresses: np.ndarray) -> bool:
        end = self._start + self._size * len(self._readers)
        return bool(addresses.min() >= self._start and addresses.max() + self._size <= end)

    def touch(self, addresses: np.ndarray, program: int, write: bool) -> None:
        offsets, rest = np.divmod(addresses.astype(np.int64) - self._start, self._size)
        assert not rest.any()
        assert _only(self._writers[offsets], program), "another program wrote this"
        readers = self._readers[offsets]
        if write:
            assert _only(readers, program), "another program read this"
            assert len(np.unique(offsets)) == offsets.size, "written twice at once"
            self._writers[offsets] = program
        else:
            free = (readers == _NOBODY) | (readers == program)
            self._readers[offsets] = np.where(free, program, _SEVERAL)


def _only(programs: np.ndarray, program: int) -> bool:
    return bool(((programs == _NOBODY) | (programs == program)).all())


def _program(builder: Any) -> int:
    at, sizes = builder.grid_idx, builder.grid_dim
    return int(at[0] + sizes[0] * (at[1] + sizes[1] * at[2]))
