# SPDX-License-Identifier: Apache-2.0
"""Short clips for the temporal filter."""

from __future__ import annotations

import numpy as np

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.smoothing.filter import FilteredFrame, TemporalFilter

H, W = 60, 80


FRAME = 33_333_333  # nanoseconds


CAMERA = CameraModel(W, H, 70.0, 70.0, 39.5, 29.5)


def picture(seed: int = 0, height: int = H, width: int = W) -> np.ndarray:
    """A textured picture (H, W, 3) that optical flow can hold on to."""
    import cv2

    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (height // 4 + 2, width // 4 + 2, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def slope(height: int = H, width: int = W) -> np.ndarray:
    """Inverse depth of a floor that runs away: 0.2 to 1 per metre."""
    rows = np.linspace(0.2, 1.0, height, dtype=np.float32)
    return np.repeat(rows[:, None], width, 1)


def noisy(truth: np.ndarray, rng: np.random.Generator, share: float = 0.03) -> np.ndarray:
    whole = 1 + 0.04 * rng.normal()
    return (truth * whole * (1 + share * rng.normal(size=truth.shape))).astype(np.float32)


def feed(
    steadier: TemporalFilter, index: int, inverse: np.ndarray, rgb: np.ndarray, **given: object
) -> FilteredFrame:
    given = {"camera": CAMERA, "odom_from_camera": np.eye(4), "logits": None} | given
    return steadier.update(inverse, rgb=rgb, stamp_ns=index * FRAME, **given)  # type: ignore


def settled(frames: int = 12, **kept: object) -> TemporalFilter:
    """A filter that has seen the floor for a while, undisturbed."""
    steadier = TemporalFilter(**kept)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    for k in range(frames):
        feed(steadier, k, (slope() * (1 + 0.01 * rng.normal(size=(H, W)))).astype(np.float32),
             picture())  # fmt: skip
    return steadier
