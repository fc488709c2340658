# SPDX-License-Identifier: Apache-2.0
"""Picture files: every kind as OpenCV reads it, none of them by half."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.picture_files import encoded, kinds, picture

from dpt_ros.run.pictures import is_picture, read_picture

RGB = picture((37, 52))
KINDS = kinds(RGB)


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_of_any_kind_is_read_as_the_published_scripts_read_it(name, tmp_path) -> None:
    path = tmp_path / name
    path.write_bytes(KINDS[name])
    found = read_picture(path)
    assert found.dtype == np.uint8
    assert found.shape == ((52, 37, 3) if "turned" in name else (37, 52, 3))
    published = cv2.imdecode(np.frombuffer(KINDS[name], np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(found, published[..., ::-1])
    # Beside OpenCV: what it shows is the room, in its colours as far as the kind has any.
    upright = np.rot90(found) if "turned" in name else found
    grey = any(word in name for word in ("grey", "bits"))
    expected = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)[..., None] if grey else RGB
    if "bits" not in name:
        assert np.abs(upright.astype(int) - expected).mean() < 12
    assert is_picture(path) or "deep.tif" in name


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000"])
@pytest.mark.parametrize("part", [0.05, 0.7])
def test_a_picture_that_ends_early_is_refused(kind, part, tmp_path) -> None:
    content = encoded(picture((240, 320)), kind)
    path = tmp_path / "cut"
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=r"^it is (damaged: |no picture)"):
        read_picture(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"not a picture at all" * 9, "no picture that OpenCV or Pillow can read"),
        (b"<!DOCTYPE html><html>", "a web page in the place of the file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_what_is_no_picture_is_refused_with_what_it_is(content, message, tmp_path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert not is_picture(path)
    with pytest.raises(ValueError, match=message):
        read_picture(path)


def test_a_picture_larger_than_pillow_reads_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    path = tmp_path / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with pytest.raises(ValueError, match="more than 178 megapixels"):
        read_picture(path)
