# SPDX-License-Identifier: Apache-2.0
"""QUALITY_DECLARATION.md has every requirement of REP-2004, and each of its proofs exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.command_options import entry_points
from helpers.declaration import TEXT, names, table
from helpers.places import ROOT

# The chart of REP-2004 for level 2: required, recommended, optional, or of level 1 only ("-").
LEVEL_2 = {
    **dict.fromkeys(("1.i", "1.ii", "1.iii", "1.iv", "1.v", "1.vi"), "must"),
    **dict.fromkeys(("2.i", "2.ii", "2.iv"), "must"),
    **dict.fromkeys(("3.i", "3.iii", "3.iv", "3.v", "3.v.a", "3.v.c"), "must"),
    **dict.fromkeys(("4.i", "4.iii.a", "4.v.a", "4.v.b"), "must"),
    **dict.fromkeys(("5.i", "5.iii", "6.i", "7.i"), "must"),
    **dict.fromkeys(("2.iii", "2.v", "3.ii", "4.ii", "4.iii.b", "4.iv.a", "4.iv.b"), "-"),
    "3.v.b": "should",
    "5.ii": "may",
}
ROWS = {row[0]: row for row in table("Requirements")}
FEATURES = table("Features")
PATH = re.compile(r"(?:test|scripts|docs|\.ci|\.github)/[\w./-]+(?:::\w+)?|[A-Z_]+\.md|LICENSE")


def proofs(cell: str) -> list[str]:
    """The files and tests that a cell names."""
    return [name for name in names(cell) if PATH.fullmatch(name)]


def test_every_requirement_of_rep_2004_has_its_row() -> None:
    assert {number: row[2] for number, row in ROWS.items()} == LEVEL_2
    assert {row[3] for row in ROWS.values()} == {"met", "not met"}


@pytest.mark.parametrize("number", LEVEL_2)
def test_a_row_that_is_met_names_a_proof_and_one_that_is_not_a_reason(number: str) -> None:
    state, text = ROWS[number][3:]
    told = number in ("1.vi", "3.v.c")  # said on the page itself
    assert len(text) > 20
    assert state == "not met" or told or proofs(text)
    assert [name for name in proofs(text) if not (ROOT / name.partition("::")[0]).exists()] == []


def test_no_level_is_claimed_that_the_rows_do_not_have() -> None:
    missing = [n for n, row in ROWS.items() if row[2:4] == ["must", "not met"]]
    declared = re.search(r"declares \*\*Quality Level (\d)\*\*", TEXT)
    if missing:
        assert declared[1] == "4"
        assert f"not met are met: {', '.join(missing)}." in " ".join(TEXT.split())
    else:
        assert declared[1] == "2"


def test_every_test_that_the_page_names_exists() -> None:
    """Files that pytest collects, and functions in them."""
    named = [name for name in names(TEXT) if re.match(r"test/\S+\.py", name)]
    named = [name for name in named if "test_" in name]
    assert len(named) > 30
    for name in named:
        path, _, function = name.partition("::")
        assert Path(path).name.startswith("test_"), name
        assert not function or f"\ndef {function}(" in (ROOT / path).read_text("utf-8"), name


def test_every_command_is_a_feature_with_a_page_and_a_system_test() -> None:
    for feature, page, tests in FEATURES:
        assert proofs(page), feature
        assert proofs(tests), feature
        for name in proofs(page) + proofs(tests):
            assert (ROOT / name.partition("::")[0]).exists(), name
    of_features = [name for feature, _, _ in FEATURES for name in names(feature)]
    assert [name for name in entry_points() if name not in of_features] == []


def test_links_of_the_page_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    headings = re.findall(r"^## (.+)", TEXT, re.MULTILINE)
    anchors = {"#" + heading.lower().replace(" ", "-") for heading in headings}
    assert len(links) > 5
    for link in links:
        path = link.partition("#")[0]
        assert link in anchors if not path else (ROOT / path).exists(), link


def test_the_readme_links_the_declaration() -> None:
    assert "](QUALITY_DECLARATION.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
