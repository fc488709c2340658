# SPDX-License-Identifier: Apache-2.0
"""Measures dpt_ros on this machine; prints a table and, if asked, writes JSON."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from dpt_ros.apps.bench.arguments import COMMANDS, Formatter
from dpt_ros.version import add_version


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command and its options; ``error`` ends it with a message about a wrong option."""
    parser = argparse.ArgumentParser(
        prog="dpt_bench", description=__doc__, epilog="Example: dpt_bench node --json node.json"
    )
    add_version(parser)
    known = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
    for name, (_, text, method, example, add_options) in COMMANDS.items():
        command = known.add_parser(
            name, help=text, description=method, epilog=example, formatter_class=Formatter
        )
        add_version(command)
        add_options(command.add_argument)
        command.set_defaults(error=command.error)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of dpt_bench; returns its exit code."""
    args = parse(argv)
    module = importlib.import_module(f"{__name__}.{COMMANDS[args.command][0]}")
    return int(module.run(args))
