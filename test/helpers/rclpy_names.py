# SPDX-License-Identifier: Apache-2.0
"""The public names of an rclpy, read from its sources: modules, functions, classes, parameters.

Those of Humble are in test/reference/rclpy_humble.json, written by ``python -m helpers.rclpy_names
RCLPY/rclpy/rclpy`` in the folder test.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from helpers.places import TEST

# {module: {"function" or "Class.method": [parameters], "Class" or "constant": []}}
Names = dict[str, dict[str, list[str]]]

HUMBLE: Path = TEST / "reference" / "rclpy_humble.json"


def names_of(folder: Path) -> Names:
    """Of all modules below the package's folder."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = ("rclpy", *path.relative_to(folder).with_suffix("").parts)
        module = ".".join(parts).removesuffix(".__init__")
        found[module] = dict(_in_body(ast.parse(path.read_text()).body, ""))
    return found


def _in_body(body: Iterable[ast.stmt], owner: str) -> Iterator[tuple[str, list[str]]]:
    parameters: dict[str, list[str]] = {}  # of all overloads
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = parameters.setdefault(node.name, [])
            given = node.args
            every = (*given.posonlyargs, *given.args, *given.kwonlyargs)
            own += [a.arg for a in every if a.arg not in own and a.arg not in ("self", "cls")]
            yield from _visible(owner, node.name, own)
            if node.name == "__init__":
                stores = (n for n in ast.walk(node) if isinstance(n, ast.Attribute))
                for store in stores:
                    if isinstance(store.ctx, ast.Store):
                        yield from _visible(owner, store.attr)
        elif isinstance(node, ast.ClassDef):
            yield from _visible(owner, node.name)
            yield from _in_body(node.body, f"{owner}{node.name}.")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                source = getattr(node, "module", None) or alias.name
                if not owner and ("rclpy" in source or getattr(node, "level", 0)):
                    yield from _visible(owner, alias.asname or alias.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (n for target in targets for n in ast.walk(target)):
                if isinstance(name, ast.Name):
                    yield from _visible(owner, name.id)
        elif isinstance(node, ast.If | ast.Try):
            yield from _in_body([*node.body, *node.orelse], owner)


def _visible(owner: str, name: str, parameters: list[str] | None = None) -> Iterator:
    if name == "__init__" or not name.startswith("_"):
        yield owner + name, parameters or []


def words(names: Names) -> set[str]:
    """Every name by itself: of modules, functions, classes, members and parameters."""
    return {
        word
        for module, members in names.items()
        for name, parameters in members.items()
        for word in (*module.split("."), *name.split("."), *parameters)
    }


def humble() -> Names:
    """The names of Humble's rclpy."""
    return json.loads(HUMBLE.read_text())["names"]


if __name__ == "__main__":
    source = "ros2/rclpy, branch humble, b488272b1ba88c703080bfd605417f013697ee40 (3.3.15)"
    found = {"source": source, "names": names_of(Path(sys.argv[1]))}
    # A line for each module.
    print(json.dumps(found, separators=(",", ":")).replace('},"rclpy', '},\n"rclpy'))
