# SPDX-License-Identifier: Apache-2.0
"""The pictures of a recorded video, one at the turn of each packet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.video.decoder import Outcome, Picture, VideoDecoder
from dpt_ros.ros.video.messages import READERS


class VideoTrack:
    """The video of one topic: as many outcomes as packets, in the order of the pictures.

    With B-frames that is not the order of the packets, of which some are decoded ahead then.

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
        self._gap = False  # whether the packet before could not be read
        self._ahead = 0  # packets that were decoded before their turn
        self._outcomes: deque[Outcome | MessageError] = deque()

    def resolve(self, packets: Iterable[bytes], ended: bool) -> bool:
        """Decode until there is an outcome for the packet whose turn it is.

        Args:
            packets: it, serialised, and those behind it that have been read.
            ended: whether there are no more.

        Returns:
            Whether there is one.
        """
        for place, packet in enumerate(packets):
            if self._outcomes:
                return True
            if place == self._ahead:
                self._ahead += 1
                self._decode(packet)
        if ended and not self._outcomes:
            self._outcomes += self._decoder.restart()
        return bool(self._outcomes)

    def take(self, received_ns: int) -> Picture:
        """The picture at this turn; then it is the turn of the next packet.

        Raises:
            MessageError: there is none.
        """
        outcome = self._outcomes.popleft()
        self._ahead -= 1
        if isinstance(outcome, MessageError):
            raise outcome
        if outcome.error is not None:
            raise outcome.error
        return Picture.of(outcome._replace(context=received_ns))

    def _decode(self, packet: bytes) -> None:
        try:
            self._outcomes += self._decoder.decode(self._read(packet), gap=self._gap)
            self._gap = False
        except MessageError as error:
            self._outcomes.append(error)
            self._gap = True
