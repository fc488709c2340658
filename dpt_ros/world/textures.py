# SPDX-License-Identifier: Apache-2.0
"""Small procedural textures: every one is periodic, seeded, and (SIZE, SIZE, 3) uint8 RGB."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import cv2
import numpy as np

SIZE = 256
_LEVELS = 7  # mip levels: 256, 128, ... 4 texels
_PAD = 2  # wrapped border around every tile, so that bilinear sampling never reads a neighbour

_Y, _X = np.ogrid[:SIZE, :SIZE]

Rgb = tuple[float, float, float]


def fractal(
    rng: np.random.Generator, first: int = 4, octaves: int = 5, gain: float = 0.6
) -> np.ndarray:
    """Periodic value noise, (SIZE, SIZE) float32 with mean 0 and standard deviation 1."""
    total = np.zeros((SIZE, SIZE), np.float32)
    weight = 1.0
    for octave in range(octaves):
        cells = min(first * 2**octave, SIZE)
        grid = rng.standard_normal((cells, cells), np.float32)
        step = SIZE // cells
        padded = cv2.resize(np.pad(grid, 2, mode="wrap"), None, fx=step, fy=step)
        total += weight * padded[2 * step : 2 * step + SIZE, 2 * step : 2 * step + SIZE]
        weight *= gain
    total -= total.mean()
    return total / max(float(total.std()), 1e-6)


def color(
    rng: np.random.Generator,
    hue: tuple[float, float],
    sat: tuple[float, float],
    val: tuple[float, float],
) -> Rgb:
    """A random colour, each of hue, saturation and value drawn uniformly from its range."""
    return colorsys.hsv_to_rgb(rng.uniform(*hue) % 1.0, rng.uniform(*sat), rng.uniform(*val))


def _paint(base: Rgb, value: np.ndarray) -> np.ndarray:
    """``base`` modulated by ``value`` (SIZE, SIZE), 1 = unchanged."""
    return np.clip(value[..., None] * np.array(base, np.float32) * 255, 0, 255).astype(np.uint8)


def plain(rng: np.random.Generator, base: Rgb, strength: float = 0.04) -> np.ndarray:
    """Paint or plaster: an almost even surface."""
    return _paint(base, 1 + strength * fractal(rng))


def concrete(rng: np.random.Generator, base: Rgb) -> np.ndarray:
    value = 1 + 0.07 * fractal(rng, 2, 7, 0.75)
    return _paint(base, value + 0.03 * rng.standard_normal((SIZE, SIZE), np.float32))


def speckle(rng: np.random.Generator, base: Rgb) -> np.ndarray:
    """Carpet or terrazzo: fine grains."""
    return _paint(base, 1 + 0.12 * fractal(rng, 64, 3, 0.9) + 0.04 * fractal(rng, 4, 3))


def brick(rng: np.random.Generator, base: Rgb) -> np.ndarray:
    row = _Y // 32
    shifted = (_X + 32 * (row % 2)) % SIZE
    tone = rng.uniform(0.75, 1.15, (8, 4)).astype(np.float32)[row, shifted // 64]
    value = tone * (1 + 0.06 * fractal(rng, 16, 4))
    picture = _paint(base, value)
    mortar = (_Y % 32 < 4) | (shifted % 64 < 4)
    picture[mortar] = _paint((0.72, 0.7, 0.67), 1 + 0.05 * fractal(rng, 32, 3))[mortar]
    return picture


def tiles(rng: np.random.Generator, base: Rgb) -> np.ndarray:
    cell = int(rng.choice([32, 64, 128]))
    row, column = _Y // cell, _X // cell
    tones = rng.uniform(0.92, 1.06, (SIZE // cell, SIZE // cell)).astype(np.float32)
    tone = tones[row, column]
    if rng.random() < 0.4:
        checks = np.where((column + row) % 2 == 0, 1.0, rng.uniform(0.5, 0.8))
        tone = tone * checks.astype(np.float32)
    grout = (_X % cell < 3) | (_Y % cell < 3)
    seams = rng.uniform(0.5, 0.75)
    return _paint(base, np.where(grout, seams, tone * (1 + 0.03 * fractal(rng, 8, 5))))


def planks(rng: np.random.Generator, base: Rgb) -> np.ndarray:
    width = int(rng.choice([32, 64]))
    row = _Y // width
    offset = rng.integers(0, SIZE, SIZE // width)[row]
    along = (_X + offset) % SIZE
    tone = rng.uniform(0.8, 1.12, (SIZE // width, 2)).astype(np.float32)[row, along // 128]
    grain = cv2.resize(fractal(rng, 32, 3)[:, :32], (SIZE, SIZE))
    seam = (_Y % width < 2) | (along % 128 < 2)
    return _paint(base, np.where(seam, 0.55, tone * (1 + 0.07 * grain)))


def stripes(rng: np.random.Generator, base: Rgb) -> np.ndarray:
    """Wallpaper or cloth with stripes."""
    period = int(rng.choice([16, 32, 64]))
    tone = np.where(_X % period < period // 2, 1.0, rng.uniform(0.7, 0.9)).astype(np.float32)
    return _paint(base, tone * (1 + 0.03 * fractal(rng)))


def panels(rng: np.random.Generator, base: Rgb) -> np.ndarray:
    """Suspended ceiling: a grid of pale squares."""
    seam = (_X % 128 < 3) | (_Y % 128 < 3)
    return _paint(base, np.where(seam, 0.8, 1 + 0.02 * fractal(rng, 64, 3)))


def grass(rng: np.random.Generator, base: Rgb) -> np.ndarray:
    blades = fractal(rng, 64, 3, 1.0)
    patches = fractal(rng, 4, 3)
    picture = _paint(base, 1 + 0.25 * blades + 0.08 * patches).astype(np.float32)
    picture[..., 0] *= 1 + 0.12 * patches
    return np.clip(picture, 0, 255).astype(np.uint8)


def crate(rng: np.random.Generator, base: Rgb) -> np.ndarray:
    """A wooden crate's face: boards in a frame, mapped once per face."""
    picture = planks(rng, base).astype(np.float32)
    frame = np.ones((SIZE, SIZE), np.float32)
    frame[28:-28, 28:-28] = 0.72
    frame[26:30], frame[-30:-26] = 0.5, 0.5
    frame[:, 26:30], frame[:, -30:-26] = 0.5, 0.5
    if rng.random() < 0.5:
        cv2.line(frame, (28, 28), (SIZE - 28, SIZE - 28), 0.95, 26)
    return np.clip(picture * frame[..., None], 0, 255).astype(np.uint8)


