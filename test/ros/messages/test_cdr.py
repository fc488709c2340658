# SPDX-License-Identifier: Apache-2.0
"""Serialised images read in place: what rclpy reads from them, and any bytes there are."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from dpt_ros.engine.input.preprocess import network_input, to_rgb
from dpt_ros.ros.messages.cdr import (
    read_compressed_image,
    read_image,
)
from dpt_ros.ros.messages.image import MessageError, image_message, image_pixels

READERS = {Image: read_image, CompressedImage: read_compressed_image}
FIELDS = {
    Image: ("header", "height", "width", "encoding", "is_bigendian", "step"),
    CompressedImage: ("header", "format"),
}
_STORE = get_typestore(Stores.ROS2_HUMBLE)

numbers = st.integers(0, 2**32 - 1)
texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)
headers = st.tuples(st.integers(-(2**31), 2**31 - 1), numbers, texts)


def other_writer(kind: str, header: tuple[int, int, str], *values: Any, little: bool) -> bytes:
    """A message serialised by rosbags, which knows both byte orders."""
    types = _STORE.types
    stamp = types["builtin_interfaces/msg/Time"](*header[:2])
    first = types["std_msgs/msg/Header"](stamp, header[2])
    name = f"sensor_msgs/msg/{kind}"
    msg = types[name](first, *values)
    return bytes(_STORE.serialize_cdr(msg, name, little_endian=little))


def assert_read_as_rclpy_does(serialised: bytes, kind: type) -> None:
    view = READERS[kind](serialised)
    msg = deserialize_message(serialised, kind)
    for field in FIELDS[kind]:
        assert getattr(view, field) == getattr(msg, field)
    assert view.data.tobytes() == bytes(msg.data)


@settings(max_examples=150, deadline=None)
@given(
    header=headers,
    sides=st.tuples(numbers, numbers),
    encoding=texts,
    order=st.integers(0, 255),
    step=numbers,
    data=st.binary(max_size=40),
    little=st.booleans(),
)
def test_an_image_is_read_as_rclpy_reads_it(
    header: tuple[int, int, str],
    sides: tuple[int, int],
    encoding: str,
    order: int,
    step: int,
    data: bytes,
    little: bool,
) -> None:
    values = (*sides, encoding, order, step, np.frombuffer(data, np.uint8))
    serialised = other_writer("Image", header, *values, little=little)
    assert_read_as_rclpy_does(serialised, Image)


@settings(max_examples=80, deadline=None)
@given(header=headers, stored_as=texts, data=st.binary(max_size=40), little=st.booleans())
def test_a_compressed_image_is_read_as_rclpy_reads_it(
    header: tuple[int, int, str], stored_as: str, data: bytes, little: bool
) -> None:
    file = np.frombuffer(data, np.uint8)
    serialised = other_writer("CompressedImage", header, stored_as, file, little=little)
    assert_read_as_rclpy_does(serialised, CompressedImage)


def sample(kind: type = Image) -> bytes:
    header = Header(frame_id="camera_optical_frame")
    header.stamp.sec, header.stamp.nanosec = 12, 34
    if kind is Image:
        msg = image_message(np.arange(72, dtype=np.uint8).reshape(4, 6, 3), "rgb8", header)
    else:
        msg = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
        msg.data = bytes(range(90))
    return bytes(serialize_message(msg))


def test_strings_that_are_no_text_are_read_as_rclpy_reads_them() -> None:
    assert_read_as_rclpy_does(sample().replace(b"rgb8", b"rg\xff\xfe"), Image)
    assert_read_as_rclpy_does(sample().replace(b"rgb8", b"r\0b8"), Image)
    assert_read_as_rclpy_does(sample().replace(b"rgb8\0", b"rgb8x"), Image)


def test_bytes_after_the_message_are_ignored() -> None:
    assert_read_as_rclpy_does(sample() + b"more", Image)


@pytest.mark.parametrize("kind", READERS)
def test_the_pixels_are_a_read_only_view_of_the_bytes(kind: type) -> None:
    serialised = sample(kind)
    view = READERS[kind](serialised)
    assert np.shares_memory(view.data, np.frombuffer(serialised, np.uint8))
    assert not view.data.flags.writeable
    if isinstance(view, Image):
        assert np.shares_memory(image_pixels(view), view.data)


def test_read_only_pixels_go_into_a_network_without_a_warning() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    view = read_image(serialize_message(image_message(pixels, "rgb8", Header())))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ones = (1.0, 1.0, 1.0)
        images = network_input(to_rgb(image_pixels(view), "rgb8"), (32, 64), (0, 0, 0), ones)
    np.testing.assert_allclose(images[0].permute(1, 2, 0).numpy() * 255, pixels, atol=1e-4)


@pytest.mark.parametrize("kind", READERS)
def test_a_message_cut_off_anywhere_is_refused_with_a_sentence(kind: type) -> None:
    serialised = sample(kind)
    for size in range(len(serialised)):
        with pytest.raises(MessageError) as caught:
            READERS[kind](serialised[:size])
        assert caught.value.reason == "malformed message"
        assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("at", "words"),
    [(12, "'header.frame_id' ends at byte 4294967311"), (-76, "'data' ends at byte 4294967363")],
)
def test_a_length_beyond_the_end_is_refused_and_named(at: int, words: str) -> None:
    serialised = bytearray(sample())
    start = at % len(serialised)
    serialised[start : start + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(MessageError, match=words):
        read_image(bytes(serialised))


@pytest.mark.parametrize("begin", [b"\x00\x03\x00\x00", b"\x00\x07\x00\x00", b"\x01\x00\x00\x00"])
def test_another_representation_is_refused_with_a_sentence(begin: bytes) -> None:
    with pytest.raises(MessageError, match=f"begins with {begin.hex(' ')}, but plain CDR"):
        read_image(begin + sample()[4:])


def damaged(serialised: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(serialised)
    for at, value in changes:
        changed[at % len(changed)] = value
    return bytes(changed)


samples = st.sampled_from([sample(kind) for kind in READERS])
changes = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6)
anything = st.binary(max_size=200).map(lambda rest: b"\x00\x01\x00\x00" + rest)


@settings(max_examples=400, deadline=None)
@given(
    serialised=st.builds(damaged, samples, changes) | anything | st.binary(max_size=20),
    kind=st.sampled_from([*READERS]),
)
def test_any_bytes_give_a_message_of_their_size_or_a_sentence(
    serialised: bytes, kind: type
) -> None:
    try:
        view = READERS[kind](serialised)
    except MessageError as error:
        assert str(error).endswith(".")
        return
    text = view.format if isinstance(view, CompressedImage) else view.encoding
    assert len(text) + len(view.header.frame_id) + view.data.size <= len(serialised)
    # What was read is a message that can be written.
    written = serialize_message(kind(header=view.header))
    assert deserialize_message(written, kind).header == view.header
