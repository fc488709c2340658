# SPDX-License-Identifier: Apache-2.0
"""Messages to arrays and back: every encoding, padding, byte order, and everything wrong."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.image import message_to_cvimage
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from dpt_ros.engine.input.encodings import ENCODINGS
from dpt_ros.engine.input.preprocess import to_rgb
from dpt_ros.ros.messages import image as messages
from dpt_ros.ros.messages.camera_info import camera_info_message, camera_model, scaled_camera_info
from dpt_ros.ros.messages.cdr import read_compressed_image, read_image
from dpt_ros.ros.messages.image import (
    MessageError,
    compressed_file,
    image_message,
    image_pixels,
    jpeg_message,
    millimetres,
)

PLANAR = ("nv12", "nv21", "nv24")
_ROWS = {"nv12": 1.5, "nv21": 1.5, "nv24": 3}


def stored(encoding: str, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random pixels in the layout of ``encoding``."""
    layout = ENCODINGS[encoding]
    shape: tuple[int, ...] = (int(height * _ROWS.get(encoding, 1)), width)
    if layout.channels:
        shape = (*shape, layout.channels)
    numbers = np.random.default_rng(seed)
    if layout.dtype is np.float32:
        return numbers.random(shape, np.float32)
    return numbers.integers(0, np.iinfo(layout.dtype).max + 1, shape, layout.dtype)


def message(
    pixels: np.ndarray, encoding: str, padding: int = 0, foreign_order: bool = False
) -> Image:
    """An Image as a camera driver sends it, built byte by byte by the plain setters."""
    height = int(pixels.shape[0] / _ROWS.get(encoding, 1))
    if foreign_order:
        pixels = pixels.byteswap()
    rows = pixels.reshape(pixels.shape[0], -1).view(np.uint8)
    if encoding == "nv24":  # one UV row holds two of the stacked half rows
        luma = np.pad(rows[:height], ((0, 0), (0, padding)))
        chroma = np.pad(rows[height:].reshape(height, -1), ((0, 0), (0, 2 * padding)))
        data = luma.tobytes() + chroma.tobytes()
    else:
        data = np.pad(rows, ((0, 0), (0, padding)), constant_values=7).tobytes()
    msg = Image(height=height, width=pixels.shape[1], encoding=encoding)
    msg.step = rows.shape[1] + padding
    msg.is_bigendian = int((sys.byteorder == "big") != foreign_order)
    msg.data = data
    return msg


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("padding", [0, 1, 12])
@pytest.mark.parametrize("foreign_order", [False, True])
def test_every_encoding_comes_back_as_it_was_stored(
    encoding: str, padding: int, foreign_order: bool
) -> None:
    pixels = stored(encoding, 6, 8)
    msg = message(pixels, encoding, padding, foreign_order)
    read = image_pixels(msg)
    np.testing.assert_array_equal(image_pixels(read_image(serialize_message(msg))), read)
    assert read.dtype == pixels.dtype
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, pixels)
    assert to_rgb(read, encoding).shape == (6, 8, 3)


@pytest.mark.parametrize("encoding", ["rgb8", "mono16", "32FC1", "bayer_rggb8", "uyvy", "nv12"])
def test_pixels_are_a_view_of_the_message(encoding: str) -> None:
    msg = message(stored(encoding, 6, 8), encoding, padding=4)
    assert np.shares_memory(image_pixels(msg), np.frombuffer(msg.data, np.uint8))


@pytest.mark.parametrize("encoding", sorted(set(ENCODINGS) - set(PLANAR) - {"yuyv", "uyvy"}))
def test_another_reader_sees_the_same_pixels(encoding: str) -> None:
    """rosbags-image reads by cv_bridge's conventions; it knows no padding."""
    msg = message(stored(encoding, 6, 8), encoding)
    store = get_typestore(Stores.ROS2_HUMBLE)
    other = store.deserialize_cdr(serialize_message(msg), "sensor_msgs/msg/Image")
    theirs = message_to_cvimage(other)
    np.testing.assert_array_equal(image_pixels(msg), theirs.reshape(image_pixels(msg).shape))


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"encoding": "rgb9"}, "unknown encoding", "'rgb9'"),
        ({"encoding": ""}, "unknown encoding", "known are rgb8"),
        ({"width": 0}, "bad size", "0x6"),
        ({"height": 0}, "bad size", "8x0"),
        ({"height": 20000}, "bad size", "between 1 and 16384"),
        ({"width": 2**32 - 1}, "bad size", "4294967295x6"),
        ({"height": 16384, "step": 2**31}, "bad size", "more than"),
        ({"step": 23, "height": 5}, "bad step", "takes 24"),
        ({"step": 0, "height": 5}, "bad step", "step of 0 bytes"),
        ({"height": 7}, "short data", "holds 144 bytes"),
        ({"encoding": "nv12", "width": 7, "step": 24}, "bad size", "even size"),
        ({"encoding": "nv12", "height": 5, "step": 8}, "bad size", "even size"),
        ({"encoding": "32FC3"}, "bad step", "takes 96"),
    ],
)
def test_a_wrong_image_is_refused_with_a_sentence(
    change: dict[str, object], reason: str, words: str
) -> None:
    msg = message(stored("rgb8", 6, 8), "rgb8")
    for field, value in change.items():
        setattr(msg, field, value)
    with pytest.raises(MessageError) as caught:
        image_pixels(msg)
    assert caught.value.reason == reason
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


