# SPDX-License-Identifier: Apache-2.0
"""The process of a node: signals, its end, and malloc's buffers. Imports next to nothing.

Before a node exists there is nothing to clean up, so SIGINT and SIGTERM end the process at once.
From `raise_on_signal` on, the first signal raises KeyboardInterrupt, once, and the node is
destroyed undisturbed by further ones.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

_ENDS = (signal.SIGINT, signal.SIGTERM)
_TIMEOUT = 1.7  # seconds from a signal to the end of the process; two are promised
received: list[int] = []  # the signals so far
_raises = False


def exit_on_signal() -> None:
    """From now on a signal ends the process at once, with exit code 0."""
    # A shell that starts a program in the background hands it SIGINT ignored, so both are set.
    for number in _ENDS:
        signal.signal(number, _handle)


def raise_on_signal() -> None:
    """From now on the first signal raises KeyboardInterrupt in the main thread.

    rclpy calls the handler that it found when it was initialised, so that stays the same one.
    """
    global _raises
    _raises = True


def ignore_signals() -> None:
    """The process is ending: further signals change nothing."""
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)


def _handle(number: int, _: Any) -> None:
    received.append(number)
    if not _raises:
        os._exit(0)
    if len(received) == 1:
        raise KeyboardInterrupt


def exit_after_signal(prog: str) -> None:
    """End the process soon after a signal, even in a call that does not return.

    A name server that does not answer blocks a download for ten seconds, a driver for longer.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # gets the number of each signal

    def wait() -> None:
        while os.read(reader, 1)[0] not in _ENDS:
            pass
        time.sleep(_TIMEOUT)
        os.write(2, f"{prog}: a call did not return in time; exiting without it.\n".encode())
        os._exit(0)

    threading.Thread(target=wait, name="dpt_exit", daemon=True).start()


def exit_now(code: int) -> NoReturn:
    """End at once, with what was printed so far; torch takes a second to be torn down."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a full disk or a closed pipe
            stream.flush()
    os._exit(code)


def keep_large_buffers() -> None:
    """Tell glibc's malloc to keep image-sized buffers instead of giving them back each time.

    Call it before the first message: receiving an image then takes half the CPU, because its
    pages are not faulted in anew. Does nothing with another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_threshold, 32 << 20)
    libc.mallopt(m_trim_threshold, 512 << 20)
