# SPDX-License-Identifier: Apache-2.0
"""What went wrong on a device: full memory, an acceleration that cannot be used, a lost device.

CUDA, cuDNN, cuBLAS, Triton and the host's allocator of pinned memory each report the same fault
in a form of their own; it is told here, once.
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
    # Jetson: the caching allocator asks NVML, which is not there, for the text of its message.
    "nvml_success == r internal assert failed",
    "nvmapmemalloc",
)


class DeviceLostError(RuntimeError):
    """The GPU failed in a way that only a new process recovers from; the message says so."""


class AccelerationError(RuntimeError):
    """Something that only makes the work faster cannot be used; without it the work can be done.

    Args:
        message: what failed, why, and what is used instead.
        turn_off: switches it off for good.
    """

    def __init__(self, message: str, turn_off: Callable[[], None]) -> None:
        super().__init__(message)
        self.turn_off = turn_off


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the innermost cause last."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or now.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device, or pinned memory of the host, ran out, in whatever words."""
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
    """The same of what led to the error."""
    return [first_line(one) for one in causes(error)][-1]


def without_locals(error: Exception) -> Exception:
    """The same error, whose traceback no longer keeps tensors of the failed work alive."""
    for one in causes(error):
        traceback.clear_frames(one.__traceback__)
    return error
