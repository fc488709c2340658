# SPDX-License-Identifier: Apache-2.0
"""Depth and labels in colour, and the legends of these colours."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

ROW = 22  # pixels, the height of a line of a legend
_BACKGROUND, _INK = 32, (255, 255, 255)
_FONT, _SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.5
_BAR = 12  # pixels, the height of a bar and the side of a square
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


def title(text: str, width: int) -> np.ndarray:
    """A line of text: (ROW, width, 3) uint8 RGB."""
    return _written(_blank(width), text, 6)


def depth_legend(width: int, far: float) -> np.ndarray:
    """The colours of ``depth_to_color`` from 0 to ``far`` metres, (ROW, width, 3) uint8 RGB.

    Args:
        width: pixels.
        far: the depth at the end of the colours, metres.
    """
    line = _blank(width)
    ticks = [0.0, far / 4, far / 2, far]
    words = [f"{tick:.3g} m" for tick in ticks]
    bars = len(ticks) - 1
    widths = [_text_width(word) + 12 for word in words]
    room = width - sum(widths)
    if room < 4 * bars:  # too narrow for bars
        return _written(line, f"0 to {far:.3g} m", 6)
    x = 0
    for k, word in enumerate(words):
        _written(line, word, x + 6)
        x += widths[k]
        if k < bars:
            length = room // bars
            depth = np.linspace(ticks[k], ticks[k + 1], length, dtype=np.float32)[None]
            _bar(line, x, depth_to_color(depth, far))
            x += length
    return line


def bar_legend(width: int, low: str, high: str, colors: np.ndarray) -> np.ndarray:
    """A bar between two values, (ROW, width, 3) uint8 RGB.

    Args:
        width: pixels.
        low, high: the values at its ends.
        colors: (N, 3) uint8 RGB, from low to high.
    """
    line = _written(_blank(width), low, 6)
    start, end = _text_width(low) + 12, width - _text_width(high) - 12
    _written(line, high, end + 6)
    if end > start:
        _bar(line, start, colors[np.linspace(0, len(colors) - 1, end - start).astype(int)][None])
    return line


def class_legend(width: int, names: Mapping[int, str], palette: np.ndarray) -> np.ndarray:
    """A square in the colour of each class and its name, (N * ROW, width, 3) uint8 RGB.

    Args:
        width: pixels.
        names: of the class ids.
        palette: (256, 3) uint8 RGB, indexed by id.
    """
    lines = [_blank(width)]
    x = 0
    for number, name in names.items():
        wide = 4 + _BAR + 6 + _text_width(name) + 10
        if x and x + wide > width:
            lines.append(_blank(width))
            x = 0
        square = np.broadcast_to(palette[number], (1, min(_BAR, width - x - 4), 3))
        _bar(lines[-1], x + 4, square)
        _written(lines[-1], name, x + 4 + _BAR + 6)
        x += wide
    return np.vstack(lines)


def _blank(width: int) -> np.ndarray:
    return np.full((ROW, width, 3), _BACKGROUND, np.uint8)


def _bar(line: np.ndarray, x: int, colors: np.ndarray) -> None:
    line[5 : 5 + _BAR, x : x + colors.shape[1]] = colors


def _written(line: np.ndarray, text: str, x: int) -> np.ndarray:
    text = text.encode("ascii", "replace").decode()  # OpenCV's font has no other characters
    cv2.putText(line, text, (x, 16), _FONT, _SIZE, _INK, 1, cv2.LINE_AA)
    return line


def _text_width(text: str) -> int:
    (width, _), _ = cv2.getTextSize(text, _FONT, _SIZE, 1)
    return int(width)
