# SPDX-License-Identifier: Apache-2.0
"""Work in a process of its own, so that an error, a hang or its side effects harm nothing else.

The processes are forked from one that has imported the libraries and not touched a GPU: importing
torch and timm takes seconds, and a measurement on a rented GPU has few.
"""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_GRACE = 5.0  # seconds to end after SIGTERM
_LAST = 15  # lines of a log that explain an error

_sender: Any = None


def emit(row: Any) -> None:
    """Send a row to the process that waits for it; called by the work."""
    if _sender is not None:
        _sender.send(row)


class Failed(Exception):
    """A process ended without having done its work. ``log``: the last lines of its output;
    ``how``: "timeout", the name of the signal that ended it, or "an error"."""

    def __init__(self, message: str, log: list[str], how: str) -> None:
        super().__init__(message)
        self.log, self.how = log, how


def rows(
    work: str | Callable[..., object],
    arguments: dict[str, Any],
    timeout: float,
    log: Path,
    start: str = "forkserver",
) -> Iterator[Any]:
    """Run a function in a process of its own and yield what it emits, as it comes.

    Args:
        work: "module:function", or with "fork" a function; it gets ``arguments``, plain values.
        timeout: seconds after which the process and those it started are ended.
        log: file for its output.
        start: "forkserver", which imports once what ``set_forkserver_preload`` was given; "spawn",
            the slow way that shares nothing; or "fork", from a process that has not touched a GPU
            and ends with it.

    Raises:
        Failed: it raised, crashed or took too long.
    """
    context: Any = multiprocessing.get_context(start)
    if start == "fork":  # its thread would not exist in the child, and its lock be held for ever
        faulthandler.cancel_dump_traceback_later()
    deadline = time.monotonic() + timeout
    begin = log.stat().st_size if log.exists() else 0

    def failed(message: str, how: str) -> Failed:
        text = log.read_bytes()[begin:] if log.exists() else b""
        last = text.decode(errors="replace").splitlines()[-_LAST:]
        return Failed(message or (last[-1] if last else how), last, how)

    receiver, sender = context.Pipe(duplex=False)
    given = (work, arguments, sender, str(log), deadline, start)
    process = context.Process(target=_run, args=given)
    process.start()
    sender.close()
    try:
        with suppress(EOFError, OSError):  # it has ended, in the middle of a row at worst
            while True:
                left = deadline - time.monotonic()
                if left <= 0 or not receiver.poll(left):
                    raise failed(f"no end after {timeout:.0f} s", "timeout")
                yield receiver.recv()
        process.join(max(deadline - time.monotonic(), 1.0))
        if process.exitcode:
            name = signal.Signals(-process.exitcode).name if process.exitcode < 0 else ""
            raise failed(f"ended by {name}" if name else "", name or "an error")
    finally:
        if process.is_alive():
            _signal(process.pid, signal.SIGTERM)
            process.join(_GRACE)
        _signal(process.pid, signal.SIGKILL)  # and what it has started
        process.join()
        process.close()
        receiver.close()


def _run(
    work: Any, arguments: dict[str, Any], sender: Any, log: str, deadline: float, start: str
) -> None:
    """In the new process: its own session, so that all it starts can be ended with it."""
    global _sender
    if start != "fork":
        os.setsid()
    _sender = sender
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    # If it hangs, the last lines of the log show where.
    faulthandler.dump_traceback_later(max(deadline - time.monotonic() - 1.0, 0.1), file=file)
    if isinstance(work, str):
        module, name = work.split(":")
        getattr(importlib.import_module(module), name)(**arguments)
    else:
        work(**arguments)


def _signal(pid: int, number: int) -> None:
    for kill in (os.killpg, os.kill):  # one that was forked has no group of its own
        with suppress(ProcessLookupError):
            kill(pid, number)
