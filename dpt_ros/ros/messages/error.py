# SPDX-License-Identifier: Apache-2.0
"""Errors in messages, and text from messages in logs."""

from __future__ import annotations

_LONGEST = 1000  # characters


class MessageError(ValueError):
    """A message cannot be used.

    Args:
        reason: a few words on the kind of fault, for counts on /diagnostics.
        text: for the log: what was found and what was expected. Parts of the message in it may be
            of any length and have control characters.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(one_line(text))
        self.reason = reason


def one_line(text: str) -> str:
    """``text`` as a line of a log: nothing but printable characters, its middle left out if long.

    What comes from other nodes (frame ids, encodings) could otherwise forge lines or fill a disk.
    """
    text = _short(text)
    if text.isprintable():
        return text
    return _short("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def _short(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
