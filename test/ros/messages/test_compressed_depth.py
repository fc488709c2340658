# SPDX-License-Identifier: Apache-2.0
"""depth/image/compressedDepth as the readers of compressed_depth_image_transport decode it."""

import base64
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from std_msgs.msg import Header

from dpt_ros.engine.settings import Settings
from dpt_ros.ros.messages.compressed_depth import compressed_depth_message, rvl

# What CompressRVL of compressed_depth_image_transport (2024, rolling) made of ``picture``.
OF_THE_TRANSPORT = base64.b64decode(
    "6KGrNO2hq4GMGinBqCr9bumC2TmzHqmiEoherqlOnlr4Ltsqgvs93cPsuRMlsx6pwe2DqpLq8aibIrKtIpoeuogeulrc"
    "HroaPhKPGqg669kUPco+qcPMulKusx6o8Y1ZrZLq8dON77LjrZkiqV4SqdweuiqpHo8agfkqIl4imJ3o5Sru7aGrgYwa"
    "KcE6m9xuOco+qJE6jejo5Trr5KkjgYnckuoAAAAj"
)


def picture() -> np.ndarray:
    """(9, 13) uint16, with runs of zeros, large steps and an empty row."""
    y, x = np.mgrid[:9, :13]
    values = ((x * x * 37 + y * 911) % 5000 + (x > 9) * 60000 * (y % 2)).astype(np.uint16)
    values[(x + 2 * y) % 7 < 2] = 0
    values[4] = values[0, :3] = values[8, 10:] = 0
    return values


def unpacked_rvl(content: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Number by number, as Wilson's paper describes it."""
    words = np.frombuffer(content, "<u4").tolist()
    nibbles = iter([(word >> shift) & 15 for word in words for shift in range(28, -1, -4)])

    def number() -> int:
        value, bits = 0, 0
        while True:
            nibble = next(nibbles)
            value |= (nibble & 7) << bits
            bits += 3
            if nibble < 8:
                return value

    found: list[int] = []
    last = 0
    while len(found) < shape[0] * shape[1]:
        found += [0] * number()
        for _ in range(number()):
            zigzag = number()
            last += (zigzag >> 1) ^ -(zigzag & 1)
            found.append(last)
    return np.array(found, np.uint16).reshape(shape)


def metres(message: object) -> np.ndarray:
    """Decoded as the transport's subscriber does it."""
    content = bytes(message.data)
    _, factor, offset = struct.unpack("<iff", content[:12])
    encoding, _, name = message.format.partition("; compressedDepth ")
    if name == "png":
        values = cv2.imdecode(np.frombuffer(content[12:], np.uint8), cv2.IMREAD_UNCHANGED)
    else:
        width, height = struct.unpack("<II", content[12:20])
        values = unpacked_rvl(content[20:], (height, width))
    if encoding == "16UC1":
        return np.where(values > 0, values / 1000, np.nan)
    with np.errstate(divide="ignore"):
        return np.where(values > 0, factor / (values - np.float32(offset)), np.nan)


def test_rvl_has_the_bytes_of_the_transport() -> None:
    assert rvl(picture()) == OF_THE_TRANSPORT


@given(
    arrays.arrays(
        np.uint16,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.just(0) | st.integers(0, 65535) | st.integers(1000, 1010),
    )
)
def test_rvl_is_lossless(values: np.ndarray) -> None:
    np.testing.assert_array_equal(unpacked_rvl(rvl(values), values.shape), values)


@pytest.mark.parametrize("file_format", ["png", "rvl"])
def test_metres_come_back_to_the_step_of_the_inverse_depth(file_format: str) -> None:
    depth = np.geomspace(0.2, 9.9, 600, dtype=np.float32).reshape(20, 30)
    header = Header(frame_id="eye")
    settings = Settings(compressed_depth_format=file_format)
    message = compressed_depth_message(depth, header, settings)
    assert message.format == f"32FC1; compressedDepth {file_format}"
    assert message.header is header
    # One step of inverse depth is 1 / (100 * 101): at a depth z it is z^2 / 10100 metres.
    assert (np.abs(metres(message) - depth) <= 1.01 * depth**2 / 10100).all()


@pytest.mark.parametrize("file_format", ["png", "rvl"])
def test_millimetres_come_back_exactly(file_format: str) -> None:
    depth = (1 + np.arange(9999, dtype=np.float32).reshape(99, 101)) / 1000
    settings = Settings(depth_encoding="16UC1", compressed_depth_format=file_format)
    message = compressed_depth_message(depth, Header(), settings)
    np.testing.assert_allclose(metres(message), depth, atol=1e-6)


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1"])
def test_unknown_and_far_depth_is_unknown_and_near_depth_as_near_as_can_be_told(
    encoding: str,
) -> None:
    depth = np.array([[np.nan, np.inf, 0.0, -1.0, 5.1, 4.9, 0.01]], np.float32)
    settings = Settings(depth_encoding=encoding, compressed_depth_depth_max=5.0)
    found = metres(compressed_depth_message(depth, Header(), settings))
    assert np.isnan(found[0, :5]).all()
    assert found[0, 5] == pytest.approx(4.9, rel=1e-3)
    assert found[0, 6] == pytest.approx(0.1495 if encoding == "32FC1" else 0.01, rel=1e-3)


def test_finer_quantisation_reaches_nearer() -> None:
    depth = np.array([[0.05]], np.float32)
    settings = Settings(compressed_depth_depth_quantization=50.0)
    message = compressed_depth_message(depth, Header(), settings)
    assert metres(message)[0, 0] == pytest.approx(0.05, rel=1e-3)
