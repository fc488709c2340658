# SPDX-License-Identifier: Apache-2.0
"""Numbers of a frame, packed into one vector, so that one copy takes all of them to a device."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

Fields = dict[str, tuple[tuple[int, ...], str]]
"""Names, shapes and meanings of the parts of a vector, in their order."""


def length(fields: Fields) -> int:
    """The number of values."""
    return _places(tuple(fields.items()))[-1][3]


def offsets(fields: Fields) -> dict[str, int]:
    """Where each part begins."""
    return {name: first for name, _, first, _ in _places(tuple(fields.items()))}


def pack(fields: Fields, values: dict[str, Any]) -> np.ndarray:
    """(length,) float32; what has no value is 0."""
    packed = np.zeros(length(fields), np.float32)
    places = {place[0]: place for place in _places(tuple(fields.items()))}
    for name, value in values.items():
        _, shape, first, last = places[name]
        packed[first:last].reshape(shape)[...] = value
    return packed


def unpack(fields: Fields, packed: Any) -> dict[str, Any]:
    """Views of (B, length), a tensor or an array: by name (B, *shape)."""
    return {
        name: packed[:, first:last].reshape(len(packed), *shape) if shape else packed[:, first]
        for name, shape, first, last in _places(tuple(fields.items()))
    }


@lru_cache
def _places(parts: tuple) -> list[tuple[str, tuple[int, ...], int, int]]:
    """Name, shape, begin and end of each part."""
    shapes = [shape for _, (shape, _) in parts]
    ends = list(accumulate(map(math.prod, shapes)))
    return list(zip(dict(parts), shapes, [0, *ends[:-1]], ends, strict=True))
