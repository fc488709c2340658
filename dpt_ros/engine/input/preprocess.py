# SPDX-License-Identifier: Apache-2.0
"""Any pixel format -> network input, as isl-org/DPT's transforms.py does it."""

from __future__ import annotations

import cv2
import numpy as np
import torch

# OpenCV's conversion of a colour encoding to RGB; 16-bit ones keep their depth.
# The Bayer aliases name the first row's two pixels and then the second's, as ROS does.
_TO_RGB: dict[str, int | None] = {
    "rgb8": None,
    "rgb16": None,
    "bgr8": cv2.COLOR_BGR2RGB,
    "bgr16": cv2.COLOR_BGR2RGB,
    "rgba8": cv2.COLOR_RGBA2RGB,
    "bgra8": cv2.COLOR_BGRA2RGB,
    "mono8": cv2.COLOR_GRAY2RGB,
    "mono16": cv2.COLOR_GRAY2RGB,
    # Types without colour are read in OpenCV's channel order, as cv_bridge does.
    "8UC1": cv2.COLOR_GRAY2RGB,
    "8UC3": cv2.COLOR_BGR2RGB,
    "8UC4": cv2.COLOR_BGRA2RGB,
    "16UC1": cv2.COLOR_GRAY2RGB,
    "16UC3": cv2.COLOR_BGR2RGB,
    "32FC1": cv2.COLOR_GRAY2RGB,
    "32FC3": cv2.COLOR_BGR2RGB,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "yuyv": cv2.COLOR_YUV2RGB_YUYV,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUYV,
    "nv12": cv2.COLOR_YUV2RGB_NV12,
    "nv21": cv2.COLOR_YUV2RGB_NV21,
    "nv24": None,
} | {
    f"bayer_{pattern}{bits}": getattr(cv2, f"COLOR_Bayer{pattern.upper()}2RGB")
    for pattern in ("rggb", "bggr", "gbrg", "grbg")
    for bits in (8, 16)
}

ENCODINGS = frozenset(_TO_RGB)

# ITU-R BT.601, video range: the arithmetic of OpenCV's NV12 conversion, for 4:4:4 data.
_YUV_TO_RGB = np.array(
    [
        [1.164383, 0.0, 1.596027, -16 * 1.164383 - 128 * 1.596027],
        [1.164383, -0.391762, -0.812968, -16 * 1.164383 + 128 * (0.391762 + 0.812968)],
        [1.164383, 2.017232, 0.0, -16 * 1.164383 - 128 * 2.017232],
    ]
)


def to_rgb(pixels: np.ndarray, encoding: str) -> np.ndarray:
    """Camera pixels as an RGB picture.

    Args:
        pixels: (H, W) or (H, W, C) uint8, uint16 or float32 as ``encoding`` says; nv12 and nv21
            as (3H/2, W), nv24 as (3H, W), both planes stacked as the message holds them.
        encoding: a name of ``ENCODINGS``. Float images hold 0..1; NaN reads as 0.

    Returns:
        (H, W, 3) uint8, C-contiguous. rgb8 pixels that already are come back uncopied.

    Raises:
        ValueError: the encoding is not known.
    """
    if encoding not in _TO_RGB:
        raise ValueError(
            f"The encoding {encoding!r} cannot be read; known are {', '.join(sorted(ENCODINGS))}."
        )
    if encoding == "nv24":
        return _nv24_to_rgb(pixels)
    code = _TO_RGB[encoding]
    if code is not None:
        pixels = cv2.cvtColor(pixels, code)
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / 65535)
    elif pixels.dtype == np.float32:
        pixels = np.nan_to_num(pixels, nan=0.0, posinf=1.0, neginf=0.0)
        pixels = (np.clip(pixels, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def picture_size(shape: tuple[int, ...], encoding: str) -> tuple[int, int]:
    """(height, width) of the picture that pixels of this shape and encoding hold.

    Planar YUV stacks its planes: 4:2:0 has half as many rows again, 4:4:4 three times as many.
    """
    rows = {"nv12": shape[0] * 2 // 3, "nv21": shape[0] * 2 // 3, "nv24": shape[0] // 3}
    return rows.get(encoding, shape[0]), shape[1]


def _nv24_to_rgb(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[0] // 3, pixels.shape[1]
    luma = np.ascontiguousarray(pixels[:height])
    chroma = np.ascontiguousarray(pixels[height:]).reshape(height, width, 2)
    yuv = cv2.merge([luma, chroma[..., 0], chroma[..., 1]])
    return cv2.transform(yuv, _YUV_TO_RGB)


def network_size(
    height: int, width: int, net_height: int, net_width: int, multiple_of: int = 32
) -> tuple[int, int]:
    """The size at which a picture enters the network: aspect kept, "minimal" change.

    The scale is that of the side which changes least; each side is rounded to the nearest
    multiple (halves to even). Published rule: isl-org/DPT transforms.py, Resize. A side never
    gets smaller than one multiple, where the published rule would reach zero.

    Returns:
        (height, width) in pixels.
    """
    scale_height, scale_width = net_height / height, net_width / width
    scale = scale_width if abs(1 - scale_width) < abs(1 - scale_height) else scale_height

    def rounded(side: int) -> int:
        return max(round(scale * side / multiple_of), 1) * multiple_of

    return rounded(height), rounded(width)


def network_input(
    rgb: np.ndarray,
    size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device | str = "cpu",
    exact: bool = True,
) -> torch.Tensor:
    """A picture as the network wants it: cubic resize (a = -0.75, no antialias), normalised.

    Args:
        rgb: (H, W, 3) uint8.
        size: (height, width) of the result, from ``network_size``.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1.
        device: where the result lives.
        exact: resize in float64, as published; else in float32, which places samples within
            1e-4 pixels of it.

    Returns:
        (1, 3, height, width) float32 in channels_last memory.
    """
    scale = (1.0 / (255.0 * np.array(std))).astype(np.float32)
    offset = (-np.array(mean) / np.array(std)).astype(np.float32)
    if rgb.shape[:2] != size:
        # Resized as float, as published: rounding to uint8 first would cost half a grey level.
        values = rgb.astype(np.float64 if exact else np.float32)
        rgb = cv2.resize(values, size[::-1], interpolation=cv2.INTER_CUBIC)
    elif not rgb.flags.writeable:
        rgb = rgb.copy()  # torch shares no memory that it could not write to
    pixels = torch.from_numpy(rgb).to(device, torch.float32)
    pixels = pixels * torch.from_numpy(scale).to(device) + torch.from_numpy(offset).to(device)
    return pixels.permute(2, 0, 1).unsqueeze(0)
