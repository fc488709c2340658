# SPDX-License-Identifier: Apache-2.0
"""What docs/migration.md tells users to use is there, and what it says is gone is gone.

That old names which still work warn: test/engine/smoothing/test_filter.py.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
from helpers import public_api
from helpers.command_options import entry_points
from helpers.declaration import names
from helpers.places import ROOT

PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line[1:-1].split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| old ")
]
NEW = sorted({name for row in ROWS for name in names(row[1])})
KINDS = ("parameters", "topics", "commands", "files")


def find(name: str) -> Any:
    """The module, class or attribute of a dotted name."""
    module, _, rest = name.partition(".")
    found: Any = importlib.import_module(module)
    for part in rest.split("."):
        module = f"{module}.{part}"
        found = getattr(found, part, None) or importlib.import_module(module)
    return found


@pytest.mark.parametrize("name", NEW)
def test_the_new_name_exists(name: str) -> None:
    dotted = re.match(r"(?:python -m )?(dpt_ros(?:\.\w+)+)", name)
    if dotted:
        assert find(dotted[1]) is not None
        return
    known = {one for kind in KINDS for one in public_api.frozen(kind)} | set(entry_points())
    assert name in known or name.startswith(("result[", "camera_info", "pip install"))


def test_a_new_argument_is_one_of_its_function() -> None:
    named = [
        name for name in NEW if name.startswith("dpt_ros") and "(" in name and '"' not in name
    ]
    assert named
    assert [name for name in named if name not in public_api.frozen("python")] == []


@pytest.mark.parametrize("row", [row for row in ROWS if row[-1] == "-"], ids=lambda row: row[0])
def test_an_old_module_that_is_gone_is_gone(row: list[str]) -> None:
    for name in re.findall(r"dpt_ros(?:\.\w+)+", row[0]):
        if name in ("dpt_ros.engine.predict", "dpt_ros.model.losses"):
            continue  # a module that a name has now, and one that lost a function
        with pytest.raises(ImportError):
            find(name)


def test_the_new_texts_are_those_of_the_package() -> None:
    _, texts = PAGE.split("## Texts")
    quoted = [
        q
        for row in re.findall(r"^\|[^|]*\|([^|]*)\|$", texts, re.M)
        for q in re.findall(r'"([^"]+)"', row)
    ]
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "dpt_ros").rglob("*.py"))
    assert len(quoted) > 5
    assert [text for text in quoted if text not in source] == []
