# SPDX-License-Identifier: Apache-2.0
"""Every public name is explained: docstrings with arguments and results, topics on their page.

Parameters: test/ros/test_parameters.py; names that the pages use: test/project/test_docs.py;
topics of the page in a running node: test/ros/test_security.py.
"""

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
    if (callable(found) or isinstance(found, property | classmethod))
    and not name.endswith((".Settings", "len__", "getitem__"))
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
    text = inspect.getdoc(found) or ""
    made = is_dataclass(found) and text.startswith(f"{found.__name__}(")  # by dataclass
    assert text
    assert not made
    assert [one for one in arguments(found) if not re.search(rf"\b{one}\b", text)] == []
    gives = getattr(found, "__annotations__", {}).get("return", "None") not in ("None", None)
    if gives and text.split()[0].lower() in COMMANDS:
        assert re.search(r"^(Returns|Yields):", text, re.MULTILINE)


@pytest.mark.parametrize("module", public_api.MODULES)
def test_a_page_names_every_public_module(module: str) -> None:
    assert re.search(rf"\b{re.escape(module)}\b", PAGES)


def documented_topics() -> dict[str, tuple[str, str]]:
    """Type and QoS of each topic of docs/topics.md; "the same" is that of the row above."""
    text = (ROOT / "docs" / "topics.md").read_text("utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (\w+_msgs/\w+)[^|]* \| ([^|]+) \|", text, re.MULTILINE)
    found, above = {}, ""
    for name, kind, qos in rows:
        above = above if qos == "the same" else qos
        found[name] = (kind.replace("/", "/msg/"), above)
    return found


TOPICS = {
    name: detail
    for name, detail in public_api.frozen("topics").items()
    if not re.match(r"dpt_camera_sim |/diagnostics .*:", name)
}


@pytest.mark.parametrize("name", TOPICS)
def test_the_page_of_topics_has_each_topic_with_its_type_and_its_qos(name: str) -> None:
    detail = TOPICS[name]
    if name.startswith(("~", "image/")):  # the service, and the other forms of the image
        assert f"`{name}`" in (ROOT / "docs" / "topics.md").read_text("utf-8")
        return
    kind, qos = documented_topics()[name]
    assert f" {kind}," in detail
    given = set(detail.replace("_", " ").split(", ")) & {
        "reliable",
        "best effort",
        "transient local",
    }
    assert re.findall(r"keep last \d+", detail) == re.findall(r"keep last \d+", qos)
    assert [word for word in given if word not in qos] == []


def test_every_command_is_on_a_page_and_every_option_has_a_help_text() -> None:
    commands = [name for name in public_api.commands() if " " not in name]  # which asks for help
    assert len(commands) > 11
    assert [name for name in commands if f"`{name}" not in PAGES] == []
