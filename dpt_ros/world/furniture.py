# SPDX-License-Identifier: Apache-2.0
"""The contents of a scene: walls, furniture, people, placed without collisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar

import cv2
import numpy as np

from dpt_ros.world import textures as tx
from dpt_ros.world.classes import BOX, COLUMN, DOOR, PERSON, TABLE, WALL
from dpt_ros.world.geometry import Rectangles, Round, Surface
from dpt_ros.world.motion import Drive, Walker

Span = tuple[float, float]
Maker = Callable[..., np.ndarray]
T = TypeVar("T")

_MAP_CELL = 0.08  # metres of floor per texel of the shadow map


@dataclass(frozen=True)
class Light:
    """A lamp at ``position`` (3,) metres whose light halves at ``reach`` metres."""

    position: np.ndarray
    power: float
    reach: float


class Scene:
    """The contents of a world, built from parts that do not overlap.

    Args:
        half: half the size on the ground, metres.
        curve: (N, 2) metres, the camera's path.
        shake: of the camera, see ``Noise``.
    """

    def __init__(
        self, half: tuple[float, float], curve: np.ndarray, rng: np.random.Generator, shake: float
    ) -> None:
        self.rng, self.half = rng, half
        self.atlas = tx.Atlas()
        self.rectangles = Rectangles()
        self.rounds: list[Round] = []
        self.walkers: list[Walker] = []
        self.drive = Drive(curve, rng, shake)
        self.taken: list[tuple[np.ndarray, float]] = []
        self.footprints: list[tuple[np.ndarray, float]] = []

    def finish(
        self, lights: list[Light], ambient: float, sky: tuple[tx.Rgb, tx.Rgb] | None, height: float
    ) -> Scene:
        """Light the scene, once all is in it; ``sky`` is the colour of zenith and horizon, None
        indoors; of a scene with a sky the first light is the sun."""
        self.lights, self.ambient, self.sky, self.height = lights, ambient, sky, height
        self.shadow = self._shadow(lights[0] if sky is not None else None)
        return self

    def rounds_at(self, seconds: float) -> list[Round]:
        """The static rounds and the parts of the walkers at a time."""
        parts = (walker.parts(seconds, k) for k, walker in enumerate(self.walkers))
        return [*self.rounds, *chain.from_iterable(parts)]

    def shadow_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The light that reaches the ground at (x, y), metres: (H, W) float32, 0..1."""
        u = ((x + self.half[0]) / _MAP_CELL - 0.5).astype(np.float32)
        v = ((y + self.half[1]) / _MAP_CELL - 0.5).astype(np.float32)
        return cv2.remap(self.shadow, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def free(self, xy: np.ndarray, radius: float, clearance: float = 0.5) -> bool:
        """Whether a disc is ``clearance`` away from the camera's path and off all other things."""
        if _distance(self.drive.curve, xy) < radius + clearance:
            return False
        if any(_distance(walker.track(), xy) < radius + 0.4 for walker in self.walkers):
            return False
        return all(_distance(at, xy) > radius + other for at, other in self.taken)

    def spot(self, radius: float, hug: float = 0.0, tries: int = 25) -> np.ndarray | None:
        """A free place on the ground, (2,) metres, or None if there is none.

        With probability ``hug`` it is along a wall.
        """
        room = np.array(self.half) - radius - 0.05
        if (room <= 0).any():
            return None
        for _ in range(tries):
            xy = self.rng.uniform(-room, room)
            if self.rng.random() < hug:
                side = int(self.rng.integers(2))
                xy[side] = room[side] * self.rng.choice([-1, 1])
            if self.free(xy, radius):
                self.taken.append((xy, radius))
                return xy
        return None

    def _pick(self, choices: Sequence[T]) -> T:
        return choices[int(self.rng.integers(len(choices)))]

    def texture(
        self,
        makers: Sequence[Maker],
        hue: Span = (0.0, 1.0),
        sat: Span = (0.0, 0.3),
        val: Span = (0.5, 0.95),
        tile: float = 0.0,
        label: int = WALL,
    ) -> Surface:
        """A surface of one of these textures in a colour from these ranges; ``tile``: metres of a
        period, 0 for the whole rectangle."""
        index = self.atlas.add(self._pick(makers), self.rng, tx.color(self.rng, hue, sat, val))
        return Surface(label, index, (tile, tile))

    def enclosure(self, height: float, surface: Surface, skirting: Surface | None) -> None:
        """Four walls, visible from inside."""
        hx, hy = self.half
        corners = np.array([[-hx, -hy, 0], [hx, -hy, 0], [hx, hy, 0], [-hx, hy, 0]])
        for k in range(4):
            a, b = corners[k], corners[(k + 1) % 4]
            # inward normal = u x up, so u runs from b to a
            self.rectangles.add(b, a - b, [0, 0, height], surface)
            if skirting is not None:
                inward = np.cross(a - b, [0, 0, 1]) / np.linalg.norm(a - b)
                self.rectangles.add(b + 0.012 * inward, a - b, [0, 0, 0.09], skirting)

    def on_wall(
        self, side: int, along: float, bottom: float, size: tuple[float, float], surface: Surface
    ) -> None:
        """A flat thing 2 cm in front of wall ``side``: 0 south, 1 east, 2 north, 3 west."""
        inward = np.array([[0, 1, 0], [-1, 0, 0], [0, -1, 0], [1, 0, 0]], float)[side]
        u = np.cross([0, 0, 1], inward)
        reach = self.half[1] if side % 2 == 0 else self.half[0]
        middle = -inward * (reach - 0.02) + u * along
        origin = middle - u * size[0] / 2 + np.array([0, 0, bottom])
        self.rectangles.add(origin, u * size[0], [0, 0, size[1]], surface)

    def doors_and_pictures(self, doors: int, pictures: int) -> None:
        rng = self.rng
        wood, painted = ((0.03, 0.12), (0.3, 0.75), (0.3, 0.7)), ((0, 1), (0.0, 0.7), (0.35, 0.9))
        colors = wood, wood, painted
        looks = [self.texture([tx.door], hue, sat, val, 0.0, DOOR) for hue, sat, val in colors]
        posters = []
        if pictures:
            posters = [self.texture([tx.poster], (0, 1), (0, 0.6), (0.5, 0.95)) for _ in range(3)]
        used: list[tuple[bool, int, float]] = []  # whether a door, wall, place along it
        reserves = {True: 0.6, False: 0.54}
        lengths = np.array([self.half[0], self.half[1]] * 2)
        for is_door, count in ((True, doors), (False, pictures)):
            for _ in range(count * 3):
                if sum(kind == is_door for kind, _, _ in used) >= count:
                    break
                side = int(rng.choice(4, p=lengths / lengths.sum()))
                width = rng.uniform(0.85, 1.05) if is_door else rng.uniform(0.5, 1.05)
                span = lengths[side] - width / 2 - 0.1
                if span <= 0:
                    continue
                along = rng.uniform(-span, span)
                apart = {kind: reserves[kind] + reserves[is_door] + 0.05 for kind in reserves}
                if any(s == side and abs(a - along) < apart[kind] for kind, s, a in used):
                    continue
                used.append((is_door, side, along))
                if is_door:
                    size = width, rng.uniform(2.0, 2.15)
                    self.on_wall(side, along, 0.0, size, self._pick(looks))
                else:
                    look = self._pick(posters)
                    bottom = rng.uniform(1.0, 1.4)
                    self.on_wall(side, along, bottom, (width, rng.uniform(0.4, 0.8)), look)

    def boxes(self, count: int) -> None:
        rng = self.rng
        looks = [
            self.texture([tx.crate], (0.06, 0.11), (0.35, 0.65), (0.5, 0.8), label=BOX),
            self.texture([tx.carton], (0.07, 0.1), (0.35, 0.55), (0.55, 0.8), label=BOX),
            self.texture([tx.carton], (0.07, 0.1), (0.3, 0.5), (0.5, 0.75), label=BOX),
            self.texture([tx.crate], (0, 1), (0.3, 0.8), (0.3, 0.8), label=BOX),
        ]
        for _ in range(count):
            size = (*tuple(rng.uniform(0.3, 0.95, 2)), float(rng.uniform(0.25, 1.1)))
            xy = self.spot(float(np.hypot(size[0], size[1])) / 2, hug=0.4)
            if xy is None:
                continue
            look = self._pick(looks)
            tone = float(rng.uniform(0.8, 1.15))
            look = Surface(BOX, look.texture, look.tile, (tone, tone, tone))
            yaw = rng.uniform(0, np.pi)
            self.rectangles.add_box([*xy, 0], yaw, size, look)
            self.footprints.append((footprint(xy, yaw, size[0], size[1]), size[2]))
            if size[2] < 0.6 and rng.random() < 0.35:
                length, width, height = np.array(size) * rng.uniform(0.5, 0.85, 3)
                turned = yaw + rng.uniform(-0.4, 0.4)
                base = [*xy, size[2]]
                self.rectangles.add_box(base, turned, (length, width, height), looks[1])

    def tables(self, count: int) -> None:
        rng = self.rng
        for _ in range(count):
            length, width = rng.uniform(0.9, 1.9), rng.uniform(0.6, 0.95)
            height = rng.uniform(0.38, 0.52) if rng.random() < 0.4 else rng.uniform(0.68, 0.76)
            xy = self.spot(float(np.hypot(length, width)) / 2, hug=0.3)
            if xy is None:
                continue
            tops = [tx.planks, tx.plain]
            top = self.texture(tops, (0.04, 0.12), (0.05, 0.6), (0.45, 0.95), 1.0, TABLE)
            under = self.texture([tx.plain], (0, 0.15), (0, 0.4), (0.2, 0.7), 1.0, TABLE)
            yaw = rng.uniform(0, np.pi)
            thick, leg = rng.uniform(0.04, 0.08), rng.uniform(0.06, 0.1)
            self.rectangles.add_box([*xy, height - thick], yaw, (length, width, thick), top)
            c, s = np.cos(yaw), np.sin(yaw)
            ends, sides = length / 2 - 0.08, width / 2 - 0.08
            if rng.random() < 0.4:  # side panels
                supports = [(i * ends, 0.0, leg / 2, width - 0.06) for i in (-1, 1)]
            else:
                supports = [(i * ends, j * sides, leg, leg) for i in (-1, 1) for j in (-1, 1)]
            for dx, dy, along, across in supports:
                foot = [xy[0] + c * dx - s * dy, xy[1] + s * dx + c * dy, 0]
                self.rectangles.add_box(foot, yaw, (along, across, height - thick), under)
            self.footprints.append((footprint(xy, yaw, length, width), height))

    def columns(self, count: int, height: float, reaches_ceiling: bool) -> None:
        rng = self.rng
        makers = [tx.plain, tx.concrete, tx.tiles]
        look = self.texture(makers, (0, 1), (0, 0.25), (0.5, 0.95), 1.0, COLUMN)
        for _ in range(count):
            radius = rng.uniform(0.12, 0.32)
            xy = self.spot(radius, hug=0.15)
            if xy is None:
                continue
            tall = height if reaches_ceiling else rng.uniform(0.7, height)
            axes = np.diag([radius, radius, tall / 2])
            self.rounds.append(Round(np.array([*xy, tall / 2]), axes, True, look))
            if not reaches_ceiling:
                corner, wide = [xy[0] - radius, xy[1] - radius, tall], 2 * radius
                self.rectangles.add(corner, [wide, 0, 0], [0, wide, 0], look, disc=True)
            self.footprints.append((footprint(xy, 0.0, 1.8 * radius, 1.8 * radius), tall))

    def people(self, count: int) -> None:
        rng = self.rng
        for _ in range(count):
            for _ in range(60):
                radii = tuple(rng.uniform(0.2, 1.4, 2) * min(1.0, min(self.half) / 2.5))
                reach = max(radii) + 0.45
                room = np.array(self.half) - min(reach, min(self.half) - 0.5)
                center = rng.uniform(-room, room)
                walker = self._person((center[0], center[1]), radii)
                track = walker.track()
                if (
                    (np.abs(track) < np.array(self.half) - 0.4).all()
                    and _distance(track, self.drive.curve[::5]) > 0.65
                    and all(_distance(track, other.track()) > 0.6 for other in self.walkers)
                    and all(_distance(track, at) > radius + 0.35 for at, radius in self.taken)
                ):
                    self.walkers.append(walker)
                    break

    @cached_property
    def _wardrobe(self) -> dict[str, list[Surface]]:
        cloth, denim, even = [tx.plain, tx.stripes, tx.speckle], [tx.plain, tx.speckle], [tx.plain]
        looks: dict[str, Any] = {
            "shirt": (3, cloth, (0, 1), (0.1, 0.9), (0.15, 0.9), 0.4),
            "trousers": (2, denim, (0.5, 0.75), (0.1, 0.6), (0.1, 0.5), 0.5),
            "skin": (2, even, (0.04, 0.08), (0.3, 0.55), (0.35, 0.9), 0.5),
            "hair": (1, even, (0.03, 0.12), (0.2, 0.7), (0.06, 0.4), 0.2),
        }
        return {
            name: [self.texture(makers, hue, sat, val, tile, PERSON) for _ in range(count)]
            for name, (count, makers, hue, sat, val, tile) in looks.items()
        }

    def _person(self, center: tuple[float, float], radii: tuple[float, float]) -> Walker:
        rng = self.rng
        wardrobe = self._wardrobe
        return Walker(
            center,
            radii,
            float(rng.uniform(0, np.pi)),
            float(rng.uniform(0.4, 1.1) * rng.choice([-1, 1])),
            float(rng.uniform(0, 2 * np.pi)),
            float(rng.normal(1.72, 0.08)),
            float(rng.uniform(0.95, 1.2)),
            self._pick(wardrobe["skin"]),
            wardrobe["hair"][0],
            self._pick(wardrobe["shirt"]),
            self._pick(wardrobe["trousers"]),
        )

    def _shadow(self, sun: Light | None) -> np.ndarray:
        """The ground's shadow map: dark under everything, and cast shadows if there is a sun."""
        width, length = (int(np.ceil(2 * h / _MAP_CELL)) for h in self.half)
        shadow = np.ones((length, width), np.float32)
        offset = np.array(self.half)
        for polygon, height in self.footprints:
            if sun is not None:
                way = sun.position[:2] / sun.position[2] * height
                cast = cv2.convexHull(np.vstack([polygon, polygon - way]).astype(np.float32))[:, 0]
                cv2.fillConvexPoly(shadow, ((cast + offset) / _MAP_CELL).astype(np.int32), 0.55)
            cv2.fillConvexPoly(shadow, ((polygon + offset) / _MAP_CELL).astype(np.int32), 0.4)
        return cv2.GaussianBlur(shadow, (0, 0), 1.2 if sun is not None else 2.0)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The smallest distance between points (N, 2) and points (M, 2); either may be one (2,)."""
    apart = np.atleast_2d(a)[:, None] - np.atleast_2d(b)
    return float(np.hypot(apart[..., 0], apart[..., 1]).min())


def footprint(xy: np.ndarray, yaw: float, length: float, width: float) -> np.ndarray:
    """(4, 2) metres, the corners of a rectangle on the ground."""
    c, s = np.cos(yaw), np.sin(yaw)
    local = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [length / 2, width / 2]
    return xy + local @ np.array([[c, s], [-s, c]])
