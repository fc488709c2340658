# SPDX-License-Identifier: Apache-2.0
"""Whether Triton's kernels are used, and how one is launched. Imports no triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from dpt_ros.engine.faults import AccelerationError, first_line, is_out_of_memory

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
MOST_NUMBERS = 2**31  # of a tensor: offsets are 32-bit
_enabled = True
_Plain = TypeVar("_Plain", bound=Callable[..., Any])


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


def has_twin(module: str) -> Callable[[_Plain], _Plain]:
    """Of a function of plain torch: where ``triton_of`` its first argument is not None, the
    function of the same name in a module of Triton's versions computes."""

    def decorated(plain: _Plain) -> _Plain:
        @wraps(plain)
        def chosen(x: Tensor, *more: Any, **named: Any) -> Any:
            triton = triton_of(x, module)
            return (getattr(triton, plain.__name__) if triton else plain)(x, *more, **named)

        return cast(_Plain, chosen)

    return decorated


def check_maps(name: str, *maps: Tensor, shape: Sequence[int] = ()) -> torch.Size:
    """The shape of the maps given to the wrapper ``name``.

    Raises:
        ValueError: one is not float32, not contiguous, too large, or not of the shape, if given.
    """
    for one in maps:
        fits = one.dtype == torch.float32 and one.is_contiguous() and one.numel() < MOST_NUMBERS
        if not fits or (shape and one.shape != tuple(shape)):
            wanted = f" of shape {tuple(shape)}" if shape else ""
            raise ValueError(
                f"{name} takes contiguous float32 maps{wanted} of fewer than 2^31 numbers, but"
                f" got {one.dtype} of shape {tuple(one.shape)} with strides {one.stride()}."
            )
    return maps[0].shape


def check_rows(name: str, batch: int, *vectors: tuple[Tensor, int]) -> list[int]:
    """Distances in memory of the cameras' vectors, which are given with their lengths.

    Raises:
        ValueError: one is not float32 of shape (batch, length), each row in one piece.
    """
    for x, count in vectors:
        beside = count == 1 or x.stride(1) == 1
        if x.dtype != torch.float32 or x.shape != (batch, count) or not beside:
            raise ValueError(
                f"{name} takes float32 vectors of shape {(batch, count)}, each in one piece, but"
                f" got {x.dtype} of shape {tuple(x.shape)} with strides {x.stride()}."
            )
    return [x.stride(0) for x, _ in vectors]


def run(
    kernel: Any,
    grid: tuple[int, ...],
    args: tuple,
    meta: dict[str, Any],
    warps: int = 4,
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
