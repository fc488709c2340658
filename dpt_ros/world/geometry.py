# SPDX-License-Identifier: Apache-2.0
"""Flat and round surfaces, and the z-buffer that finds which one every pixel sees.

All of it works on inverse depth: in a pinhole image the inverse depth of a plane is linear in the
pixel, and so is inverse depth times a coordinate on the plane. A rectangle costs a few
multiplications per pixel of its bounding box.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from dpt_ros.engine.frame import CameraModel

NEAR = 0.05  # metres; nothing closer than this is drawn
Box = tuple[slice, slice]  # pixels: rows, columns


@dataclass(frozen=True)
class Surface:
    """Appearance and class of an object."""

    label: int  # class id
    texture: int  # index into the world's Atlas
    # Width and height of one period of the texture, metres; 0 stretches it over the rectangle.
    tile: tuple[float, float] = (0.0, 0.0)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # multiplies the texture's colour


@dataclass
class Rectangles:
    """Rectangles in space, visible from the side that ``u x v`` points to."""

    _rows: list[tuple[np.ndarray, Surface, bool]] = field(default_factory=list)

    def add(
        self, origin: ArrayLike, u: ArrayLike, v: ArrayLike, surface: Surface, disc: bool = False
    ) -> None:
        """A rectangle with a corner and two edge vectors, metres; or the disc inscribed in it."""
        self._rows.append((np.array([origin, u, v], float), surface, disc))

    def add_box(
        self, base: ArrayLike, yaw: float, size: tuple[float, float, float], surface: Surface
    ) -> None:
        """A box; ``base`` is the centre of its lower face, ``yaw`` its turn about the vertical."""
        ex = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        ey = np.array([-ex[1], ex[0], 0.0])
        up = np.array([0.0, 0.0, size[2]])
        hx, hy = ex * size[0] / 2, ey * size[1] / 2
        middle = np.asarray(base, float)
        self.add(middle - hx - hy, 2 * hx, up, surface)
        self.add(middle + hx - hy, 2 * hy, up, surface)
        self.add(middle + hx + hy, -2 * hx, up, surface)
        self.add(middle - hx + hy, -2 * hy, up, surface)
        self.add(middle - hx - hy + up, 2 * hx, 2 * hy, surface)
        if middle[2] > 0.01:
            self.add(middle - hx - hy, 2 * hy, 2 * hx, surface)

    def freeze(self) -> RectangleTable:
        """The rectangles as arrays."""
        origin, u, v = np.array([vectors for vectors, _, _ in self._rows]).transpose(1, 0, 2)
        surfaces = [surface for _, surface, _ in self._rows]
        size = np.stack([np.linalg.norm(u, axis=1), np.linalg.norm(v, axis=1)], 1)
        u, v = u / size[:, :1], v / size[:, 1:]
        tile = np.array([s.tile for s in surfaces])
        return RectangleTable(
            origin,
            u,
            v,
            normal=np.cross(u, v),
            size=size,
            disc=np.array([disc for _, _, disc in self._rows]),
            label=np.array([s.label for s in surfaces], np.uint8),
            texture=np.array([s.texture for s in surfaces], np.float32),
            tile=np.where(tile > 0, tile, size),
            tint=np.array([s.tint for s in surfaces], np.float32),
        )


@dataclass(frozen=True)
class RectangleTable:
    """N rectangles as arrays: corner (metres), unit edges, normal (N, 3); size (N, 2), metres;
    whether it is a disc (N,); the fields of the surfaces."""

    origin: np.ndarray
    u: np.ndarray
    v: np.ndarray
    normal: np.ndarray
    size: np.ndarray
    disc: np.ndarray
    label: np.ndarray
    texture: np.ndarray
    tile: np.ndarray
    tint: np.ndarray


@dataclass(frozen=True)
class Round:
    """An ellipsoid, or the side of a cylinder: the unit sphere or unit tube under ``axes`` and
    ``center``."""

    center: np.ndarray  # (3,) metres
    axes: np.ndarray  # (3, 3), its columns are the half axes, metres; the third is a tube's own
    tube: bool  # a cylinder's side, else an ellipsoid
    surface: Surface
    walker: int = -1  # index of the walker it belongs to, -1 for static objects


@dataclass(frozen=True)
class Pose:
    """odom_from_camera: ``position`` (3,) metres, ``rotation`` (3, 3); optical axes (REP 103)."""

    position: np.ndarray
    rotation: np.ndarray

    def matrix(self) -> np.ndarray:
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = self.rotation, self.position
        return pose


class Rays:
    """The pixel grid of a camera and linear functions on it."""

    def __init__(self, camera: CameraModel) -> None:
        self.camera = camera
        self.x = ((np.arange(camera.width) - camera.cx) / camera.fx).astype(np.float32)
        self.y = ((np.arange(camera.height) - camera.cy) / camera.fy).astype(np.float32)[:, None]

    def linear(self, c: np.ndarray, box: Box | None = None) -> np.ndarray:
        """c[0] x + c[1] y + c[2] on the pixels of ``box`` or the whole image, (h, w) float32, in
        normalised image coordinates x and y."""
        rows, columns = box or np.s_[:, :]
        c = np.asarray(c, np.float32)
        return (c[0] * self.x[columns] + c[2]) + c[1] * self.y[rows]

    def bounds(self, corners: np.ndarray) -> Box | None:
        """The pixels that contain a convex body with these corners.

        Args:
            corners: (N, 3) in camera axes, metres.

        Returns:
            None if it is behind the camera or outside of the image.
        """
        depth = corners[:, 2]
        front = depth >= NEAR
        if not front.any():
            return None
        camera = self.camera
        if not front.all():
            a, b = corners[front], corners[~front]
            s = ((NEAR - b[None, :, 2]) / (a[:, None, 2] - b[None, :, 2]))[..., None]
            corners = np.concatenate([a, (b[None] + s * (a[:, None] - b[None])).reshape(-1, 3)])
            depth = corners[:, 2]
        px = camera.fx * corners[:, 0] / depth + camera.cx
        py = camera.fy * corners[:, 1] / depth + camera.cy
        x0, x1 = max(int(px.min()), 0), min(int(px.max()) + 2, camera.width)
        y0, y1 = max(int(py.min()), 0), min(int(py.max()) + 2, camera.height)
        return np.s_[y0:y1, x0:x1] if x0 < x1 and y0 < y1 else None


_CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)


@dataclass(frozen=True)
class Buffer:
    """The z-buffer of an image."""

    pose: Pose
    inverse: np.ndarray  # (H, W) float32 inverse depth, 1/m; 0 where no surface is hit
    index: np.ndarray  # (H, W) int16 of the surface: N rectangles, then rounds; -1 for none
    rect_uv: np.ndarray  # (N, 2, 3) forms; over inverse depth: metres along the rectangle's edges
    rounds: list[Round]
    round_box: list[Box | None]  # the pixels of every round, None where it is out of sight


def reciprocal(inverse: np.ndarray, otherwise: float) -> np.ndarray:
    """Depth from inverse depth of any shape, ``otherwise`` where it is not positive."""
    depth = np.full_like(inverse, otherwise)
    np.divide(1.0, inverse, out=depth, where=inverse > 0)
    return depth


def _round_rays(rays: Rays, pose: Pose, part: Round, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Camera centre (3,) and ray directions (3, h, w) in the round's own coordinates."""
    local = np.linalg.inv(part.axes)
    start = local @ (pose.position - part.center)
    direction = local @ pose.rotation
    return start, np.stack([rays.linear(direction[k], box) for k in range(3)])


