# SPDX-License-Identifier: Apache-2.0
"""The files, read back by other programs' readers, against the published scripts' formats."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.networks import embedded_networks
from helpers.picture_files import picture
from PIL import Image

from dpt_ros.data import palette
from dpt_ros.engine.inference.network import Networks
from dpt_ros.run.outputs import Files, depth_png, overlay_file, pfm_file, published_factor
from dpt_ros.run.results import Result

RANDOM = np.random.default_rng(0)
INVERSE = (RANDOM.normal(20, 9, (37, 52)) ** 3).astype(np.float32)  # below 0 in some places
RGB = picture((37, 52))
LABELS = RANDOM.integers(1, 151, (37, 52)).astype(np.uint8)
ADE20K = palette("labels_ade20k.json")


def read_png(content: bytes) -> np.ndarray:
    image = Image.open(BytesIO(content))
    assert image.format == "PNG"
    return np.asarray(image)


def test_a_pfm_has_the_published_bytes_and_other_readers_see_the_same_numbers(tmp_path) -> None:
    content = pfm_file(INVERSE)
    assert content == b"Pf\n52 37\n-1.000000\n" + np.flipud(INVERSE).tobytes()
    (tmp_path / "a.pfm").write_bytes(content)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.pfm"), -1), INVERSE)
    with Image.open(tmp_path / "a.pfm") as image:
        np.testing.assert_array_equal(np.asarray(image), INVERSE)


def test_a_png_is_stretched_over_16_bits_as_published() -> None:
    low, high = INVERSE.min(), INVERSE.max()
    expected = (65535 * (INVERSE - low) / (high - low)).astype("uint16")
    content = depth_png(INVERSE, absolute=False)
    found = read_png(content)
    np.testing.assert_array_equal(found, expected)
    assert (found.min(), found.max()) == (0, 65535)
    published = cv2.imencode(".png", expected, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1]
    assert content == published.tobytes()


def test_an_absolute_png_has_the_values_cut_off_and_within_16_bits() -> None:
    values = np.array([[0.9, 1.0, 2499.99], [65535.0, 70000.0, -3.0]], np.float32)
    assert read_png(depth_png(values, absolute=True)).tolist() == [[0, 1, 2499], [65535, 65535, 0]]


@pytest.mark.parametrize("absolute", [False, True])
def test_unknown_depth_is_0_and_depth_beyond_range_the_largest_number(absolute: bool) -> None:
    values = np.array([[np.nan, 1.0, 3.0, np.inf]], np.float32)
    found = read_png(depth_png(values, absolute))
    assert found.tolist() == [[0, 1, 3, 65535] if absolute else [0, 0, 65535, 65535]]
    nothing = np.full((2, 2), np.nan, np.float32)
    assert read_png(depth_png(nothing, absolute)).tolist() == [[0, 0], [0, 0]]


def test_depth_that_is_the_same_everywhere_is_black_as_published() -> None:
    assert not read_png(depth_png(np.full((3, 4), 2.5, np.float32), absolute=False)).any()


def test_an_overlay_is_half_the_picture_and_half_the_colours_as_published() -> None:
    mask = Image.fromarray(LABELS)
    mask.putpalette(ADE20K.tobytes())
    image = Image.fromarray(np.uint8(255 * (RGB / 255.0))).convert("RGBA")
    expected = Image.blend(image, mask.convert("RGBA"), 0.5)
    file = BytesIO()
    expected.save(file, "PNG")
    assert overlay_file(RGB, LABELS, ADE20K) == file.getvalue()
    assert np.asarray(expected)[5, 5, :3] == pytest.approx(
        (RGB[5, 5].astype(int) + ADE20K[LABELS[5, 5]]) / 2, abs=1
    )


def networks_named(name: str, metric: bool) -> Networks:
    networks = embedded_networks(palette=ADE20K)
    assert networks.depth is not None
    networks.depth.spec = replace(networks.depth.spec, name=name, invert=metric)
    return networks


@pytest.mark.parametrize(
    ("name", "metric", "factor"),
    [
        ("dpt_hybrid_kitti", True, 256.0),
        ("dpt_hybrid_nyu", True, 1000.0),
        ("dpt_hybrid_midas", False, 1.0),
    ],
)
def test_metres_are_multiplied_as_published(name, metric, factor) -> None:
    networks = networks_named(name, metric)
    assert published_factor(networks) == factor
    depth = np.abs(INVERSE) / 1e4
    result = Result(Path("a"), RGB, depth if metric else None, None if metric else depth, LABELS)
    names = ("png", "pfm", "npy", "labels")
    made = Files(networks, names, absolute=True, color_range=10.0).files(result)
    assert tuple(made) == names
    np.testing.assert_array_equal(np.load(BytesIO(made["npy"])), depth)
    scaled = depth * np.float32(factor)
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(made["pfm"]))), scaled)
    np.testing.assert_array_equal(read_png(made["png"]), scaled.astype(np.uint16))
    np.testing.assert_array_equal(read_png(made["labels"]), LABELS)


def test_colours_of_relative_depth_keep_their_range_through_a_video() -> None:
    networks = networks_named("dpt_hybrid_midas", metric=False)
    files = Files(networks, ("color",), absolute=False, color_range=10.0)
    inverse = np.tile(np.linspace(0, 100, 52, dtype=np.float32), (37, 1))

    def color(values: np.ndarray) -> np.ndarray:
        return read_png(files.files(Result(Path("a"), RGB, None, values, None))["color"])

    first = color(inverse)
    np.testing.assert_array_equal(color(inverse), first)
    assert (color(inverse / 2)[:, -1] != first[:, -1]).any()  # twice as far is darker


def test_pictures_of_random_weights_say_so() -> None:
    networks = embedded_networks(palette=ADE20K, random=True)
    honest = embedded_networks(palette=ADE20K)
    rgb = picture((240, 320))
    ones = np.ones((240, 320), np.float32)
    result = Result(Path("a"), rgb, ones, None, np.ones((240, 320), np.uint8))
    outputs = ("color", "overlay")
    marked = Files(networks, outputs, False, 10.0).files(result)
    plain = Files(honest, outputs, False, 10.0).files(result)
    for name in outputs:
        changed = (read_png(marked[name]) != read_png(plain[name])).any(axis=2)
        assert changed[:30].mean() > 0.02
        assert not changed[40:].any()


def test_the_pictures_of_a_video_stand_side_by_side_and_are_no_wider_than_players_take() -> None:
    files = Files(embedded_networks(palette=ADE20K), ("video",), False, 10.0)

    def joined(height: int, width: int) -> np.ndarray:
        depth = np.ones((height, width), np.float32)
        rgb = picture((height, width))
        labels = np.ones((height, width), np.uint8)
        return files.side_by_side(Result(Path("a"), rgb, depth, None, labels))

    assert joined(60, 80).shape == (60, 240, 3)
    np.testing.assert_array_equal(joined(60, 80)[:, :80], picture((60, 80)))
    np.testing.assert_array_equal(joined(60, 80)[:, 160:], np.broadcast_to(ADE20K[1], (60, 80, 3)))
    assert joined(1080, 1920).shape == (720, 3840, 3)
