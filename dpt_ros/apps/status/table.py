# SPDX-License-Identifier: Apache-2.0
"""Reports of /diagnostics as text: which node each is of, and tables."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEVELS = ("OK", "WARN", "ERROR", "STALE")
_COLORS = ("32", "33", "31", "35")  # green, yellow, red, magenta
_NETWORKS = "networks"


@dataclass(frozen=True)
class Status:
    """One status of a diagnostic message.

    Args:
        name: "NODE: networks", or "NODE: CAMERA".
        level: 0 OK, 1 warning, 2 error, 3 stale.
        message: of the status.
        values: by name, in the order of the message.
    """

    name: str
    level: int
    message: str
    values: Mapping[str, str]

    @property
    def node(self) -> str:
        """Full name of the node, with no slash at its beginning."""
        return self.name.rpartition(": ")[0]

    @property
    def part(self) -> str:
        """What of the node it is about: networks, or a camera."""
        return self.name.rpartition(": ")[2]

    @property
    def level_name(self) -> str:
        return LEVELS[self.level] if 0 <= self.level < len(LEVELS) else f"level {self.level}"


def of_dpt(statuses: Iterable[Status]) -> bool:
    """Whether a message with these statuses comes from a dpt_ros node."""
    return any(s.node and s.part == _NETWORKS and "state" in s.values for s in statuses)


def in_namespace(status: Status, namespace: str) -> bool:
    """Whether the status is of a node in or below a namespace, "" for any."""
    wanted = namespace.strip("/")
    return not wanted or status.node.startswith(f"{wanted}/")


def worst(statuses: Iterable[Status]) -> int:
    """The highest level; 0 of none."""
    return max((status.level for status in statuses), default=0)


def as_json(stamp: float, statuses: Sequence[Status]) -> dict[str, Any]:
    """A report as plain values: its time, the highest level, and every status."""
    return {
        "stamp": stamp,
        "level": LEVELS[min(worst(statuses), len(LEVELS) - 1)],
        "status": [
            {"name": s.name, "level": s.level_name, "message": s.message, "values": dict(s.values)}
            for s in statuses
        ],
    }


def table(statuses: Sequence[Status], color: bool, width: int | None = None) -> str:
    """One line per status, then the values: names down, the parts of each node across.

    Args:
        statuses: of all nodes.
        color: whether the levels are coloured with escape sequences.
        width: columns of the terminal; None asks for it.
    """
    width = width or shutil.get_terminal_size().columns
    lines = []
    for status in statuses:
        level = f"{status.level_name:<5}"
        if color and status.level < len(_COLORS):
            level = f"\x1b[1;{_COLORS[status.level]}m{level}\x1b[0m"
        room = max(width - 7, 20)
        first, *more = textwrap.wrap(f"{status.name}  {status.message}", room) or [""]
        lines += [f"{level}  {first}", *(f"       {line}" for line in more)]
    for node in dict.fromkeys(status.node or status.name for status in statuses):
        parts = [s for s in statuses if (s.node or s.name) == node and s.values]
        about = [s for s in parts if s.part == _NETWORKS]
        for group in (about, [s for s in parts if s not in about]):
            lines += ["", *_columns(group, width)] if group else []
    return "\n".join(lines)


def _columns(group: Sequence[Status], width: int) -> list[str]:
    """The values of some statuses side by side; below each other where the width ends."""
    names = list(dict.fromkeys(name for status in group for name in status.values))
    first = max(map(len, names))
    cells = {s.name: [s.values.get(name, "-") for name in names] for s in group}
    widths = {s.name: max(len(s.part), *map(len, cells[s.name])) for s in group}
    lines: list[str] = []
    left = list(group)
    while left:
        taken = [left.pop(0)]
        used = first + 2 + widths[taken[0].name]
        while left and used + 2 + widths[left[0].name] <= width:
            taken.append(left.pop(0))
            used += 2 + widths[taken[-1].name]
        rows = [("", [s.part for s in taken])]
        rows += [(name, [cells[s.name][k] for s in taken]) for k, name in enumerate(names)]
        for name, values in rows:
            row = [v.ljust(widths[s.name]) for v, s in zip(values, taken, strict=True)]
            lines.append(f"{name:<{first}}  {'  '.join(row)}".rstrip())
    return lines