@settings(max_examples=300, deadline=None)
@given(
    encoding=st.sampled_from([*ENCODINGS, "rgb9", ""]) | st.text(max_size=8),
    width=st.integers(0, 40) | st.integers(0, 2**32 - 1),
    height=st.integers(0, 40) | st.integers(0, 2**32 - 1),
    step=st.integers(0, 400) | st.integers(0, 2**32 - 1),
    order=st.integers(0, 255),
    data=st.binary(max_size=6000),
)
def test_any_message_gives_pixels_or_a_sentence(
    encoding: str, width: int, height: int, step: int, order: int, data: bytes
) -> None:
    msg = Image(width=width, height=height, step=step, is_bigendian=order)
    msg.encoding = encoding.encode("utf-8", "ignore").decode()
    msg.data = data
    try:
        pixels = image_pixels(msg)
    except MessageError as error:
        assert str(error).endswith(".")
        return
    assert pixels.shape[:2] == (int(height * _ROWS.get(encoding, 1)), width)
    assert pixels.dtype.isnative
    pixels.sum()  # every byte can be touched
    assert to_rgb(pixels, encoding).shape == (height, width, 3)


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8", "mono16", "16UC1", "32FC1"])
def test_what_is_written_by_the_fast_path_equals_the_plain_path(encoding: str) -> None:
    pixels = stored(encoding, 5, 7)
    header = Header(frame_id="camera")
    fast = deserialize_message(serialize_message(image_message(pixels, encoding, header)), Image)
    plain = message(pixels, encoding)
    plain.header = header
    assert fast == deserialize_message(serialize_message(plain), Image)


def test_a_strided_array_is_written_as_it_looks() -> None:
    pixels = stored("rgb8", 6, 8)[::2, ::2, ::-1]
    msg = image_message(pixels, "rgb8", Header())
    np.testing.assert_array_equal(image_pixels(msg), pixels)
    assert msg.step == 12


def test_millimetres_have_zero_for_what_cannot_be_said() -> None:
    depth = np.array([[1.0, 1.2344, np.nan, np.inf, -np.inf, -1.0, 65.535, 65.6, 0.0]], np.float32)
    assert millimetres(depth).tolist() == [[1000, 1234, 0, 0, 0, 0, 65535, 0, 0]]


def compressed(pixels: np.ndarray, kind: str, stored_as: str | None = None) -> CompressedImage:
    msg = CompressedImage(format=kind if stored_as is None else stored_as)
    msg.data = cv2.imencode(f".{kind}", pixels)[1].tobytes()
    return msg


