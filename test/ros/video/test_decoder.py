# SPDX-License-Identifier: Apache-2.0
"""Videos to pictures: against what was encoded, after losses, with B-frames, and garbage."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rclpy")

from helpers.videos import PLAIN, WITH_B_FRAMES, encode, packets, pictures
from hypothesis import given, settings
from hypothesis import strategies as st

from dpt_ros.ros.messages.cdr import VideoPacket
from dpt_ros.ros.video import decoder as decoding
from dpt_ros.ros.video.bitstream import Inspector, codec_of
from dpt_ros.ros.video.decoder import (
    MAX_PACKET,
    WAITING,
    Picture,
    VideoDecoder,
)

GOP = 10
KINDS = ("ffmpeg", "foxglove")


class Decoded:
    """What a decoder made of packets, whose contexts are their places."""

    def __init__(self, given: Iterable[VideoPacket], lost: Iterable[int] = ()) -> None:
        self.warnings: list[str] = []
        self.counts: Counter[str] = Counter()
        self.delays: list[int] = []
        self.outcomes: list[Picture] = []
        decoder = VideoDecoder(self.warnings.append, lambda what: self.counts.update([what]))
        self.sent = 0
        for place, packet in enumerate(given):
            if place in set(lost):
                continue
            self.sent += 1
            for outcome in decoder.decode(packet, place):
                self.delays.append(place - outcome.received_ns)
                self.outcomes.append(outcome)
        self.outcomes += decoder.restart()

    @property
    def places(self) -> list[int]:
        """Of the packets that became pictures, in the order of these."""
        return [one.received_ns for one in self.outcomes if one.error is None]

    @property
    def reasons(self) -> Counter[str]:
        return Counter(one.error.reason for one in self.outcomes if one.error is not None)

    def error(self, truth: list[np.ndarray], numbers: list[int]) -> float:
        """The largest mean difference of a picture from the one its packet was made of."""
        found = [0.0]
        for one in self.outcomes:
            if one.error is None:
                pixels, expected = one.converted().pixels, truth[numbers[one.received_ns]]
                found.append(np.abs(pixels.astype(int) - expected).mean())
        return max(found)


@pytest.fixture(scope="module")
def truth() -> list[np.ndarray]:
    return pictures(40)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codec", PLAIN)
def test_every_picture_comes_with_its_own_packet(truth, codec: str, kind: str) -> None:
    encoded = encode(truth, codec, GOP)
    found = Decoded(packets(encoded, codec, kind))
    assert found.places == list(range(40))
    assert set(found.delays) == {0}
    assert found.error(truth, [one.number for one in encoded]) < 6
    assert not found.warnings
    assert not found.counts


@pytest.mark.parametrize("codec", WITH_B_FRAMES)
def test_with_b_frames_pictures_keep_their_stamps_and_come_late(truth, codec: str) -> None:
    encoded = encode(truth, codec, GOP, b_frames=3)
    numbers = [one.number for one in encoded]
    assert numbers != sorted(numbers)
    found = Decoded(packets(encoded, codec))
    assert [numbers[place] for place in found.places] == list(range(40))
    assert found.error(truth, numbers) < 6
    assert 1 < max(found.delays) <= 5
    assert found.counts["pictures delayed by B-frames"] > 20
    assert "B-frames" in found.warnings[0]
    assert "zerolatency" in found.warnings[0]


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_begins_with_a_keyframe(truth, kind: str) -> None:
    encoded = encode(truth, "h264", GOP)[3:]
    found = Decoded(packets(encoded, "h264", kind))
    assert found.places == list(range(GOP - 3, 37))
    assert found.reasons == {WAITING: GOP - 3}
    assert "keyframe" in str(found.outcomes[0].error)


# What tells of a loss: the number in FFMPEGPacket; the bytes of H.264; H.265's decoder itself.
@pytest.mark.parametrize(
    ("codec", "kind"), [(c, "ffmpeg") for c in PLAIN] + [(c, "foxglove") for c in ("h264", "h265")]
)
def test_after_a_loss_there_are_no_wrong_pictures_and_the_next_keyframe_is_one(
    truth, codec: str, kind: str
) -> None:
    lost = {4, 17, 18, 30}
    encoded = encode(truth, codec, GOP)
    found = Decoded(packets(encoded, codec, kind), lost)
    decodable = [k for k in range(40) if not any(k // 10 * 10 <= bad <= k for bad in lost)]
    assert found.places == decodable
    assert len(found.outcomes) == found.sent
    assert found.error(truth, [one.number for one in encoded]) < 6
    if codec == "h264":
        assert found.counts == {"gaps: packets missing": 3}  # another keyframe tells of none


def test_a_loss_that_the_transport_tells_of_is_one_for_every_codec(truth) -> None:
    given = packets(encode(truth[:20], "av1", GOP), "av1", "foxglove")
    decoder = VideoDecoder([].append)
    outcomes = [one for packet in given[:4] for one in decoder.decode(packet)]
    outcomes += decoder.decode(given[5], gap=True)
    outcomes += [one for packet in given[6:] for one in decoder.decode(packet)]
    assert [one.error is None for one in outcomes] == [True] * 4 + [False] * 5 + [True] * 10


@pytest.mark.parametrize("codec", WITH_B_FRAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_with_b_frames_a_loss_costs_at_most_a_group_of_pictures(
    truth, codec: str, kind: str
) -> None:
    encoded = encode(truth, codec, GOP, b_frames=2)
    numbers = [one.number for one in encoded]
    first_p = next(k for k, one in enumerate(encoded) if one.number in (11, 12, 13))
    found = Decoded(packets(encoded, codec, kind), {first_p})
    shown = [numbers[place] for place in found.places]
    assert shown == sorted(shown)
    assert set(range(40)) - set(shown) <= set(range(8, 20))
    assert found.error(truth, numbers) < 6
    assert len(found.outcomes) == found.sent


def test_five_percent_of_lost_packets_cost_only_what_depends_on_them() -> None:
    truth = pictures(300, 640, 480)
    encoded = encode(truth, "h264", 15)
    rng = np.random.default_rng(1)
    lost = {k for k in range(300) if rng.random() < 0.05}
    assert 8 <= len(lost) <= 25
    given = packets(encoded)
    found = Decoded(given, lost)
    decodable = [k for k in range(300) if not any(k // 15 * 15 <= bad <= k for bad in lost)]
    assert found.places == decodable
    stamps = [one.packet.header.stamp for one in found.outcomes if one.error is None]
    assert stamps == [given[k].header.stamp for k in decodable]
    assert found.error(truth, list(range(300))) < 6


@pytest.mark.parametrize("codec", PLAIN)
def test_a_change_of_size_is_a_message_and_no_loss(truth, codec: str) -> None:
    small = pictures(20, 96, 64)
    given = packets(encode(truth[:20], codec, GOP), codec, "foxglove")
    given += packets(encode(small, codec, GOP), codec, "foxglove")
    found = Decoded(given)
    assert found.places == list(range(40))
    assert found.error([*truth[:20], *small], list(range(40))) < 7
    assert found.counts == {"changes of size": 1}
    assert found.warnings == ["The video changed from (160, 120) to (96, 64) pixels."]


def test_a_change_of_codec_needs_no_restart_of_the_node(truth) -> None:
    given = packets(encode(truth[:10], "h264", GOP), "libx264;yuv420p;bgr8;bgr8")
    given += packets(encode(truth[10:20], "h265", GOP), "hevc_nvenc")
    found = Decoded(given)
    assert found.places == list(range(20))
    assert found.counts == {"changes of codec": 1}


@pytest.mark.parametrize("place", [10, 15])
@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_a_packet_cut_in_half_is_an_error_and_the_next_keyframe_is_decoded(
    truth, codec: str, place: int
) -> None:
    given = packets(encode(truth, codec, GOP), codec)
    half = given[place].data[: given[place].data.size // 2]
    given[place] = replace(given[place], data=half)
    found = Decoded(given)
    assert found.places == [*range(place), *range(20, 40)]
    assert found.reasons == {"undecodable": 1, WAITING: 19 - place}
    assert "cannot be decoded" in str(next(one.error for one in found.outcomes if one.error))
    # A decoder of H.264 that was only flushed gave wrong pictures from here on.
    assert found.error(truth, list(range(40))) < 6


def test_a_message_of_another_kind_in_between_is_a_loss_too(truth) -> None:
    for bad in ({"codec": "mpeg4"}, {"size": (1 << 20, 1 << 20)}, {"data": np.zeros(9, np.uint8)}):
        given = packets(encode(truth[:20], "av1", GOP), "av1", "foxglove")
        given[4] = replace(given[4], **bad)
        found = Decoded(given)
        assert found.places == [*range(4), *range(10, 20)]
        assert found.reasons[WAITING] == 5


@pytest.mark.parametrize("codec", PLAIN)
def test_bytes_of_something_else_end_the_group_of_pictures(truth, codec: str) -> None:
    given = packets(encode(truth, codec, GOP), codec, "foxglove")
    given[14] = replace(given[14], data=np.full(99, 0x11, np.uint8))
    found = Decoded(given)
    assert found.places == [*range(14), *range(20, 40)]
    assert found.reasons["undecodable"] >= 1
    assert len(found.outcomes) == 40


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_parameter_sets_that_came_only_once_last_over_losses_and_damage(truth, codec) -> None:
    given = packets(encode(truth, codec, GOP), codec)
    inspector = Inspector(codec_of(codec))
    for place in (10, 20, 30):
        data = given[place].data.tobytes()
        sets = len(inspector.look(data).sets)
        assert sets
        given[place] = replace(given[place], data=np.frombuffer(data[sets:], np.uint8))
    given[14] = replace(given[14], data=np.zeros(50, np.uint8))
    found = Decoded(given, {27})
    assert found.places == [*range(14), *range(20, 27), *range(30, 40)]
    assert found.error(truth, list(range(40))) < 6


def test_parameter_sets_in_a_packet_of_their_own_are_used_with_the_next_one(truth) -> None:
    first, *others = packets(encode(truth[:10], "h264", GOP), "h264", "foxglove")
    data = first.data.tobytes()
    picture = data.rfind(b"\0\0\1")  # what is before it: parameter sets, and a note of x264
    parts = [
        replace(first, data=np.frombuffer(part, np.uint8))
        for part in (data[:picture], data[picture:])
    ]
    found = Decoded([*parts, *others])
    assert found.places == list(range(1, 11))
    assert found.reasons == {"only parameter sets": 1}


def test_a_grey_video_is_mono8(truth) -> None:
    [packet] = packets(encode(truth[:1], "h265", pix_fmt="gray"), "h265")
    [decoded] = VideoDecoder([].append).decode(packet, 5)
    picture = decoded.converted()
    assert (picture.encoding, picture.pixels.shape, picture.received_ns) == (
        "mono8",
        (120, 160),
        5,
    )


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("h264", "h264"),
        ("libx264", "h264"),
        ("h264_nvenc;yuv420p;bgr8;bgr8", "h264"),
        ("h265", "hevc"),
        ("hevc_vaapi", "hevc"),
        ("libsvtav1", "av1"),
        ("libvpx-vp9", "vp9"),
    ],
)
def test_codecs_are_known_by_the_names_of_formats_and_encoders(name: str, codec: str) -> None:
    assert codec_of(name) == codec


def test_what_cannot_be_decoded_has_a_message_of_its_own(truth, monkeypatch) -> None:
    [packet] = packets(encode(truth[:1], "h264"))
    decoder = VideoDecoder([].append)
    cases = {
        "unknown codec": replace(packet, codec="mpeg4"),
        "bad size": replace(packet, size=(1 << 20, 1 << 20)),
        "undecodable": replace(packet, data=np.zeros(100, np.uint8)),
    }
    large = np.broadcast_to(np.uint8(0), MAX_PACKET + 1)
    for reason, bad in [*cases.items(), ("bad size", replace(packet, data=large))]:
        [outcome] = decoder.decode(bad)
        assert outcome.error is not None
        assert outcome.error.reason == reason
    monkeypatch.setitem(decoding._DECODERS, "h264", ("libnone", "libneither"))
    decoder = VideoDecoder([].append)
    for _ in range(2):
        [outcome] = decoder.decode(packet)
        assert outcome.error is not None
        assert outcome.error.reason == "codec not there"
    assert "libnone, libneither" in str(outcome.error)


def test_a_picture_that_claims_more_pixels_than_allowed_is_refused(truth, monkeypatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 160 * 120 - 1)
    for codec in PLAIN:
        found = Decoded(packets(encode(truth[:12], codec, GOP), codec, "foxglove"))
        assert not found.places
        assert found.reasons["undecodable"] >= 1


def test_hardware_that_is_not_there_is_a_message_and_the_cpu_decodes(truth, monkeypatch) -> None:
    monkeypatch.setattr("av.codec.hwaccel.hwdevices_available", list)
    warnings: list[str] = []
    decoder = VideoDecoder(warnings.append, hardware=True)
    outcomes = [one for p in packets(encode(truth[:5])) for one in decoder.decode(p)]
    assert [one.error for one in outcomes] == [None] * 5
    assert warnings == [
        "video_decoder is hardware, but no device here decodes h264: the CPU does."
    ]


def test_hardware_is_used_or_the_cpu_with_a_message(truth) -> None:
    warnings: list[str] = []
    decoder = VideoDecoder(warnings.append, hardware=True)
    given = packets(encode(truth[:20], "h264", GOP))
    del given[5]
    outcomes = [one for packet in given for one in decoder.decode(packet)]
    outcomes += decoder.restart()
    assert sum(one.error is None for one in outcomes) == 15
    assert len(warnings) == (0 if decoder._hardware else 1)  # not again at each restart


def test_without_pyav_the_message_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"Video needs PyAV.*pip install av"):
        VideoDecoder([].append)


def test_pending_packets_are_bounded_when_the_decoder_gives_nothing(truth) -> None:
    decoder = VideoDecoder([].append)
    given = packets(encode(truth, "h264", 40, b_frames=3), "h264", "foxglove")
    most = 0
    for packet in given[:1] * 100:  # keyframes with the same place in time
        decoder.decode(packet)
        most = max(most, len(decoder._pending))
    assert most <= decoding._MOST_DELAYED


@pytest.fixture(scope="module")
def samples(truth) -> dict[str, list[VideoPacket]]:
    return {codec: packets(encode(truth[:12], codec, 4), codec) for codec in PLAIN}


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damage_of_any_kind_ends_each_packet_once(samples, data) -> None:
    codec = data.draw(st.sampled_from(sorted(samples)))
    decoder = VideoDecoder([].append)
    ended: list[int] = []
    for place, packet in enumerate(samples[codec]):
        content = bytearray(packet.data.tobytes())
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
            content = content or bytearray(b"\0")
        damaged = replace(packet, data=np.frombuffer(bytes(content), np.uint8))
        ended += [one.received_ns for one in decoder.decode(damaged, place)]
    ended += [one.received_ns for one in decoder.restart()]
    assert sorted(ended) == list(range(12))
