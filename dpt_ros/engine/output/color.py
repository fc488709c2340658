# SPDX-License-Identifier: Apache-2.0
"""Depth and labels in colour."""

from __future__ import annotations

import cv2
import numpy as np

_UNKNOWN = (0, 0, 0)
_STEPS = np.arange(256, dtype=np.uint8).reshape(1, 256)
# 256 RGB colours, bright where near.
_NEAR_TO_FAR = cv2.applyColorMap(255 - _STEPS, cv2.COLORMAP_INFERNO)[0, :, ::-1].copy()


def depth_to_color(depth: np.ndarray, far: float) -> np.ndarray:
    """Depth in colour over a fixed range, the same in every frame.

    Args:
        depth: (H, W) float32, metres; NaN is drawn black, +Inf as ``far``.
        far: the depth at the dark end of the colour map, metres.

    Returns:
        (H, W, 3) uint8 RGB, bright where near.
    """
    # The square root gives near depth more of the colours.
    scaled = np.sqrt(np.clip(depth, 0.0, far) / far) * 255
    colors = _look_up(np.nan_to_num(scaled, nan=0.0).astype(np.uint8), _NEAR_TO_FAR)
    colors[np.isnan(depth)] = _UNKNOWN
    return colors


def inverse_to_color(inverse: np.ndarray, near: float) -> np.ndarray:
    """Relative inverse depth over the fixed range 0..``near``.

    Args:
        inverse: (H, W) float32, >= 0.
        near: the inverse depth at the bright end.

    Returns:
        (H, W, 3) uint8 RGB, bright where near.
    """
    scaled = np.clip(inverse / near, 0.0, 1.0) * 255
    return _look_up(255 - np.nan_to_num(scaled, nan=0.0).astype(np.uint8), _NEAR_TO_FAR)


def labels_to_color(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Labels in the colours of their classes.

    Args:
        labels: (H, W) uint8 class ids.
        palette: (256, 3) uint8 RGB, indexed by id.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return _look_up(labels, palette)


def with_words(picture: np.ndarray, words: str) -> np.ndarray:
    """Write a line of ASCII text across the top of a picture, (H, W, 3) uint8 RGB, in place."""
    size = picture.shape[1] / 500
    at = (4, 4 + round(24 * size))
    for color, width in ((_UNKNOWN, 4), ((255, 255, 255), 1)):
        cv2.putText(picture, words, at, cv2.FONT_HERSHEY_SIMPLEX, size, color, width, cv2.LINE_AA)
    return picture


def _look_up(indices: np.ndarray, table: np.ndarray) -> np.ndarray:
    """``table[indices]`` for (H, W) uint8 and (256, 3) uint8: OpenCV is ten times as fast."""
    return cv2.applyColorMap(indices, table[:, None])
