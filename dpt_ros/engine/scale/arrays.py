# SPDX-License-Identifier: Apache-2.0
"""The same arithmetic on torch's tensors and on numpy's arrays.

The estimation of scale and shift is some hundred operations on a few hundred numbers. On a CPU
numpy's calls cost a third of torch's; on a GPU the same functions get tensors. What both have
(operators, ``sum``, ``cumsum``, indices) is used directly; the rest is here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any
"""A tensor or an array."""


def where(condition: Array, a: Array | float, b: Array | float) -> Array:
    """``a`` where the condition holds, else ``b``."""
    return (torch if isinstance(condition, Tensor) else np).where(condition, a, b)


def maximum(a: Array, b: Array | float) -> Array:
    """The larger one; of NaN and a number, NaN."""
    if isinstance(a, Tensor):
        return torch.maximum(a, b) if isinstance(b, Tensor) else a.clamp(min=b)
    return np.maximum(a, b)


def minimum(a: Array, b: Array | float) -> Array:
    """The smaller one; of NaN and a number, NaN."""
    if isinstance(a, Tensor):
        return torch.minimum(a, b) if isinstance(b, Tensor) else a.clamp(max=b)
    return np.minimum(a, b)


def sqrt(x: Array) -> Array:
    """The square root; NaN of a negative number."""
    return x.sqrt() if isinstance(x, Tensor) else np.sqrt(x)


def exp(x: Array) -> Array:
    """e to the power of x."""
    return x.exp() if isinstance(x, Tensor) else np.exp(x)


def log(x: Array) -> Array:
    """The natural logarithm; NaN of a negative number."""
    return x.log() if isinstance(x, Tensor) else np.log(x)


def double(x: Array) -> Array:
    """As float64."""
    return x.double() if isinstance(x, Tensor) else x.astype(np.float64)


def single(x: Array) -> Array:
    """As float32."""
    return x.float() if isinstance(x, Tensor) else x.astype(np.float32)


def whole(x: Array) -> Array:
    """As int64, towards 0."""
    return x.long() if isinstance(x, Tensor) else x.astype(np.int64)


def stack(parts: list[Array], axis: int) -> Array:
    """Side by side along a new axis."""
    return torch.stack(parts, axis) if isinstance(parts[0], Tensor) else np.stack(parts, axis)


def numbers(count: int, like: Array) -> Array:
    """(count,) int64: 0, 1, ..."""
    if isinstance(like, Tensor):
        return torch.arange(count, device=like.device)
    return np.arange(count)


def ascending(x: Array) -> Array:
    """Sorted along the last axis, NaN last."""
    return x.sort(-1).values if isinstance(x, Tensor) else np.sort(x)


def first_true(x: Array) -> Array:
    """Indices along the last axis: of what is True in its order, then of the rest."""
    if isinstance(x, Tensor):
        return x.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    return np.argsort(~x, axis=-1, kind="stable")


def gather(x: Array, index: Array) -> Array:
    """(..., K): of (..., N), at indices (..., K) along the last axis."""
    if isinstance(x, Tensor):
        return x.gather(-1, index)
    rows = x.size // x.shape[-1]
    if rows > 1:
        index = index + (np.arange(rows) * x.shape[-1]).reshape(*x.shape[:-1], 1)
    return x.reshape(-1)[index]


def largest(x: Array, axis: int) -> Array:
    """The largest along an axis; NaN if there is a NaN."""
    return x.amax(axis) if isinstance(x, Tensor) else x.max(axis)


def smallest(x: Array, axis: int) -> Array:
    """The smallest along an axis; NaN if there is a NaN."""
    return x.amin(axis) if isinstance(x, Tensor) else x.min(axis)