def _round_inverse(rays: Rays, pose: Pose, part: Round, box: Box) -> np.ndarray:
    """Inverse depth of the near side of a round on ``box``; 0 where the ray misses."""
    start, ray = _round_rays(rays, pose, part, box)
    used = slice(0, 2 if part.tube else 3)
    a = np.einsum("kij,kij->ij", ray[used], ray[used])
    b = np.einsum("k,kij->ij", start[used].astype(np.float32), ray[used])
    c = np.float32(start[used] @ start[used] - 1)
    disc = b * b - a * c
    hit = disc > 0
    # t = (-b - sqrt(disc)) / a = c / (-b + sqrt(disc)), so 1/t needs no division by a small a
    inverse = (np.sqrt(np.where(hit, disc, 0)) - b) / c
    if part.tube:
        hit &= np.abs(start[2] * inverse + ray[2]) <= np.abs(inverse)
    return np.where(hit, inverse, 0)


def draw(rays: Rays, pose: Pose, table: RectangleTable, rounds: list[Round]) -> Buffer:
    """Intersect every pixel's ray with all surfaces; the nearest is kept."""
    camera = rays.camera
    inverse = np.zeros((camera.height, camera.width), np.float32)
    index = np.full((camera.height, camera.width), -1, np.int16)

    def keep(box: Box, iz: np.ndarray, seen: np.ndarray, number: int) -> None:
        seen &= iz > inverse[box]
        np.copyto(inverse[box], iz, where=seen)
        np.copyto(index[box], np.int16(number), where=seen)

    away = table.origin - pose.position
    distance = np.einsum("nk,nk->n", table.normal, away)
    divisor = np.where(np.abs(distance) > 1e-9, distance, 1e-9)[:, None]
    plane = table.normal @ pose.rotation / divisor
    forms = [
        axis @ pose.rotation - np.einsum("nk,nk->n", axis, away)[:, None] * plane
        for axis in (table.u, table.v)
    ]
    rect_uv = np.stack(forms, 1)
    edge_u, edge_v = (axis * table.size[:, k, None] for k, axis in enumerate((table.u, table.v)))
    corners = np.stack([away, away + edge_u, away + edge_u + edge_v, away + edge_v], 1)
    corners = corners @ pose.rotation
    visible = np.flatnonzero((distance < -1e-6) & (corners[..., 2].max(1) > NEAR))
    for k in visible.tolist():
        box = rays.bounds(corners[k])
        if box is None:
            continue
        iz = rays.linear(plane[k], box)
        u, v = rays.linear(rect_uv[k, 0], box), rays.linear(rect_uv[k, 1], box)
        if table.disc[k]:
            radius = np.float32(table.size[k, 0] / 2) * iz
            seen = (u - radius) ** 2 + (v - radius) ** 2 <= radius**2
        else:
            size_u, size_v = table.size[k].astype(np.float32)
            seen = (u >= 0) & (v >= 0) & (u <= size_u * iz) & (v <= size_v * iz)
        keep(box, iz, seen, k)

    boxes: list[Box | None] = []
    for k, part in enumerate(rounds):
        box = rays.bounds((_CUBE @ part.axes.T + part.center - pose.position) @ pose.rotation)
        if box is not None:
            iz = _round_inverse(rays, pose, part, box)
            keep(box, iz, iz > 0, len(table.label) + k)
        boxes.append(box)
    return Buffer(pose, inverse, index, rect_uv, rounds, boxes)


def round_hits(
    rays: Rays, buffer: Buffer, k: int, first: int
) -> tuple[Box, np.ndarray, np.ndarray] | None:
    """The visible part of round ``k``, None if there is none.

    Args:
        first: the index of round 0 in the buffer.

    Returns:
        its pixels, mask (h, w) and hit points (3, h, w) in its own coordinates.
    """
    box = buffer.round_box[k]
    if box is None:
        return None
    seen = buffer.index[box] == first + k
    if not seen.any():
        return None
    start, ray = _round_rays(rays, buffer.pose, buffer.rounds[k], box)
    depth = 1 / np.where(seen, buffer.inverse[box], 1)
    return box, seen, start.astype(np.float32)[:, None, None] + ray * depth
