# SPDX-License-Identifier: Apache-2.0
"""Work in a process of its own, so that an error, a hang or its side effects harm nothing else.

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

from dpt_ros.apps.report import json_line

_GRACE = 5.0  # seconds to end after SIGTERM
_LAST = 15  # lines of a log that explain an error

_output: int | None = None


def emit(row: dict[str, Any]) -> None:
    """Send a row to the process that waits for it; called by the work."""
    if _output is not None:
        os.write(_output, (json_line(row) + "\n").encode())


class Failed(Exception):
    """A process ended without having done its work; ``log`` has the last lines of its output."""

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
        work: "module:function"; it gets ``arguments``.
        arguments: plain values.
        timeout: seconds after which the process and those it started are ended.
        log: file for its output.
        preload: modules to import once; those of the first call count.
        start: "forkserver"; "spawn", the slow way that shares nothing; or "fork", from a process
            that has not touched a GPU and is itself one of these, so that it ends with it.

    Raises:
        Failed: it raised, crashed or took too long.
    """
    context: Any = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload([*preload, work.split(":")[0]])
    if start == "fork":  # its thread would not exist in the child, and its lock be held for ever
        faulthandler.cancel_dump_traceback_later()
    deadline = time.monotonic() + timeout
    begin = log.stat().st_size if log.exists() else 0
    receiver, sender = context.Pipe(duplex=False)
    given = (work, arguments, sender, str(log), deadline, start)
    process = context.Process(target=_run, args=given)
    process.start()
    sender.close()
    try:
        rest = b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not receiver.poll(left):
                raise Failed(f"no end after {timeout:.0f} s", _tail(log, begin))
            part = os.read(receiver.fileno(), 1 << 16)
            *lines, rest = (rest + part).split(b"\n")
            yield from map(json.loads, lines)
            if not part:
                break
        process.join(max(deadline - time.monotonic(), 1.0))
        if process.exitcode:
            tail = _tail(log, begin)
            message = tail[-1] if tail else f"exit code {process.exitcode}"
            if process.exitcode < 0:
                message = f"ended by {signal.Signals(-process.exitcode).name}"
            raise Failed(message, tail)
    finally:
        if process.is_alive():
            _signal(process.pid, signal.SIGTERM)
            process.join(_GRACE)
        _signal(process.pid, signal.SIGKILL)  # and what it has started
        process.join()
        process.close()
        receiver.close()


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
    # If it hangs, the last lines of the log show where.
    faulthandler.dump_traceback_later(max(deadline - time.monotonic() - 1.0, 0.1), file=file)
    module, name = work.split(":")
    getattr(importlib.import_module(module), name)(**arguments)


def _signal(pid: int, number: int) -> None:
    for kill in (os.killpg, os.kill):  # one that was forked has no group of its own
        with suppress(ProcessLookupError):
            kill(pid, number)


def _tail(log: Path, begin: int) -> list[str]:
    """The last lines of a log, from byte ``begin``."""
    if not log.exists():
        return []
    return log.read_bytes()[begin:].decode(errors="replace").splitlines()[-_LAST:]
