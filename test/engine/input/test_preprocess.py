# SPDX-License-Identifier: Apache-2.0
import json

import cv2
import numpy as np
import pytest
from helpers.places import TEST
from hypothesis import given
from hypothesis import strategies as st

from dpt_ros.engine.input.encodings import ENCODINGS
from dpt_ros.engine.input.preprocess import network_input, network_size, to_rgb

HALF = (0.5, 0.5, 0.5)
SIZES = TEST / "reference" / "resize_sizes.json"
PICTURE = np.random.default_rng(7).integers(0, 256, (24, 32, 3), np.uint8)


def smooth_picture() -> np.ndarray:
    """Gradients in every channel, so that chroma subsampling and demosaicing lose little."""
    down, across = np.mgrid[0:48, 0:64]
    return np.stack([across * 3, down * 4, 200 - across - down], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", PICTURE),
        ("bgr8", PICTURE[..., ::-1]),
        ("8UC3", PICTURE[..., ::-1]),
        ("rgba8", np.dstack([PICTURE, PICTURE[..., 0]])),
        ("bgra8", np.dstack([PICTURE[..., ::-1], PICTURE[..., 0]])),
        ("8UC4", np.dstack([PICTURE[..., ::-1], PICTURE[..., 0]])),
        ("rgb16", PICTURE.astype(np.uint16) * 257),
        ("bgr16", PICTURE[..., ::-1].astype(np.uint16) * 257),
        ("16UC3", PICTURE[..., ::-1].astype(np.uint16) * 257),
        ("32FC3", PICTURE[..., ::-1].astype(np.float32) / 255),
    ],
)
def test_encodings_that_hold_every_colour_give_the_picture_exactly(encoding, pixels):
    np.testing.assert_array_equal(to_rgb(pixels, encoding), PICTURE)


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("mono8", PICTURE[..., 0]),
        ("8UC1", PICTURE[..., 0]),
        ("mono16", PICTURE[..., 0].astype(np.uint16) * 257),
        ("16UC1", PICTURE[..., 0].astype(np.uint16) * 257),
        ("32FC1", PICTURE[..., 0].astype(np.float32) / 255),
    ],
)
def test_grey_encodings_give_three_equal_channels(encoding, pixels):
    np.testing.assert_array_equal(to_rgb(pixels, encoding), PICTURE[..., [0, 0, 0]])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns_name_the_colours_of_the_first_two_rows(pattern, bits):
    picture = smooth_picture()
    mosaic = np.empty(picture.shape[:2], np.uint8)
    for place, colour in enumerate(pattern):
        row, column = divmod(place, 2)
        mosaic[row::2, column::2] = picture[row::2, column::2, "rgb".index(colour)]
    if bits == 16:
        mosaic = mosaic.astype(np.uint16) * 257
    error = np.abs(to_rgb(mosaic, f"bayer_{pattern}{bits}").astype(int) - picture)
    assert error[2:-2, 2:-2].max() <= 4


@pytest.mark.parametrize(
    "encoding", ["uyvy", "yuv422", "yuyv", "yuv422_yuy2", "nv12", "nv21", "nv24"]
)
def test_yuv_encodings_come_back_as_the_picture(encoding):
    picture = smooth_picture()
    height, width = picture.shape[:2]
    # ITU-R BT.601, video range
    red, green, blue = (picture[..., c].astype(float) for c in range(3))
    luma = 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255
    u = 128 + (-37.797 * red - 74.203 * green + 112.0 * blue) / 255
    v = 128 + (112.0 * red - 93.786 * green - 18.214 * blue) / 255
    y, u, v = (np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in (luma, u, v))
    if encoding.startswith("nv"):
        step = 1 if encoding == "nv24" else 2
        first, second = (v, u) if encoding == "nv21" else (u, v)
        chroma = np.stack([first[::step, ::step], second[::step, ::step]], axis=-1)
        pixels = np.vstack([y, chroma.reshape(-1, width)])
    else:
        pixels = np.empty((height, width, 2), np.uint8)
        chroma_at = 0 if encoding in ("uyvy", "yuv422") else 1
        pixels[..., 1 - chroma_at] = y
        pixels[:, 0::2, chroma_at] = u[:, 0::2]
        pixels[:, 1::2, chroma_at] = v[:, 0::2]
    error = np.abs(to_rgb(pixels, encoding).astype(int) - picture)
    assert error.max() <= 8


def test_every_encoding_of_the_contract_is_known():
    contract = ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "mono16", "rgb16", "bgr16"]
    contract += ["uyvy", "yuv422", "yuyv", "yuv422_yuy2", "nv12", "nv21", "nv24"]
    contract += ["8UC1", "8UC3", "8UC4", "16UC1", "16UC3", "32FC1", "32FC3"]
    contract += [f"bayer_{p}{b}" for p in ("rggb", "bggr", "gbrg", "grbg") for b in (8, 16)]
    assert set(contract) == set(ENCODINGS)


def test_an_unknown_encoding_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'rgb9' cannot be read; known are .*rgb8"):
        to_rgb(PICTURE, "rgb9")


def test_rows_with_padding_are_read_through_their_stride():
    padded = np.zeros((24, 40, 3), np.uint8)
    padded[:, :32] = PICTURE
    np.testing.assert_array_equal(to_rgb(padded[:, :32], "rgb8"), PICTURE)
    np.testing.assert_array_equal(to_rgb(padded[:, :32], "bgr8"), PICTURE[..., ::-1])


def test_float_pixels_that_are_no_numbers_become_numbers():
    pixels = np.array([[np.nan, np.inf, -np.inf, 0.5, 7.0]], np.float32)
    assert to_rgb(pixels, "32FC1")[0, :, 0].tolist() == [0, 255, 0, 128, 255]


def test_the_size_rule_is_the_published_one_in_every_recorded_case():
    for (height, width), (net_width, net_height), expected in json.loads(SIZES.read_text()):
        expected = tuple(max(side, 32) for side in expected)  # never zero: see network_size
        assert network_size(height, width, net_height, net_width) == expected


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.sampled_from([16, 32]))
def test_the_network_size_is_always_a_positive_multiple(height, width, multiple_of):
    size = network_size(height, width, 384, 384, multiple_of)
    assert all(side >= multiple_of and side % multiple_of == 0 for side in size)


def test_the_network_input_is_the_cubic_resize_of_the_published_scripts():
    rgb = np.random.default_rng(3).integers(0, 256, (120, 180, 3), np.uint8)
    published = cv2.resize(rgb / 255.0, (96, 64), interpolation=cv2.INTER_CUBIC)
    published = ((published - 0.5) / 0.5).transpose(2, 0, 1)
    ours = network_input(rgb, (64, 96), HALF, HALF)
    assert ours.shape == (1, 3, 64, 96)
    np.testing.assert_allclose(ours[0], published, atol=2e-6)
    fast = network_input(rgb, (64, 96), HALF, HALF, exact=False)
    np.testing.assert_allclose(fast[0], published, atol=2e-4)


def test_a_picture_of_the_right_size_is_only_normalised():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    ours = network_input(PICTURE, (24, 32), mean, std)[0]
    expected = ((PICTURE / 255.0 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(ours, expected, atol=2e-6)
