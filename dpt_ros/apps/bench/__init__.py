# SPDX-License-Identifier: Apache-2.0
"""Measures dpt_ros on this machine; prints a table and, if asked, writes JSON."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from dpt_ros.apps.bench.arguments import PARSERS

# Each has a module with main(argv) -> exit code, imported only when it runs: the networks' need no
# ROS, the node's no Triton.
_MODULES = {
    "node": "node.command",
    "engine": "network.engine",
    "cpu": "network.cpu",
    "temporal": "temporal.command",
}
_COMMANDS = {
    "node": "the whole node: stamp to depth in another process, beside an echo without inference",
    "engine": "the networks on a GPU, beside other ways to run them",
    "cpu": "the networks on a CPU, beside other ways to run them",
    "temporal": "the temporal filter: its gain and its cost",
}


def commands() -> dict[str, str]:
    """The commands that this installation has, and a line on each."""
    return {
        name: text for name, text in _COMMANDS.items() if find_spec(f"{__name__}.{_MODULES[name]}")
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of dpt_bench; returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="dpt_bench", description=__doc__, epilog="Example: dpt_bench node --json node.json"
    )
    known = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
    for name, text in commands().items():
        known.add_parser(name, help=text)
    command = parser.parse_args(args[:1]).command
    PARSERS[command]().parse_args(args[1:])  # help and wrong arguments, before the imports
    return int(importlib.import_module(f"{__name__}.{_MODULES[command]}").main(args[1:]))
