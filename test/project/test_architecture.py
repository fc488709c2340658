# SPDX-License-Identifier: Apache-2.0
"""The floors and rooms of docs/architecture.md exist, and every import goes downward."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the lowest up; those of one line do not import from one another but for the pairs below.
FLOORS = [{"data", "lazy", "file_kinds"}, {"model"}, {"engine"}, {"metrics", "world"},
          {"datasets"}, {"ros"}, {"bag"}, {"apps"}]  # fmt: skip
MOST_IN_A_ROOM = 14
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def height(module: str) -> int:
    floor = module.split(".")[1]
    return next(k for k, floors in enumerate(FLOORS) if floor in floors)


def imports(file: Path) -> set[str]:
    """The modules of dpt_ros that a file imports, also inside of functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpt_ros"):
            found |= (
                {node.module}
                if node.module != "dpt_ros"
                else {f"dpt_ros.{alias.name}" for alias in node.names}
            )
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("dpt_ros.")}
    return found


@pytest.mark.parametrize("floor", [floor for floors in FLOORS for floor in sorted(floors)])
def test_a_floor_imports_only_from_floors_below(floor: str) -> None:
    place = ROOT / "dpt_ros" / floor
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
        for module in imports(file):
            own = module.split(".")[1] == floor
            assert own or height(module) < height(f"dpt_ros.{floor}"), f"{file}: {module}"


def test_every_room_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(dpt_ros/[a-z_/]+(?:\.py)?)`", PAGE))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_room_is_named_and_small_enough_to_look_over() -> None:
    for room in sorted(path.parent for path in (ROOT / "dpt_ros").rglob("__init__.py")):
        name = room.relative_to(ROOT).as_posix()
        if name.count("/") == 2 and not name.startswith("dpt_ros/apps"):
            assert f"`{name}/`" in PAGE, name
        files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= MOST_IN_A_ROOM, name
