# SPDX-License-Identifier: Apache-2.0
"""The public API is the frozen one of test/quality/api/, or CHANGELOG.rst says what changed."""

from __future__ import annotations

import ast
import re

import pytest
from helpers import public_api
from helpers.api_rules import numbers, problems
from helpers.places import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("kind", public_api.KINDS)
def test_the_api_changes_only_as_version_and_changelog_say(kind: str) -> None:
    if kind == "topics":
        pytest.importorskip("rclpy")
    (last, *_) = sorted(public_api.frozen_versions(), key=numbers, reverse=True)
    changelog = public_api.CHANGELOG.read_text(encoding="utf-8")
    version, api = public_api.package_version(), public_api.KINDS[kind]()
    assert problems(last, public_api.frozen(kind), version, api, changelog) == []


def test_a_release_freezes_the_api_and_nothing_else_changes_the_frozen_files() -> None:
    """Run scripts/freeze when the version has changed; when it has not, undo the edit."""
    (last, *_) = sorted(public_api.frozen_versions(), key=numbers, reverse=True)
    assert public_api.package_version() == last
    assert public_api.frozen_versions()[last] == public_api.digest()


def test_the_declaration_names_every_public_module() -> None:
    text = (ROOT / "QUALITY_DECLARATION.md").read_text(encoding="utf-8")
    assert [name for name in public_api.MODULES if f"`{name}`" not in text] == []


def test_examples_of_the_docs_import_public_names_only() -> None:
    public, found = {name for name, _ in public_api.public_objects()}, set()
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dpt_ros"):
                    found |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert len(found) > 4
    assert found - public == set()
