# SPDX-License-Identifier: Apache-2.0
"""What a check finds, where checks look, and how one that may crash is run."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

OK, WARNING, ERROR = range(3)
LEVELS = ("OK", "warning", "error")
_INDENT = " " * 30


class Finding(NamedTuple):
    """One line of the report.

    Args:
        name: what was looked at.
        message: what there is; for a fault also what it leads to.
        cure: what to do about a warning or an error.
        level: `OK`, `WARNING` (something is lost or slower) or `ERROR` (something fails).
    """

    name: str
    message: str
    cure: str = ""
    level: int = OK

    def text(self, width: int) -> str:
        """The finding in lines of at most ``width`` columns."""
        wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
        wrapper.subsequent_indent = _INDENT
        text = wrapper.fill(f"{LEVELS[self.level]:8} {self.name:20} {self.message}")
        if not self.cure:
            return text
        wrapper.initial_indent, wrapper.subsequent_indent = _INDENT, _INDENT + " " * 6
        return f"{text}\n{wrapper.fill(f'cure: {self.cure}')}"


def warning(name: str, message: str, cure: str) -> Finding:
    """Something is lost or slower."""
    return Finding(name, message, cure, WARNING)


def error(name: str, message: str, cure: str) -> Finding:
    """Something fails."""
    return Finding(name, message, cure, ERROR)


@dataclass(frozen=True)
class Machine:
    """Where the checks look.

    Args:
        env: the environment variables.
        proc, shm: the kernel's files, and shared memory.
    """

    env: Mapping[str, str]
    proc: Path = Path("/proc")
    shm: Path = Path("/dev/shm")

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


Check = Callable[[Machine], Iterable["Finding | str"]]
"""Yields findings; and, before it calls what may end the process, the name of that."""


def isolated(check: Check, machine: Machine, seconds: float = 120.0) -> Iterator[Finding]:
    """The findings of a check that runs in a forked process, as they come.

    A module compiled for another NumPy or CPU can end the process that imports it, and a driver
    can block it for ever. Here that is a finding.
    """
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as printed, os.fdopen(reader, "rb", buffering=0):
        pid = os.fork()
        if pid == 0:
            _child(check, machine, writer, printed)
        os.close(writer)
        current = "this check"
        try:
            for content in _received(reader, seconds):
                if isinstance(content, str):
                    current = content
                else:
                    yield Finding(*content)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            yield error(current, f"It does not answer within {seconds:g} s.", "Try it alone.")
            return
        status = os.waitpid(pid, 0)[1]
        if status:
            signalled = os.WIFSIGNALED(status)
            how = signal.Signals(os.WTERMSIG(status)).name if signalled else "an error"
            printed.seek(0)
            last = printed.read().decode(errors="replace").strip().splitlines()[-1:]
            message = f"It ends the process with {how}. {' '.join(last)}"
            yield error(current, message, "Install it again, for this Python, CPU and NumPy.")


def _child(check: Check, machine: Machine, writer: int, printed: BinaryIO) -> NoReturn:
    code = 1
    try:
        for number in (1, 2):
            os.dup2(printed.fileno(), number)
        for found in check(machine):
            os.write(writer, json.dumps(found).encode() + b"\n")
        code = 0
    except Exception as error:
        os.write(2, brief(error).encode())
    finally:
        os._exit(code)  # without the clean-up of libraries, which can crash, too


def _received(reader: int, seconds: float) -> Iterator[str | list]:
    """Names and fields of findings until the other end is closed."""
    end, rest = time.monotonic() + seconds, b""
    while True:
        if not select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from map(json.loads, lines)
