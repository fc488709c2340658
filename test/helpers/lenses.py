# SPDX-License-Identifier: Apache-2.0
"""Lenses of each distortion model, and pictures as they take them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dpt_ros.engine.frame import CameraModel, Lens

COEFFICIENTS = {
    "plumb_bob": (-0.28, 0.09, 0.001, -0.0008, -0.01),
    "rational_polynomial": (0.6, -0.15, 0.0006, -0.0004, 0.02, 0.95, -0.1, 0.03),
    "equidistant": (0.02, -0.012, 0.004, -0.001),
}
_FOCAL = {"plumb_bob": 0.75, "rational_polynomial": 0.75, "equidistant": 0.5}  # of the width


def lens(model: str, width: int, height: int) -> Lens:
    """A lens of a model; its raw axis is a little off the picture's centre."""
    focal = _FOCAL[model] * width
    raw = CameraModel(width, height, focal, 1.01 * focal, 0.51 * width, 0.485 * height)
    return Lens(model, COEFFICIENTS[model], raw)


def pinhole(model: str, width: int, height: int, wider: float = 1.0) -> CameraModel:
    """A camera for the rectified pictures of such a lens: all of them shows something, unless the
    view is ``wider``."""
    focal = {"plumb_bob": 0.8, "rational_polynomial": 0.8, "equidistant": 0.65}[model] * width
    focal /= wider
    return CameraModel(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)


def project(lens: Lens, rays: np.ndarray) -> np.ndarray:
    """Where rays (N, 2), at z = 1, meet the raw picture: (N, 2) pixels.

    By the formulas of OpenCV's documentation, and by no code of OpenCV.
    """
    x, y = rays.T
    r2 = x * x + y * y
    if lens.model == "equidistant":
        radius = np.sqrt(r2)
        angle = np.arctan(radius)
        powers = enumerate(lens.coefficients, start=1)
        bent = angle * (1 + sum(k * angle ** (2 * n) for n, k in powers))
        stretch = np.divide(bent, radius, out=np.ones_like(bent), where=radius > 0)
        x, y = x * stretch, y * stretch
    else:
        k1, k2, p1, p2, k3, k4, k5, k6 = (*lens.coefficients, 0.0, 0.0, 0.0)[:8]
        stretch = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        stretch /= 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
        x, y = (
            x * stretch + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * stretch + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        )
    return np.column_stack([x, y]) * [lens.raw.fx, lens.raw.fy] + [lens.raw.cx, lens.raw.cy]


def raw_picture(
    lens: Lens, color: Callable[[np.ndarray], np.ndarray], fine: int = 2
) -> np.ndarray:
    """What a lens takes of a scene, (height, width, 3) uint8.

    Args:
        lens: takes the picture.
        color: of rays (N, 2) at z = 1: (N, 3), 0..255.
        fine: samples per pixel and side.
    """
    width, height = lens.raw.width, lens.raw.height
    u, v = ((np.arange(n * fine) + 0.5) / fine - 0.5 for n in (width, height))
    pixels = np.stack(np.meshgrid(u, v), -1).reshape(-1, 2)
    focal = np.array([lens.raw.fx, lens.raw.fy])
    rays = (pixels - [lens.raw.cx, lens.raw.cy]) / focal
    for _ in range(100):  # the models have no inverse in closed form
        left = pixels - project(lens, rays)
        if np.abs(left).max() < 0.01:
            break
        rays = rays + left / focal * np.sqrt(1 + (rays**2).sum(1, keepdims=True))
    samples = color(rays).reshape(height, fine, width, fine, 3)
    return samples.mean((1, 3)).round().astype(np.uint8)
