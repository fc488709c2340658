# SPDX-License-Identifier: Apache-2.0
"""Compressed pictures: damaged ones, and such as would unpack to far more than they are."""

from __future__ import annotations

import struct
import zlib
from unittest.mock import patch

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage

from dpt_ros.engine.input.preprocess import to_rgb
from dpt_ros.ros.messages.image import (
    MAX_COMPRESSED_PIXELS,
    MessageError,
    compressed_file,
    give_bytes,
)
from fuzz.properties import Broken, bounded, refusal

_FORMATS = ("jpeg", "rgb8; jpeg compressed bgr8", "bayer_rggb8; png compressed ", "", "16UC1; x")
# What 64 megapixels of the worst kind, 16-bit RGBA, take; and a pixel's time.
_PIXEL_BYTES, _PIXEL_SECONDS = 2 * 8, 150e-9


def png(width: int, height: int, content: bytes, bits: int = 8, kind: int = 2) -> bytes:
    """A PNG file that claims a size and holds any content."""

    def chunk(name: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(content, 9))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def seeds() -> list[bytes]:
    """Small pictures of every format and depth, and files that claim 60000 x 60000 pixels."""
    colours = np.random.default_rng(0).integers(0, 256, (5, 6, 4), np.uint8)
    pictures = [colours, colours[..., :3], colours[..., 0], colours.astype(np.uint16) * 257]
    files = []
    for suffix in (".jpg", ".png", ".webp", ".tiff"):
        for picture in pictures:
            if suffix in (".png", ".tiff") or (
                picture.dtype == np.uint8 and picture.shape[2:] != (4,)
            ):
                files.append(cv2.imencode(suffix, np.ascontiguousarray(picture))[1].tobytes())
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    files.append(cv2.imencode(".jpg", colours[..., :3].copy(), options)[1].tobytes())
    files += [file[:-2] for file in files if file[:2] == b"\xff\xd8"]  # without an end marker
    bomb = bytearray(files[0])
    at = bomb.find(b"\xff\xc0") + 5
    bomb[at : at + 4] = struct.pack(">HH", 60000, 60000)
    files += [bytes(bomb), png(60000, 60000, bytes(1000)), png(2, 2, bytes(14))]
    return [bytes([k % len(_FORMATS)]) + file for k, file in enumerate(files)]


def one_input(data: bytes) -> None:
    stored_as = _FORMATS[data[0] % len(_FORMATS)] if data else ""
    image = CompressedImage(format=stored_as)
    give_bytes(image, np.frombuffer(data[1:], np.uint8))
    # Nothing may be decoded before its size was judged.
    with bounded(len(data), 0.2), refusal(MessageError), patch.object(cv2, "imdecode", _forbidden):
        file = compressed_file(image)
    if "file" not in locals():
        return
    pixels = file.width * file.height
    if not 0 < pixels <= MAX_COMPRESSED_PIXELS:
        raise Broken(f"{file.width} x {file.height} pixels were let through.")
    megabytes = 64 + pixels * _PIXEL_BYTES / 2**20
    with bounded(len(data), 1.0 + pixels * _PIXEL_SECONDS, megabytes), refusal(MessageError):
        decoded, encoding = file.decode()
        if decoded.shape[:2] != (file.height, file.width):
            raise Broken(f"{file.width} x {file.height} became {decoded.shape}.")
        if pixels < 100_000 and not (encoding.startswith("bayer") and min(decoded.shape[:2]) < 3):
            to_rgb(decoded, encoding)


def _forbidden(*_: object) -> None:
    raise Broken("The file was decoded before its size was looked at.")
