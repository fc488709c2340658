# SPDX-License-Identifier: Apache-2.0
"""Every file says its licence, or QUALITY_DECLARATION.md says it and whose the file is."""

from __future__ import annotations

import hashlib
import subprocess
from fnmatch import fnmatch
from xml.etree import ElementTree

import pytest
from helpers.declaration import names, table
from helpers.places import ROOT

LINE = b"SPDX-License-Identifier: Apache-2.0"
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
ROWS = table("Licences and copyright")
EXCEPTIONS = [(pattern, row) for row in ROWS for pattern in names(row[0])]


def files() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no checkout of git, which knows what belongs to the project")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def has_line(name: str) -> bool:
    return LINE in (ROOT / name).read_bytes()[:400]


def test_every_file_says_its_licence_or_is_in_the_table() -> None:
    silent = [name for name in files() if not has_line(name)]
    assert 20 < len(silent) < len(files()) / 2
    known = [pattern for pattern, _ in EXCEPTIONS]
    assert [name for name in silent if not any(fnmatch(name, one) for one in known)] == []


def test_every_row_of_the_table_is_about_a_file_that_cannot_say_it() -> None:
    every = files()
    for pattern, row in EXCEPTIONS:
        assert any(fnmatch(name, pattern) and not has_line(name) for name in every), pattern
        assert all(row[1:]), pattern


def test_what_was_made_by_others_names_them_and_their_licence() -> None:
    """test/reference holds outputs of published code, dpt_ros/data a published list of classes."""
    for name in files():
        if name.startswith("test/reference/") or name.endswith("labels_ade20k.json"):
            row = next(row for pattern, row in EXCEPTIONS if fnmatch(name, pattern))
            assert row[1] in ("Apache-2.0", "BSD-3-Clause", "MIT")
            assert "dpt_ros" not in row[2]


def test_the_licence_is_apache_2_in_the_text_and_in_the_manifest() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
    assert ElementTree.parse(ROOT / "package.xml").getroot().findtext("license") == "Apache-2.0"
