# SPDX-License-Identifier: Apache-2.0
"""Work in a process of its own, so that what fails, hangs or leaves traces harms nothing else.

The processes are forked from one that has imported the libraries and not touched a GPU: importing
torch and timm takes seconds, and a measurement on a rented GPU has few.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dpt_ros.apps.bench.report import json_line

_GRACE = 5.0  # seconds to die after SIGTERM
_LAST = 15  # lines of a log that tell an error

_output: int | None = None


def emit(row: dict[str, Any]) -> None:
    """Hand a row to the process that waits for it; to be called in the one that works."""
    if _output is not None:
        os.write(_output, (json_line(row) + "\n").encode())


class Failed(Exception):
    """A process ended without having done its work; ``log`` has the last lines it wrote."""

    def __init__(self, message: str, log: list[str]) -> None:
        super().__init__(message)
        self.log = log


def rows(
    work: str,
    arguments: dict[str, Any],
    timeout: float,
    log: Path,
    preload: Sequence[str] = (),
    start: str = "forkserver",
) -> Iterator[dict[str, Any]]:
    """Run a function in a process of its own and yield what it emits, as it comes.

    Args:
        work: "module:function"; it takes ``arguments``.
        arguments: plain values.
        timeout: seconds after which the process and those it started are ended.
        log: file for what it prints.
        preload: modules to import once; those of the first call count.
        start: "forkserver"; "spawn", the slow way that shares nothing; or "fork", from a process
            that has not touched a GPU and is itself one of these, so that it ends with it.

    Raises:
        Failed: it raised, crashed or took too long.
    """
    context: Any = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload([*preload, work.split(":")[0]])
    if start == "fork":  # its thread would not be there, and its lock for ever taken
        faulthandler.cancel_dump_traceback_later()
    deadline = time.monotonic() + timeout
    begin = log.stat().st_size if log.exists() else 0
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(work, arguments, its, str(log), deadline, start))
    process.start()
    its.close()
    try:
        rest = b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not mine.poll(left):
                raise Failed(f"no end after {timeout:.0f} s", _tail(log, begin))
            part = os.read(mine.fileno(), 1 << 16)
            *lines, rest = (rest + part).split(b"\n")
            yield from map(json.loads, lines)
            if not part:
                break
        process.join(max(deadline - time.monotonic(), 1.0))
        if process.exitcode:
            raise _failure(process.exitcode, _tail(log, begin))
    finally:
        _end(process)
        mine.close()


def _run(
    work: str, arguments: dict[str, Any], output: Any, log: str, deadline: float, start: str
) -> None:
    """In the new process: its own session, so that all it starts can be ended with it."""
    global _output
    if start != "fork":
        os.setsid()
    _output = output.fileno()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    # Where it hangs, if it does, in the last lines of the log.
    faulthandler.dump_traceback_later(max(deadline - time.monotonic() - 1.0, 0.1), file=file)
    module, name = work.split(":")
    getattr(importlib.import_module(module), name)(**arguments)


def _end(process: Any) -> None:
    """End it if it is not over, and in any case what it has started."""
    pid = process.pid
    if process.is_alive():
        _signal(pid, signal.SIGTERM)
        process.join(_GRACE)
    _signal(pid, signal.SIGKILL)
    process.join()
    process.close()


def _signal(pid: int, number: int) -> None:
    for kill in (os.killpg, os.kill):  # one that was forked leads no group of its own
        with suppress(ProcessLookupError):
            kill(pid, number)


def _failure(code: int, tail: list[str]) -> Failed:
    if code < 0:
        return Failed(f"ended by {signal.Signals(-code).name}", tail)
    return Failed(tail[-1] if tail else f"exit code {code}", tail)


def _tail(log: Path, begin: int) -> list[str]:
    """The last lines of a log, from where it began."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace").splitlines()[-_LAST:]
