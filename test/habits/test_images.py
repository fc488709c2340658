# SPDX-License-Identifier: Apache-2.0
"""What camera drivers send: one test per kind, with real messages."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers import bags
from helpers.bags import job
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from dpt_ros.bag.run import convert
from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.input.preprocess import to_rgb
from dpt_ros.ros.messages.camera_info import camera_info_message, scaled_camera_info
from dpt_ros.ros.messages.cdr import read_image
from dpt_ros.ros.messages.image import (
    MessageError,
    compressed_file,
    image_message,
    image_pixels,
    jpeg_message,
)
from dpt_ros.ros.messages.image_bits import ImageBits

ENCODINGS = {"rgb8": (np.uint8, (3,)), "mono16": (np.uint16, ()), "32FC1": (np.float32, ())}


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth colours, so that JPEG keeps them."""
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x % 256, 5 * y % 256, 128 + 0 * x], -1).astype(np.uint8)


# Redundant fields


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("height", [1, 6])
@pytest.mark.parametrize("step", [0, 1, 8, 1000])
def test_the_step_does_not_matter_where_the_number_of_bytes_tells_it(
    encoding, height, step
) -> None:
    dtype, channels = ENCODINGS[encoding]
    pixels = np.arange(height * 8 * max(sum(channels), 1)).reshape(height, 8, *channels)
    msg = image_message(pixels.astype(dtype), encoding, Header())
    msg.step = step
    for form in (msg, read_image(serialize_message(msg))):
        np.testing.assert_array_equal(image_pixels(form), pixels.astype(dtype))


def test_the_last_row_may_lack_its_padding() -> None:
    msg = Image(height=3, width=4, step=10, encoding="mono8")
    msg.data = bytes(range(24))
    rows = [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]
    np.testing.assert_array_equal(image_pixels(msg), rows)
    msg.data = bytes(range(23))
    with pytest.raises(MessageError, match=r"3 rows with a step of 10 bytes .* need 24"):
        image_pixels(msg)


@pytest.mark.parametrize("flag", [0, 1, 7])
def test_the_byte_order_of_single_bytes_does_not_matter(flag) -> None:
    msg = image_message(picture(), "rgb8", Header())
    msg.is_bigendian = flag
    np.testing.assert_array_equal(image_pixels(msg), picture())


# Labels and files


@pytest.mark.parametrize(
    ("stored_as", "odd"),
    [
        ("rgb8; jpeg compressed rgb8", "as if red and blue were exchanged"),
        ("png", "but the file is JPEG"),
        ("bgr8; png compressed bgr8", "but the file is JPEG"),
        ("rgb8; jpeg compressed bgr8", ""),
        ("jpeg", ""),
        ("jpg", ""),
        ("", ""),
    ],
)
def test_a_jpeg_has_true_colours_whatever_its_label(stored_as, odd) -> None:
    msg = jpeg_message(picture(), Header())
    msg.format = stored_as
    rgb = to_rgb(*compressed_file(msg).decode())
    assert np.abs(rgb.astype(int) - picture()).mean() < 4
    assert odd in compressed_file(msg).oddity
    assert bool(odd) == bool(compressed_file(msg).oddity)


def compressed(suffix: str, pixels: np.ndarray, *options: int) -> CompressedImage:
    msg = CompressedImage(format=suffix)
    msg.data = cv2.imencode(f".{suffix}", pixels, options)[1].tobytes()
    return msg


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 3), (48, 64, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_is_decoded_exactly(shape, dtype) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)
    read, encoding = compressed_file(compressed("tiff", pixels)).decode()
    if shape[2:] == (4,) and dtype == np.uint16:
        pixels = pixels[..., :3]
    np.testing.assert_array_equal(read, pixels)
    assert encoding.startswith("mono" if len(shape) == 2 else "bgr")
    msg = compressed("tiff", pixels)
    msg.data = bytes(msg.data)[:20]
    with pytest.raises(MessageError) as refused:
        compressed_file(msg).decode()
    assert refused.value.reason in ("truncated", "undecodable", "bad size")


