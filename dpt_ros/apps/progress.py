# SPDX-License-Identifier: Apache-2.0
"""Progress bars, with rate and time left, and messages above them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar(name: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar that what was done by an earlier run does not make faster."""
    bar: tqdm | None = None

    def show(done: int, total: int | None) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, initial=done, desc=name, unit=unit, disable=None)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


def print_above(message: str) -> None:
    """Print to stderr without breaking a bar."""
    tqdm.write(message, file=sys.stderr)
