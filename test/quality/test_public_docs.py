# SPDX-License-Identifier: Apache-2.0
"""Every public name is explained: docstrings with arguments and results, topics on their page."""

from __future__ import annotations

import inspect
import re
from dataclasses import is_dataclass
from typing import Any

import pytest
from helpers import public_api
from helpers.places import ROOT

OBJECTS = {
    name: getattr(found, "__func__", found)  # of a class method
    for name, found in public_api.public_objects()
    if callable(found) or isinstance(found, property | classmethod)
}
# A docstring says what it returns in its first words ("The mean of ..."), or below "Returns:".
COMMANDS = {"choose", "filter", "load", "open", "predict", "process", "read", "write"}
PAGES = "\n".join(path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md"))


def arguments(found: Any) -> list[str]:
    """Names of the arguments that a docstring has to explain."""
    if isinstance(found, property) or (inspect.isclass(found) and "__init__" not in vars(found)):
        return []
    hidden = ("self", "cls", "args", "kwargs")
    return [name for name in inspect.signature(found).parameters if name not in hidden]


@pytest.mark.parametrize("name", OBJECTS)
def test_a_public_name_has_a_docstring_with_its_arguments_and_its_result(name: str) -> None:
    found = OBJECTS[name]
    if name.endswith(".Settings"):
        return  # parameters: docs/topics.md, by test/ros/test_parameters.py
    text = inspect.getdoc(found) or ""
    if is_dataclass(found):
        assert not text.startswith(f"{found.__name__}("), "made by dataclass"
    assert text
    assert [one for one in arguments(found) if not re.search(rf"\b{one}\b", text)] == []
    gives = getattr(found, "__annotations__", {}).get("return", "None") not in ("None", None)
    if gives and not inspect.isclass(found):
        first = text.split()[0].lower()
        assert first not in COMMANDS or re.search(r"^(Returns|Yields):", text, re.MULTILINE)


@pytest.mark.parametrize("module", public_api.MODULES)
def test_a_page_names_every_public_module(module: str) -> None:
    assert re.search(rf"\b{re.escape(module)}\b", PAGES)


def test_the_page_of_topics_has_each_topic_with_its_type_and_its_qos() -> None:
    """And test/ros/test_security.py has each topic of the page in a running node."""
    rows = [line for line in PAGES.splitlines() if re.match(r"\| `", line) and "_msgs/" in line]
    assert len(rows) > 15
    for name, detail in public_api.frozen("topics").items():
        if re.match(r"dpt_camera_sim |/diagnostics .*:|~|image/", name):
            continue
        (row,) = (line for line in rows if f"`{name}`" in line.split("|")[1])
        _, cell, kind, qos, *_ = row.split("|")
        kinds = re.findall(r"(\w+)(?: \w+| or|,|$)", kind.partition("/")[2])
        assert re.search(r"/msg/(\w+)", detail)[1] in kinds, name
        while "the same" in qos:  # as the row above it
            qos = rows[rows.index(row) - 1].split("|")[3]
            row = rows[rows.index(row) - 1]
        depth = re.search(r"keep last \d+", detail)[0]
        assert depth in qos or (depth, cell.strip()) == ("keep last 1", "`anchors/depth`, `anchors/camera_info`")
        for word in ("reliable", "best_effort", "transient_local"):
            assert (word not in detail.split(", ")) or word.replace("_", " ") in qos, name


def test_the_page_of_topics_has_the_other_forms_of_the_image_and_the_service() -> None:
    for name in ("image/compressed", "image/ffmpeg", "image/foxglove", "~/reset"):
        assert name in public_api.frozen("topics")
        assert f"`{name}`" in PAGES


def test_every_option_of_a_command_stands_in_its_help_or_on_a_page() -> None:
    """Every option has a help text, which is what the pages refer to; commands are on pages."""
    commands = [name for name in public_api.frozen("commands") if " " not in name]
    assert len(commands) > 11
    assert [name for name in commands if f"`{name}" not in PAGES] == []
