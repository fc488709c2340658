# SPDX-License-Identifier: Apache-2.0
"""Statuses of /diagnostics as text: which node each belongs to, and tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

UNKNOWN = 3  # exit code: no state was received, or the arguments were wrong
LEVELS = ("OK", "WARN", "ERROR", "STALE")
_COLORS = ("32", "33", "31", "35")  # green, yellow, red, magenta
_NETWORKS = "networks"


class Status(NamedTuple):
    """One status of a diagnostic message."""

    name: str  # "NODE: networks", or "NODE: CAMERA"
    level: int  # 0 OK, 1 warning, 2 error, 3 stale
    message: str
    values: dict[str, str]  # by name, in the order of the message

    @property
    def node(self) -> str:
        """Full name of the node, without a leading slash."""
        return self.name.rpartition(": ")[0]

    @property
    def part(self) -> str:
        """The part of the node: networks, or a camera."""
        return self.name.rpartition(": ")[2]

    @property
    def level_name(self) -> str:
        return LEVELS[self.level] if 0 <= self.level < len(LEVELS) else f"level {self.level}"


def statuses_of(msg: Any) -> list[Status]:
    """The statuses of a diagnostic_msgs/DiagnosticArray."""
    return [
        Status(s.name, s.level[0], s.message, {pair.key: pair.value for pair in s.values})
        for s in msg.status
    ]


def of_dpt(statuses: Iterable[Status]) -> bool:
    """Whether a message with these statuses comes from a dpt_ros node."""
    return any(s.node and s.part == _NETWORKS and "state" in s.values for s in statuses)


def in_namespace(status: Status, namespace: str) -> bool:
    """Whether the status is of a node in or below a namespace, "" for any."""
    prefix = namespace.strip("/")
    return not prefix or status.node.startswith(f"{prefix}/")


def worst(statuses: Iterable[Status]) -> int:
    """The highest level; 0 of none."""
    return max((status.level for status in statuses), default=0)


def as_json(stamp: float, statuses: Sequence[Status]) -> dict[str, Any]:
    """A report as plain values: its time, the highest level, and every status."""
    status = [{**s._asdict(), "level": s.level_name} for s in statuses]
    level = LEVELS[min(worst(statuses), len(LEVELS) - 1)]
    return {"stamp": stamp, "level": level, "status": status}


def table(statuses: Sequence[Status], color: bool, width: int) -> str:
    """One line per status, then the values: a row per name, a column per part of each node; levels
    with a ``color`` by escape sequences, in ``width`` columns of the terminal."""
    lines = []
    wrapper = textwrap.TextWrapper(max(width, 27), " " * 7, " " * 7)
    for status in statuses:
        level = f"{status.level_name:<5}"
        if color and status.level < len(_COLORS):
            level = f"\x1b[1;{_COLORS[status.level]}m{level}\x1b[0m"
        text = wrapper.fill(f"{status.name}  {status.message}")
        lines.append(f"{level}  {text[7:]}")
    for node in dict.fromkeys(status.node or status.name for status in statuses):
        parts = [s for s in statuses if (s.node or s.name) == node and s.values]
        networks = [s for s in parts if s.part == _NETWORKS]
        for group in (networks, [s for s in parts if s not in networks]):
            lines += ["", *_columns(group, width)] if group else []
    return "\n".join(lines)


def _columns(group: Sequence[Status], width: int) -> list[str]:
    """The values of some statuses side by side, in as many blocks as the width requires."""
    names = list(dict.fromkeys(name for status in group for name in status.values))
    first = max(map(len, names))
    blocks: list[list[list[str]]] = []
    left = 0
    for status in group:
        column = [status.part, *(status.values.get(name, "-") for name in names)]
        wide = max(map(len, column))
        column = [cell.ljust(wide) for cell in column]
        if not blocks or wide + 2 > left:
            blocks.append([[name.ljust(first) for name in ("", *names)]])
            left = width - first
        blocks[-1].append(column)
        left -= wide + 2
    return ["  ".join(row).rstrip() for block in blocks for row in zip(*block, strict=True)]
