# SPDX-License-Identifier: Apache-2.0
"""The pictures of a recorded video, one at the turn of each packet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from dpt_ros.ros.messages.cdr import VIDEO_READERS
from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.video.decoder import Picture, VideoDecoder


class VideoTrack:
    """The video of one topic: as many outcomes as packets, in the order of the pictures.

    With B-frames that is not the order of the packets, of which some are decoded ahead then.
    """

    def __init__(self, kind: str, warn: Callable[[str], None], hardware: bool) -> None:
        self._read = VIDEO_READERS[kind]
        self._decoder = VideoDecoder(warn, hardware=hardware)
        self._gap = False  # whether the packet before could not be read
        self._ahead = 0  # packets that were decoded before their turn
        self._pictures: deque[Picture | MessageError] = deque()

    def resolve(self, packets: Iterable[bytes], ended: bool) -> bool:
        """Decode until it is known what becomes of the packet whose turn it is; whether it is.

        Args:
            packets: it, serialised, and those behind it that have been read.
            ended: whether there are no more.
        """
        for place, packet in enumerate(packets):
            if self._pictures:
                return True
            if place == self._ahead:
                self._ahead += 1
                self._decode(packet)
        if ended and not self._pictures:
            self._pictures += self._decoder.restart()
        return bool(self._pictures)

    def take(self, received_ns: int) -> Picture:
        """The picture at this turn; then it is the turn of the next packet.

        Raises:
            MessageError: there is none.
        """
        picture = self._pictures.popleft()
        self._ahead -= 1
        if isinstance(picture, MessageError):
            raise picture
        return picture.converted()._replace(received_ns=received_ns)

    def _decode(self, packet: bytes) -> None:
        try:
            self._pictures += self._decoder.decode(self._read(packet), gap=self._gap)
            self._gap = False
        except MessageError as error:
            self._pictures.append(error)
            self._gap = True