def carton(rng: np.random.Generator, base: Rgb) -> np.ndarray:
    """A cardboard face with a tape and a label."""
    picture = plain(rng, base, 0.05)
    tape = int(rng.integers(90, 140))
    picture[:, tape : tape + 26] = (picture[:, tape : tape + 26] * 0.8 + 45).astype(np.uint8)
    x, y = rng.integers(10, 160, 2).tolist()
    cv2.rectangle(picture, (x, y), (x + 60, y + 40), (235, 235, 230), -1)
    for line in (y + 10, y + 20, y + 30):
        cv2.line(picture, (x + 8, line), (x + 48, line), (60, 60, 60), 2)
    return picture


def door(rng: np.random.Generator, base: Rgb) -> np.ndarray:
    """A door leaf with its frame, panels and handle, mapped once."""
    value = 1 + 0.05 * cv2.resize(fractal(rng, 32, 3)[:32], (SIZE, SIZE))
    for top, bottom in ((26, 112), (138, 238)) if rng.random() < 0.6 else ((26, 238),):
        cv2.rectangle(value, (52, top), (204, bottom), 0.72, 5)
        cv2.rectangle(value, (58, top + 5), (204, bottom), 1.12, 2)
    picture = _paint(base, value)
    frame = np.ones((SIZE, SIZE), bool)
    frame[8:, 20:-20] = False
    picture[frame] = np.array(color(rng, (0, 1), (0, 0.25), (0.35, 0.9))) * 255
    side = 34 if rng.random() < 0.5 else SIZE - 50
    cv2.rectangle(picture, (side, 128), (side + 18, 134), (205, 200, 190), -1)
    return picture


def poster(rng: np.random.Generator, base: Rgb) -> np.ndarray:
    """A framed picture: colour blobs, mapped once."""
    picture = plain(rng, base, 0.03)
    for _ in range(int(rng.integers(3, 7))):
        tone = [int(255 * c) for c in color(rng, (0, 1), (0.2, 0.9), (0.3, 0.95))]
        x, y = (int(v) for v in rng.integers(20, 236, 2))
        if rng.random() < 0.5:
            cv2.circle(picture, (x, y), int(rng.integers(15, 70)), tone, -1)
        else:
            width, height = int(rng.integers(20, 120)), int(rng.integers(20, 120))
            cv2.rectangle(picture, (x, y), (x + width, y + height), tone, -1)
    cv2.rectangle(picture, (0, 0), (SIZE - 1, SIZE - 1), (35, 30, 28), 18)
    return picture


class Atlas:
    """All textures of a world and their mip levels in one image, sampled by one remap."""

    def __init__(self) -> None:
        self._tiles: list[np.ndarray] = []
        self._image: np.ndarray | None = None
        starts = np.cumsum([0] + [(SIZE >> level) + 2 * _PAD for level in range(_LEVELS)])
        self._x = (starts[:-1] + _PAD).astype(np.float32)
        self._width = int(starts[-1])

    def add(self, make: Callable[..., np.ndarray], rng: np.random.Generator, base: Rgb) -> int:
        """Draw one texture; the return value is its index for ``sample``."""
        self._tiles.append(make(rng, base))
        self._image = None
        return len(self._tiles) - 1

    def _build(self) -> np.ndarray:
        height = SIZE + 2 * _PAD
        image = np.zeros((height * len(self._tiles), self._width, 3), np.uint8)
        for row, tile in enumerate(self._tiles):
            level = tile
            for x in self._x.astype(int):
                n = len(level)
                block = cv2.copyMakeBorder(level, _PAD, _PAD, _PAD, _PAD, cv2.BORDER_WRAP)
                image[row * height : row * height + n + 2 * _PAD, x - _PAD : x + n + _PAD] = block
                level = cv2.resize(level, (n // 2, n // 2), interpolation=cv2.INTER_AREA)
        return image

    def sample(
        self, texture: np.ndarray, u: np.ndarray, v: np.ndarray, footprint: np.ndarray
    ) -> np.ndarray:
        """Colours at texture coordinates ``u``, ``v`` (one period = 1), v upwards.

        Args:
            texture: (H, W) float32 indices.
            u, v: (H, W) float32.
            footprint: (H, W) float32, periods covered by one pixel; selects the mip level.

        Returns:
            (H, W, 3) uint8
        """
        if self._image is None:
            self._image = self._build()
        level = np.log2(np.maximum(footprint * SIZE, 1.0)).astype(np.int32)
        np.clip(level, 0, _LEVELS - 1, out=level)
        size = np.ldexp(np.float32(SIZE), -level)
        x = (u - np.floor(u)) * size + (self._x[level] - 0.5)
        v = -v
        y = (v - np.floor(v)) * size + (texture * (SIZE + 2 * _PAD) + (_PAD - 0.5))
        return cv2.remap(self._image, x, y, cv2.INTER_LINEAR)
