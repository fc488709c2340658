# SPDX-License-Identifier: Apache-2.0
"""Values out of bytes: what a fuzzer's mutations turn into fields of a message."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-3, 100.0, float("nan"), float("inf"), -float("inf"))
_EXTREME = (5e-324, 2.2e-308, 1e-30, 1e30, 3.5e38, 1.7e308, -1.7e308, 1e16)
_WORDS = ("", "camera", "base_link", "rgb8", "\n", "\x1b[31m", "ä" * 40, "x" * 300)


class Choices:
    """Takes one value after the other from bytes; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        part = self._data[self._at : self._at + size]
        self._at += size
        return part.ljust(size, b"\0")

    def rest(self) -> bytes:
        """All bytes that are left."""
        part = self._data[self._at :]
        self._at = len(self._data)
        return part

    @property
    def any_left(self) -> bool:
        return self._at < len(self._data)

    def integer(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``; small ones and those near a limit are likely."""
        kind = self.take(1)[0]
        span = high - low + 1
        if kind < 128:
            return low + kind % span
        if kind < 160:
            return high - (kind - 128) % span
        return low + int.from_bytes(self.take(8), "little") % span

    def pick(self, options: Sequence[T]) -> T:
        return options[self.take(1)[0] % len(options)]

    def real(self) -> float:
        """A double: an everyday one, a special one, or any bits."""
        kind = self.take(1)[0]
        if kind < 100:
            return (kind - 50) / 10
        if kind < 120:
            return self.pick(_REALS)
        if kind < 140:
            return self.pick(_EXTREME)
        if kind < 220:
            return float(struct.unpack("<h", self.take(2))[0]) / 8
        return float(struct.unpack("<d", self.take(8))[0])

    def text(self) -> str:
        """A short text, sometimes a long one or one with control characters."""
        kind = self.take(1)[0]
        if kind < 128:
            return _WORDS[kind % len(_WORDS)]
        return self.take(kind % 32).decode("utf-8", "replace").replace("\0", "")
