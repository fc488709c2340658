# SPDX-License-Identifier: Apache-2.0
"""Headers of JPEG, PNG, WebP and TIFF files: size and validity before decoding."""

from __future__ import annotations

import re
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image

from dpt_ros.ros.messages.error import MessageError

# Progressive JPEG has ten scans, each of which may cover the whole picture with 100 bytes; and no
# encoder writes thousands of markers before the first scan.
MAX_JPEG_SCANS = 100
_MOST_MARKERS = 2000
_FILLING = 600  # bytes, more than the largest block takes
_MOST_ENTRIES = 1000  # of a TIFF's directory
_MOST_CHUNKS = 100_000  # of a PNG; 64 megapixels have 62500 of libpng's 8 kB


def undecodable(kind: str, size: int) -> MessageError:
    return MessageError("undecodable", f"The {kind} image of {size} bytes cannot be decoded.")


def truncated(kind: str, size: int) -> MessageError:
    return MessageError("truncated", f"The {kind} image ends early, after {size} bytes.")


def file_header(content: bytes, stored_as: str) -> tuple[str, int, int, bool]:
    """Kind, width and height of a JPEG, PNG, WebP or TIFF file, and whether it has its end.

    Raises:
        MessageError: it is none, or ends early; ``with_jpeg_end`` checks a JPEG without its end
            marker.
    """
    if "compressedDepth" not in stored_as:
        if content[:3] == b"\xff\xd8\xff":
            return ("JPEG", *_jpeg_size(content))
        if content[:8] == b"\x89PNG\r\n\x1a\n":
            return ("PNG", *_png_size(content), True)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return ("WebP", *_webp_size(content), True)
        if content[:4] in (b"II*\0", b"MM\0*"):
            return ("TIFF", *_tiff_size(content), True)
    raise MessageError(
        "unsupported format",
        f"The compressed image has the format '{stored_as}' and begins with the bytes"
        f" {content[:4].hex(' ') or '(none)'}, but must be jpeg, png, webp or tiff.",
    )


def odd_label(kind: str, stored_as: str) -> str:
    """A warning on a format string that does not match the kind of the file, else ""."""
    words = re.findall("jpe?g|png|webp|tiff?", stored_as.lower())
    named = {{"jpg": "jpeg", "tif": "tiff"}.get(word, word) for word in words}
    if named and kind.lower() not in named:
        return f"The format is '{stored_as}', but the file is {kind}, and is read as {kind}."
    if "compressed rgb" in stored_as:
        return (
            f"The format is '{stored_as}', as if red and blue were exchanged; a {kind} file is"
            " always read in true colours."
        )
    return ""


def with_jpeg_end(data: np.ndarray) -> np.ndarray:
    """A JPEG file with the end marker that it lacks.

    Where image data are missing too, the bytes that follow are decoded in their place; so two
    different continuations give the same picture only if the data are complete.

    Args:
        data: the file, (N,) uint8.

    Raises:
        MessageError: more is missing than the marker.
    """
    content, end = data.tobytes(), b"\xff\xd9"
    pictures = []
    try:
        for filling in (b"\x55", b"\xaa"):
            with Image.open(BytesIO(content + filling * _FILLING + end), formats=["JPEG"]) as file:
                pictures.append(np.asarray(file))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise truncated("JPEG", data.size) from error
    if not np.array_equal(pictures[0], pictures[1]):
        raise truncated("JPEG", data.size)
    return np.frombuffer(content + end, np.uint8)


def _jpeg_size(content: bytes) -> tuple[int, int, bool]:
    """Width and height from the frame header (ITU-T T.81, B.2.2), and whether there is an end."""
    at = 2
    for _ in range(_MOST_MARKERS):
        at = content.find(b"\xff", at)
        if at < 0 or at + 9 > len(content):
            break
        marker = content[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:
            at += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            # Inside the entropy-coded data 0xff is always followed by 0, so this ends the image.
            ended = content.rfind(b"\xff\xd9", at) >= 0
            scans = content.count(b"\xff\xda", at)
            if scans > MAX_JPEG_SCANS:
                raise MessageError(
                    "too many scans",
                    f"The JPEG image has {scans} scans, more than the {MAX_JPEG_SCANS} allowed.",
                )
            height, width = (int.from_bytes(content[at + i : at + i + 2], "big") for i in (5, 7))
            return width, height, ended
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    raise truncated("JPEG", len(content))


def _png_size(content: bytes) -> tuple[int, int]:
    """Width and height from the IHDR chunk."""
    if content[12:16] != b"IHDR":
        raise truncated("PNG", len(content))
    at = 8
    for _ in range(_MOST_CHUNKS):
        # OpenCV allocates the size in a chunk's header, up to 4 GB.
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if end > len(content):
            raise truncated("PNG", len(content))
        if content[at + 4 : at + 8] == b"IEND":
            return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
        at = end
    raise undecodable("PNG", len(content))


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height from the first chunk: VP8, VP8L or VP8X (RFC 9649)."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(content[at : at + size], "little")

    if len(content) < 30 or len(content) < number(4, 4) + 8:
        raise truncated("WebP", len(content))
    chunk = content[12:16]
    if chunk == b"VP8 ":
        return number(26, 2) & 0x3FFF, number(28, 2) & 0x3FFF
    if chunk == b"VP8L":
        bits = number(21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8X":
        return number(24, 3) + 1, number(27, 3) + 1
    raise undecodable("WebP", len(content))


def _tiff_size(content: bytes) -> tuple[int, int]:
    """Width and height from the first directory (TIFF 6.0)."""
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        if at + size > len(content):
            raise truncated("TIFF", len(content))
        return int.from_bytes(content[at : at + size], order)

    start = number(4, 4)
    found = {}
    for k in range(min(number(start, 2), _MOST_ENTRIES)):
        at = start + 2 + 12 * k
        tag, kind = number(at, 2), number(at + 2, 2)
        found[tag] = number(at + 8, 2 if kind == 3 else 4)
    width, height = found.get(256, 0), found.get(257, 0)
    # OpenCV allocates a whole tile, whatever the size of the picture.
    if found.get(322, 0) * found.get(323, 0) > 4 * max(width, 256) * max(height, 256):
        raise undecodable("TIFF", len(content))
    return width, height
