# SPDX-License-Identifier: Apache-2.0
"""Raw pixels of a lens -> the picture of a pinhole camera, by a table of places to sample."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.frame import CameraModel, Lens
from dpt_ros.engine.input.device_preprocess import rgb
from dpt_ros.engine.input.preprocess import to_rgb
from dpt_ros.engine.triton_launch import has_twin

_RADII = 4000  # at which the radial distortion is looked at


@lru_cache(maxsize=4)  # shared by the chains of a camera
def places(lens: Lens, camera: CameraModel) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of a rectified picture is in the raw one, by OpenCV's distortion models.

    Args:
        lens: of the raw picture.
        camera: of the rectified picture, any size.

    Returns:
        (H, W, 2) float32, column and row in the raw picture, within it: what looks past its edge
        gets the nearest pixel of it; (H, W) bool, false there. Also false is what lies beyond the
        angle at which the model's radius stops growing, where it would show a part of the picture
        again.
    """
    fisheye = lens.model == "equidistant"
    make = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
    intrinsics, coefficients = lens.raw.matrix(), np.array(lens.coefficients)
    rotation = np.array(lens.rotation).reshape(3, 3)
    size = (camera.width, camera.height)
    maps = make(intrinsics, coefficients, rotation, camera.matrix(), size, cv2.CV_32FC1)
    table = np.stack(maps, -1)
    last = np.array([lens.raw.width - 1, lens.raw.height - 1], np.float32)
    seen = ((table >= -0.5) & (table <= last + 0.5)).all(-1)
    seen &= _within_the_model(lens, camera, rotation)
    return np.clip(np.nan_to_num(table, posinf=0.0, neginf=0.0), 0, last), seen


def _within_the_model(lens: Lens, camera: CameraModel, rotation: np.ndarray) -> np.ndarray:
    """(H, W) bool: rays in front of the raw camera at angles up to which its radius grows."""
    to_ray = np.linalg.inv(camera.matrix() @ rotation)
    u, v = np.arange(camera.width), np.arange(camera.height)[:, None]
    x, y, z = (u * row[0] + (v * row[1] + row[2]) for row in to_ray)
    with np.errstate(all="ignore"):
        radius = np.where(z > 0, np.hypot(x, y) / z, np.inf)
        finite = radius[np.isfinite(radius)]
        radii = np.linspace(0, finite.max(initial=0.0), _RADII)
        falls = ~(np.diff(_distorted(lens, radii)) > 0)
    limit = radii[falls.argmax()] if falls.any() else radii[-1]
    return radius <= limit


def _distorted(lens: Lens, radius: np.ndarray) -> np.ndarray:
    """The raw radius of a ray, in focal lengths, by its radius in a pinhole camera."""
    k = (*lens.coefficients, *[0.0] * 8)
    if lens.model == "equidistant":
        angle = np.arctan(radius)
        return angle * np.polynomial.Polynomial([1, *k[:4]])(angle**2)
    above = np.polynomial.Polynomial([1, k[0], k[1], k[4]])(radius**2)
    return radius * above / np.polynomial.Polynomial([1, *k[5:8]])(radius**2)


class Rectifier:
    """Rectifies the pictures of one lens.

    Args:
        lens: of the raw pictures.
        camera: of the rectified ones, which have the same size.
        encoding: of the raw ones.
        size: (height, width) of the raw ones.
        device: where the pixels are; None for arrays.

    Attributes:
        seen: (H, W) bool, where the rectified picture shows something; None if it does everywhere.

    Raises:
        ValueError: lens or camera are of another size.
    """

    def __init__(
        self,
        lens: Lens,
        camera: CameraModel,
        encoding: str,
        size: tuple[int, int],
        device: torch.device | None,
    ) -> None:
        for one in (lens.raw, camera):
            if (one.height, one.width) != size:
                raise ValueError(
                    f"The lens is calibrated for {one.width}x{one.height} pixels, but the picture"
                    f" has {size[1]}x{size[0]}; use the calibration of this picture."
                )
        self._encoding = encoding
        self._table, seen = places(lens, camera)
        self.seen = None if seen.all() else seen
        if device is not None:
            self._device_table = torch.tensor(self._table, device=device)

    def __call__(self, pixels: Tensor | Sequence[np.ndarray]) -> Tensor | list[np.ndarray]:
        """Rectified pictures.

        Args:
            pixels: as in ``step``.

        Returns:
            rgb8: (B, H, W, 3) uint8, or B arrays (H, W, 3).
        """
        if isinstance(pixels, Tensor):
            return rectified(pixels, self._encoding, self._device_table)
        return [
            cv2.remap(
                to_rgb(one, self._encoding), self._table, None, cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            for one in pixels
        ]  # fmt: skip


@has_twin("dpt_ros.engine.input.triton_rectify")
def rectified(pixels: Tensor, encoding: str, table: Tensor) -> Tensor:
    """Raw pixels as RGB pictures, sampled bilinearly.

    Args:
        pixels: as for ``device_preprocess.rgb``.
        encoding: a name of ``ENCODINGS``.
        table: (H, W, 2) float32 from ``places``, on the pixels' device.

    Returns:
        (B, H, W, 3) uint8, contiguous.

    Raises:
        ValueError: unknown encoding, or pixels that do not fit it.
    """
    pictures = rgb(pixels, encoding)
    height, width = pictures.shape[1:3]
    flat = pictures.flatten(1, 2)
    first = table.floor()
    (x, y), (left, top) = (table - first).unbind(-1), first.long().unbind(-1)
    total: Tensor | float = 0.0
    for down in range(2):
        row = (top + down).clamp(max=height - 1) * width
        for right in range(2):
            place = row + (left + right).clamp(max=width - 1)
            weight = (y if down else 1 - y) * (x if right else 1 - x)
            total = total + flat.index_select(1, place.flatten()) * weight.flatten()[:, None]
    assert isinstance(total, Tensor)
    return (total + 0.5).to(torch.uint8).unflatten(1, table.shape[:2])
