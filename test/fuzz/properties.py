# SPDX-License-Identifier: Apache-2.0
"""What must hold for every input: a sentence instead of a crash, in time, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 1.0
MEGABYTE = 1 << 20
LONGEST = 4000  # characters of a sentence; a log line that a peer can blow up is a way to attack

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Broken(AssertionError):
    """The property does not hold for an input."""


class TooMuch(Broken):
    """An input took more time or memory than it may."""


def repeated(one_input: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """A target that may be slow once: what is loaded at the first use is no fault of the input."""

    def run(data: bytes) -> None:
        try:
            one_input(data)
        except TooMuch:
            one_input(data)

    return run


def sentence(text: str, most: int = LONGEST) -> None:
    """Whether an error's text can be shown to a user: one line, printable, a sentence, short.

    Args:
        text: of the error.
        most: characters that it may have.

    Raises:
        Broken: it cannot.
    """
    if not text.isprintable():
        raise Broken(f"The text has a control character or more than one line: {text!r:.300}")
    if text.count(" ") < 3 or not text.endswith((".", "?")):
        raise Broken(f"The text is no sentence: {text!r:.300}")
    if len(text) > most:
        raise Broken(f"The text has {len(text)} characters: {text!r:.300}")


@contextmanager
def refusal(*errors: type[Exception], most: int = LONGEST) -> Iterator[None]:
    """Let the documented errors pass if they are sentences, and nothing else."""
    try:
        yield
    except errors as error:
        sentence(str(error), most)


@contextmanager
def bounded(size: int, seconds: float = SECONDS, megabytes: float = 64) -> Iterator[None]:
    """Measure time and memory of the block.

    Args:
        size: bytes of the input; ten times as many are allowed beside ``megabytes``.
        seconds: of CPU time of this process.
        megabytes: by which its resident memory may grow.

    Raises:
        TooMuch: it took more.
    """
    _CLEAR.write_text("5")  # from now on the peak counts anew (proc(5))
    before = _memory("VmRSS")
    start = time.process_time()
    yield
    spent = time.process_time() - start
    grown = _memory("VmHWM") - before
    if spent > seconds:
        raise TooMuch(f"It took {spent:.2f} s of CPU time, more than {seconds:.2f} s.")
    if grown > megabytes * MEGABYTE + 10 * size:
        raise TooMuch(f"It took {grown / MEGABYTE:.0f} MB more memory for {size} bytes.")


def _memory(name: str) -> int:
    """Bytes, from proc(5)."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} says nothing of {name}.")
