# SPDX-License-Identifier: Apache-2.0
"""The pictures of a recorded video: each at the turn of the packet that it was encoded in."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.video.decoder import Outcome, Picture, VideoDecoder
from dpt_ros.ros.video.messages import READERS


class VideoTrack:
    """The video of one topic.

    With B-frames a picture is known only after packets behind its own, which are decoded ahead.

    Args:
        kind: type of the messages.
        warn: takes messages on the video, each time.
        hardware: see ``VideoDecoder``.

    Raises:
        ImportError: PyAV is not installed.
    """

    def __init__(self, kind: str, warn: Callable[[str], None], hardware: bool) -> None:
        self._read = READERS[kind]
        self._decoder = VideoDecoder(warn, hardware=hardware)
        self._first = self._fed = 0  # numbers of the packet whose turn it is, and of the next one
        self._known: dict[int, Outcome | MessageError] = {}

    def resolve(self, packets: Iterable[bytes], ended: bool) -> bool:
        """Decode until it is known what becomes of the packet whose turn it is.

        Args:
            packets: it, serialised, and those behind it that have been read.
            ended: whether there are no more.

        Returns:
            Whether it is known.
        """
        for number, packet in enumerate(packets, self._first):
            if self._first in self._known:
                return True
            if number == self._fed:
                self._fed += 1
                self._decode(number, packet)
        if ended and self._first not in self._known:
            self._store(self._decoder.restart())
        return self._first in self._known

    def take(self, received_ns: int) -> Picture:
        """The picture of the packet whose turn it is, which then is that of the next one.

        Raises:
            MessageError: there is none.
        """
        known = self._known.pop(self._first)
        self._first += 1
        if isinstance(known, MessageError):
            raise known
        if known.error is not None:
            raise known.error
        return Picture.of(known._replace(context=received_ns))

    def _decode(self, number: int, packet: bytes) -> None:
        try:
            self._store(self._decoder.decode(self._read(packet), number))
        except MessageError as error:
            self._known[number] = error

    def _store(self, outcomes: Iterable[Outcome]) -> None:
        self._known |= {outcome.context: outcome for outcome in outcomes}
