# SPDX-License-Identifier: Apache-2.0
"""The floor under a camera of known height and tilt: pixels of known inverse depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpt_ros.engine.frame import CameraModel

_FLOOR_NAMES = ("floor", "rug", "road", "sidewalk", "path", "runway", "grass")
_GRID = (20, 15)  # columns and rows of pixels where the floor is sampled
_RANGE = 6.0  # metres; at this range 1 degree of tilt makes 17 % under a camera 0.6 m high


def floor_ids(class_names: Sequence[str]) -> tuple[int, ...]:
    """Ids, counted from 1, of the ADE20K classes on which a robot drives."""
    return tuple(k for k, name in enumerate(class_names, start=1) if name in _FLOOR_NAMES)


def down_direction(base_from_camera: np.ndarray) -> np.ndarray:
    """The unit vector (3,) towards the floor in the optical frame.

    Args:
        base_from_camera: (4, 4) or (3, 3), from the optical frame into one whose Z points up
            (base_link, base_footprint).
    """
    rotation = np.asarray(base_from_camera, np.float64)[:3, :3]
    return -rotation[2] / np.linalg.norm(rotation[2])


def floor_places(
    camera: CameraModel, down: np.ndarray, camera_height: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels in which a flat floor would appear, and its inverse depth there.

    The inverse depth of a plane is linear in the pixel: with the ray (x, y, 1) of a pixel it is
    ``down @ ray / camera_height``. An error of the tilt adds about a constant to it.

    Args:
        camera: rectified intrinsics.
        down: (3,) unit vector towards the floor in the optical frame.
        camera_height: metres.

    Returns:
        (M,) columns and (M,) rows as shares of the image's size, 0..1; (M,) inverse depth, 1/m.
    """
    x, y = (a.ravel() for a in np.meshgrid(*((np.arange(n) + 0.5) / n for n in _GRID)))
    u, v = x * camera.width - 0.5, y * camera.height - 0.5
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(x)])
    inverse_depth = np.asarray(down, np.float64) @ rays / camera_height
    near = inverse_depth > 1 / _RANGE
    return x[near], y[near], inverse_depth[near]
