# SPDX-License-Identifier: Apache-2.0
"""The image of a depth camera, moved into the view of another camera."""

from __future__ import annotations

import cv2
import numpy as np

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.scale.anchors import MIN_DEPTH, check_depth_image, finite_transform


def registered_depth(
    depth: np.ndarray,
    depth_camera: CameraModel,
    camera_from_sensor: np.ndarray,
    camera: CameraModel,
) -> np.ndarray:
    """What a depth camera measured, in the pixels of a camera.

    A depth image of the same view is only brought to the camera's size, by the nearest pixel, and
    one of the same size stays bit for bit. Else every pixel is projected, and where several fall
    on one the nearest hides the others. Where the camera's pixels are finer than the sensor's,
    this is done with pixels as coarse as the sensor's. A few get no measurement and stay unknown.

    Args:
        depth: (h, w) float32 metres, or uint16 millimetres; not positive or not finite: unknown.
        depth_camera: intrinsics of the depth image.
        camera_from_sensor: (4, 4), moves points into the camera's optical frame.
        camera: rectified intrinsics.

    Returns:
        (H, W) float32, metres along the camera's optical Z; NaN unknown.

    Raises:
        ValueError: the depth image has another shape than its intrinsics, or the transform is not
            a finite (4, 4).
    """
    check_depth_image(depth, depth_camera)
    transform = finite_transform(camera_from_sensor)
    metres = depth * np.float32(1e-3) if depth.dtype == np.uint16 else depth
    metres = np.where((metres > 0) & (metres < np.inf), metres, np.float32(np.nan))
    size = camera.width, camera.height
    if np.allclose(transform, np.eye(4), atol=1e-6) and _same_view(depth_camera, camera):
        if metres.shape == size[::-1]:
            return metres
        return cv2.resize(metres, size, interpolation=cv2.INTER_NEAREST_EXACT)
    share = min(1.0, depth_camera.fx / camera.fx, depth_camera.fy / camera.fy)
    width, height = (max(1, round(side * share)) for side in size)
    coarse = _projected(metres, depth_camera, transform, camera.scaled(width, height))
    if share == 1.0:
        return coarse
    return cv2.resize(coarse, size, interpolation=cv2.INTER_NEAREST_EXACT)


def _same_view(one: CameraModel, other: CameraModel) -> bool:
    """Whether two cameras see the same, within half a pixel."""
    one = one.scaled(other.width, other.height)
    focal = (one.fx / other.fx - 1) * other.width, (one.fy / other.fy - 1) * other.height
    return max(map(abs, (*focal, one.cx - other.cx, one.cy - other.cy))) < 0.5


def _projected(
    metres: np.ndarray, depth_camera: CameraModel, transform: np.ndarray, camera: CameraModel
) -> np.ndarray:
    # x = z (r_x u + s_x v + t_x) + d_x and so on: one pass over the pixels per axis.
    inverse = np.linalg.inv(depth_camera.matrix())
    factors = (camera.matrix() @ transform[:3, :3] @ inverse).astype(np.float32)
    offset = (camera.matrix() @ transform[:3, 3]).astype(np.float32)
    u = np.arange(metres.shape[1], dtype=np.float32)
    v = np.arange(metres.shape[0], dtype=np.float32)[:, None]
    x, y, z = (
        metres * (row[0] * u + (row[1] * v + row[2])) + d
        for row, d in zip(factors, offset, strict=True)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        column, row = x / z + np.float32(0.5), y / z + np.float32(0.5)
        # Comparisons are False for NaN.
        there = (z > MIN_DEPTH) & (column >= 0) & (row >= 0)
        there &= (column < camera.width) & (row < camera.height)
    place = row[there].astype(np.int32) * camera.width + column[there].astype(np.int32)
    found = np.full(camera.height * camera.width, np.inf, np.float32)
    np.minimum.at(found, place, z[there])
    found[np.isinf(found)] = np.nan
    return found.reshape(camera.height, camera.width)