@pytest.mark.parametrize(
    "option", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 8)]
)
def test_a_jpeg_without_its_end_marker_is_taken_and_one_that_was_cut_is_not(option) -> None:
    whole = compressed("jpg", picture(240, 320)[..., ::-1], *option)
    cut = CompressedImage(format="jpeg")
    cut.data = bytes(whole.data)[:-2]
    np.testing.assert_array_equal(
        compressed_file(cut).decode()[0], compressed_file(whole).decode()[0]
    )
    for missing in (5, 100, len(whole.data) // 2):
        cut.data = bytes(whole.data)[:-missing]
        with pytest.raises(MessageError, match="ends early") as refused:
            compressed_file(cut).decode()
        assert refused.value.reason == "truncated"


# Ranges of values


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_few_bits_in_sixteen_are_noticed_and_brought_to_full_range(bits) -> None:
    said: list[str] = []
    top = (1 << bits) - 1
    pixels = np.linspace(0, top, 48 * 64).astype(np.uint16).reshape(48, 64)
    unset, right = ImageBits(lambda: 0, said.append), ImageBits(lambda: bits, said.append)
    for _ in range(20):
        assert unset(pixels) is pixels
    assert len(said) == 1
    assert f"set image_bits to {bits}." in said[0]
    full = np.rint(pixels * (65535 / top))
    assert np.abs(right(pixels) - full).max() <= 1
    assert len(said) == 1
    for encoding in ("mono16", "bayer_rggb16"):
        dark, bright = (to_rgb(one(pixels), encoding) for one in (unset, right))
        assert dark.max() < 70
        assert bright.max() > 245


def test_full_range_black_frames_and_other_types_are_left_alone() -> None:
    said: list[str] = []
    bits = ImageBits(lambda: 0, said.append)
    for pixels in (np.zeros((4, 4), np.uint16), picture(), np.full((4, 4), 60000, np.uint16)):
        for _ in range(20):
            assert bits(pixels) is pixels
    assert said == []


def test_more_bits_than_declared_are_noticed() -> None:
    said: list[str] = []
    pixels = np.full((4, 4, 3), 9000, np.uint16)
    assert (ImageBits(lambda: 12, said.append)(pixels) == 65535).all()
    assert "image_bits is 12, but the image has values up to 9000" in said[0]


def test_dpt_bag_says_what_is_odd_about_images_once_and_takes_image_bits(tmp_path) -> None:
    def dark():
        for time, topic, message in bags.records(12):
            if topic == "/image":
                grey = image_pixels(message)[..., 0].astype(np.uint16) * 16
                message = image_message(grey, "mono16", message.header)
            yield time, topic, message

    def odd():
        for time, topic, message in bags.records(12, jpeg=True):
            if topic == "/image/compressed":
                message.format = "rgb8; png compressed rgb8"
            yield time, topic, message

    said: list[str] = []
    source = bags.write(tmp_path / "dark", dark())
    made = job(source, tmp_path / "of_dark")
    convert(made, said.append)
    assert sum("set image_bits to 12" in sentence for sentence in said) == 1
    right = replace(made, settings=replace(made.settings, image_bits=12), out=tmp_path / "right")
    said.clear()
    convert(right, said.append)
    assert not any("image_bits" in sentence for sentence in said)
    assert bags.contents(tmp_path / "right") != bags.contents(tmp_path / "of_dark")
    convert(job(bags.write(tmp_path / "odd", odd()), tmp_path / "of_odd"), said.append)
    assert sum("but the file is JPEG" in sentence for sentence in said) == 1


# Zeros


def test_an_empty_rotation_is_the_identity() -> None:
    camera = CameraModel(64, 48, 55.0, 55.0, 31.5, 23.5)
    info = camera_info_message(camera, Header())
    info.k, info.r = [0.0] * 9, [0.0] * 9
    out = scaled_camera_info(info, 32, 24, Header())
    assert [*out.r] == [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert out.k[0] == pytest.approx(27.5)
    info.r = [0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert [*scaled_camera_info(info, 32, 24, Header()).r] == [*info.r]
    assert isinstance(out, CameraInfo)
