# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a message, as a sentence."""

from __future__ import annotations

_LONGEST = 1000  # characters of a sentence


class MessageError(ValueError):
    """A message cannot be used; the text is a sentence for the user.

    Args:
        reason: a few words that name the kind of fault, for counting on /diagnostics.
        sentence: what was found and what was expected; texts of the message in it may be of any
            length and have control characters, which do not get into the log.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(one_line(sentence))
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
