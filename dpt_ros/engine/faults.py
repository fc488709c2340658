# SPDX-License-Identifier: Apache-2.0
"""Faults of a device: out of memory, an acceleration that cannot be used, a lost device.

CUDA, cuDNN, cuBLAS, Triton and the allocator of page-locked memory report the same fault in
different forms; all are recognised here.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator

import torch

_CUDA_MEMORY_ALLOCATION = 2  # cudaErrorMemoryAllocation, also of cudaHostAlloc
# Parts of messages, lower case, of errors that are no torch.OutOfMemoryError.
_OUT_OF_MEMORY = (
    "out of memory",  # CUDA error 2 from any API, Triton's loader, graph instantiation
    "cudaerrormemoryallocation",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_device_allocation_failed",
    "cudnn_status_internal_error_host_allocation_failed",
    "cublas_status_alloc_failed",
    "cusolver_status_alloc_failed",
    # cuDNN reports that none of its engines works; cuBLAS and cuDNN cannot make a handle. Both
    # have other causes, too: then freeing memory does not help.
    "unable to find an engine to execute this computation",
    "cudnn_status_not_initialized",
    "cublas_status_not_initialized",
    # Jetson: the caching allocator asks the missing NVML for the text of its message.
    "nvml_success == r internal assert failed",
    "nvmapmemalloc",
    "failed to allocate memory for requested buffer",  # ONNX Runtime
)


class DeviceLostError(RuntimeError):
    """The GPU failed in a way that only a new process recovers from."""


class AccelerationError(RuntimeError):
    """An acceleration cannot be used; the work can be done without it.

    Args:
        message: what failed, why, and what is used instead.
        turn_off: turns it off permanently.
    """

    def __init__(self, message: str, turn_off: Callable[[], None]) -> None:
        super().__init__(message)
        self.turn_off = turn_off


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, the innermost last."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or now.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether device memory or page-locked host memory ran out, or may have."""
    return any(_is_out_of_memory(one) for one in causes(error))


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    if getattr(error, "error_code", None) == _CUDA_MEMORY_ALLOCATION:
        return True
    text = str(error).lower()
    return any(part in text for part in _OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def innermost_line(error: BaseException) -> str:
    """The first line of the innermost RuntimeError or OSError among an error's causes."""
    found: list[BaseException] = [
        one for one in causes(error) if isinstance(one, RuntimeError | OSError)
    ]
    return first_line((found or [error])[-1])


def without_locals(error: Exception) -> Exception:
    """The error without the local variables of its traceback, which keep tensors alive."""
    for one in causes(error):
        traceback.clear_frames(one.__traceback__)
    return error
