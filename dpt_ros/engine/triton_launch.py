# SPDX-License-Identifier: Apache-2.0
"""Whether Triton's kernels are used, and how one is launched. Imports no triton."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from dpt_ros.engine.faults import AccelerationError, first_line, is_out_of_memory

_enabled = True

Launch = Callable[..., None]
"""Runs a kernel: kernel, grid, arguments, constants, warps, whether products fuse with sums."""


def turn_off_triton() -> None:
    """Use plain torch from now on."""
    global _enabled
    _enabled = False


def triton_installed() -> bool:
    """Whether there is a triton to import."""
    return find_spec("triton") is not None


def triton_enabled() -> bool:
    """Whether Triton's versions are used for CUDA tensors."""
    return _enabled and triton_installed()


def triton_of(x: Tensor, module: str) -> Any | None:
    """The module with Triton's versions of functions, for a CUDA tensor; None where plain torch
    computes."""
    # torch.compile writes better kernels from plain operations than around foreign ones.
    if not x.is_cuda or torch.compiler.is_compiling() or not triton_enabled():
        return None
    return import_module(module)


def run(
    kernel: Any,
    grid: tuple[int, ...],
    args: tuple,
    meta: dict[str, Any],
    warps: int,
    fp_fusion: bool = True,
) -> None:
    """Launch a kernel on the device of its first tensor, on torch's current stream.

    Raises:
        AccelerationError: the kernel cannot be compiled, loaded or launched.
    """
    try:
        with torch.cuda.device_of(args[0]):
            kernel[grid](*args, **meta, num_warps=warps, enable_fp_fusion=fp_fusion)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # any, from Triton, its compiler or its launcher
        if is_out_of_memory(error):
            raise
        raise AccelerationError(
            f"The Triton kernel {kernel.__name__} cannot be used, so plain torch is, which is"
            f" slower: {first_line(error)}",
            turn_off_triton,
        ) from error
