# SPDX-License-Identifier: Apache-2.0
"""Measures dpt_ros on this machine; prints a table and, if asked, writes JSON."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from dpt_ros.apps.bench.arguments import PARSERS
from dpt_ros.version import add_version

# Module with main(argv) -> exit code, imported only when it runs: the networks' need no ROS, the
# node's no Triton.
COMMANDS = {
    "node": ("node.command", "the whole node: stamp to depth in another process, beside an echo"
             " without inference"),
    "engine": ("network.engine", "the networks on a GPU, beside other ways to run them"),
    "cpu": ("network.cpu", "the networks on a CPU, beside other ways to run them"),
    "temporal": ("temporal.command", "the temporal filter: its effect and its cost"),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of dpt_bench; returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="dpt_bench", description=__doc__, epilog="Example: dpt_bench node --json node.json"
    )
    add_version(parser)
    known = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
    for name, (_, text) in COMMANDS.items():
        known.add_parser(name, help=text)
    command = parser.parse_args(args[:1]).command
    PARSERS[command]().parse_args(args[1:])  # help and wrong arguments, before the imports
    module = importlib.import_module(f"{__name__}.{COMMANDS[command][0]}")
    return int(module.main(args[1:]))
