# SPDX-License-Identifier: Apache-2.0
"""The synthetic world: same bytes every time, and a truth that is true."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import dpt_ros.data
from dpt_ros.world import CLASSES, KINDS, Noise, World
from dpt_ros.world.classes import CEILING, FLOOR, GRASS, PERSON, SKY, WALL
from dpt_ros.world.geometry import Rays, Rectangles, Round, Surface, draw
from dpt_ros.world.motion import look
from dpt_ros.world.world import View

CLEAN = Noise(0, 0, 0, 0)
SMALL = {"width": 160, "height": 120}


def points_of(view: View) -> np.ndarray:
    """Every pixel's place in odom, (H, W, 3), from depth, intrinsics and pose."""
    camera, pose = view.camera, view.odom_from_camera
    y, x = np.indices(view.depth.shape)
    ray = np.stack(
        [(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones(x.shape)], -1
    )
    with np.errstate(invalid="ignore"):
        return (ray * view.depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]


def same(a: View, b: View) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("rgb", "depth", "labels", "flow", "flow_valid", "movers", "odom_from_camera")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_depends_on_seed_and_number_alone(kind: str) -> None:
    first = World(kind, 5, **SMALL)
    in_order = [first.frame(i) for i in range(4)]
    again = World(kind, 5, **SMALL)
    backwards = [again.frame(i) for i in (3, 0, 2, 1)]
    for a, b in zip(in_order, (backwards[k] for k in (1, 3, 2, 0)), strict=True):
        assert same(a, b)
    assert not np.array_equal(in_order[1].rgb, World(kind, 6, **SMALL).frame(1).rgb)


def test_frames_gives_what_frame_gives() -> None:
    world = World("room", 1, **SMALL)
    listed = list(world.frames(3, start=10, step=5))
    assert [view.stamp_ns for view in listed] == [round(i * 1e9 / 30) for i in (10, 15, 20)]
    assert all(same(view, world.frame(i)) for view, i in zip(listed, (10, 15, 20), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 3])
def test_floor_ceiling_and_walls_lie_where_the_room_has_them(kind: str, seed: int) -> None:
    world = World(kind, seed, noise=CLEAN)
    hx, hy = world.scene.half
    seen = 0
    for view in world.frames(4, step=150):
        at = points_of(view)
        ground = (view.labels == FLOOR) | (view.labels == GRASS)
        assert np.abs(at[ground][:, 2]).max() < 0.02  # paving lies 1.5 cm high
        above = view.labels == CEILING
        assert np.allclose(at[above][:, 2], world.scene.height, atol=2e-3)
        wall = at[view.labels == WALL]
        if kind != "yard":  # a yard has sheds
            off = np.minimum(np.abs(np.abs(wall[:, 0]) - hx), np.abs(np.abs(wall[:, 1]) - hy))
            assert off.max() < 0.025  # pictures hang 2 cm in front of the wall
        seen += ground.sum() + len(wall)
        inside = np.isfinite(view.depth)
        assert (np.abs(at[inside]) < [hx + 0.01, hy + 0.01, 5]).all()
    assert seen > 10_000


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_only_a_yard_has_sky_and_sky_has_no_depth(kind: str, seed: int) -> None:
    view = World(kind, seed, **SMALL).frame(40 * seed)
    sky = view.labels == SKY
    assert np.array_equal(sky, np.isinf(view.depth))
    assert view.labels.min() >= 1
    assert view.labels.max() <= len(CLASSES)
    assert view.depth.min() > 0.05
    if kind != "yard":
        assert not sky.any()


def test_a_ball_and_a_pillar_are_as_far_as_geometry_says() -> None:
    world = World("room", 0, noise=CLEAN)
    rays, looks = Rays(world.camera), Surface(7, 0, (1.0, 1.0))
    pose = look(np.zeros(3), 0.0, 0.0)
    floor = Rectangles()
    floor.add([-50, -50, -9], [100, 0, 0], [0, 100, 0], looks)
    ball = Round(np.array([5.0, 0.0, 0.0]), np.eye(3) * 0.5, False, looks)
    pillar = Round(np.array([4.0, 1.0, 0.0]), np.diag([0.25, 0.25, 2.0]), True, looks)
    depth = 1 / np.maximum(draw(rays, pose, floor.freeze(), [ball, pillar]).inverse, 1e-6)
    camera = world.camera
    assert depth[119:121, 159:161] == pytest.approx(4.5, abs=1e-3)
    # the pixel whose ray meets the pillar's axis sees its near side
    column = camera.cx - camera.fx * 1.0 / 4.0
    distance = np.hypot(4.0, 1.0) - 0.25
    assert depth[119, round(column)] == pytest.approx(
        distance * 4.0 / np.hypot(4.0, 1.0), abs=5e-3
    )


@pytest.mark.parametrize("kind", KINDS)
def test_flow_of_standing_things_follows_from_depth_and_pose(kind: str) -> None:
    world = World(kind, 4, noise=CLEAN)
    before, now = world.frame(59), world.frame(60)
    camera = now.camera
    still = ~now.movers & np.isfinite(now.depth)
    at = points_of(now)[still]
    back = np.linalg.inv(before.odom_from_camera)
    seen = at @ back[:3, :3].T + back[:3, 3]
    projected = np.stack(
        [
            camera.fx * seen[:, 0] / seen[:, 2] + camera.cx,
            camera.fy * seen[:, 1] / seen[:, 2] + camera.cy,
        ],
        1,
    )
    y, x = np.indices(now.depth.shape)
    assert np.abs(now.flow[still] + np.stack([x, y], -1)[still] - projected).max() < 1e-2


def _with_walker_in_sight() -> tuple[World, int]:
    for seed in range(20):
        world = World("yard", seed, noise=CLEAN)
        for i in range(1, 1500, 100):
            if world.frame(i).movers.sum() > 1500:
                return world, i
    raise AssertionError("no walker near the camera in twenty yards")


def test_flow_of_a_walker_leads_to_the_same_walker_in_the_frame_before() -> None:
    world, i = _with_walker_in_sight()
    before, now = world.frame(i - 1), world.frame(i)
    assert np.array_equal(now.movers, now.labels == PERSON)
    valid = now.movers & now.flow_valid
    assert valid.sum() > 0.8 * now.movers.sum()
    y, x = np.indices(now.depth.shape)
    there = np.rint(now.flow + np.stack([x, y], -1)).astype(int)[valid]
    assert (before.labels[there[:, 1], there[:, 0]] == PERSON).mean() > 0.98
    # and it is not the flow that a standing thing would have there
    camera = now.camera
    back = np.linalg.inv(before.odom_from_camera)
    seen = points_of(now)[valid] @ back[:3, :3].T + back[:3, 3]
    still = np.stack(
        [
            camera.fx * seen[:, 0] / seen[:, 2] + camera.cx,
            camera.fy * seen[:, 1] / seen[:, 2] + camera.cy,
        ],
        1,
    )
    assert np.abs(now.flow[valid] + np.stack([x, y], -1)[valid] - still).mean() > 0.05


def test_a_walker_moves_on_average_at_its_speed() -> None:
    walker = next(w for seed in range(9) for w in World("yard", seed).scene.walkers)
    lap = np.array([walker.place(t)[0] for t in np.arange(0, 30, 0.05)])
    speed = np.hypot(*np.diff(lap, axis=0).T).mean() / 0.05
    assert speed == pytest.approx(abs(walker.speed), rel=0.35)


@pytest.mark.parametrize("kind", KINDS)
def test_following_the_flow_finds_the_same_depth_and_label(kind: str) -> None:
    world = World(kind, 8, noise=CLEAN)
    before, now = world.frame(99), world.frame(100)
    y, x = np.indices(now.depth.shape)
    there = np.rint(now.flow + np.stack([x, y], -1)).astype(int)
    ok = now.flow_valid
    assert ok.mean() > 0.8
    tx, ty = there[ok].T
    assert (before.labels[ty, tx] == now.labels[ok]).mean() > 0.99
    finite = np.isfinite(now.depth[ok]) & np.isfinite(before.depth[ty, tx])
    ratio = before.depth[ty, tx][finite] / now.depth[ok][finite]
    assert np.percentile(np.abs(ratio - 1), 95) < 0.06  # the camera moves 2 cm a frame


def test_the_first_frame_has_no_valid_flow() -> None:
    assert not World("room", 0, **SMALL).frame(0).flow_valid.any()


def test_the_camera_never_touches_anything() -> None:
    for kind in KINDS:
        for seed in range(3):
            world = World(kind, seed, width=32, height=24)
            nearest = min(float(world.frame(i).depth.min()) for i in range(0, 3000, 150))
            assert nearest > 0.2, (kind, seed)


def test_the_same_seed_looks_the_same_at_any_size() -> None:
    small, large = (
        World("corridor", 2, 160, 120, noise=CLEAN),
        World("corridor", 2, 640, 480, noise=CLEAN),
    )
    a, b = small.frame(30), large.frame(30)
    assert b.rgb.shape == (480, 640, 3)
    assert np.array_equal(a.odom_from_camera, b.odom_from_camera)
    middle = b.depth.reshape(120, 4, 160, 4)[:, 1:3, :, 1:3].mean((1, 3))
    assert np.median(np.abs(middle / a.depth - 1)) < 1e-3


def test_noise_changes_the_picture_and_not_the_truth() -> None:
    clean, dirty = World("room", 3, noise=CLEAN), World("room", 3, noise=Noise(shake=0))
    a, b = clean.frame(50), dirty.frame(50)
    assert np.array_equal(a.depth, b.depth)
    assert np.array_equal(a.labels, b.labels)
    assert not np.array_equal(a.rgb, b.rgb)
    assert np.abs(a.rgb.astype(int) - b.rgb).mean() < 60


def test_poses_are_rigid_and_the_camera_looks_ahead_and_slightly_down() -> None:
    pose = World("yard", 1, **SMALL).frame(10).odom_from_camera
    assert pose.dtype == np.float64
    assert np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3))
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    assert pose[2, 3] == pytest.approx(0.6, abs=0.04)
    assert -0.25 < pose[2, 2] < 0  # the optical axis points a little below the horizon
    assert pose[2, 1] < -0.9  # and the image's y axis downwards


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"kind": "attic"}, "'attic'"),
        ({"kind": "room", "seed": -1}, "-1"),
        ({"kind": "room", "width": 0}, "0x240"),
        ({"kind": "room", "fps": 0.0}, "0.0 frames/s"),
    ],
)
def test_impossible_worlds_are_refused_with_a_sentence(arguments: dict, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        World(**arguments)


def test_a_negative_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="-3"):
        World("room").frame(-3)


def test_the_label_file_names_the_classes_in_order() -> None:
    file = json.loads((Path(dpt_ros.data.__file__).parent / "labels_world.json").read_text())
    assert tuple(entry["name"] for entry in file["classes"]) == CLASSES
