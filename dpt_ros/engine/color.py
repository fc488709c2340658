# SPDX-License-Identifier: Apache-2.0
"""Pictures for people: depth and labels in colour."""

from __future__ import annotations

import cv2
import numpy as np

_UNKNOWN = (0, 0, 0)
_STEPS = np.arange(256, dtype=np.uint8).reshape(1, 256)
# 256 RGB colours, bright where near.
_NEAR_TO_FAR = cv2.applyColorMap(255 - _STEPS, cv2.COLORMAP_INFERNO)[0, :, ::-1].copy()


def depth_to_color(depth: np.ndarray, far: float) -> np.ndarray:
    """Depth over a fixed range, so that one colour means one distance in every frame.

    Args:
        depth: (H, W) float32, metres; NaN is drawn black, +Inf as ``far``.
        far: the depth at the dark end, metres.

    Returns:
        (H, W, 3) uint8 RGB, bright where near.
    """
    # The square root spends more colours where a robot needs them.
    scaled = np.sqrt(np.clip(depth, 0.0, far) / far) * 255
    colors = _NEAR_TO_FAR[np.nan_to_num(scaled, nan=0.0).astype(np.uint8)]
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
    return _NEAR_TO_FAR[255 - np.nan_to_num(scaled, nan=0.0).astype(np.uint8)]


def labels_to_color(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Each class in its colour.

    Args:
        labels: (H, W) uint8 class ids.
        palette: (256, 3) uint8 RGB, indexed by id.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return palette[labels]
