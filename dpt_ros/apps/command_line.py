# SPDX-License-Identifier: Apache-2.0
"""What the command lines share: the parser, the node's parameters as options, error messages."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from dpt_ros.version import add_version


def new_parser(
    prog: str,
    description: str,
    examples: str,
    usage: str | None = None,
    kind: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """A parser with --version; description and examples keep their line breaks."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = kind(prog, usage, description, examples, formatter_class=layout)
    add_version(parser)
    return parser


def add_parameters(parser: argparse.ArgumentParser) -> None:
    """Add ``params`` and ``given``, as ``engine.parameter_file.read_settings`` takes them."""
    parser.add_argument("--params", type=Path, metavar="FILE", help="the node's parameter file")
    parser.add_argument("-p", dest="given", action="append", default=[], metavar="NAME:=VALUE",
        help="a parameter of the node, see docs/topics.md")  # fmt: skip


def size_of(text: str, expected: str, least: int = 1, step: int = 1) -> tuple[int, int]:
    """The two numbers of "640x480", for argparse: not below ``least``, multiples of ``step``."""
    first, _, second = text.lower().partition("x")
    sides = [int(side) if side.isdecimal() else -1 for side in (first, second)]
    if min(sides) < least or any(side % step for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is {expected}")
    return sides[0], sides[1]


def unknown(what: str, given: Iterable[str], known: Collection[str]) -> Iterator[str]:
    """The error message on names that are not among the known ones, if there are any."""
    if wrong := [name for name in given if name not in known]:
        yield f"{what} {', '.join(map(repr, wrong))}. Available: {', '.join(known)}."


def fail(prog: str, message: object, code: int) -> int:
    """Print why a command ends. Returns its exit code."""
    print(f"{prog}: {message}", file=sys.stderr)
    return code
