# SPDX-License-Identifier: Apache-2.0
"""The inputs of a camera: subscriptions, and a record each of what became of the messages."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from rclpy.node import Node

REVIEW_PERIOD = 0.5
CONNECTED = 2.0  # seconds after its last message for which an input counts as connected
_UNUSED = 2.0  # seconds after which an input that is connected and unused is a warning
_FRAMES = 3  # and at least so many frames, for a camera may be slow


class TopicInput:
    """A subscription of a node, from construction to ``close``."""

    def __init__(self, node: Node, subscription: Any) -> None:
        self._node = node
        self._subscription = subscription

    def close(self) -> None:
        """End the subscription."""
        self._node.destroy_subscription(self._subscription)

    @property
    def topic_name(self) -> str:
        """The full name of the topic, after remapping."""
        return str(self._subscription.topic_name)

    def review(self) -> None:
        """Adapt it to the publishers; call it every `REVIEW_PERIOD` seconds."""


class InputRecord:
    """What became of the messages of one input; may be called from any thread.

    Args:
        name: on /diagnostics, such as "odom".
        lasting: a message is valid until the next one, as a calibration is; else only for a
            moment, so that an input without new messages is no longer connected.
        clock: seconds, monotonic.
    """

    def __init__(
        self, name: str, lasting: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._lasting = lasting
        self._clock = clock
        self._lock = threading.Lock()
        self._messages = 0
        self._asked = False
        self._last_message = -float("inf")
        self._frames = 0
        self._row = 0  # frames without it since the last one with it
        self._unused_since = 0.0
        self._state = ""
        self._counts: Counter[str] = Counter()

    @property
    def connected(self) -> bool:
        """Whether messages arrive."""
        if self._lasting:
            return self._messages > 0
        return self._clock() - self._last_message < CONNECTED

    def received(self) -> None:
        """A message arrived."""
        with self._lock:
            self._messages += 1
            self._last_message = self._clock()

    def asked(self) -> None:
        """It was queried; for an input whose messages are received elsewhere, such as tf."""
        with self._lock:
            self._asked = True
            self._last_message = self._clock()

    def count(self, what: str) -> None:
        """Count something about a message, such as "repeated stamps"."""
        with self._lock:
            self._counts[what] += 1

    def used(self, words: str = "used") -> None:
        """A frame used it."""
        with self._lock:
            self._frames += 1
            self._row = 0
            self._state = words

    def unused(self, why: str) -> None:
        """A frame could not use it although it is wanted."""
        with self._lock:
            if not self._row:
                self._unused_since = self._clock()
            self._row += 1
            self._state = f"not used: {why}"

    def idle(self, why: str) -> None:
        """It is not needed, for a reason that is no fault."""
        with self._lock:
            self._row = 0
            self._state = f"not used: {why}"

    @property
    def missing(self) -> bool:
        """Whether frames want it, and nothing has arrived for a while."""
        with self._lock:
            return self._unused and not self.connected

    @property
    def _unused(self) -> bool:
        return self._row >= _FRAMES and self._clock() - self._unused_since >= _UNUSED

    @property
    def state(self) -> str:
        """ "used", "not used: why", or "none" where no message has arrived."""
        if not self._messages and not self._asked:
            return "none"
        return self._state or "not used: no frame has needed it"

    def values(self) -> dict[str, str]:
        """Names and values for /diagnostics."""
        with self._lock:
            values = {self.name: self.state}
            if self._messages:
                values[f"{self.name}: messages"] = str(self._messages)
            if self._messages or self._asked:
                values[f"{self.name}: frames with it"] = str(self._frames)
            counts = sorted(self._counts.items())
            return values | {f"{self.name}: {what}": str(n) for what, n in counts}

    def warning(self) -> str:
        """A warning on messages that arrive and are not used, else ""."""
        with self._lock:
            if not self._unused or not self.connected:
                return ""
            why = self._state.removeprefix("not used: ")
            return f"The last {self._row} frames could not use {self.name}: {why}."
