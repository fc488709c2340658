# SPDX-License-Identifier: Apache-2.0
"""The same arithmetic on torch's tensors and on numpy's numbers.

The estimation of scale and shift is some hundred operations on a few hundred numbers. On a GPU
they are tensors of a batch (..., N) and, of what there is one of per frame, (..., 1) or (...). On
a CPU numpy's calls cost a fraction of torch's: there the same functions get one camera's arrays
(N,) and numbers. What both have (operators, ``sum``, indices) is used directly; the rest is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any
"""A tensor, an array or a number."""

_double: ContextVar[torch.dtype] = ContextVar("double", default=torch.float64)


@contextmanager
def single_precision() -> Iterator[None]:
    """Within, float32 takes the place of float64 in tensors, in this thread: for runtimes without
    float64."""
    token = _double.set(torch.float32)
    try:
        yield
    finally:
        _double.reset(token)


def where(condition: Array, a: Array | float, b: Array | float) -> Array:
    """``a`` where the condition holds, else ``b``."""
    if isinstance(condition, Tensor):
        return torch.where(condition, a, b)
    if isinstance(condition, np.ndarray):
        return np.where(condition, a, b)
    return a if condition else b


def maximum(a: Array, b: Array | float) -> Array:
    """The larger one; NaN where ``a`` is NaN."""
    if isinstance(a, Tensor):
        return torch.maximum(a, b) if isinstance(b, Tensor) else a.clamp(min=b)
    if isinstance(a, np.ndarray):
        return np.maximum(a, b)
    return b if a < b else a


def minimum(a: Array, b: Array | float) -> Array:
    """The smaller one; NaN where ``a`` is NaN."""
    if isinstance(a, Tensor):
        return torch.minimum(a, b) if isinstance(b, Tensor) else a.clamp(max=b)
    if isinstance(a, np.ndarray):
        return np.minimum(a, b)
    return b if a > b else a


def column(x: Array) -> Array:
    """Of what there is one of per row: with an axis behind, beside arrays of the rows."""
    return x[..., None] if isinstance(x, Tensor | np.ndarray) else x


def stack(parts: list[Array], axis: int) -> Array:
    """Arrays side by side along a new axis."""
    return torch.stack(parts, axis) if isinstance(parts[0], Tensor) else np.stack(parts, axis)


def packed(parts: Sequence[Array]) -> Array:
    """(..., n) float64: what there is one of per row, side by side."""
    if isinstance(parts[0], Tensor):
        return torch.stack([double(part) for part in parts], -1)
    return np.array(parts, np.float64)


def numbers(count: int, like: Array) -> Array:
    """(count,) int64: 0, 1, ..."""
    if isinstance(like, Tensor):
        return torch.arange(count, device=like.device)
    return np.arange(count)


def gather(x: Array, index: Array) -> Array:
    """(..., K, ...): of (..., N), at indices (..., K, ...) along the last axis."""
    if isinstance(x, Tensor):
        return x.gather(-1, index.flatten(x.ndim - 1)).view_as(index)
    return x[index] if x.ndim == 1 else np.take_along_axis(x, index, -1)


def _first_true(x: Tensor) -> Tensor:
    count = x.shape[-1]  # of different keys, since not every runtime sorts stably
    keys = torch.arange(count, device=x.device) + count * (~x).long()
    return keys.sort(-1).values % count


def _both(of_tensors: Callable[..., Any], of_arrays: Callable[..., Any]) -> Callable[..., Array]:
    def function(x: Array, *more: Array) -> Array:
        return (of_tensors if isinstance(x, Tensor) else of_arrays)(x, *more)

    return function


sqrt = _both(torch.sqrt, np.sqrt)
exp, log = _both(torch.exp, np.exp), _both(torch.log, np.log)
zeros = _both(torch.zeros_like, np.zeros_like)
# As float64, tensors within ``single_precision`` as float32; as float32; as int64, towards 0.
double = _both(lambda x: x.to(_double.get()), np.float64)
single = _both(Tensor.float, np.float32)
whole = _both(Tensor.long, lambda x: x.astype(np.int64) if isinstance(x, np.ndarray) else int(x))
# The parts along the last axis; (..., M, N) times (..., N).
columns = _both(lambda x: x.unbind(-1), list)
product = _both(lambda matrix, vector: (matrix @ vector[..., None])[..., 0], np.matmul)
# Sorted along the last axis, NaN last; of tensors as +inf, since ONNX does not order NaN.
ascending = _both(lambda x: torch.where(x == x, x, torch.inf).sort(-1).values, np.sort)
# Indices along the last axis: of what is True in its order, then of the rest.
first_true = _both(_first_true, lambda x: np.argsort(~x, kind="stable"))
# The largest and the smallest along an axis; NaN if there is a NaN.
largest, smallest = _both(Tensor.amax, np.ndarray.max), _both(Tensor.amin, np.ndarray.min)
