# SPDX-License-Identifier: Apache-2.0
"""Picture and video files of every kind that people have."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from helpers.places import ROOT

ROOM = cv2.cvtColor(cv2.imread(str(ROOT / "docs" / "room.jpg")), cv2.COLOR_BGR2RGB)
TURNED = 6  # EXIF: the camera was turned by a quarter, clockwise


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A part of a room, (height, width, 3) uint8 RGB."""
    random = np.random.default_rng(seed)
    left, top = random.integers(0, 80), random.integers(0, 60)
    return cv2.resize(ROOM[top : top + 180, left : left + 240], size[::-1])


def encoded(rgb: np.ndarray, kind: str, mode: str = "RGB", turned: bool = False) -> bytes:
    """A picture file as Pillow writes it.

    Args:
        rgb: (H, W, 3) uint8.
        kind: Pillow's name of the format.
        mode: Pillow's mode: L, LA, P (a palette), 1, CMYK, ...
        turned: whether EXIF says that the camera was turned.
    """
    image, file = Image.fromarray(rgb), BytesIO()
    image = image.quantize(200) if mode == "P" else image.convert(mode)
    options: dict[str, Any] = {}
    if turned:
        exif = Image.Exif()
        exif[0x0112] = TURNED
        options["exif"] = exif
    image.save(file, kind, **options)
    return file.getvalue()


def encoded16(rgb: np.ndarray, suffix: str, grey: bool = False) -> bytes:
    """A picture of 16 bits, whose low bytes are noise."""
    noise = np.random.default_rng(0).integers(0, 256, rgb.shape)
    deep = (rgb.astype(np.uint16) << 8) + noise.astype(np.uint16)
    return cv2.imencode(suffix, deep[..., 0] if grey else deep[..., ::-1])[1].tobytes()


def kinds(rgb: np.ndarray) -> dict[str, bytes]:
    """The contents of a file of each kind, by a name with the usual suffix."""
    return {
        "plain.jpg": encoded(rgb, "JPEG"),
        "turned.JPG": encoded(rgb, "JPEG", turned=True),
        "grey.jpeg": encoded(rgb, "JPEG", "L"),
        "print.jpg": encoded(rgb, "JPEG", "CMYK"),
        "plain.png": encoded(rgb, "PNG"),
        "turned.png": encoded(rgb, "PNG", turned=True),
        "grey_alpha.png": encoded(rgb, "PNG", "LA"),
        "alpha.png": encoded(rgb, "PNG", "RGBA"),
        "palette.PNG": encoded(rgb, "PNG", "P"),
        "bits.png": encoded(rgb, "PNG", "1"),
        "deep.png": encoded16(rgb, ".png"),
        "deep_grey.png": encoded16(rgb, ".png", grey=True),
        "deep.tif": encoded16(rgb, ".tif"),
        "deep_grey.tiff": encoded16(rgb, ".tif", grey=True),
        "plain.TIF": encoded(rgb, "TIFF"),
        "print.tif": encoded(rgb, "TIFF", "CMYK"),
        "plain.webp": encoded(rgb, "WEBP"),
        "plain.bmp": encoded(rgb, "BMP"),
        "plain.gif": encoded(rgb, "GIF"),
        "plain.ppm": encoded(rgb, "PPM"),
        "J\u00fcrgens Zimmer \u90e8\u5c4b.jpg": encoded(rgb, "JPEG"),
        "really_a.png": encoded(rgb, "JPEG"),
        "without_suffix": encoded(rgb, "PNG"),
    }


def write_video(path: Path, frames: int, size: tuple[int, int] = (96, 128)) -> list[np.ndarray]:
    """A video at 10 Hz that pans over a room; its frames before they were encoded, BGR."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, size[::-1])
    made = []
    for k in range(frames):
        part = ROOM[:200, k % 60 : k % 60 + 260, ::-1]
        made.append(cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA))
        writer.write(made[-1])
    writer.release()
    return made
