# SPDX-License-Identifier: Apache-2.0
"""Headers of JPEG, PNG and WebP files: size and honesty of a file before it is decoded."""

from __future__ import annotations

from dpt_ros.ros.message_error import MessageError

# Progressive JPEG has ten scans, each of which may pass over the whole picture at 100 bytes; and
# nobody puts thousands of markers before the first one.
MAX_JPEG_SCANS = 100
_MOST_MARKERS = 2000
_MOST_CHUNKS = 100_000  # of a PNG; 64 megapixels have 62500 of libpng's 8 kB


def undecodable(kind: str, size: int) -> MessageError:
    return MessageError("undecodable", f"The {kind} image of {size} bytes cannot be decoded.")


def truncated(kind: str, size: int) -> MessageError:
    return MessageError("truncated", f"The {kind} image ends early, after {size} bytes.")


def file_header(content: bytes, stored_as: str) -> tuple[str, int, int]:
    """Kind, width and height of a JPEG, PNG or WebP file that is there to its end."""
    if "compressedDepth" not in stored_as:
        if content[:3] == b"\xff\xd8\xff":
            return ("JPEG", *_jpeg_size(content))
        if content[:8] == b"\x89PNG\r\n\x1a\n":
            return ("PNG", *_png_size(content))
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return ("WebP", *_webp_size(content))
    raise MessageError(
        "unsupported format",
        f"The compressed image says its format is '{stored_as}' and begins with the bytes"
        f" {content[:4].hex(' ') or '(none)'}; supported are jpeg, png and webp.",
    )


def _jpeg_size(content: bytes) -> tuple[int, int]:
    """Width and height from the frame header (ITU-T T.81, B.2.2)."""
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
            if content.rfind(b"\xff\xd9", at) < 0:
                raise truncated("JPEG", len(content))
            scans = content.count(b"\xff\xda", at)
            if scans > MAX_JPEG_SCANS:
                raise MessageError(
                    "too many scans",
                    f"The JPEG image has {scans} scans, more than the {MAX_JPEG_SCANS} allowed.",
                )
            height, width = (int.from_bytes(content[at + i : at + i + 2], "big") for i in (5, 7))
            return width, height
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    raise truncated("JPEG", len(content))


def _png_size(content: bytes) -> tuple[int, int]:
    """Width and height from the IHDR chunk."""
    if content[12:16] != b"IHDR":
        raise truncated("PNG", len(content))
    at = 8
    for _ in range(_MOST_CHUNKS):
        # OpenCV makes room for as many bytes as a chunk says it has, up to 4 GB.
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
