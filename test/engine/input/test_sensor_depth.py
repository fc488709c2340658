# SPDX-License-Identifier: Apache-2.0
"""A depth camera's image in the view of another camera, against planes and boxes by formula."""

import numpy as np
import pytest

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.input.sensor_depth import registered_depth

CAMERA = CameraModel(160, 120, 140.0, 141.0, 80.2, 58.9)
SENSOR = CameraModel(106, 80, 70.0, 70.5, 51.0, 40.3)


def plane_depth(camera: CameraModel, normal: np.ndarray, distance: float) -> np.ndarray:
    """(H, W) float32, along Z, of the plane n . p = distance in the camera's frame."""
    u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    ray = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)])
    return (distance / np.tensordot(normal, ray, 1)).astype(np.float32)


def pose(x: float, y: float, z: float, turn: float) -> np.ndarray:
    transform = np.eye(4)
    c, s = np.cos(turn), np.sin(turn)
    transform[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    transform[:3, 3] = x, y, z
    return transform


def test_a_registered_image_stays_bit_for_bit_and_what_is_unknown_becomes_nan() -> None:
    depth = np.random.default_rng(1).uniform(0.2, 9, (120, 160)).astype(np.float32)
    depth[3, :5] = [0, -1, np.inf, np.nan, -np.inf]
    found = registered_depth(depth, CAMERA, np.eye(4), CAMERA)
    assert np.isnan(found[3, :5]).all()
    known = ~np.isnan(found)
    assert known.sum() == depth.size - 5
    np.testing.assert_array_equal(found[known], depth[known])


def test_millimetres_become_metres() -> None:
    depth = np.full((120, 160), 1234, np.uint16)
    depth[0] = 0
    found = registered_depth(depth, CAMERA, np.eye(4), CAMERA)
    np.testing.assert_allclose(found[1:], 1.234, rtol=1e-6)
    assert np.isnan(found[0]).all()


def test_the_same_view_at_half_the_size_takes_the_nearest_pixel() -> None:
    half = CAMERA.scaled(80, 60)
    depth = np.random.default_rng(1).uniform(0.2, 9, (60, 80)).astype(np.float32)
    found = registered_depth(depth, half, np.eye(4), CAMERA)
    np.testing.assert_array_equal(found, np.repeat(np.repeat(depth, 2, 0), 2, 1))


@pytest.mark.parametrize("sensor", [SENSOR, CAMERA, CAMERA.scaled(320, 240)])
def test_a_slanted_plane_is_where_it_is_from_another_pose_and_size(sensor: CameraModel) -> None:
    transform = pose(0.06, 0.02, -0.03, 0.05)
    normal = np.array([0.2, -0.1, 1.0]) / np.linalg.norm([0.2, -0.1, 1.0])
    truth = plane_depth(CAMERA, normal, 2.0)
    # The plane in the sensor's frame: n . (R p + t) = 2.
    in_sensor = transform[:3, :3].T @ normal, 2.0 - normal @ transform[:3, 3]
    found = registered_depth(plane_depth(sensor, *in_sensor), sensor, transform, CAMERA)
    known = ~np.isnan(found)
    # Behind the border of the sensor nothing is known; inside, few pixels got none of its own.
    assert known[25:-25, 30:-30].mean() > 0.95
    # A pixel of the coarser of both: at most one to the side, where the plane is 0.3 % deeper.
    assert np.abs(found / truth - 1)[known].max() < 0.01
    assert abs(np.median(found[known] / truth[known]) - 1) < 1e-3


def test_what_is_near_hides_what_is_behind_it() -> None:
    transform = pose(0.3, 0.0, 0.0, 0.0)
    depth = np.full((120, 160), 4.0, np.float32)
    depth[:, 60:80] = 1.0
    found = registered_depth(depth, CAMERA, transform, CAMERA)
    near = found[60] == 1.0
    # 20 pixels wide, moved by 0.3 m * 140 pixels / 1 m; the wall by a quarter of that.
    np.testing.assert_array_equal(np.flatnonzero(near), np.arange(102, 122))
    # The shadow of the near strip: it hid from the sensor what the camera sees.
    assert np.isnan(found[60, 71:90]).all()


def test_a_wrong_size_and_a_broken_pose_are_refused() -> None:
    depth = np.ones((120, 160), np.float32)
    with pytest.raises(ValueError, match="160x120, but its camera_info is for 106x80"):
        registered_depth(depth, SENSOR, np.eye(4), CAMERA)
    broken = np.eye(4)
    broken[0, 3] = np.nan
    with pytest.raises(ValueError, match="finite 4x4"):
        registered_depth(depth, CAMERA, broken, CAMERA)
