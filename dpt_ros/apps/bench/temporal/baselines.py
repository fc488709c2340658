# SPDX-License-Identifier: Apache-2.0
"""The usual ways to calm depth and labels, which the temporal filter has to beat."""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np

Maps = tuple[np.ndarray, np.ndarray | None]


class Baseline(Protocol):
    """Smooths one camera's frames in order."""

    def update(
        self, inverse: np.ndarray, logits: np.ndarray | None, rgb: np.ndarray, stamp_ns: int
    ) -> Maps:
        """Inverse depth (H, W) float32 and logits (C, h, w) or None, calmer; logits are None
        where the method knows nothing of labels."""


class Raw:
    """Every frame as it is."""

    def update(
        self, inverse: np.ndarray, logits: np.ndarray | None, rgb: np.ndarray, stamp_ns: int
    ) -> Maps:
        return inverse, logits


class Ema:
    """Exponential moving average per pixel.

    Args:
        alpha: weight of the new frame.
        threshold: relative change of inverse depth beyond which a pixel starts anew, as the
            temporal filter of librealsense does with its delta; None for never. librealsense's
            20 units of disparity are taken as 20 %, and logits start anew with the depth.
    """

    def __init__(self, alpha: float = 0.4, threshold: float | None = None) -> None:
        self._alpha, self._threshold = np.float32(alpha), threshold
        self._inverse: np.ndarray | None = None
        self._logits: np.ndarray | None = None

    def update(
        self, inverse: np.ndarray, logits: np.ndarray | None, rgb: np.ndarray, stamp_ns: int
    ) -> Maps:
        if self._inverse is None:
            self._inverse, self._logits = inverse, logits
            return inverse, logits
        anew = None
        if self._threshold is not None:
            change = np.abs(inverse - self._inverse)
            anew = change > self._threshold * np.maximum(inverse, self._inverse)
        self._inverse = _mix(self._inverse, inverse, self._alpha, anew)
        if logits is not None and self._logits is not None:
            self._logits = _mix(self._logits, logits, self._alpha, anew)
        return self._inverse, self._logits


class OneEuro:
    """The One-Euro filter (Casiez et al., CHI 2012) on each pixel's inverse depth; no labels.

    Args:
        min_cutoff: Hz, of a still pixel.
        beta: Hz per 1/(m s) of change.
        d_cutoff: Hz, of the change's own low pass.
    """

    def __init__(self, min_cutoff: float = 1.0, beta: float = 4.0, d_cutoff: float = 1.0) -> None:
        self._min_cutoff, self._beta, self._d_cutoff = min_cutoff, beta, d_cutoff
        self._inverse: np.ndarray | None = None
        self._slope = np.zeros(0, np.float32)
        self._stamp = 0

    def update(
        self, inverse: np.ndarray, logits: np.ndarray | None, rgb: np.ndarray, stamp_ns: int
    ) -> Maps:
        if self._inverse is None:
            self._inverse, self._slope = inverse, np.zeros_like(inverse)
        else:
            dt = np.float32((stamp_ns - self._stamp) * 1e-9)
            rate = 2 * np.pi * dt
            gain = np.float32(rate * self._d_cutoff / (1 + rate * self._d_cutoff))
            self._slope = self._slope + gain * ((inverse - self._inverse) / dt - self._slope)
            cutoff = np.float32(rate) * (self._min_cutoff + self._beta * np.abs(self._slope))
            self._inverse = self._inverse + cutoff / (1 + cutoff) * (inverse - self._inverse)
        self._stamp = stamp_ns
        return self._inverse, None


class FlowEma:
    """Exponential moving average of the history moved along optical flow (OpenCV DIS, ultrafast).

    A pixel starts anew where its history leaves the picture or its grey value differs by more than
    20 levels.

    Args:
        alpha, label_alpha: weight of the new frame, for inverse depth and logits.
    """

    def __init__(self, alpha: float = 0.2, label_alpha: float = 0.3) -> None:
        self._alpha, self._label_alpha = np.float32(alpha), np.float32(label_alpha)
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._grey: np.ndarray | None = None
        self._inverse = np.zeros(0, np.float32)
        self._logits: np.ndarray | None = None

    def update(
        self, inverse: np.ndarray, logits: np.ndarray | None, rgb: np.ndarray, stamp_ns: int
    ) -> Maps:
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        before, self._grey = self._grey, grey
        if before is None:
            self._inverse, self._logits = inverse, logits
            return inverse, logits
        height, width = grey.shape
        place = self._dis.calc(grey, before, None)
        place[..., 0] += np.arange(width, dtype=np.float32)
        place[..., 1] += np.arange(height, dtype=np.float32)[:, None]
        x, y = place[..., 0], place[..., 1]
        anew = (x < 0) | (y < 0) | (x > width - 1) | (y > height - 1)
        anew |= cv2.absdiff(grey, _warp(before, place)) > 20
        self._inverse = _mix(_warp(self._inverse, place), inverse, self._alpha, anew)
        if logits is not None and self._logits is not None:
            h, w = logits.shape[1:]
            # corner to corner, as DPT's head resizes
            columns = np.repeat(np.linspace(0, width - 1, w, dtype=np.float32)[None], h, 0)
            rows = np.repeat(np.linspace(0, height - 1, h, dtype=np.float32)[:, None], w, 1)
            coarse = cv2.remap(place, columns, rows, cv2.INTER_LINEAR)
            coarse *= np.array([(w - 1) / (width - 1), (h - 1) / (height - 1)], np.float32)
            history = np.stack([_warp(one, coarse) for one in self._logits])
            self._logits = _mix(history, logits, self._label_alpha, anew)
        return self._inverse, self._logits


def _warp(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    return cv2.remap(image, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _mix(
    history: np.ndarray, new: np.ndarray, alpha: np.float32, anew: np.ndarray | None
) -> np.ndarray:
    mixed = history + alpha * (new - history)
    if anew is None:
        return mixed
    if new.ndim == 3:
        size = (new.shape[2], new.shape[1])
        anew = cv2.resize(anew.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    return np.where(anew, new, mixed)


def baselines() -> dict[str, Baseline]:
    """Fresh filters by name, raw first."""
    return {
        "raw": Raw(),
        "EMA 0.4": Ema(0.4),
        "threshold EMA": Ema(0.4, 0.2),
        "One-Euro": OneEuro(),
        "flow EMA": FlowEma(),
    }
