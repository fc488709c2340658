# SPDX-License-Identifier: Apache-2.0
"""The floor under a camera of known height and tilt: pixels of known inverse depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpt_ros.engine.frame import CameraModel

_FLOOR_NAMES = ("floor", "rug", "road", "sidewalk", "path", "runway", "grass")
GRID_COLUMNS, GRID_ROWS = 20, 15  # pixels where the floor is sampled
GRID_POINTS = GRID_COLUMNS * GRID_ROWS
HEIGHT_SIGMA = 0.02  # relative, of the camera's height
# Of the camera's tilt, radians. It shifts the inverse depth of the whole floor by TILT_SIGMA /
# camera_height, so that the relative error of its depth Z is TILT_SIGMA * Z / camera_height:
# 10 % for 1 degree at 3 m under a camera 0.5 m high.
TILT_SIGMA = 0.0175
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


def floor_inverse_depth(
    camera: CameraModel, down: np.ndarray, camera_height: float, seen: np.ndarray | None = None
) -> np.ndarray:
    """Inverse depth of a flat floor at the points of a grid over the image.

    The inverse depth of a plane is linear in the pixel: with the ray (x, y, 1) of a pixel it is
    ``down @ ray / camera_height``. An error of the tilt adds about a constant to it.

    Args:
        camera: rectified intrinsics.
        down: (3,) unit vector towards the floor in the optical frame.
        camera_height: metres.
        seen: (camera.height, camera.width) bool, where the image shows something; None if it does
            everywhere.

    Returns:
        (GRID_POINTS,) 1/m, row by row, at the centers of ``GRID_COLUMNS`` x ``GRID_ROWS`` equal
        parts of the image; 0 where the floor is farther than it can be used, or not seen.
    """
    u = (np.arange(GRID_COLUMNS) + 0.5) * (camera.width / GRID_COLUMNS) - 0.5
    v = (np.arange(GRID_ROWS) + 0.5) * (camera.height / GRID_ROWS) - 0.5
    x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    inverse_depth = (x * down[0] + (y * down[1] + down[2])[:, None]) / camera_height
    usable = inverse_depth > 1 / _RANGE
    if seen is not None:
        usable &= seen[np.ix_(v.astype(np.intp), u.astype(np.intp))]
    return np.where(usable, inverse_depth, 0).ravel()
