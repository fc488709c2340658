# SPDX-License-Identifier: Apache-2.0
"""Text from outside in logs and error messages."""

from __future__ import annotations

_LONGEST = 1000  # characters


def one_line(text: str) -> str:
    """``text`` as a line of a log: nothing but printable characters, its middle left out if long.

    What comes from outside (frame ids, file names) could otherwise forge lines or fill a disk.
    """
    text = _short(text)
    if text.isprintable():
        return text
    return _short("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def _short(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
