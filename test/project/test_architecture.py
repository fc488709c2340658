# SPDX-License-Identifier: Apache-2.0
"""Floors and rooms of docs/architecture.md: they exist, imports go down, sizes are bounded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.places import ROOT, TEST

PACKAGE = ROOT / "dpt_ros"
PAGE = (ROOT / "docs" / "architecture.md").read_text()

# From the lowest up; what stands in one set does not import from one another.
FLOORS = [
    {"data", "lazy", "file_kinds", "files", "version"},
    {"model"},
    {"engine"},
    {"metrics", "run", "world"},
    {"datasets"},
    {"ros"},
    {"bag"},
    {"apps"},
    {"__main__"},
]
# The rooms and files of a floor, in the same way.
WITHIN = {
    "engine": [
        {"faults", "frame", "packed", "parameter", "text"},
        {"settings", "triton_launch"},
        {"parameter_file"},
        {"output"},
        {"scale"},
        {"input", "smoothing"},
        {"inference"},
        {"runner"},
        {"export"},
        {"loading"},
        {"pipeline", "provenance", "temporal"},
    ],
    "ros": [{"messages"}, {"video"}, {"camera"}],
    "apps": [
        {"child_process", "progress", "report"},
        {
            "bag",
            "bag_player",
            "bench",
            "demo",
            "evaluate",
            "export",
            "run",
            "status",
            "train",
            "view",
        },
        {"doctor"},
    ],
}

MOST_LINES_OF_A_FILE = 420
MOST_FILES_OF_A_ROOM = 12
MOST_LINES = 40_653  # of the whole package; it may only go down

OTHER_TESTS = {
    "fuzz",
    "habits",
    "helpers",
    "on_gpu",
    "project",
    "quality",
    "reference",
    "soak",
}
# Files of tests, which nothing imports.
TESTS = {"conftest", "fake_device_checks", *(path.stem for path in TEST.rglob("test_*.py"))}


@cache
def modules() -> dict[str, Path]:
    """All modules of the package by name; a package has the name of its folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the package that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules() else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found & modules().keys() - {"dpt_ros", module})


def part(module: str, depth: int) -> str:
    """The floor (1) or the room (2) of a module, "" for none."""
    return (module.split(".") + [""] * depth)[depth]


def level(name: str, order: list[set[str]]) -> int:
    """The place of a floor or a room in its order, -1 for what stands in none."""
    return next((k for k, names in enumerate(order) if name in names), -1)


def upward(depth: int, floor: str, name: str, order: list[set[str]]) -> Iterator[str]:
    """Imports from one floor (or room) to another that is not below it."""
    for module in modules():
        if part(module, 1) == floor and part(module, depth) == name:
            for other in sorted(imports(module)):
                its = part(other, depth)
                sideways = depth == 2 and part(other, 1) != floor
                if not sideways and its != name and level(its, order) >= level(name, order):
                    yield f"{module} imports {other}"


@pytest.mark.parametrize("floor", [floor for floors in FLOORS for floor in sorted(floors)])
def test_a_floor_imports_only_from_floors_below(floor: str) -> None:
    assert list(upward(1, floor, floor, FLOORS)) == []


@pytest.mark.parametrize(
    "room",
    [f"{floor}/{room}" for floor in WITHIN for rooms in WITHIN[floor] for room in sorted(rooms)],
)
def test_a_room_imports_only_from_rooms_below(room: str) -> None:
    floor, _, name = room.partition("/")
    assert list(upward(2, floor, name, WITHIN[floor])) == []


def test_every_floor_and_every_room_of_the_engine_has_its_place_in_the_order() -> None:
    assert {part(name, 1) for name in modules()} - {""} == set().union(*FLOORS)
    rooms = {part(name, 2) for name in modules() if part(name, 1) == "engine"} - {""}
    assert rooms <= set().union(*WITHIN["engine"])


def test_no_two_modules_import_each_other() -> None:
    pairs = [(one, other) for one in modules() for other in imports(one) if one < other]
    assert [pair for pair in pairs if pair[0] in imports(pair[1])] == []


def test_every_room_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(dpt_ros/[a-z_/]+(?:\.py)?)`", PAGE))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def rooms() -> list[str]:
    """The folders of the package that have modules."""
    return sorted(
        path.parent.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("__init__.py")
    )


@pytest.mark.parametrize("room", [room for room in rooms() if 0 < room.count("/") < 3])
def test_every_room_is_named_on_the_page(room: str) -> None:
    assert f"`{room}/`" in PAGE


@pytest.mark.parametrize("room", rooms())
def test_a_room_has_few_enough_files_to_look_over(room: str) -> None:
    files = [path for path in (ROOT / room).glob("*.py") if not path.stem.startswith("__")]
    assert len(files) <= MOST_FILES_OF_A_ROOM


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_every_file_is_short_enough_to_read() -> None:
    long = {name for name, path in modules().items() if lines(path) > MOST_LINES_OF_A_FILE}
    assert long == set()


def test_the_package_does_not_grow() -> None:
    assert sum(map(lines, modules().values())) <= MOST_LINES


def test_tests_lie_in_the_folder_of_their_room() -> None:
    for path in TEST.rglob("test_*.py"):
        folder = path.parent.relative_to(TEST)
        assert folder.parts[0] in OTHER_TESTS or (PACKAGE / folder).is_dir(), path


def test_no_test_imports_from_another_test() -> None:
    for path in TEST.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            parts = {part for name in names for part in name.split(".")}
            assert not parts & TESTS, f"{path} imports {parts & TESTS}: share it in test/helpers"
