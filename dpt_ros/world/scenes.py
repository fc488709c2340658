# SPDX-License-Identifier: Apache-2.0
"""The layouts: a furnished room, a corridor and a walled yard, drawn from a seed."""

from __future__ import annotations

import numpy as np

from dpt_ros.world import textures as tx
from dpt_ros.world.classes import CEILING, FLOOR, GRASS, KINDS
from dpt_ros.world.furniture import Light, Scene, footprint
from dpt_ros.world.geometry import Surface


def _loop(rng: np.random.Generator, ax: float, ay: float, weave: float = 0.12) -> np.ndarray:
    """A closed curve around the origin within +-ax, +-ay: (2048, 2) metres."""
    angle = np.linspace(0, 2 * np.pi, 2048, endpoint=False)
    radius = np.ones(angle.shape)
    for k in (2, 3, 4):
        radius += rng.uniform(-weave, weave) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    radius /= max(float(radius.max()), 1.0)
    curve = np.stack([ax * radius * np.cos(angle), ay * radius * np.sin(angle)], 1)
    return curve if rng.random() < 0.5 else curve[::-1]


def _ground(b: Scene, surface: Surface) -> None:
    hx, hy = b.half
    b.rectangles.add([-hx, -hy, 0], [2 * hx, 0, 0], [0, 2 * hy, 0], surface)


def _indoor_shell(b: Scene, height: float) -> None:
    floors = [tx.planks, tx.tiles, tx.concrete, tx.speckle]
    floor = b.texture(floors, (0.02, 0.16), (0.05, 0.5), (0.3, 0.8), 1.6, FLOOR)
    walls = [tx.plain, tx.plain, tx.stripes, tx.brick, tx.concrete]
    wall = b.texture(walls, (0, 1), (0.02, 0.4), (0.55, 0.97), 2.0)
    ceiling = b.texture([tx.plain, tx.panels], (0.05, 0.2), (0, 0.06), (0.82, 0.99), 1.2, CEILING)
    skirting = b.texture([tx.plain], (0.02, 0.12), (0, 0.5), (0.2, 0.95), 1.0)
    _ground(b, floor)
    b.enclosure(height, wall, skirting)
    hx, hy = b.half
    b.rectangles.add([-hx, -hy, height], [0, 2 * hy, 0], [2 * hx, 0, 0], ceiling)


def _room(rng: np.random.Generator, shake: float) -> Scene:
    half = (float(rng.uniform(2.3, 6.0)), float(rng.uniform(2.0, 4.5)))
    ax, ay = (max(0.55, h - rng.uniform(1.3, 2.0)) for h in half)
    b = Scene(half, _loop(rng, ax, ay), rng, shake)
    height = float(rng.uniform(2.4, 3.2))
    _indoor_shell(b, height)
    area = half[0] * half[1]
    b.people(int(rng.integers(1, 3 if area < 12 else 5)))
    b.columns(int(rng.integers(0, 3 if area > 8 else 2)), height, True)
    b.tables(int(rng.integers(1, 4 if area < 12 else 6)))
    b.boxes(int(rng.integers(2, 6 if area < 12 else 9)))
    b.doors_and_pictures(int(rng.integers(1, 4)), int(rng.integers(0, 5)))
    lamps = []
    for _ in range(int(rng.integers(1, 3))):
        place = np.array([*(rng.uniform(-0.6, 0.6, 2) * half), height - 0.15])
        lamps.append(Light(place, rng.uniform(0.5, 1.0), rng.uniform(2.5, 5.0)))
    return b.finish(lamps, float(rng.uniform(0.2, 0.5)), None, height)


