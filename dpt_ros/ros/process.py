# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM from the first line of a program to its last; imports next to nothing.

Until a node exists there is nothing to clean up and the process simply ends; from then on the
first signal raises KeyboardInterrupt once, and what follows cleans up undisturbed.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

ENDS = (signal.SIGINT, signal.SIGTERM)
came: list[int] = []  # the signals so far
_raises = False


def end_quietly() -> None:
    """From now on a signal ends the process at once, with exit code 0."""
    # A shell that starts a program in the background hands it SIGINT ignored, so both are set.
    for number in ENDS:
        signal.signal(number, _take)


def raise_from_here() -> None:
    """From now on the first signal raises KeyboardInterrupt in the main thread.

    rclpy calls the handler that it found when it was initialised, so that stays the same one.
    """
    global _raises
    _raises = True


def ignore() -> None:
    """The program ends already: signals change nothing any more."""
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)


def end_process(code: int) -> NoReturn:
    """End at once, with what was printed so far."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a full disk or a closed pipe is no reason to stay
            stream.flush()
    os._exit(code)


def _take(number: int, _: Any) -> None:
    came.append(number)
    if not _raises:
        os._exit(0)
    if len(came) == 1:
        raise KeyboardInterrupt
