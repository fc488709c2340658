# SPDX-License-Identifier: Apache-2.0
"""Groups of label classes, for costmaps that need fewer than ADE20K's 150 classes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpt_ros.data import FOLDER
from dpt_ros.data import class_names as names_of

NAVIGATION = "navigation"  # stands for ``load_groups`` as a line of groups
REST = "other"  # the group of the remaining classes
_UNLABELLED = 255
_MOST_MISTAKES = 8  # in a message
_TINY = 1e-30  # lower bound of a probability, so that its logarithm is finite


@dataclass(frozen=True)
class LabelGroups:
    """Groups of a network's classes. Group ids count from 1.

    Args:
        names: of the groups; group k + 1 is at index k.
        palette: (256, 3) uint8 RGB, indexed by group id.
        table: (256,) uint8, group id by class id. 0 (none) and 255 (unlabelled) map to
            themselves, ids without a class to 0.
    """

    names: tuple[str, ...]
    palette: np.ndarray
    table: np.ndarray

    @classmethod
    def create(
        cls,
        groups: Mapping[str, Sequence[str]],
        class_names: Sequence[str],
        class_palette: np.ndarray,
        colors: Mapping[str, Sequence[int]] | None = None,
        known: Sequence[str] = (),
    ) -> LabelGroups:
        """Groups from class names.

        Args:
            groups: class names by group, in the order of the group ids. The remaining classes
                form the group "other", which is appended if missing.
            class_names: of the network; class k + 1 is at index k.
            class_palette: (256, 3) uint8 RGB; a group without a colour takes that of its first
                class.
            colors: RGB by group.
            known: names allowed in ``groups`` although this network lacks them.

        Raises:
            ValueError: a sentence per mistake: an unknown class with similar names, a class in
                two groups, a group without a class, too many groups.
        """
        ids = {name: k for k, name in enumerate(class_names, start=1)}
        problems = _problems(groups, class_names, set(known))
        if problems:
            raise ValueError(" ".join(problems))
        table = np.zeros(256, np.uint8)
        table[_UNLABELLED] = _UNLABELLED
        names = list(groups)
        for index, members in enumerate(groups.values(), start=1):
            table[[ids[name] for name in members if name in ids]] = index
        left = [k for k in ids.values() if table[k] == 0]
        if left and REST not in names:
            names.append(REST)
        if left:
            table[left] = names.index(REST) + 1
        palette = np.zeros((256, 3), np.uint8)
        for index, name in enumerate(names, start=1):
            found = np.flatnonzero(table[:_UNLABELLED] == index)
            if colors and name in colors:
                palette[index] = colors[name]
            elif len(found):
                palette[index] = class_palette[found[0]]
        return cls(tuple(names), palette, table)

    @classmethod
    def parse(
        cls, lines: Sequence[str], class_names: Sequence[str], class_palette: np.ndarray
    ) -> LabelGroups:
        """Groups from the parameter ``label_groups``.

        Args:
            lines: "group: class, class, ..." each; or "navigation" alone, for ``load_groups``,
                as far as the network has the classes.
            class_names, class_palette: see ``create``.

        Raises:
            ValueError: see ``create`` and ``parse_groups``.
        """
        if list(lines) != [NAVIGATION]:
            return cls.create(parse_groups(lines), class_names, class_palette)
        groups, colors = load_groups()
        known = names_of("labels_ade20k.json")
        return cls.create(groups, class_names, class_palette, colors, known)

    def matrix(self, num_classes: int, device: torch.device | str = "cpu") -> Tensor:
        """(G, C) float32 membership, for ``of_logits``."""
        groups = torch.arange(1, len(self.names) + 1)[:, None]
        table = torch.from_numpy(self.table[1 : num_classes + 1]).long()
        return (groups == table).float().to(device)


def of_logits(logits: Tensor, matrix: Tensor) -> Tensor:
    """Logits of groups: log-sum-exp over the classes, so that a group's softmax probability is
    the sum of its classes'. Values more than 69 below a pixel's largest are clamped there.

    Args:
        logits: (B, C, h, w).
        matrix: (G, C) from ``LabelGroups.matrix``, on the device of the logits.

    Returns:
        (B, G, h, w) float32, in the memory format of the logits.
    """
    logits = logits.float()
    highest = logits.amax(dim=1, keepdim=True)
    shares = F.conv2d((logits - highest).exp(), matrix[:, :, None, None])
    return shares.clamp(min=_TINY).log() + highest


def load_groups() -> tuple[dict[str, list[str]], dict[str, list[int]]]:
    """The groups of ADE20K's classes for navigation: class names by group, and RGB by group."""
    entries = json.loads((FOLDER / "groups_ade20k.json").read_text(encoding="utf-8"))["groups"]
    groups = {entry["name"]: entry["classes"] for entry in entries}
    return groups, {entry["name"]: entry["color"] for entry in entries}


def parse_groups(lines: Sequence[str]) -> dict[str, list[str]]:
    """Groups from a parameter's list of strings, "group: class, class, ...".

    Raises:
        ValueError: a line has no colon, or two lines name the same group.
    """
    groups: dict[str, list[str]] = {}
    for line in lines:
        name, colon, rest = line.partition(":")
        members = [part.strip() for part in rest.split(",") if part.strip()]
        if not colon or not name.strip():
            raise ValueError(
                f"The label group {line!r} must be 'group: class, class, ...', or {NAVIGATION!r}"
                " alone."
            )
        if name.strip() in groups:
            raise ValueError(f"The label group {name.strip()!r} is defined twice.")
        groups[name.strip()] = members
    return groups


def _problems(
    groups: Mapping[str, Sequence[str]], class_names: Sequence[str], known: set[str]
) -> list[str]:
    problems, seen = [], dict[str, str]()
    names = f"known are {', '.join(class_names)}."
    if len(groups) > 253:
        problems.append(f"There are {len(groups)} label groups, but at most 253 are possible.")
    for group, members in groups.items():
        if not members and group != REST:
            problems.append(f"The label group {group!r} has no classes.")
        for name in members:
            if name in seen:
                problems.append(f"{name!r} is in the label groups {seen[name]!r} and {group!r}.")
            seen[name] = group
            if name not in class_names and name not in known:
                close = difflib.get_close_matches(name, {*class_names, *known}, 3, 0.6)
                hint = f"did you mean {' or '.join(map(repr, close))}?" if close else names
                if not close:
                    names = "no class has a similar name."  # listing them all once is enough
                problems.append(
                    f"The label group {group!r} contains {name!r}, which is not a class of this"
                    f" network: {hint}"
                )
    if len(problems) > _MOST_MISTAKES:
        rest = len(problems) - _MOST_MISTAKES
        problems = [*problems[:_MOST_MISTAKES], f"There are {rest} more mistakes."]
    return problems
