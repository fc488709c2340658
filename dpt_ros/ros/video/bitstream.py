# SPDX-License-Identifier: Apache-2.0
"""What an encoded picture is, by its first bytes: a keyframe or not, in sequence or not.

libavcodec decodes an H.264 picture silently with a wrong reference when one before it is missing,
and CompressedVideo has neither a flag for keyframes nor a number. Sources: ITU-T H.264 7.3.1,
7.3.2.1 and 7.3.3 (frame_num: 7.4.3); H.265 7.3.1.2; AV1 5.3, 5.9.2; VP9 6.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dpt_ros.ros.messages.error import MessageError

# By libavcodec's name: parts of the names of encoders, of formats and of what is between them.
CODECS = {
    "h264": ("h264", "x264", "avc1"),
    "hevc": ("hevc", "h265", "x265"),
    "av1": ("av1",),
    "vp9": ("vp9",),
}
_MOST_UNITS = 64  # before the picture itself; and pictures in one packet
_MOST_OBUS = 1024
_HEAD = 128  # bytes of a unit that are looked at
_WITH_CHROMA_FORMAT = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}


class Unit(NamedTuple):
    """What is known of a packet."""

    picture: bool  # whether it has one, or only parameter sets
    keyframe: bool = False  # whether decoding can begin here
    gap: bool = False  # whether a picture that others refer to is missing before it
    sets: bytes = b""  # what is before the picture, if it has sets of H.264 or H.265


def codec_of(name: str) -> str:
    """libavcodec's name of a codec or an encoder as messages name it.

    Raises:
        MessageError: it is not one of `CODECS`.
    """
    first = name.partition(";")[0].lower()
    for codec, parts in CODECS.items():
        if any(part in first for part in parts):
            return codec
    raise MessageError(
        "unknown codec",
        f"The video has the encoding '{name}', but must be h264, h265 (hevc), av1 or vp9.",
    )


class Inspector:
    """Looks at the packets of one stream of a codec of `CODECS`, in order."""

    def __init__(self, codec: str) -> None:
        self._look = {"h264": self._h264, "hevc": _hevc, "av1": _av1, "vp9": _vp9}[codec]
        self._number_bits = 0  # of H.264's frame_num; 0 while unknown
        self._plane_bits = 0
        self._number = -1  # that of the last picture that others may refer to

    def look(self, data: bytes) -> Unit:
        """What a packet is.

        Raises:
            MessageError: it is not of the codec.
        """
        try:
            return self._look(data)
        except IndexError:
            raise _no_picture(data) from None

    def _h264(self, data: bytes) -> Unit:
        keyframe = sets = False
        for at, head in _nal_units(data):
            kind = head[0] & 31
            if kind == 7:
                self._parameters(_Bits(head[1:]))
            sets |= kind == 7
            keyframe |= kind == 6 and head[1:2] == b"\6"  # a recovery point
            if kind in (1, 2, 5):
                gap = self._is_gap(_Bits(head[1:]), kind == 5, bool(head[0] & 96))
                return Unit(True, keyframe or kind == 5, gap, data[: at if sets else 0])
        return Unit(False, sets=data)

    def _parameters(self, bits: _Bits) -> None:
        """Reads the length of frame_num from a sequence parameter set."""
        profile = bits.take(24) >> 16
        bits.golomb()
        self._plane_bits = 0
        if profile in _WITH_CHROMA_FORMAT:
            if bits.golomb() == 3:
                self._plane_bits = 2 * bits.take(1)
            bits.golomb()
            bits.golomb()
            if bits.take(2) & 1:  # scaling matrices, of which no camera's encoder has one
                self._number_bits = 0
                return
        number_bits = min(bits.golomb(), 12) + 4
        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.take(1)
            bits.golomb()
            bits.golomb()
            for _ in range(min(bits.golomb(), 255)):
                bits.golomb()
        bits.golomb()
        gaps_allowed = bits.take(1)  # as with temporal layers
        self._number_bits = 0 if gaps_allowed else number_bits

    def _is_gap(self, bits: _Bits, keyframe: bool, referred: bool) -> bool:
        if not self._number_bits:
            return False
        for _ in range(3):
            bits.golomb()
        bits.take(self._plane_bits)
        number, last = bits.take(self._number_bits), self._number
        following = (last + 1) % (1 << self._number_bits)
        gap = not keyframe and last >= 0 and number not in (last, following)
        if referred:
            self._number = number
        return gap


class _Bits:
    """Reads bits and Exp-Golomb codes (H.264, 9.1) of a NAL unit."""

    def __init__(self, head: bytes) -> None:
        head = head.replace(b"\0\0\3", b"\0\0")
        self._value = int.from_bytes(head, "big")
        self._left = 8 * len(head)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError
        return (self._value >> self._left) & ((1 << count) - 1)

    def golomb(self) -> int:
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def _nal_units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Place and first bytes of each NAL unit of H.264 and H.265 (Annex B of both); a MessageError
    for none, or more than encoders put before a picture."""
    at = data.find(b"\0\0\1")
    if at < 0:
        raise _no_picture(data)
    for _ in range(_MOST_UNITS):
        if at < 0:
            return
        yield at, data[at + 3 : at + 3 + _HEAD]
        at = data.find(b"\0\0\1", at + 3)
    raise _no_picture(data)


def _hevc(data: bytes) -> Unit:
    sets = False
    for at, head in _nal_units(data):
        kind = head[0] >> 1 & 63
        sets |= kind == 33
        if kind < 32:
            return Unit(True, 16 <= kind <= 23, sets=data[: at if sets else 0])
    return Unit(False, sets=data)


def _av1(data: bytes) -> Unit:
    at, sequence, keyframe, pictures = 0, False, False, 0
    for _ in range(_MOST_OBUS):
        if at >= len(data) and (pictures or sequence):
            return Unit(pictures > 0, keyframe and sequence)
        kind, extended, sized = data[at] >> 3 & 15, data[at] & 4, data[at] & 2
        at += 2 if extended else 1
        size = len(data) - at
        if sized:
            size, shift, more = 0, 0, 128
            while more and shift < 56:
                more = data[at] & 128
                size |= (data[at] & 127) << shift
                at, shift = at + 1, shift + 7
        sequence |= kind == 1
        if kind in (3, 6):
            if not pictures:
                keyframe = not data[at] & 0xE0  # shown anew, and frame_type KEY_FRAME
            pictures += 1
        at += size
        if pictures > _MOST_UNITS:
            break
    raise _no_picture(data)


def _vp9(data: bytes) -> Unit:
    if data[0] >> 6 != 2:
        raise _no_picture(data)
    profile = data[0] >> 5 & 1 | data[0] >> 3 & 2
    return Unit(True, keyframe=not data[0] >> (1 if profile == 3 else 2) & 3)


def _no_picture(data: bytes) -> MessageError:
    return MessageError(
        "undecodable",
        f"The packet of {len(data)} bytes begins with {data[:4].hex(' ') or '(none)'} and is no"
        " picture of its codec.",
    )