def _corridor(rng: np.random.Generator, shake: float) -> Scene:
    half = (float(rng.uniform(5.0, 12.5)), float(rng.uniform(1.2, 2.0)))
    b = Scene(half, _loop(rng, half[0] - 1.4, rng.uniform(0.12, 0.35), 0.25), rng, shake)
    height = float(rng.uniform(2.3, 3.0))
    _indoor_shell(b, height)
    b.people(int(rng.integers(1, 5)))
    b.columns(int(rng.integers(0, 4)), height, True)
    b.tables(int(rng.integers(0, 3)))
    b.boxes(int(rng.integers(2, 8)))
    b.doors_and_pictures(int(rng.integers(3, 9)), int(rng.integers(0, 6)))
    lamps = []
    for x in (-0.6, 0.0, 0.6) if half[0] > 8 else (-0.5, 0.5):
        place = np.array([x * half[0], 0.0, height - 0.1])
        lamps.append(Light(place, rng.uniform(0.5, 0.9), rng.uniform(2.5, 4.0)))
    return b.finish(lamps, float(rng.uniform(0.2, 0.45)), None, height)


def _yard(rng: np.random.Generator, shake: float) -> Scene:
    half = (float(rng.uniform(6.0, 19.0)), float(rng.uniform(5.5, 16.0)))
    ax, ay = (h - rng.uniform(2.0, 5.0) for h in half)
    b = Scene(half, _loop(rng, ax, ay, 0.2), rng, shake)
    lawn = b.texture([tx.grass], (0.2, 0.33), (0.4, 0.75), (0.35, 0.7), 1.5, GRASS)
    _ground(b, lawn)
    walls = [tx.brick, tx.concrete, tx.planks, tx.plain]
    wall = b.texture(walls, (0.0, 0.15), (0.05, 0.6), (0.4, 0.9), 2.0)
    height = float(rng.uniform(1.2, 4.0))
    b.enclosure(height, wall, None)
    hx, hy = b.half
    if rng.random() < 0.75:  # a paved strip, raised by the height of its slabs
        slabs = [tx.tiles, tx.concrete, tx.brick]
        paving = b.texture(slabs, (0.02, 0.15), (0, 0.25), (0.45, 0.8), 1.5, FLOOR)
        width, at = rng.uniform(1.5, 4.0), rng.uniform(-0.7, 0.7) * hy
        low, high = max(at - width / 2, -hy), min(at + width / 2, hy)
        b.rectangles.add([-hx, low, 0.015], [2 * hx, 0, 0], [0, high - low, 0], paving)
    b.people(int(rng.integers(1, 7)))
    for _ in range(int(rng.integers(0, 3))):  # sheds
        size = (rng.uniform(1.5, 4.0), rng.uniform(1.5, 3.0), rng.uniform(2.0, 3.2))
        xy = b.spot(float(np.hypot(size[0], size[1])) / 2, hug=0.7)
        if xy is not None:
            walls = [tx.brick, tx.planks, tx.plain]
            look = b.texture(walls, (0, 1), (0.05, 0.5), (0.4, 0.95), 2.0)
            b.rectangles.add_box([*xy, 0], 0.0, size, look)
            b.footprints.append((footprint(xy, 0.0, size[0], size[1]), size[2]))
    b.columns(int(rng.integers(0, 6)), 3.5, False)
    b.tables(int(rng.integers(0, 5)))
    b.boxes(int(rng.integers(3, 12)))
    if height > 2.2:
        b.doors_and_pictures(int(rng.integers(1, 5)), 0)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(25, 65))
    level = np.cos(elevation)
    toward = np.array([np.cos(azimuth) * level, np.sin(azimuth) * level, np.sin(elevation)])
    sun = Light(toward * 1e4, float(rng.uniform(0.4, 0.9)), 1e9)
    sky = (
        tx.color(rng, (0.54, 0.62), (0.2, 0.7), (0.7, 1.0)),
        tx.color(rng, (0.52, 0.62), (0.0, 0.2), (0.85, 1.0)),
    )
    return b.finish([sun], float(rng.uniform(0.45, 0.7)), sky, height)


_BUILDERS = dict(zip(KINDS, (_room, _corridor, _yard), strict=True))


def build(kind: str, seed: int, shake: float) -> Scene:
    """The scene of a kind and a seed. Raises ValueError for a kind that is not in KINDS."""
    if kind not in _BUILDERS:
        raise ValueError(f"Unknown kind of world {kind!r}. Available: {', '.join(KINDS)}.")
    return _BUILDERS[kind](np.random.default_rng([seed, KINDS.index(kind)]), shake)
