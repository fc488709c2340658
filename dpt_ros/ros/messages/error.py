# SPDX-License-Identifier: Apache-2.0
"""Errors in messages."""

from __future__ import annotations

from dpt_ros.engine.text import one_line


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
