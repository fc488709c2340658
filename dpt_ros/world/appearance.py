# SPDX-License-Identifier: Apache-2.0
"""What the visible surfaces of a scene are made of, pixel by pixel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dpt_ros.world.geometry import Buffer, Rays, RectangleTable, reciprocal, round_hits
from dpt_ros.world.textures import Atlas


class Appearance(NamedTuple):
    """Of every pixel; anything where there is only sky."""

    albedo: np.ndarray  # (H, W, 3) float32, 0..255, the colour of the texture, evenly lit
    texture: np.ndarray  # (H, W) float32, its index in the atlas
    normal: list[np.ndarray]  # three of (H, W) float32, world axes
    ray: list[np.ndarray]  # the same, 1 long along optical Z
    depth: np.ndarray  # (H, W) float32, metres along optical Z; 1 for sky


def appearance(
    atlas: Atlas, table: RectangleTable, rays: Rays, now: Buffer, dither: np.ndarray | float = 0.5
) -> Appearance:
    """The surfaces that ``draw`` found.

    Args:
        atlas, table: of the scene; the table is the one that was drawn.
        rays: of the camera that was drawn.
        now: from ``draw``.
        dither: (H, W) float32, 0..1; spreads the steps between a texture's sizes.
    """
    depth = reciprocal(now.inverse, 1.0)
    first = len(table.label)
    rect = np.where((now.index >= 0) & (now.index < first), now.index, 0).astype(np.intp)
    # one gather per pixel: two linear forms per tile, texture, tint, normal, tile
    forms = (now.rect_uv / table.tile[:, :, None]).reshape(first, 6)
    columns = forms, table.texture, table.tint, table.normal, table.tile.min(1)
    packed = np.column_stack(columns).astype(np.float32)
    got = np.take(packed, rect, axis=0)
    x, y = rays.x[None, :], rays.y
    u = (got[..., 0] * x + got[..., 1] * y + got[..., 2]) * depth
    v = (got[..., 3] * x + got[..., 4] * y + got[..., 5]) * depth
    texture, tint, tile = got[..., 6].copy(), got[..., 7:10], got[..., 13].copy()
    normal = [got[..., 10 + k].copy() for k in range(3)]
    for k, part in enumerate(now.rounds):
        hits = round_hits(rays, now, k, first)
        if hits is None:
            continue
        area, seen, local = hits
        size = np.linalg.norm(part.axes, axis=0)
        around = np.arctan2(local[1], local[0]) * float(size[0] / part.surface.tile[0])
        up = local[2] * float(size[2] / part.surface.tile[1])
        out = local.copy()
        if part.tube:
            out[2] = 0
        out = np.einsum("ij,jhw->ihw", (part.axes / size**2).astype(np.float32), out)
        out /= np.sqrt(np.einsum("kij,kij->ij", out, out)) + 1e-9
        look = np.float32(part.surface.texture), np.float32(part.surface.tile[0])
        values = around, up, *look, *out
        for target, value in zip((u, v, texture, tile, *normal), values, strict=True):
            np.copyto(target[area], value, where=seen)
        tint[area][seen] = part.surface.tint
    ray = [rays.linear(now.pose.rotation[k]) for k in range(3)]
    facing = np.abs(sum(n * r for n, r in zip(normal, ray, strict=True)))
    facing = rays.camera.fx * np.sqrt(np.maximum(facing, 0.02))
    footprint = depth / (facing * np.maximum(tile, 1e-3))
    footprint *= 0.8 + 0.4 * dither
    picture = atlas.sample(texture, u, v, footprint).astype(np.float32)
    picture *= tint
    return Appearance(picture, texture, normal, ray, depth)
