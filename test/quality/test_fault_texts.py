# SPDX-License-Identifier: Apache-2.0
"""Messages that the pages quote are those of the source: whoever searches for one finds it."""

from __future__ import annotations

import ast
import re

import pytest
from helpers.places import ROOT

PAGES = ("troubleshooting.md", "navigation.md", "camera.md", "topics.md")
OF_OTHERS = {  # pip, Python, NumPy, torch, rclpy
    "externally-managed-environment",
    "No module named 'torch'",
    "A module that was compiled using NumPy 1.x cannot be run in NumPy 2",
    "operator torchvision::nms does not exist",
    "incompatible QoS",
}


def texts() -> str:
    """All strings of the package, with "#" for what is filled in."""
    found = []
    for path in (ROOT / "dpt_ros").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    one.value if isinstance(one, ast.Constant) else "#" for one in node.values
                ]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


TEXTS = texts()
QUOTED = sorted(
    {
        (page, quote)
        for page in PAGES
        for row in (ROOT / "docs" / page).read_text("utf-8").splitlines()
        if row.startswith("| ")
        for quote in re.findall(r'"([^"]{8,})"', row.split(" | ")[0])
    }
)


@pytest.mark.parametrize(("page", "quote"), QUOTED)
def test_a_quoted_message_is_one_of_the_package(page: str, quote: str) -> None:
    if quote not in OF_OTHERS:
        for piece in re.split(r"\s*(?:\.\.\.,?|\d+)\s*", quote):  # numbers are filled in
            assert piece in TEXTS


def test_there_are_quotes_to_look_for() -> None:
    assert len(QUOTED) > 12
    assert {quote for _, quote in QUOTED} >= OF_OTHERS
