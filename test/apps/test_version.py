# SPDX-License-Identifier: Apache-2.0
"""--version of every command, and the command dpt_ros."""

from __future__ import annotations

import ast
import subprocess
import sys

from helpers.places import ROOT

import dpt_ros
from dpt_ros.__main__ import COMMANDS, main
from dpt_ros.apps.bench import COMMANDS as BENCHES


def programs() -> dict[str, str]:
    """The entry points of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PROGRAMS":
            return ast.literal_eval(node.value)
    raise AssertionError


def test_every_command_prints_its_name_and_version_and_imports_nothing_heavy() -> None:
    calls = [(name, target, ["--version"]) for name, target in programs().items()]
    target = programs()["dpt_bench"]
    calls += [(f"dpt_bench {name}", target, [name, "--version"]) for name in BENCHES]
    code = f"""
import importlib, sys
for name, target, words in {calls!r}:
    module, _, function = target.partition(":")
    try:
        getattr(importlib.import_module(module), function)(words)
    except SystemExit as end:
        assert end.code == 0, name
    else:
        raise AssertionError(name)
assert not {{"torch", "rclpy", "cv2", "numpy"}} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"{name} {dpt_ros.__version__}" for name, *_ in calls]


def test_dpt_ros_lists_every_other_command(capsys) -> None:
    assert {"dpt_ros", *COMMANDS} == programs().keys()
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and text in shown for name, text in COMMANDS.items())
