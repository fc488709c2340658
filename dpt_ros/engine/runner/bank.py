# SPDX-License-Identifier: Apache-2.0
"""The states of all cameras in the memory of a GPU, where graphs find them by row."""

from __future__ import annotations

from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Bank:
    """Tensors with two rows per camera: each frame reads one of them and writes the other.

    So a frame that fails leaves its camera's state as it was. Row 0 is nobody's: what fills up a
    batch uses it. There is a tensor per name and shape of a state's part, which cameras of one
    size share; it is freed when neither a program nor a camera uses it.

    Args:
        device: of the tensors.
        places: for cameras, at first.
    """

    def __init__(self, device: torch.device, places: int) -> None:
        self._device = device
        self._places = places
        self._owners: dict[str, int] = {}
        self._tensors: WeakValueDictionary[tuple, Tensor] = WeakValueDictionary()
        self._held: dict[str, dict[str, Tensor]] = {}

    def tensors(self, like: dict[str, Tensor]) -> dict[str, Tensor]:
        """(rows, ...) for a state's parts, (B, ...) each; zero if they are new."""
        found = {}
        for name, part in like.items():
            key = (name, part.shape[1:], part.dtype)
            if key not in self._tensors:
                shape = (1 + 2 * self._places, *part.shape[1:])
                made = torch.zeros(shape, dtype=part.dtype, device=self._device)
                self._tensors[key] = found[name] = made
            found[name] = self._tensors[key]
        return found

    def row(self, source: str) -> int | None:
        """The first row of a camera; None if all are taken, see ``grow``."""
        if source not in self._owners:
            free = set(range(self._places)) - set(self._owners.values())
            if not free:
                return None
            self._owners[source] = min(free)
        return 1 + 2 * self._owners[source]

    def grow(self) -> None:
        """Make room for twice as many cameras. Programs that use the tensors must be dropped."""
        grown = Bank(self._device, 2 * self._places)  # memory may run out: nothing has changed
        held = {source: grown.tensors(parts) for source, parts in self._held.items()}
        for key, tensor in grown._tensors.items():
            old = self._tensors[key]
            tensor[: len(old)] = old
        self._places, self._tensors, self._held = grown._places, grown._tensors, held

    def hold(self, source: str, tensors: dict[str, Tensor]) -> None:
        """Keep the tensors that a camera's state lies in."""
        self._held[source] = self._held.get(source, {}) | tensors

    def clear(self) -> None:
        """Forget all cameras."""
        self._owners.clear()
        self._held.clear()

    def state(self, source: str, row: int) -> dict[str, Tensor]:
        """The parts of a camera's state in a row, (1, ...) each, on the host."""
        return {
            name: part[row : row + 1].cpu() for name, part in self._held.get(source, {}).items()
        }

    def load(self, source: str, row: int, state: dict[str, Tensor]) -> None:
        """Write a camera's state into a row."""
        self.hold(source, self.tensors(state))
        for name, part in state.items():
            self._held[source][name][row : row + 1] = part.to(self._device)
