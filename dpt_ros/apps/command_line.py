# SPDX-License-Identifier: Apache-2.0
"""What the command lines share: the parser, the node's parameters as options, error messages."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dpt_ros.version import add_version


def new_parser(
    prog: str, description: str, examples: str, usage: str | None = None
) -> argparse.ArgumentParser:
    """A parser with --version; description and examples keep their line breaks."""
    parser = argparse.ArgumentParser(
        prog, usage, description, examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_version(parser)
    return parser


def add_parameters(parser: argparse.ArgumentParser) -> None:
    """Add ``params`` and ``given``, as ``engine.parameter_file.read_settings`` takes them."""
    parser.add_argument("--params", type=Path, metavar="FILE", help="the node's parameter file")
    parser.add_argument("-p", dest="given", action="append", default=[], metavar="NAME:=VALUE",
        help="a parameter of the node, see docs/topics.md")  # fmt: skip


def fail(prog: str, message: object, code: int) -> int:
    """Print why a command ends. Returns its exit code."""
    print(f"{prog}: {message}", file=sys.stderr)
    return code
