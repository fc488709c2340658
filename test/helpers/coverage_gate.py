# SPDX-License-Identifier: Apache-2.0
"""How many lines of each room of the package the tests run, and how many it must be.

As a program, with the file of ``coverage json``: prints the table, ends with 1 if a room has less.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = "dpt_ros"
GATES = {"model": 99, "engine": 97, "ros": 93}
OTHERS = 88
"""Percent of the lines of every other room."""


class Room(NamedTuple):
    """A folder of the package, or the files beside them: "files"."""

    name: str
    lines: int
    run: int

    @property
    def gate(self) -> int:
        """Percent."""
        return GATES.get(self.name, OTHERS)

    @property
    def missing(self) -> int:
        """Lines that would have to run, too; 0 if the gate is reached. Nothing is rounded up."""
        return max(0, -(-self.gate * self.lines // 100) - self.run)


def rooms(report: Mapping[str, Any]) -> list[Room]:
    """The sums of a report of ``coverage json``, by name; rooms without a line are left out."""
    sums: dict[str, tuple[int, int]] = {}
    for path, file in report["files"].items():
        parts = Path(path).parts
        inside = parts[len(parts) - parts[::-1].index(PACKAGE) :]
        name = inside[0] if len(inside) > 1 else "files"
        lines, run = sums.get(name, (0, 0))
        found = file["summary"]
        sums[name] = lines + found["num_statements"], run + found["covered_lines"]
    return [Room(name, *sums[name]) for name in sorted(sums) if sums[name][0]]


def table(found: list[Room]) -> Iterator[str]:
    """Lines of Markdown; percents are rounded down."""
    yield "| room | lines | run by tests | gate |"
    yield "|---|---|---|---|"
    total = Room("all", sum(room.lines for room in found), sum(room.run for room in found))
    for room in (*found, total):
        tenths = 1000 * room.run // room.lines
        gate = "" if room is total else f"{room.gate} %"
        yield f"| {room.name} | {room.lines} | {tenths // 10}.{tenths % 10} % | {gate} |"


def main(path: str) -> int:
    found = rooms(json.loads(Path(path).read_text()))
    print("\n".join(table(found)))
    unknown = set(GATES) - {room.name for room in found}
    for room in found:
        if room.missing:
            print(f"{room.name}: {room.missing} lines too few are run for {room.gate} %.")
    if unknown:
        print(f"No lines were counted of: {', '.join(sorted(unknown))}.")
    return int(bool(unknown) or any(room.missing for room in found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
