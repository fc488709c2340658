# SPDX-License-Identifier: Apache-2.0
"""Pixels of any encoding -> network input on the host, as isl-org/DPT's transforms.py does it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from dpt_ros.engine.input.encodings import find_encoding

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
        encoding: a name of ``ENCODINGS``. Float images hold 0..1; NaN becomes 0.

    Returns:
        (H, W, 3) uint8, C-contiguous; contiguous rgb8 pixels uncopied.

    Raises:
        ValueError: the encoding is not known.
    """
    row = find_encoding(encoding)
    if row.layout == "yuv444":
        return _yuv444_to_rgb(pixels)
    if row.to_rgb is not None:
        pixels = cv2.cvtColor(pixels, row.to_rgb)
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / 65535)
    elif pixels.dtype == np.float32:
        pixels = np.nan_to_num(pixels, nan=0.0, posinf=1.0, neginf=0.0)
        pixels = (np.clip(pixels, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _yuv444_to_rgb(pixels: np.ndarray) -> np.ndarray:
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
    """A picture resized (cubic, a = -0.75, no antialias) and normalised.

    Args:
        rgb: (H, W, 3) uint8.
        size: (height, width) of the result, from ``network_size``.
        mean, std: per channel, of values in 0..1.
        device: where the result lives.
        exact: resize in float64, as published; else in float32, which places samples within
            1e-4 pixels of it.

    Returns:
        (1, 3, height, width) float32 in channels_last memory.
    """
    if rgb.shape[:2] != size:
        # Resized as float, as published: rounding to uint8 first would cost half a grey level.
        values = rgb.astype(np.float64 if exact else np.float32)
        rgb = cv2.resize(values, size[::-1], interpolation=cv2.INTER_CUBIC)
    elif not rgb.flags.writeable:
        rgb = rgb.copy()  # torch shares no memory that it could not write to
    scale, offset = torch.from_numpy(normalisation(mean, std)).to(device).unbind()
    pixels = torch.from_numpy(rgb).to(device, torch.float32) * scale + offset
    return pixels.permute(2, 0, 1).unsqueeze(0)


def normalisation(mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(2, 3) float32: factor and offset of each channel, for values in 0..255."""
    scale, offset = 1.0 / (255.0 * np.array(std)), -np.array(mean) / np.array(std)
    return np.stack([scale, offset]).astype(np.float32)
