# SPDX-License-Identifier: Apache-2.0
"""The tables of QUALITY_DECLARATION.md."""

from __future__ import annotations

import re

from helpers.places import ROOT

TEXT = (ROOT / "QUALITY_DECLARATION.md").read_text(encoding="utf-8")


def table(section: str) -> list[list[str]]:
    """Cells of the table below a heading, without its head."""
    (part,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    rows = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in rows[2:]]


def names(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)
