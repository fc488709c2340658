# SPDX-License-Identifier: Apache-2.0
"""One version in package.xml, dpt_ros and CHANGELOG.rst; the declaration says if it is stable."""

from __future__ import annotations

import re

from helpers import public_api
from helpers.api_rules import PENDING, numbers, sections
from helpers.places import ROOT

import dpt_ros

VERSION = public_api.package_version()
CHANGELOG = sections(public_api.CHANGELOG.read_text(encoding="utf-8"))
DECLARATION = (ROOT / "QUALITY_DECLARATION.md").read_text(encoding="utf-8")


def test_the_version_of_the_package_is_that_of_its_manifest() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
    assert dpt_ros.__version__ == VERSION


def test_the_newest_section_of_the_changelog_is_the_version() -> None:
    """Before the first release there is none but "Forthcoming"."""
    versions = [heading for heading in CHANGELOG if heading != PENDING]
    assert versions == sorted(versions, key=numbers, reverse=True)
    assert versions[:1] == [VERSION] or (not versions and numbers(VERSION) < (1, 0, 0))
    assert PENDING not in list(CHANGELOG)[1:]


def test_the_declaration_tells_whether_the_version_is_stable() -> None:
    (state,) = re.findall(r"^\| 1\.ii \|[^|]*\|[^|]*\| ([^|]+) \|", DECLARATION, re.MULTILINE)
    assert state == ("met" if numbers(VERSION) >= (1, 0, 0) else "not met")


def test_there_is_no_compiled_code_and_so_no_abi() -> None:
    compiled = {".c", ".cc", ".cpp", ".cu", ".h", ".hpp", ".pyx", ".so"}
    files = list((ROOT / "dpt_ros").rglob("*"))
    assert len(files) > 200
    assert [path for path in files if path.suffix in compiled] == []
    assert "ext_modules" not in (ROOT / "setup.py").read_text(encoding="utf-8")
