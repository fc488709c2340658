# SPDX-License-Identifier: Apache-2.0
"""The gate of scripts/coverage: sums by room, nothing rounded up, nothing left out unseen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.coverage_gate import GATES, OTHERS, Room, main, rooms, table
from helpers.places import ROOT


def report(**files: tuple[int, int]) -> dict:
    """As ``coverage json`` writes it: (lines, lines run) by path below the package."""
    return {
        "files": {
            f"dpt_ros/{path}.py": {"summary": {"num_statements": lines, "covered_lines": run}}
            for path, (lines, run) in files.items()
        }
    }


def enough(**changes: tuple[int, int]) -> dict:
    files = {f"{name}/all": (1000, 10 * gate) for name, gate in GATES.items()}
    return report(**{**files, "world/all": (1000, 10 * OTHERS), **changes})


def ends_with(found: dict, tmp_path: Path) -> int:
    path = tmp_path / "coverage.json"
    path.write_text(json.dumps(found))
    return main(str(path))


def test_lines_are_summed_by_room() -> None:
    found = report(
        **{"engine/a": (10, 9), "engine/scale/b": (30, 30), "ros/c": (5, 1), "files": (2, 2)}
    )
    assert rooms(found) == [Room("engine", 40, 39), Room("files", 2, 2), Room("ros", 5, 1)]
    assert list(table(rooms(found)))[2:] == [
        "| engine | 40 | 97.5 % | 97 % |",
        "| files | 2 | 100.0 % | 88 % |",
        "| ros | 5 | 20.0 % | 93 % |",
        "| all | 47 | 89.3 % |  |",
    ]


def test_a_copy_of_the_package_counts_as_the_package() -> None:
    found = {"files": {"/x/dpt_ros/dpt_ros/world/a.py": report(a=(3, 2))["files"]["dpt_ros/a.py"]}}
    assert rooms(found) == [Room("world", 3, 2)]


def test_all_rooms_at_their_gates_pass(tmp_path: Path) -> None:
    assert ends_with(enough(), tmp_path) == 0


@pytest.mark.parametrize(("room", "gate"), [*GATES.items(), ("world", OTHERS)])
def test_one_line_less_than_the_gate_is_refused_and_told(
    room: str, gate: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(enough(**{f"{room}/all": (1000, 10 * gate - 1)}), tmp_path) == 1
    assert f"{room}: 1 lines too few are run for {gate} %." in capsys.readouterr().out


def test_a_room_that_was_not_counted_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = enough()
    del found["files"]["dpt_ros/ros/all.py"]
    assert ends_with(found, tmp_path) == 1
    assert "No lines were counted of: ros." in capsys.readouterr().out


def test_nothing_is_rounded_up() -> None:
    room = Room("engine", 10_000, 9_699)
    assert room.missing == 1
    assert "96.9 %" in next(line for line in table([room]) if "engine" in line)
    assert Room("engine", 33, 32).missing == 1  # 32.01 of 33 lines are needed


def test_nothing_is_left_out_of_the_count() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    assert "[tool.coverage.run]" in settings
    # Lines that only a GPU or a ROS install runs are counted as not run.
    assert not re.search(r"^(exclude|omit|partial)", settings, re.MULTILINE)
    marked = [p for p in (ROOT / "dpt_ros").rglob("*.py") if "pragma: no cover" in p.read_text()]
    assert marked == []