@pytest.mark.parametrize(
    ("shape", "dtype", "encoding"),
    [
        ((6, 8), np.uint8, "mono8"),
        ((6, 8, 3), np.uint8, "bgr8"),
        ((6, 8, 4), np.uint8, "bgra8"),
        ((6, 8), np.uint16, "mono16"),
        ((6, 8, 3), np.uint16, "bgr16"),
        ((6, 8, 4), np.uint16, "bgr16"),
    ],
)
def test_a_png_is_decoded_exactly(shape: tuple[int, ...], dtype: type, encoding: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 200, shape).astype(dtype)
    read, name = compressed_file(compressed(pixels, "png")).decode()
    assert name == encoding
    np.testing.assert_array_equal(read, pixels[..., :3] if encoding == "bgr16" else pixels)


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    ramp = np.add.outer(np.arange(height), np.arange(width))
    return np.stack([ramp, ramp[::-1], np.full_like(ramp, 90)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_jpeg_and_webp_are_decoded(kind: str) -> None:
    msg = compressed(smooth(), kind)
    read, name = compressed_file(msg).decode()
    assert name == "bgr8"
    assert np.abs(read.astype(int) - smooth()).mean() < 3
    serialised = read_compressed_image(serialize_message(msg))
    np.testing.assert_array_equal(compressed_file(serialised).decode()[0], read)


def test_a_jpeg_of_ours_reads_as_the_same_colours() -> None:
    pixels, encoding = compressed_file(jpeg_message(smooth(), Header())).decode()
    assert np.abs(to_rgb(pixels, encoding).astype(int) - smooth()).mean() < 3


@pytest.mark.parametrize(
    ("shape", "stored_as", "encoding"),
    [
        ((6, 8, 3), "rgb8; jpeg compressed bgr8", "bgr8"),
        ((6, 8, 3), "rgb8; jpeg compressed rgb8", "bgr8"),
        ((6, 8), "bayer_rggb8; jpeg compressed bayer_rggb8", "bayer_rggb8"),
        ((6, 8), "mono8; jpeg compressed ", "mono8"),
        ((6, 8, 3), "", "bgr8"),
    ],
)
def test_the_format_of_image_transport_tells_the_bayer_pattern_alone(
    shape: tuple[int, ...], stored_as: str, encoding: str
) -> None:
    msg = compressed(np.full(shape, 100, np.uint8), "jpg", stored_as)
    assert compressed_file(msg).decode()[1] == encoding


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_the_size_of_a_file_is_known_before_it_is_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    msg = compressed(smooth(48, 66), kind)
    monkeypatch.setattr(messages.cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    file = compressed_file(msg)
    assert (file.width, file.height) == (66, 48)
    assert np.shares_memory(file.data, np.frombuffer(msg.data, np.uint8))


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.95])
def test_a_truncated_file_is_refused_with_a_sentence(kind: str, part: float) -> None:
    msg = compressed(smooth(), kind)
    msg.data = msg.data[: int(len(msg.data) * part)]
    with pytest.raises(MessageError) as caught:
        compressed_file(msg).decode()
    assert caught.value.reason in ("truncated", "undecodable", "unsupported format")


def png_claiming(width: int, height: int) -> bytes:
    data = bytearray(cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(data)


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(cv2.imencode(".jpg", np.zeros((4, 4), np.uint8))[1].tobytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.parametrize("data", [png_claiming(60000, 60000), jpeg_claiming(65000, 65000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages.cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    msg = CompressedImage(format="png")
    msg.data = data
    with pytest.raises(MessageError, match="more than the 64 megapixels allowed"):
        compressed_file(msg)


@pytest.mark.parametrize(
    ("data", "stored_as"),
    [
        (b"", "jpeg"),
        (b"GIF89a" + bytes(100), "gif"),
        (cv2.imencode(".png", np.zeros((4, 4), np.uint16))[1].tobytes(), "16UC1; compressedDepth"),
    ],
)
def test_another_compressed_format_is_refused_with_a_sentence(data: bytes, stored_as: str) -> None:
    msg = CompressedImage(format=stored_as)
    msg.data = data
    with pytest.raises(MessageError, match="must be jpeg, png, webp or tiff") as caught:
        compressed_file(msg).decode()
    assert stored_as in str(caught.value)


_SAMPLES = [cv2.imencode(f".{kind}", smooth())[1].tobytes() for kind in ("jpg", "png", "webp")]


@settings(max_examples=200, deadline=None)
@given(
    sample=st.sampled_from(_SAMPLES),
    cut=st.integers(0, 5000),
    damage=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4),
    stored_as=st.sampled_from(["jpeg", "rgb8; jpeg compressed bgr8", ""]),
)
def test_any_damaged_file_gives_pixels_or_a_sentence(
    sample: bytes, cut: int, damage: list[tuple[int, int]], stored_as: str
) -> None:
    data = bytearray(sample)
    for at, value in damage:
        data[at % len(data)] = value
    msg = CompressedImage(format=stored_as)
    msg.data = bytes(data[:cut]) if cut < len(data) // 2 else bytes(data)
    try:
        pixels, encoding = compressed_file(msg).decode()
    except MessageError as error:
        assert str(error).endswith(".")
        return
    assert to_rgb(pixels, encoding).shape[2] == 3


def calibration(**changes: object) -> CameraInfo:
    info = CameraInfo(width=640, height=480, distortion_model="plumb_bob")
    info.header.frame_id = "camera"
    info.k = [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]
    info.r = [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [400.0, 0.0, 310.0, -40.0, 0.0, 410.0, 230.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    for field, value in changes.items():
        setattr(info, field, value)
    return info


def test_the_camera_is_the_rectified_one() -> None:
    camera, warning = camera_model(calibration())
    assert camera is not None
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (400, 410, 310, 230)
    assert (camera.width, camera.height, warning) == (640, 480, "")
    assert camera_model(camera_info_message(camera, Header())) == (camera, "")


def test_the_camera_is_taken_from_k_where_p_is_empty() -> None:
    camera, _ = camera_model(calibration(p=[0.0] * 12))
    assert camera is not None
    assert (camera.fx, camera.cy) == (500, 240)


def test_region_of_interest_and_binning_move_the_camera() -> None:
    info = calibration(binning_x=2, binning_y=2)
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 10, 30, 600, 400
    camera, _ = camera_model(info)
    assert camera is not None
    assert (camera.width, camera.height) == (300, 200)
    assert (camera.fx, camera.cx, camera.cy) == (200, 150, 100)


@pytest.mark.parametrize(
    "changes",
    [
        {"k": [0.0] * 9, "p": [0.0] * 12},
        {"width": 0},
        {"p": [np.nan, *[0.0] * 11]},
        {"p": [400.0, *[0.0] * 11]},
    ],
)
def test_an_uncalibrated_camera_is_none_and_a_sentence(changes: dict[str, object]) -> None:
    camera, warning = camera_model(calibration(**changes))
    assert camera is None
    assert "no calibration" in warning


@pytest.mark.parametrize(
    ("topic", "rectified"),
    [
        ("/front/image_raw", "/front/image_rect"),
        ("/front/image_raw/compressed", "/front/image_rect"),
        ("image_color", "image_rect_color"),
        ("", "image_rect"),
    ],
)
@pytest.mark.parametrize("model", ["plumb_bob", "equidistant"])
def test_distortion_is_a_warning_that_says_what_to_remap(model, topic, rectified) -> None:
    camera, warning = camera_model(calibration(d=[0.1, 0.0], distortion_model=model), topic)
    assert camera is not None
    assert f"'{model}', D not zero)" in warning
    assert (topic or "the image") in warning
    assert warning.endswith(f"-r image:={rectified}")


@pytest.mark.parametrize("model", ["fisheye", "equidistant"])
def test_a_fisheye_without_coefficients_is_no_pinhole_either(model: str) -> None:
    info = calibration(distortion_model=model)
    info.p = [*info.k[:3], 0.0, *info.k[3:6], 0.0, 0.0, 0.0, 1.0, 0.0]
    camera, warning = camera_model(info, "/eye/image_raw")
    assert camera is not None
    assert f"a fisheye lens ('{model}', D zero, and P is no rectified camera)" in warning


@pytest.mark.parametrize("topic", ["/eye/image_rect", "image_rect_color", "image_rect/compressed"])
@pytest.mark.parametrize("model", ["plumb_bob", "equidistant"])
def test_a_rectified_image_is_known_by_its_name(model: str, topic: str) -> None:
    # image_proc gives the rectified image the camera_info of the raw one, with D and all.
    lens = calibration(d=[0.1, 0.0], distortion_model=model)
    assert camera_model(lens, topic)[1] == ""


def test_camera_info_is_scaled_with_the_image() -> None:
    header = Header(frame_id="camera")
    info = scaled_camera_info(calibration(d=[0.1] * 5), 320, 240, header)
    assert info.header == header
    assert (info.width, info.height, info.distortion_model) == (320, 240, "plumb_bob")
    assert list(info.d) == [0.0] * 5
    assert list(info.r) == list(calibration().r)
    assert list(info.k) == [250, 0, 159.75, 0, 255, 119.75, 0, 0, 1]
    assert list(info.p) == [200, 0, 154.75, -20, 0, 205, 114.75, 0, 0, 0, 1, 0]
    camera, _ = camera_model(info)
    whole, _ = camera_model(calibration())
    assert camera is not None
    assert whole is not None
    assert camera == whole.scaled(320, 240)


@settings(max_examples=100, deadline=None)
@given(
    numbers=st.lists(st.floats(width=64), min_size=21, max_size=21),
    width=st.integers(0, 5000),
    height=st.integers(0, 5000),
    binning=st.integers(0, 2**32 - 1),
)
def test_any_camera_info_is_taken_or_refused(
    numbers: list[float], width: int, height: int, binning: int
) -> None:
    info = calibration(width=width, height=height, binning_x=binning)
    info.k, info.p = numbers[:9], numbers[9:]
    camera, warning = camera_model(info)
    assert camera is not None or warning.endswith(".")
    scaled = scaled_camera_info(info, 64, 48, Header())
    assert (scaled.width, scaled.height) == (64, 48)
