# SPDX-License-Identifier: Apache-2.0
"""Numbers of a frame, packed into one vector, so that one copy takes all of them to a device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Fields = dict[str, tuple[tuple[int, ...], str]]
"""Names, shapes and meanings of the parts of a vector, in their order."""


def length(fields: Fields) -> int:
    """The number of values."""
    return sum(math.prod(shape) for shape, _ in fields.values())


def offsets(fields: Fields) -> dict[str, int]:
    """Where each part begins."""
    found, at = {}, 0
    for name, (shape, _) in fields.items():
        found[name], at = at, at + math.prod(shape)
    return found


def pack(fields: Fields, values: dict[str, Any]) -> np.ndarray:
    """(length,) float32; what has no value is 0."""
    packed = np.zeros(length(fields), np.float32)
    parts = unpack(fields, packed[None])
    for name, value in values.items():
        parts[name][0] = value
    return packed


def unpack(fields: Fields, packed: Any) -> dict[str, Any]:
    """Views of (B, length), a tensor or an array: by name (B, *shape)."""
    found, at = {}, 0
    for name, (shape, _) in fields.items():
        if shape:
            count = math.prod(shape)
            found[name] = packed[:, at : at + count].reshape(len(packed), *shape)
        else:
            count, found[name] = 1, packed[:, at]
        at += count
    return found
