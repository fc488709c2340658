# SPDX-License-Identifier: Apache-2.0
"""Generated files: config/dpt.yaml, config/labels_*.yaml, the parameter table of docs/topics.md.

``python -m dpt_ros.ros.reference`` rewrites them in a checkout; tests fail when they are outdated.
"""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import Field
from pathlib import Path
from typing import Any

from dpt_ros.data import class_names
from dpt_ros.engine.settings import FIELDS, parameter_name

_LICENCE = "# SPDX-License-Identifier: Apache-2.0"
_TABLE_BEGIN = "<!-- parameters: python -m dpt_ros.ros.reference -->\n"
_TABLE_END = "<!-- end of parameters -->\n"


def constraints(spec: Field[Any]) -> str:
    """A parameter's valid values and when a change takes effect, in a few words."""
    meta = spec.metadata
    words = []
    if meta["choices"]:
        words.append("one of " + ", ".join(meta["choices"]))
    if math.isfinite(meta["low"]):
        low, high = meta["low"], meta["high"]
        words.append(f"{low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}")
    words.append("live" if meta["live"] else "takes effect at configure")
    if meta["per_camera"]:
        words.append(f"of one of several cameras: front.{parameter_name(spec)}")
    return "; ".join(words)


def parameters_yaml() -> str:
    """config/dpt.yaml: every parameter at its default, with its description."""
    lines = [
        _LICENCE,
        "# Every parameter of the node dpt at its default. A live one may change while it runs.",
        "# Made by python -m dpt_ros.ros.reference from dpt_ros/engine/settings.py.",
        "/**:",
        "  ros__parameters:",
    ]
    for name, spec in FIELDS.items():
        text = f"{spec.metadata['text']} Change it: {spec.metadata['when']}"
        comment = textwrap.wrap(f"{text} ({constraints(spec)})", 93)
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
        texts = (constraints(spec), spec.metadata["text"], spec.metadata["when"])
        rows.append(f"| `{name}` | `{_value(spec)}` | {' | '.join(texts)} |")
    return "\n".join(rows) + "\n"


def labels_yaml(file_name: str) -> str:
    """config/labels_*.yaml: class ids and names of a label file of dpt_ros/data."""
    names = class_names(file_name)
    lines = [_LICENCE, "# Class ids of semantic/labels. Made by python -m dpt_ros.ros.reference."]
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
    """Rewrite the files in the checkout of this module."""
    root = Path(__file__).parents[2]
    topics = root / "docs" / "topics.md"
    contents = {
        root / "config" / "dpt.yaml": parameters_yaml(),
        root / "config" / "labels_ade20k.yaml": labels_yaml("labels_ade20k.json"),
        root / "config" / "labels_world.yaml": labels_yaml("labels_world.json"),
        topics: with_table(topics.read_text(encoding="utf-8")),
    }
    for path, text in contents.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(root)}")


if __name__ == "__main__":
    main()
