# SPDX-License-Identifier: Apache-2.0
"""The pixel encodings of sensor_msgs/image_encodings and cv_bridge, one row each.

Everything that depends on an encoding reads it here: the bytes of a message, the colours on the
host (OpenCV) and on a device (torch, Triton).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Encoding:
    """How pixels lie in memory and where their colours are.

    Args:
        layout: "interleaved"; "bayer"; "yuv422", two pixels in four bytes; "yuv420" and "yuv444",
            a plane of luma above one of UV pairs, at half and at full size.
        dtype: of a sample: uint8, uint16 or float32.
        channels: samples per pixel, 0 for arrays without a channel axis.
        offsets: interleaved: of red, green and blue in a pixel. yuv422: of the first luma, U and V
            in four bytes. yuv420, yuv444: of U and V in a pair, and 0. bayer: row and column of
            the first red, and 0.
        to_rgb: OpenCV's conversion to RGB, which keeps 16 bits; None if there is none: for RGB
            itself, and for yuv444, which OpenCV does not know.
    """

    layout: str
    dtype: type[np.generic]
    channels: int
    offsets: tuple[int, int, int]
    to_rgb: int | None

    @property
    def planes(self) -> float:
        """Rows of the data per row of the picture."""
        return {"yuv420": 1.5, "yuv444": 3.0}.get(self.layout, 1.0)

    @property
    def even_width(self) -> bool:
        """Whether pairs of columns share their chroma."""
        return self.layout in ("yuv422", "yuv420")

    @property
    def even_height(self) -> bool:
        """Whether pairs of rows share their chroma."""
        return self.layout == "yuv420"


def _grey(dtype: type[np.generic]) -> Encoding:
    return Encoding("interleaved", dtype, 0, (0, 0, 0), cv2.COLOR_GRAY2RGB)


def _bgr(dtype: type[np.generic]) -> Encoding:
    return Encoding("interleaved", dtype, 3, (2, 1, 0), cv2.COLOR_BGR2RGB)


_BGRA8 = Encoding("interleaved", np.uint8, 4, (2, 1, 0), cv2.COLOR_BGRA2RGB)
_UYVY = Encoding("yuv422", np.uint8, 2, (1, 0, 2), cv2.COLOR_YUV2RGB_UYVY)
_YUYV = Encoding("yuv422", np.uint8, 2, (0, 1, 3), cv2.COLOR_YUV2RGB_YUYV)
# OpenCV's aliases name the first row's two pixels and then the second's, as ROS does.
_BAYER = {
    "rggb": ((0, 0, 0), cv2.COLOR_BayerRGGB2RGB),
    "bggr": ((1, 1, 0), cv2.COLOR_BayerBGGR2RGB),
    "gbrg": ((1, 0, 0), cv2.COLOR_BayerGBRG2RGB),
    "grbg": ((0, 1, 0), cv2.COLOR_BayerGRBG2RGB),
}

ENCODINGS: dict[str, Encoding] = {
    "rgb8": Encoding("interleaved", np.uint8, 3, (0, 1, 2), None),
    "bgr8": _bgr(np.uint8),
    "rgba8": Encoding("interleaved", np.uint8, 4, (0, 1, 2), cv2.COLOR_RGBA2RGB),
    "bgra8": _BGRA8,
    "mono8": _grey(np.uint8),
    "mono16": _grey(np.uint16),
    "rgb16": Encoding("interleaved", np.uint16, 3, (0, 1, 2), None),
    "bgr16": _bgr(np.uint16),
    **{
        f"bayer_{pattern}{bits}": Encoding("bayer", dtype, 0, red, to_rgb)
        for bits, dtype in ((8, np.uint8), (16, np.uint16))
        for pattern, (red, to_rgb) in _BAYER.items()
    },
    "uyvy": _UYVY,
    "yuv422": _UYVY,
    "yuyv": _YUYV,
    "yuv422_yuy2": _YUYV,
    "nv12": Encoding("yuv420", np.uint8, 0, (0, 1, 0), cv2.COLOR_YUV2RGB_NV12),
    "nv21": Encoding("yuv420", np.uint8, 0, (1, 0, 0), cv2.COLOR_YUV2RGB_NV21),
    "nv24": Encoding("yuv444", np.uint8, 0, (0, 1, 0), None),
    # Types without colour are read in OpenCV's channel order, as cv_bridge does.
    "8UC1": _grey(np.uint8),
    "8UC3": _bgr(np.uint8),
    "8UC4": _BGRA8,
    "16UC1": _grey(np.uint16),
    "16UC3": _bgr(np.uint16),
    "32FC1": _grey(np.float32),
    "32FC3": _bgr(np.float32),
}


def find_encoding(name: str) -> Encoding:
    """The row of ``ENCODINGS`` for a name.

    Raises:
        ValueError: there is none.
    """
    if name not in ENCODINGS:
        raise ValueError(
            f"The encoding {name!r} cannot be read; known are {', '.join(sorted(ENCODINGS))}."
        )
    return ENCODINGS[name]


def picture_size(shape: tuple[int, ...], encoding: str) -> tuple[int, int]:
    """(height, width) in pixels of the picture in an array of this shape, planes stacked."""
    return int(shape[0] / find_encoding(encoding).planes), shape[1]


def check_shape(shape: tuple[int, ...], encoding: str) -> None:
    """Check that an array of this shape can hold a picture of this encoding.

    Raises:
        ValueError: it cannot, or the encoding is unknown.
    """
    row = find_encoding(encoding)
    fits = len(shape) == (3 if row.channels else 2) and 0 not in shape
    if not fits or (row.channels and shape[2] != row.channels):
        wanted = f"(H, W, {row.channels})" if row.channels else "(H, W)"
        raise ValueError(
            f"The pixels have shape {shape}, but {encoding} needs {wanted}, not empty."
        )
    height, width = picture_size(shape, encoding)
    if row.even_width and width % 2:
        raise ValueError(f"The picture is {width} wide, but {encoding} needs an even width.")
    if row.planes > 1 and shape[0] % 3:
        raise ValueError(
            f"The pixels have {shape[0]} rows, but {encoding} needs a multiple of 3: its planes"
            " are stacked."
        )
    if row.layout == "bayer" and min(height, width) < 3:
        raise ValueError(
            f"The picture is {width}x{height}, but {encoding} needs at least 3x3 pixels."
        )
