# SPDX-License-Identifier: Apache-2.0
"""A camera in a synthetic world: images with exact depth, labels, optical flow and poses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from dpt_ros.engine.frame import CameraModel
from dpt_ros.world import classes, scenes
from dpt_ros.world.appearance import appearance
from dpt_ros.world.geometry import Buffer, Rays, draw, reciprocal, round_hits
from dpt_ros.world.textures import fractal

_FOV = np.radians(60.0)  # horizontal field of view


@dataclass(frozen=True)
class Noise:
    """The camera's imperfections; all zero gives the perfect image.

    Args:
        shake: jitter of the camera's pose, 1 = a wheeled robot on a plain floor.
        exposure: how far the exposure wanders, as the standard deviation of the log gain.
        sensor: standard deviation of the image noise at mid grey, in grey levels.
        shutter: exposure time as a part of the frame interval; gives motion blur.
    """

    shake: float = 1.0
    exposure: float = 0.15
    sensor: float = 3.0
    shutter: float = 0.4


@dataclass(frozen=True)
class View:
    """One frame and its ground truth.

    Args:
        rgb: (H, W, 3) uint8.
        depth: (H, W) float32, metres along optical Z, +Inf for sky (REP 117).
        labels: (H, W) uint8, class ids 1..10, see ``CLASSES``.
        flow: (H, W, 2) float32, pixels: the point at (x, y) was at (x, y) + flow in the frame
            before.
        flow_valid: (H, W) bool, False where that point was hidden or outside of the frame before,
            and everywhere in frame 0.
        movers: (H, W) bool, True on moving objects.
        odom_from_camera: (4, 4) float64, pose of the optical frame (REP 103: x right, y down, z
            forward).
        camera: intrinsics.
        stamp_ns: time, nanoseconds, 0 for frame 0.
    """

    rgb: np.ndarray
    depth: np.ndarray
    labels: np.ndarray
    flow: np.ndarray
    flow_valid: np.ndarray
    movers: np.ndarray
    odom_from_camera: np.ndarray
    camera: CameraModel
    stamp_ns: int


class World:
    """A seeded world and a robot's camera in it.

    ``frame(i)`` depends on the arguments and ``i`` alone. A World must not be shared between
    threads, because it keeps the last frame's geometry for the flow of the next.

    Args:
        kind: one of ``KINDS``.
        seed: of layout, textures, paths and noise; not negative.
        width, height: pixels; the field of view stays 60 degrees wide.
        fps: frames per second.
        noise: of the camera; ``Noise(0, 0, 0, 0)`` for none.

    Raises:
        ValueError: the kind does not exist, the seed is negative, or the size or the rate is too
            small.
    """

    def __init__(
        self,
        kind: str,
        seed: int = 0,
        width: int = 320,
        height: int = 240,
        fps: float = 30.0,
        noise: Noise = Noise(),
    ) -> None:
        if seed < 0:
            raise ValueError(f"The seed of a world must not be negative, but it is {seed}.")
        if width < 8 or height < 8 or not fps > 0:
            raise ValueError(
                f"A world needs an image of at least 8x8 pixels and a positive frame rate, but "
                f"got {width}x{height} at {fps} frames/s."
            )
        self.kind, self.seed, self.fps, self.noise = kind, seed, fps, noise
        focal = width / 2 / np.tan(_FOV / 2)
        self.camera = CameraModel(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
        self.scene = scenes.build(kind, seed, noise.shake)
        self._table = self.scene.rectangles.freeze()
        self._rays = Rays(self.camera)
        rng = np.random.default_rng([seed, classes.KINDS.index(kind), 1])
        self._exposure = rng.uniform(0.05, 0.4, 3), rng.uniform(0, 2 * np.pi, 3)
        clouds = fractal(rng, 4, 6) * 0.35 + rng.uniform(-0.2, 0.5)
        self._clouds = np.clip(clouds, 0, 1).astype(np.float32)
        self._rows, self._columns = np.indices((height, width), np.float32)
        self._dither = 0.25 * ((self._columns + 2 * self._rows) % 4)
        self._last: tuple[int, Buffer] | None = None

    def frames(self, count: int, start: int = 0, step: int = 1) -> Iterator[View]:
        """``count`` frames, from ``start`` on, every ``step``-th."""
        for k in range(count):
            yield self.frame(start + k * step)

    def frame(self, i: int) -> View:
        """Frame number ``i`` >= 0, at i / fps seconds. Raises ValueError for a negative one."""
        if i < 0:
            raise ValueError(f"Frames are numbered from 0, but got {i}.")
        before = self._buffer(i - 1)
        now = self._buffer(i)
        self._last = (i, now)
        rounds = [part.surface.label for part in now.rounds]
        labels = np.array([*self._table.label, *rounds, classes.SKY], np.uint8)[now.index]
        depth = reciprocal(now.inverse, np.inf)
        flow, before_inverse, movers = self._flow(now, before, len(self._table.label))
        valid = self._visible(flow, before_inverse, now, before) & (i > 0)
        rng = np.random.default_rng([self.seed, classes.KINDS.index(self.kind), 2, i])
        rgb = self._expose(self._shade(now, labels, i), flow, i, rng)
        pose, stamp = now.pose.matrix(), round(i * 1e9 / self.fps)
        return View(rgb, depth, labels, flow, valid, movers, pose, self.camera, stamp)

    def _buffer(self, i: int) -> Buffer:
        if self._last is not None and self._last[0] == i:
            return self._last[1]
        seconds = i / self.fps
        rounds = self.scene.rounds_at(seconds)
        return draw(self._rays, self.scene.drive.pose(seconds), self._table, rounds)

    def _flow(
        self, now: Buffer, before: Buffer, first: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flow (H, W, 2), every point's inverse depth in the frame before, and moving objects."""
        rays, camera = self._rays, self.camera
        turn = before.pose.rotation.T @ now.pose.rotation
        shift = before.pose.rotation.T @ (now.pose.position - before.pose.position)
        shift = shift.astype(np.float32)
        # all in units of depth: X_before / Z_now = turn @ ray + shift / Z_now
        x, y, z = (rays.linear(turn[k]) + shift[k] * now.inverse for k in range(3))
        movers = np.zeros(now.index.shape, bool)
        for k, part in enumerate(now.rounds):
            hits = round_hits(rays, now, k, first) if part.walker >= 0 else None
            if hits is None:
                continue
            area, seen, local = hits
            then = before.rounds[k]
            to_camera = (before.pose.rotation.T @ then.axes).astype(np.float32)
            offset = before.pose.rotation.T @ (then.center - before.pose.position)
            point = np.einsum("ij,jhw->ihw", to_camera, local)
            point += offset.astype(np.float32)[:, None, None]
            point *= now.inverse[area]
            for target, value in zip((x, y, z), point, strict=True):
                np.copyto(target[area], value, where=seen)
            movers[area] |= seen
        z = np.maximum(z, 1e-3)
        flow = np.empty((camera.height, camera.width, 2), np.float32)
        flow[..., 0] = camera.fx * x / z + camera.cx - self._columns
        flow[..., 1] = camera.fy * y / z + camera.cy - self._rows
        return flow, now.inverse / z, movers

    def _visible(
        self, flow: np.ndarray, inverse: np.ndarray, now: Buffer, before: Buffer
    ) -> np.ndarray:
        """Where the visible point was also visible in the frame before, (H, W) bool."""
        x = np.rint(flow[..., 0] + self._columns).astype(np.int32)
        y = np.rint(flow[..., 1] + self._rows).astype(np.int32)
        inside = (x >= 0) & (y >= 0) & (x < self.camera.width) & (y < self.camera.height)
        at = np.where(inside, y * self.camera.width + x, 0)
        same = before.index.ravel()[at] == now.index
        near = np.abs(before.inverse.ravel()[at] - inverse) <= 0.02 * inverse
        return inside & (same | near)

    def _shade(self, now: Buffer, labels: np.ndarray, i: int) -> np.ndarray:
        """The image in linear light, (H, W, 3) float32, about 0..1 before exposure."""
        scene, hit = self.scene, now.inverse > 0
        look = appearance(scene.atlas, self._table, self._rays, now, self._dither)
        picture, _, normal, ray, depth = look
        point = [now.pose.position[k].astype(np.float32) + depth * ray[k] for k in range(3)]
        picture *= (self._light(point, normal, labels, i) / 255)[..., None]
        if scene.sky is not None:
            rows = np.flatnonzero((~hit).any(1))
            if len(rows):
                band = slice(int(rows[0]), int(rows[-1]) + 1)
                sky = self._sky([r[band] for r in ray])
                np.copyto(picture[band], sky, where=~hit[band][..., None])
        return picture

    def _light(
        self, point: list[np.ndarray], normal: list[np.ndarray], labels: np.ndarray, i: int
    ) -> np.ndarray:
        """The light on every pixel's point, (H, W) float32; 1 shows its texture unchanged."""
        scene = self.scene
        light = np.full(labels.shape, scene.ambient, np.float32)
        # ambient light comes from the ceiling or sky more than from the floor
        light *= 0.88 + 0.12 * normal[2]
        for lamp in scene.lights:
            way = [np.float32(lamp.position[k]) - point[k] for k in range(3)]
            square = way[0] ** 2 + way[1] ** 2 + way[2] ** 2
            cosine = sum(n * w for n, w in zip(normal, way, strict=True)) / np.sqrt(square)
            light += lamp.power * np.maximum(cosine, 0) / (1 + square / np.float32(lamp.reach**2))
        ground = (labels == classes.FLOOR) | (labels == classes.GRASS)
        dark = scene.shadow_at(point[0], point[1])
        for walker in scene.walkers:
            (wx, wy), _ = walker.place(i / self.fps)
            square = (point[0] - np.float32(wx)) ** 2 + (point[1] - np.float32(wy)) ** 2
            dark *= 1 - 0.45 * np.exp(square * np.float32(-1 / (2 * 0.2**2)))
        light = np.where(ground, light * dark, light)
        wall = labels == classes.WALL
        corner = 0.25 * np.exp(point[2] * -4)
        if scene.sky is None:
            corner = corner + 0.2 * np.exp((point[2] - np.float32(scene.height)) * 4)
        return np.where(wall, light * (1 - corner), light)

    def _sky(self, ray: list[np.ndarray]) -> np.ndarray:
        """A clear sky with clouds, (h, w, 3), for world ray directions."""
        assert self.scene.sky is not None
        x, y, z = ray
        z = np.maximum(z / np.sqrt(x * x + y * y + z * z), 0) + np.float32(0.08)
        u, v = (x / z * 12) % 256, (y / z * 12) % 256
        clouds = cv2.remap(self._clouds, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        zenith, horizon = (np.array(c, np.float32) for c in self.scene.sky)
        blue = horizon + (zenith - horizon) * np.clip(z * 2.2, 0, 1)[..., None]
        return blue + (1 - blue) * clouds[..., None] * np.float32(0.9)

    def _expose(
        self, picture: np.ndarray, flow: np.ndarray, i: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The camera's image of the light: gain, motion blur, noise, (H, W, 3) uint8."""
        noise = self.noise
        seconds = i / self.fps
        rate, phase = self._exposure
        swing = float(np.sin(2 * np.pi * rate * seconds + phase).sum())
        wander = noise.exposure * swing / np.sqrt(1.5)
        gain = (0.42 / max(float(picture[::4, ::4].mean()), 0.02)) ** 0.8 * np.exp(wander)
        picture *= np.float32(gain)
        # a soft shoulder instead of hard clipping
        over = np.maximum(picture - np.float32(0.75), 0)
        picture = 255 * np.where(over > 0, 1 - np.float32(0.25) * np.exp(-4 * over), picture)
        reach = noise.shutter * float(np.abs(flow).max()) if noise.shutter > 0 else 0.0
        if reach > 0.7:
            total, border = np.zeros_like(picture), cv2.BORDER_REPLICATE
            samples = 3 if reach < 3 else 5
            for s in np.linspace(-0.5, 0.5, samples):
                x = self._columns + np.float32(s * noise.shutter) * flow[..., 0]
                y = self._rows + np.float32(s * noise.shutter) * flow[..., 1]
                total += cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=border)
            picture = total / samples
        if noise.sensor > 0:
            grain = rng.standard_normal(picture.shape, np.float32)
            picture += grain * (np.float32(noise.sensor / 11.3) * np.sqrt(np.maximum(picture, 8)))
        return np.clip(picture + 0.5, 0, 255).astype(np.uint8)
