# SPDX-License-Identifier: Apache-2.0
"""What a check finds, where checks look, and how one that may crash is run."""

from __future__ import annotations

import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from dpt_ros.apps.child_process import Failed, emit, rows

OK, WARNING, ERROR = range(3)
LEVELS = ("OK", "warning", "error")
_INDENT = " " * 30


class Finding(NamedTuple):
    """One line of the report."""

    name: str  # what was looked at
    message: str  # what there is; for a fault also what it leads to
    cure: str = ""  # what to do about a warning or an error
    level: int = OK  # or `WARNING` (something is lost or slower), `ERROR` (something fails)

    def text(self, width: int) -> str:
        """The finding in lines of at most ``width`` columns."""
        wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
        wrapper.subsequent_indent = _INDENT
        text = wrapper.fill(f"{LEVELS[self.level]:8} {self.name:20} {self.message}")
        if not self.cure:
            return text
        wrapper.initial_indent, wrapper.subsequent_indent = _INDENT, _INDENT + " " * 6
        return f"{text}\n{wrapper.fill(f'cure: {self.cure}')}"


warning = partial(Finding, level=WARNING)
error = partial(Finding, level=ERROR)


@dataclass(frozen=True)
class Machine:
    """Where the checks look."""

    env: Mapping[str, str]  # the environment variables
    proc: Path = Path("/proc")  # the kernel's files
    shm: Path = Path("/dev/shm")  # shared memory

    def which(self, *programs: str) -> str:
        """The path of the first of these programs that is on PATH, "" if none is."""
        paths = (shutil.which(name, path=self.env.get("PATH", "")) for name in programs)
        return next(filter(None, paths), "")

    def read(self, name: str) -> str:
        """The text of a file below /proc, "" if it cannot be read."""
        try:
            return (self.proc / name).read_text()
        except OSError:
            return ""


def versions(*distributions: str) -> dict[str, str]:
    """The versions of those of these distributions that are installed."""
    found = {}
    for name in distributions:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def size_of(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def brief(error: BaseException) -> str:
    """The class and first line of an error of somebody else's code."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def absent(module: str, why: BaseException) -> bool:
    """Whether an import failed because there is no such module, and not inside of it."""
    return isinstance(why, ModuleNotFoundError) and why.name == module


Check = Callable[[Machine], Iterable["Finding | str"]]
"""Yields findings; and, before it calls what may end the process, the name of that."""


def isolated(check: Check, machine: Machine, seconds: float = 120.0) -> Iterator[Finding]:
    """The findings of a check that runs in a forked process, as they come.

    A module compiled for another NumPy or CPU can end the process that imports it, and a driver
    can block it for ever. Here that is a finding.
    """

    def run() -> None:
        for found in check(machine):
            emit(found)

    current = "this check"
    with tempfile.NamedTemporaryFile() as log:
        try:
            for found in rows(run, {}, seconds, Path(log.name), start="fork"):
                if isinstance(found, str):
                    current = found
                else:
                    yield found
        except Failed as why:
            if why.how == "timeout":
                yield error(current, f"It does not answer within {seconds:g} s.", "Try it alone.")
                return
            message = f"It ends the process with {why.how}. {' '.join(why.log[-1:])}"
            yield error(current, message, "Install it again, for this Python, CPU and NumPy.")
