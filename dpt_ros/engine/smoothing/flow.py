# SPDX-License-Identifier: Apache-2.0
"""Optical flow."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

_FLOW_WIDTH = 320  # of the images for optical flow at most, pixels
# OpenCV 5.0's DIS reads outside of smaller images: its coarsest scale has no room for a patch,
# and the process may crash.
_MIN_SIZE = 32
_CONTRAST = 4.0  # grey levels per pixel by which motion is measured well


def grey(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (h, w) uint8, at most 320 pixels wide."""
    height, width = rgb.shape[:2]
    if width > _FLOW_WIDTH:
        size = (_FLOW_WIDTH, max(8, round(height * _FLOW_WIDTH / width)))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def optical_flow(luma: Tensor, previous: Tensor) -> Tensor:
    """(B, h, w) float32 grey levels each -> (B, 5, h, w) displacement, residual, weight."""
    return torch.stack([_dis(a, b) for a, b in zip(luma, previous, strict=True)])


def _dis(luma: Tensor, previous: Tensor) -> Tensor:
    if min(luma.shape) < _MIN_SIZE:
        return torch.zeros(5, *luma.shape)
    one, other = (np.nan_to_num(x.numpy()).round().astype(np.uint8) for x in (luma, previous))
    # A new one: its results depend on the images that it saw before, if those were small.
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    displacement = dis.calc(one, other, None)
    parts = (np.moveaxis(displacement, 2, 0), _residual(displacement, one, other)[None])
    return torch.from_numpy(np.concatenate([*parts, _texture(one)]))


def _residual(displacement: np.ndarray, luma: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """(h, w) float32 photometric error, grey levels."""
    height, width = luma.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x += displacement[..., 0]
    y += displacement[..., 1]
    moved = cv2.remap(previous, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    gain = cv2.mean(luma)[0] / max(cv2.mean(previous)[0], 1.0)
    return cv2.absdiff(luma, cv2.convertScaleAbs(moved, alpha=gain)).astype(np.float32)


def _texture(luma: np.ndarray) -> np.ndarray:
    """(2, h, w) float32, 0..1: the structure tensor's diagonal over noise and the other axis."""
    squares = []
    for axis in ((1, 0), (0, 1)):
        slope = cv2.Sobel(luma, cv2.CV_32F, *axis, ksize=3, scale=1 / 8)
        squares.append(cv2.boxFilter(slope * slope, -1, (5, 5)))
    total = squares[0] + squares[1] + _CONTRAST**2
    return np.stack([squares[0] / total, squares[1] / total])
