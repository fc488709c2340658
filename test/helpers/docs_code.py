# SPDX-License-Identifier: Apache-2.0
"""Examples in the docs, run."""

from __future__ import annotations

import re

from helpers.places import ROOT


def run_example(page: str, name: str) -> None:
    """Run the Python block behind ``<!-- name -->`` of a page in docs/, in the current folder."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found, name
    exec(compile(found[1], f"{page}: {name}", "exec"), {"__name__": "example"})
