# SPDX-License-Identifier: Apache-2.0
"""Prints the options of every command as JSON, in a process of its own: commands set signal
handlers. Their parsers are caught when they are about to parse."""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from helpers.places import ROOT


class Caught(BaseException):
    """The parser of a command."""


def catch(parser: argparse.ArgumentParser, *_: Any) -> None:
    raise Caught(parser)


def entry_points() -> dict[str, str]:
    """PROGRAMS of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PROGRAMS":
            return ast.literal_eval(node.value)
    raise AssertionError("setup.py has no PROGRAMS")


def parsers() -> Iterator[argparse.ArgumentParser]:
    """The parser of every command. The options of dpt_bench are not public: what is worth
    measuring changes."""
    argparse.ArgumentParser.parse_known_args = catch  # type: ignore[method-assign, assignment]
    for target in entry_points().values():
        module, _, function = target.partition(":")
        try:
            getattr(import_module(module), function)(["--help"])
        except Caught as caught:
            yield caught.args[0]
        else:
            raise AssertionError(f"{target} did not parse its arguments")


def entries(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Names and details of a command, its arguments and its exit codes."""
    yield parser.prog, "command"
    for action in parser._actions:
        names = action.option_strings or [str(action.metavar or action.dest)]
        name, *others = sorted(names, key=len, reverse=True)
        if name == "--help":
            continue
        shown = action.help or isinstance(action, argparse._SubParsersAction)
        assert shown, f"{parser.prog} {name} has no help text"
        details = [f"also {other}" for other in others]
        required = action.required and action.nargs not in ("*", "?")
        if action.nargs != 0:
            details.append(f"takes {action.nargs or 1}")
        if action.nargs != 0 and not required:
            details.append(f"default {_text(action.default)}")
        if isinstance(action, argparse._AppendAction):
            details.append("may be repeated")
        if required:
            details.append("required")
        yield f"{parser.prog} {name}", ", ".join(details)
        for choice in action.choices or ():
            yield f"{parser.prog} {name} = {choice}", ""
    # The last paragraph of help, or a sentence.
    told = re.search(r"exit codes?[^:]*: (.*)", parser.epilog or "", re.DOTALL | re.IGNORECASE)
    text = " ".join(told[1].split()).rstrip(".") if told else ""
    between = "; " if ";" in text.partition("1 ")[0] else ", "
    seen = set()
    for code, meaning in re.findall(rf"(\d+) (.*?)(?:{between}(?=\d)|;|$)", text):
        if code not in seen:
            yield f"{parser.prog} exit {code}", meaning
        seen.add(code)


def _text(default: Any) -> str:
    if isinstance(default, list | tuple):
        return ",".join(map(str, default)) or "none"
    return f"{default}".lower() if default is None else str(default) or "none"


def main() -> None:
    found = [entry for parser in parsers() for entry in entries(parser)]
    json.dump(dict(found), sys.stdout, indent=0)


if __name__ == "__main__":
    main()
