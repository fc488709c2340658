# SPDX-License-Identifier: Apache-2.0
"""Packets of video: damaged, cut, mixed and out of order; sizes that claim too many pixels."""

from __future__ import annotations

from unittest.mock import patch

import av
import numpy as np
from helpers.videos import PLAIN, WITH_B_FRAMES, encode, pictures
from std_msgs.msg import Header

from dpt_ros.ros.messages.cdr import VideoPacket
from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.video import decoder as decoding
from dpt_ros.ros.video.decoder import Picture, VideoDecoder
from fuzz.properties import Broken, bounded, refusal, sentence

_CODECS = (*PLAIN, "h264_nvenc;yuv420p;bgr8;bgr8", "theora", "")
_MOST_PIXELS = 256 * 256  # a picture of this size takes 0.4 MB, and a decoder keeps up to 17
_MOST_PACKETS = 40

av.logging.set_level(None)


def packed(parts: list[bytes]) -> bytes:
    """Packets behind one another, each after its length."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def seeds() -> list[bytes]:
    """Short videos of every codec; a first byte for the codec, a second one for the rest."""
    small = pictures(6, 64, 48)
    made = []
    for k, codec in enumerate(_CODECS):
        if codec in PLAIN:
            made.append(bytes([k, 0]) + packed([one.data for one in encode(small, codec, 3)]))
        if codec in WITH_B_FRAMES:
            made.append(bytes([k, 1]) + packed([one.data for one in encode(small, codec, 3, 2)]))
    large = encode(pictures(1, 272, 256), "h264", 3)
    return [*made, bytes([0, 3]) + packed([one.data for one in large]), bytes([5, 0]), b""]


def parts_of(data: bytes) -> list[bytes]:
    """The packets of an input; what is left over is one, too."""
    parts: list[bytes] = []
    while data and len(parts) < _MOST_PACKETS:
        size = int.from_bytes(data[:2], "big")
        parts.append(data[2 : 2 + size])
        data = data[2 + size :]
    return parts


def one_input(data: bytes) -> None:
    if len(data) < 2:
        return
    codec, flags = _CODECS[data[0] % len(_CODECS)], data[1]
    packets = [
        VideoPacket(
            Header(),
            codec,
            np.frombuffer(part, np.uint8),
            keyframe=bool(flags & 1),
            number=place if flags & 2 else None,
        )
        for place, part in enumerate(parts_of(data[2:]))
    ]
    ended: list[int] = []
    with (
        patch.object(decoding, "MAX_PIXELS", _MOST_PIXELS),
        bounded(len(data), 1.0 + 0.05 * len(packets)),
    ):
        decoder = VideoDecoder(sentence)
        for place, packet in enumerate(packets):
            for outcome in decoder.decode(packet, place, gap=bool(flags & 4 and place == 3)):
                ended.append(_end(outcome))
        ended += [_end(outcome) for outcome in decoder.restart()]
    if sorted(ended) != list(range(len(packets))):
        raise Broken(f"Of {len(packets)} packets these have ended: {ended}.")


def _end(outcome: Picture) -> int:
    """The place of the packet of an outcome, after a look at the outcome."""
    place = int(outcome.received_ns)
    if outcome.error is not None:
        sentence(str(outcome.error))
        return place
    with refusal(MessageError):
        pixels = outcome.converted().pixels
        if pixels.dtype != np.uint8 or not 0 < pixels[..., 0].size <= _MOST_PIXELS:
            raise Broken(f"A picture of {pixels.shape} pixels came out.")
    return place
