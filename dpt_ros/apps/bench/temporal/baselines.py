# SPDX-License-Identifier: Apache-2.0
"""The usual smoothing methods, with which the temporal filter is compared."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from dpt_ros.apps.bench.temporal.noise import corner_map

Maps = tuple[np.ndarray, np.ndarray | None]
# (inverse depth (H, W) float32, logits (C, h, w) or None, rgb (H, W, 3) uint8, stamp in ns) ->
# inverse depth and logits, smoothed; logits are None where the method does not handle labels.
Baseline = Callable[[np.ndarray, "np.ndarray | None", np.ndarray, int], Maps]


class Ema:
    """Exponential moving average per pixel.

    Args:
        alpha, label_alpha: weight of the new frame, for inverse depth and logits.
        threshold: relative change of inverse depth beyond which a pixel restarts, as the temporal
            filter of librealsense does with its delta; 0 for never. librealsense's 20 units of
            disparity are taken as 20 %, and logits restart with the depth.
        flow: move the history along optical flow (OpenCV DIS, ultrafast). A pixel restarts where
            its history leaves the image or its grey value differs by more than 20 levels.
    """

    def __init__(
        self, alpha: float, label_alpha: float, threshold: float = 0.0, flow: bool = False
    ) -> None:
        self._alpha, self._label_alpha = np.float32(alpha), np.float32(label_alpha)
        self._threshold, preset = threshold, cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST
        self._dis = cv2.DISOpticalFlow.create(preset) if flow else None
        self._last: Maps | None = None
        self._grey = np.zeros(0, np.uint8)

    def update(
        self, inverse: np.ndarray, logits: np.ndarray | None, rgb: np.ndarray, stamp_ns: int
    ) -> Maps:
        """The next frame, smoothed; see ``Baseline``."""
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        if self._last is not None:
            (old, old_logits), restart = self._last, None
            if self._dis is not None:
                old, old_logits, restart = self._moved(grey, old, old_logits)
            elif self._threshold:
                restart = np.abs(inverse - old) > self._threshold * np.maximum(inverse, old)
            inverse = _mix(old, inverse, self._alpha, restart)
            if logits is not None and old_logits is not None:
                logits = _mix(old_logits, logits, self._label_alpha, restart)
        self._last, self._grey = (inverse, logits), grey
        return inverse, logits

    def _moved(
        self, grey: np.ndarray, inverse: np.ndarray, logits: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """The history along the flow, and where it does not apply, (H, W) bool."""
        assert self._dis is not None
        height, width = grey.shape
        place = self._dis.calc(grey, self._grey, None)
        place[..., 0] += np.arange(width, dtype=np.float32)
        place[..., 1] += np.arange(height, dtype=np.float32)[:, None]
        x, y = place[..., 0], place[..., 1]
        restart = (x < 0) | (y < 0) | (x > width - 1) | (y > height - 1)
        restart |= cv2.absdiff(grey, _warp(self._grey, place)) > 20
        if logits is not None:
            h, w = logits.shape[1:]
            coarse = cv2.remap(place, *corner_map((height, width), (h, w)), cv2.INTER_LINEAR)
            coarse *= np.array([(w - 1) / (width - 1), (h - 1) / (height - 1)], np.float32)
            logits = np.stack([_warp(one, coarse) for one in logits])
        return _warp(inverse, place), logits, restart


class OneEuro:
    """The One-Euro filter (Casiez et al., CHI 2012) on each pixel's inverse depth; no labels."""

    # Hz of a constant pixel, Hz per 1/(m s) of change, Hz of the low pass of the change itself
    _min_cutoff, _beta, _d_cutoff = 1.0, 4.0, 1.0

    def __init__(self) -> None:
        self._inverse: np.ndarray | None = None

    def update(
        self, inverse: np.ndarray, logits: np.ndarray | None, rgb: np.ndarray, stamp_ns: int
    ) -> Maps:
        """The next frame, smoothed; see ``Baseline``."""
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


def _warp(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    return cv2.remap(image, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _mix(
    history: np.ndarray, new: np.ndarray, alpha: np.float32, restart: np.ndarray | None
) -> np.ndarray:
    mixed = history + alpha * (new - history)
    if restart is None:
        return mixed
    if new.ndim == 3:
        size = (new.shape[2], new.shape[1])
        restart = cv2.resize(restart.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    return np.where(restart, new, mixed)


def baselines() -> dict[str, Baseline]:
    """Fresh filters by name, raw first."""
    return {
        "raw": lambda inverse, logits, rgb, stamp_ns: (inverse, logits),
        "EMA 0.4": Ema(0.4, 0.4).update,
        "threshold EMA": Ema(0.4, 0.4, threshold=0.2).update,
        "One-Euro": OneEuro().update,
        "flow EMA": Ema(0.2, 0.3, flow=True).update,
    }
