# SPDX-License-Identifier: Apache-2.0
"""Picture files as isl-org/DPT reads them, but never half a picture."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dpt_ros.engine.text import one_line
from dpt_ros.file_kinds import kind_of_file

# Pillow also has readers that start other programs (EPS).
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its first bytes."""
    try:
        with Image.open(path, formats=_formats()):
            return True
    except Exception:  # whatever a reader of Pillow thinks of bytes of another kind
        return False


def read_picture(path: Path) -> np.ndarray:
    """A picture as ``cv2.imread`` reads it: turned as EXIF says, 16 bits to 8, without alpha.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the file is no picture, ends early, or is too large; the message says which.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        # OpenCV before 5 gives grey for what is missing of a JPEG; Pillow refuses it.
        with Image.open(BytesIO(content), formats=_formats()) as file:
            file.load()
            picture: Image.Image | None = file
    except UnidentifiedImageError:
        picture = None  # 16-bit colours in a TIFF, for example, which OpenCV knows
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise ValueError(f"it has more than {most} megapixels; make it smaller.") from error
    except Exception as error:  # of any type: Pillow's readers meet arbitrary bytes
        raise ValueError(f"it is damaged: {one_line(str(error))}.") from error
    try:
        bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        bgr = None
    if bgr is not None:
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    if picture is None or picture.mode in ("F", "I"):
        what = kind_of_file(path) or "no picture that OpenCV or Pillow can read"
        raise ValueError(f"it is {what}.")
    return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]
