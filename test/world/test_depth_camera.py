# SPDX-License-Identifier: Apache-2.0
"""The depth camera of the synthetic world is wrong as real ones are, and right elsewhere.

``test_depth_camera.py WORLDS FIRST`` as a program prints the shares of valid pixels.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.scale.anchors import project_depth
from dpt_ros.world import KINDS, World
from dpt_ros.world.depth_camera import (
    STEREO,
    STRUCTURED_LIGHT,
    TIME_OF_FLIGHT,
    DepthCamera,
    DepthImage,
)
from dpt_ros.world.geometry import Rectangles, Surface

HELD_OUT = 1_000_000
SENSORS = {"stereo": STEREO, "structured light": STRUCTURED_LIGHT, "ToF": TIME_OF_FLIGHT}
CLEAR = replace(STEREO, projector=1e9, texture=0.0, sun=0.0, max_incidence=89.9)  # no weak signal


def wall_world(metres: float, *others: tuple[float, float, float]) -> World:
    """A world that is a wall across the camera's axis, and rectangles (metres, left, right) of
    lateral metres before it."""
    world = World("room", HELD_OUT)
    scene = world.scene
    scene.rounds, scene.walkers = [], []
    table, pose = Rectangles(), scene.drive.pose(0.0)
    right, down, ahead = pose.rotation.T
    surface = Surface(1, 0, (1.0, 1.0))
    for z, x0, x1 in ((metres, -50.0, 50.0), *others):
        corner = pose.position + z * ahead + x0 * right - 50 * down
        table.add(corner, 100 * down, (x1 - x0) * right, surface)
    scene.rectangles = table
    return world


def shares(image: DepthImage) -> float:
    return float(np.isfinite(image.depth).mean())


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=list(SENSORS))
def test_a_measurement_depends_on_seed_and_number_alone(sensor) -> None:
    a = DepthCamera(World("room", HELD_OUT), sensor)
    first = [a.measure(i).depth for i in (100, 101)]
    b = DepthCamera(World("room", HELD_OUT), sensor)
    again = [b.measure(i).depth for i in (101, 100)][::-1]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(*first, equal_nan=True)


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=list(SENSORS))
@pytest.mark.parametrize("kind", KINDS)
def test_depth_is_within_range_or_nan_and_mostly_right(kind: str, sensor) -> None:
    camera = DepthCamera(World(kind, HELD_OUT + 4), sensor)
    for i in (100, 400):
        image = camera.measure(i)
        valid = np.isfinite(image.depth)
        assert image.depth.dtype == np.float32
        assert not np.isinf(image.depth).any()
        depth, truth = image.depth[valid], image.truth[valid]
        if valid.any():
            assert depth.min() >= sensor.near - 1e-3
            assert depth.max() <= sensor.far + 1e-3
            assert np.median(np.abs(depth / truth - 1)) < 0.02
            assert np.mean(np.abs(depth / truth - 1) > 0.1) < 0.1
        sky = np.isinf(image.truth)
        # A flying pixel may stand before the sky, an area may not.
        assert valid[sky].mean() < 0.05 if sky.any() else True


def test_the_share_of_valid_pixels_is_that_of_real_cameras() -> None:
    by_kind = {kind: valid_shares(k, 6) for k, kind in enumerate(KINDS)}
    for kind, found in by_kind.items():
        assert 0.35 <= np.mean(found) <= 0.72, kind
    assert np.ptp(np.concatenate(list(by_kind.values()))) > 0.2  # and it is not always the same


def valid_shares(first: int, worlds: int, step: int = len(KINDS), sensor=STEREO) -> list[float]:
    """The mean share over three frames of each of some held-out worlds."""
    found = []
    for k in range(first, first + worlds * step, step):
        camera = DepthCamera(World(KINDS[k % len(KINDS)], HELD_OUT + k), sensor)
        found.append(float(np.mean([shares(camera.measure(i)) for i in (100, 350, 600)])))
    return found


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=list(SENSORS))
def test_noise_grows_with_depth_squared(sensor) -> None:
    sensor = replace(sensor, projector=1e9, step=0.0, blur=0.0)
    error = {}
    for metres in (1.0, 2.0, 4.0):
        image = DepthCamera(wall_world(metres), sensor).measure(0)
        error[metres] = np.nanstd(image.depth - image.truth) / metres**2
    assert error[1.0] == pytest.approx(sensor.noise, rel=0.3)
    assert error[2.0] == pytest.approx(error[1.0], rel=0.15)
    assert error[4.0] == pytest.approx(error[1.0], rel=0.15)


def test_depth_has_the_steps_of_disparity() -> None:
    sensor = replace(STRUCTURED_LIGHT, projector=1e9, noise=0.003)
    image = DepthCamera(wall_world(4.0), sensor).measure(0)
    levels = np.unique(image.depth[np.isfinite(image.depth)])
    steps = np.diff(1 / levels.astype(np.float64))
    assert 3 <= len(levels) < 15
    whole = steps / sensor.step
    np.testing.assert_allclose(whole, np.rint(whole), atol=0.01)
    assert np.abs(whole).min() == pytest.approx(1, abs=0.01)


def test_the_baseline_casts_a_shadow_on_the_left_of_near_things_and_at_the_border() -> None:
    # A plate 1 m away, 0.3 m wide, before a wall at 3 m.
    world = wall_world(3.0, (1.0, -0.15, 0.15))
    clear = replace(CLEAR, blur=0.0, noise=0.0)
    image = DepthCamera(world, clear).measure(0)
    fx, row = world.camera.fx, image.depth[120]
    plate = image.truth[120] < 2
    left, right = np.flatnonzero(plate)[[0, -1]]
    shadow = fx * STEREO.baseline * (1 / 1.0 - 1 / 3.0)
    gap = np.isnan(row[int(left - shadow) - 3 : left])
    assert gap.sum() == pytest.approx(shadow, abs=1.5)
    assert np.isfinite(row[right + 2 : -2]).all()
    border = int(np.flatnonzero(np.isfinite(row))[0])
    assert border == pytest.approx(fx * STEREO.baseline / 3.0, abs=1.5)
    other = DepthCamera(world, replace(clear, baseline=0.0)).measure(0)
    assert np.isfinite(other.depth).all()


def test_edges_have_values_between_foreground_and_background() -> None:
    world = wall_world(4.0, (1.0, -0.3, 0.3))
    flying = {}
    for blur in (0.0, 2.0):
        sensor = replace(CLEAR, blur=blur, noise=0.0, baseline=0.0)
        depth = DepthCamera(world, sensor).measure(0).depth
        flying[blur] = np.mean((depth > 1.3) & (depth < 3))
    assert flying[2.0] > 0.002
    assert flying[2.0] > 3 * flying[0.0]


def test_dark_shiny_far_and_grazing_surfaces_and_the_sun_take_depth_away() -> None:
    blank = replace(STEREO, texture=0.0)
    near, far = (shares(DepthCamera(wall_world(m), blank).measure(0)) for m in (1.0, 8.0))
    assert near > 0.85
    assert far < 0.1
    dim = shares(DepthCamera(wall_world(1.0), replace(blank, projector=0.2)).measure(0))
    assert dim < 0.3 * near
    steep = DepthCamera(World("corridor", HELD_OUT + 1), replace(CLEAR, max_incidence=60.0))
    level = DepthCamera(World("corridor", HELD_OUT + 1), CLEAR)
    assert shares(steep.measure(100)) < 0.8 * shares(level.measure(100))
    yard = World("yard", HELD_OUT + 2)
    shade, sun = (DepthCamera(yard, replace(STRUCTURED_LIGHT, sun=s)) for s in (0.0, 100.0))
    assert shares(sun.measure(100)) < 0.5 * shares(shade.measure(100))
    glossy = DepthCamera(wall_world(2.0), replace(blank, projector=8.0))
    glossy._gloss[:] = 0.0
    dull = shares(glossy.measure(0))
    glossy._gloss[:] = 0.9
    assert shares(glossy.measure(0)) < 0.2 * dull


def test_glass_has_no_depth_or_that_of_the_mirror_image() -> None:
    world = wall_world(2.0)
    world.scene.rectangles.add(*behind(world, 3.0))
    camera = DepthCamera(world, replace(CLEAR, blur=0.0, noise=0.0, baseline=0.0))
    camera._glass = np.array([0])
    depth = camera.measure(0).depth
    assert 0.2 < np.isnan(depth).mean() < 0.8
    # The wall 3 m behind the camera appears 2 m + 2 m + 3 m away.
    np.testing.assert_allclose(depth[np.isfinite(depth)], 7.0, rtol=1e-2)


def behind(world: World, metres: float) -> tuple:
    """A wall behind the camera that faces it."""
    pose = world.scene.drive.pose(0.0)
    right, down, ahead = pose.rotation.T
    corner = pose.position - metres * ahead + 50 * right - 50 * down
    return corner, 100 * down, -100 * right, Surface(1, 0, (1.0, 1.0))


def test_a_camera_of_another_place_and_size_measures_the_same_world() -> None:
    world = World("room", HELD_OUT + 3)
    mount = np.eye(4)
    mount[:3, 3] = 0.06, -0.02, 0.01
    own = CameraModel(212, 120, 190.0, 190.0, 105.5, 59.5)
    sensor = replace(CLEAR, blur=0.0, noise=0.0)
    image = DepthCamera(world, sensor, own, mount).measure(100)
    assert image.depth.shape == (120, 212)
    anchors = project_depth(image.depth, own, image.camera_from_sensor, world.camera, 0)
    truth = world.frame(100).depth[np.rint(anchors.v).astype(int), np.rint(anchors.u).astype(int)]
    error = np.abs(anchors.metres / truth - 1)
    assert len(anchors) > 1000
    assert np.mean(error < 0.02) > 0.9
    unmoved = project_depth(image.depth, own, np.eye(4), world.camera, 0)
    truth = world.frame(100).depth[np.rint(unmoved.v).astype(int), np.rint(unmoved.u).astype(int)]
    assert np.mean(np.abs(unmoved.metres / truth - 1) < 0.02) < np.mean(error < 0.02) - 0.03


def test_millimetres_are_those_of_the_metres_and_0_is_unknown() -> None:
    image = DepthCamera(World("room", HELD_OUT)).measure(100)
    mm = image.millimetres
    assert mm.dtype == np.uint16
    np.testing.assert_array_equal(mm == 0, np.isnan(image.depth))
    known = mm > 0
    assert np.abs(mm[known] / 1000 - image.depth[known]).max() <= 0.0005001


@pytest.mark.parametrize("mount", [np.eye(3), np.full((4, 4), np.nan)])
def test_a_mount_that_is_no_transform_is_refused(mount: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite 4x4 transform"):
        DepthCamera(World("room", HELD_OUT), camera_from_sensor=mount)


if __name__ == "__main__":
    count, start = (int(word) for word in sys.argv[1:3])
    for name, kind_of in SENSORS.items():
        by_world = valid_shares(start, count, 1, kind_of)
        spread = np.quantile(by_world, (0, 0.1, 0.5, 0.9, 1)).round(2)
        by_kind = [float(np.mean(by_world[k::3]).round(2)) for k in range(3)]
        within = np.mean([0.4 <= share <= 0.7 for share in by_world])
        print(
            f"{name}: mean {np.mean(by_world):.2f}, 0/10/50/90/100 % {spread}, "
            f"{dict(zip(KINDS, by_kind, strict=True))}, 40 to 70 %: {within:.2f} of the worlds"
        )
