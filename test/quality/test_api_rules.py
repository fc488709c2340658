# SPDX-License-Identifier: Apache-2.0
"""The rules of the frozen API are right: what is breaking, which step it needs, what is said."""

from __future__ import annotations

import pytest
from helpers.api_rules import changes, from_text, problems, sections, to_text

OLD = {
    "dpt_bag": "command",
    "dpt_bag --storage": "default mcap",
    "smoothing.strength": "double 0.5",
    "dpt_ros.model.create_model": "-> DPT",
    "dpt_ros.model.create_model(name)": "1. str, required",
}
ADDED = {**OLD, "points.far": "double 0.0"}
ALTERED = {**OLD, "smoothing.strength": "double 0.6"}
REMOVED = {name: detail for name, detail in OLD.items() if name != "dpt_bag --storage"}
REQUIRED = {**OLD, "dpt_ros.model.create_model(size)": "2. int, required"}


def log(heading: str, text: str) -> str:
    return f"Forthcoming\n-----------\n* Nothing.\n\n{heading}\n{'-' * len(heading)}\n* {text}\n"


def test_a_frozen_file_gives_back_what_was_written() -> None:
    assert from_text("# frozen\n" + to_text({**OLD, "alone": ""})) == {**OLD, "alone": ""}


def test_the_sections_of_a_changelog_are_found_with_and_without_dates() -> None:
    text = log("1.0.0 (2026-12-01)", "one") + "\n0.1.0\n-----\n* zero\n"
    assert list(sections(text)) == ["Forthcoming", "1.0.0", "0.1.0"]
    assert "one" in sections(text)["1.0.0"]
    assert "zero" not in sections(text)["1.0.0"]


@pytest.mark.parametrize(
    ("new", "breaking", "added"),
    [
        (OLD, set(), set()),
        (ADDED, set(), {"points.far"}),
        (ALTERED, {"smoothing.strength"}, set()),
        (REMOVED, {"dpt_bag --storage"}, set()),
        (REQUIRED, {"dpt_ros.model.create_model(size)"}, set()),
        ({**OLD, "dpt_x": "command", "dpt_x IN": "required"}, set(), {"dpt_x"}),
        ({}, {"dpt_bag", "smoothing.strength", "dpt_ros.model.create_model"}, set()),
    ],
)
def test_what_breaks_users_is_told_from_what_is_added(new, breaking, added) -> None:
    assert changes(OLD, new) == (breaking, added)


@pytest.mark.parametrize(
    ("new", "version", "text", "words"),
    [
        (OLD, "1.2.3", "", []),
        (OLD, "1.2.4", log("1.2.4", "a repair"), []),
        (OLD, "1.2.4", "", ["no section 1.2.4"]),
        (OLD, "1.2.2", log("1.2.2", "back"), ["must be 1.2.4 or later"]),
        (ADDED, "1.2.3", "", ["no section Forthcoming", "points.far changed"]),
        (ADDED, "1.2.3", log("1.2.3", "points.far"), ["name points.far in CHANGELOG.rst, Forth"]),
        (ADDED, "1.2.3", "Forthcoming\n---\n* ``points.far``\n", []),
        (ADDED, "1.2.4", log("1.2.4", "points.far"), ["must be 1.3.0 or later"]),
        (ADDED, "1.3.0", log("1.3.0", "something"), ["name points.far in CHANGELOG.rst, 1.3.0"]),
        (ADDED, "1.3.0", log("1.3.0", "points.far"), []),
        (ALTERED, "1.3.0", log("1.3.0", "smoothing.strength"), ["must be 2.0.0 or later"]),
        (ALTERED, "2.0.0", log("2.0.0", "smoothing.strength"), []),
        (REMOVED, "1.3.0", log("1.3.0", "dpt_bag without --storage"), ["must be 2.0.0 or later"]),
        (REMOVED, "2.0.0", log("2.0.0", "dpt_bag is new"), ["name --storage in CHANGELOG.rst"]),
        (REMOVED, "2.0.0", log("2.0.0", "dpt_bag without --storage"), []),
        (REQUIRED, "2.0.0", log("2.0.0", "create_model needs a size"), []),
        (REQUIRED, "1.3.0", log("1.3.0", "create_model needs a size"), ["must be 2.0.0"]),
    ],
)
def test_a_change_needs_a_step_of_the_version_and_its_name_in_the_changelog(
    new, version, text, words
) -> None:
    found = problems("1.2.3", OLD, version, new, text)
    assert len(found) == len(words), found
    for word, sentence in zip(words, found, strict=True):
        assert word in sentence
