# SPDX-License-Identifier: Apache-2.0
"""Every dependency has its row in QUALITY_DECLARATION.md, with a reason and its range."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from xml.etree import ElementTree

import pytest
from helpers.declaration import names, table
from helpers.places import ROOT
from helpers.requirements import requirements
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROWS = table("Dependencies")
# Versions and reason of each package; no versions where a distribution decides.
TABLE = {
    name: ([SpecifierSet(v) for v in names(row[1])], row[3])
    for row in ROWS
    for name in names(row[0])
}
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()


@pytest.fixture(scope="module")
def required(tmp_path_factory: pytest.TempPathFactory) -> list[Requirement]:
    """What setup.py requires, but for the tools of the tests."""
    lines = requirements(tmp_path_factory.mktemp("info"))
    return [Requirement(line) for line in lines if 'extra == "test"' not in line]


def row_of(requirement: Requirement) -> str:
    """The name in the table that stands for it, "" if there is none."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    name = f"{requirement.name}{extras}"
    return name if name in TABLE else next((one for one in TABLE if fnmatch(name, one)), "")


def test_every_dependency_has_a_row_with_its_range_and_a_reason(required) -> None:
    assert len(required) > 20
    for requirement in required:
        name = row_of(requirement)
        assert name, f"{requirement} has no row in QUALITY_DECLARATION.md"
        ranges, reason = TABLE[name]
        assert requirement.specifier in (ranges or [SpecifierSet()]), requirement
        assert reason


def test_every_ros_dependency_of_the_manifest_has_a_row() -> None:
    depends = [one.text for one in MANIFEST.iter() if one.tag in ("depend", "exec_depend")]
    assert len(depends) > 10
    assert [name for name in depends if name not in TABLE] == []


def test_every_row_is_about_a_dependency(required) -> None:
    used = {row_of(requirement) for requirement in required}
    used |= {one.text or "" for one in MANIFEST.iter() if one.tag in ("depend", "exec_depend")}
    assert set(TABLE) - used == set()


def test_every_range_has_an_oldest_and_a_newest_version(required) -> None:
    for requirement in required:
        operators = {one.operator for one in requirement.specifier}
        assert operators in ({">=", "<"}, set()), requirement
        assert operators or requirement.name.startswith("ros-"), requirement


def test_the_oldest_and_the_newest_versions_are_tried_by_the_workflows() -> None:
    workflows = (ROOT / ".github" / "workflows").glob("*.y*ml")
    text = "\n".join(path.read_text(encoding="utf-8") for path in workflows)
    assert "scripts/oldest" in text
    assert re.search(r"locked\W{1,4}no\b", text, re.IGNORECASE)  # of scripts/test


def test_the_optional_ros_packages_may_be_missing() -> None:
    """Every import of them is tried, and the tests run where they are not installed."""
    optional, tried, found = {"vision_msgs", "tf2_msgs", "tf2_ros", "launch", "launch_ros"}, [], []
    for path in (ROOT / "dpt_ros").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom | ast.Import):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                if str(module).partition(".")[0] in optional:
                    found.append((path.name, node.lineno))
            caught = [ast.unparse(one) for one in getattr(node, "handlers", ())]
            if any("ImportError" in one.partition(":")[0] for one in caught):
                tried += [
                    (path.name, one.lineno) for one in ast.walk(node) if hasattr(one, "lineno")
                ]
    assert len(found) > 1
    assert set(found) <= set(tried)
