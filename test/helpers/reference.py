# SPDX-License-Identifier: Apache-2.0
"""Generated files: config/dpt.yaml, config/labels_*.yaml, the parameter table of docs/topics.md.

``scripts/reference`` rewrites them; tests fail when they are outdated.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import Field
from typing import Any

from dpt_ros.data import class_names
from dpt_ros.engine.settings import FIELDS
from dpt_ros.ros.parameters import constraints
from helpers.places import ROOT

_LICENCE = "# SPDX-License-Identifier: Apache-2.0"
_TABLE_BEGIN = "<!-- parameters: scripts/reference -->\n"
_TABLE_END = "<!-- end of parameters -->\n"


def parameters_yaml() -> str:
    """config/dpt.yaml: every parameter at its default, with its description."""
    lines = [
        _LICENCE,
        "# Every parameter of the node dpt at its default. A live one may change while it runs.",
        "# Made by scripts/reference from dpt_ros/engine/settings.py.",
        "/**:",
        "  ros__parameters:",
    ]
    for name, spec in FIELDS.items():
        text = f"{spec.metadata['text']} Change it: {spec.metadata['when']}"
        comment = textwrap.wrap(f"{text} ({constraints(name, spec)})", 93)
        lines += ["", *(f"    # {line}" for line in comment)]
        lines += [f"    {name}: {_value(spec)}"]
    return "\n".join(lines) + "\n"


def parameters_table() -> str:
    """The table of docs/topics.md: one row per parameter."""
    rows = [
        "| parameter | default | values | what it does | change it when |",
        "|---|---|---|---|---|",
    ]
    for name, spec in FIELDS.items():
        texts = (constraints(name, spec), spec.metadata["text"], spec.metadata["when"])
        rows.append(f"| `{name}` | `{_value(spec)}` | {' | '.join(texts)} |")
    return "\n".join(rows) + "\n"


def labels_yaml(file_name: str) -> str:
    """config/labels_*.yaml: class ids and names of a label file of dpt_ros/data."""
    names = class_names(file_name)
    lines = [_LICENCE, "# Class ids of semantic/labels. Made by scripts/reference."]
    lines += ["0: none"]
    lines += [f"{index}: {json.dumps(name)}" for index, name in enumerate(names, start=1)]
    lines += ["255: unlabelled"]
    return "\n".join(lines) + "\n"


def with_table(document: str) -> str:
    """A document with the text between its two markers replaced by the parameter table."""
    before, rest = document.split(_TABLE_BEGIN)
    _, after = rest.split(_TABLE_END)
    return before + _TABLE_BEGIN + parameters_table() + _TABLE_END + after


def _value(spec: Field[Any]) -> str:
    # An empty list has no type in a ROS parameter file; one empty string stands for it.
    default = spec.default
    return json.dumps(list(default) or [""] if isinstance(default, tuple) else default)


def main() -> None:
    """Rewrite the files."""
    topics = ROOT / "docs" / "topics.md"
    contents = {
        ROOT / "config" / "dpt.yaml": parameters_yaml(),
        ROOT / "config" / "labels_ade20k.yaml": labels_yaml("labels_ade20k.json"),
        ROOT / "config" / "labels_world.yaml": labels_yaml("labels_world.json"),
        topics: with_table(topics.read_text(encoding="utf-8")),
    }
    for path, text in contents.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
