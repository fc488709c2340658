# SPDX-License-Identifier: Apache-2.0
"""The synthetic robot drives; what a costmap makes of its depth is compared with what is there.

``test_navigation.py WORLDS FRAMES FIRST`` as a program prints the table of docs/navigation.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.occupancy import (
    TRUE_DEPTH,
    Judge,
    LayerSettings,
    Layout,
    Said,
    Score,
    VoxelLayer,
    drive,
    in_world,
)
from helpers.places import ROOT as REPO
from torch import Tensor

from dpt_ros.engine.frame import CameraModel, Frame, OutputRequest
from dpt_ros.engine.inference.backend import Backend
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.loading import load_networks
from dpt_ros.engine.output.flying_pixels import remove_flying_pixels
from dpt_ros.engine.output.label_groups import REST, load_groups
from dpt_ros.engine.output.point_cloud import points
from dpt_ros.engine.runner.host import HostRunner
from dpt_ros.engine.scale.anchors import project_scan
from dpt_ros.engine.settings import Settings
from dpt_ros.world import KINDS, Scanner, View, World

COSTMAP, SEMANTIC = (
    yaml.safe_load((REPO / "config" / f"nav2_{name}.yaml").read_text("utf-8"))
    for name in ("costmap", "semantic")
)
HELD_OUT = 1_000_000  # training took seeds 0 to 1799
RATE = 10.0  # frames per second
FAR = COSTMAP["/**/dpt"]["ros__parameters"]["points.far"]
FINE = LayerSettings()
COARSE = replace(FINE, resolution=0.2)
Condition = tuple[float, bool]
CONDITIONS: list[Condition] = [(0.0, False), (0.0, True), (0.5, False), (0.5, True)]


def name_of(strength: float, scan: bool) -> str:
    return f"smoothing {strength:g}, {'scan' if scan else 'no scan'}"


# --- the engine on a robot


class Robot:
    """The shipped network, its metric scale and the temporal filter, in several conditions.

    Args:
        networks: from ``load_networks``.
        world: where the robot drives.
        conditions: smoothing strength, and whether there is a scan.
    """

    def __init__(self, networks: Networks, world: World, conditions: list[Condition]) -> None:
        self._scanner = Scanner(world)
        self._runners = {c: HostRunner(networks, smoothing(c[0])) for c in conditions}

    def say(self, i: int, view: View) -> Said:
        scan = self._scanner.scan(i)
        anchors = project_scan(
            scan.ranges,
            scan.angle_min,
            scan.angle_increment,
            scan.range_min,
            scan.range_max,
            scan.camera_from_sensor,
            view.camera,
            scan.stamp_ns,
        )
        said = {}
        for (strength, with_scan), runner in self._runners.items():
            frame = Frame(
                view.rgb,
                "rgb8",
                view.stamp_ns,
                "camera",
                camera=view.camera,
                odom_from_camera=view.odom_from_camera,
                anchors=anchors if with_scan else None,
            )
            wanted = OutputRequest(depth=True, labels=True)
            prediction = runner.start([frame], wanted, smoothing(strength)).wait()[0]
            assert prediction.depth is not None
            assert prediction.labels is not None
            depth = torch.from_numpy(prediction.depth)
            # As in depth/points.
            solid = remove_flying_pixels(
                depth, view.camera, Settings().points_max_incidence
            ).numpy()
            said[name_of(strength, with_scan)] = solid, prediction.labels
        return said


class OncePerImage:
    """A backend that answers again for the image that it had last: the conditions see the same."""

    def __init__(self, backend: Backend) -> None:
        self.input_dtype, self.warnings = backend.input_dtype, backend.warnings
        self.capturable, self._backend = backend.capturable, backend
        self._last: tuple[Tensor, bool, bool] | None = None
        self._found: dict[str, Tensor] = {}

    def __call__(self, images: Tensor, depth: bool, labels: bool) -> dict[str, Tensor]:
        last = self._last
        if last is None or last[1:] != (depth, labels) or not torch.equal(last[0], images):
            self._found = self._backend(images, depth, labels)
            self._last = images.clone(), depth, labels
        return {name: values.clone() for name, values in self._found.items()}


def smoothing(strength: float) -> Settings:
    name = "dpt_hybrid_embedded"
    return Settings(
        device="cpu", depth_network=name, label_network=name, smoothing_strength=strength
    )


def measure(
    worlds: int, frames: int, first: int = 0, conditions: list[Condition] = CONDITIONS
) -> dict[float, dict[str, Score]]:
    """Scores over held-out worlds, by size of a cell and condition.

    Args:
        worlds, first: how many, and the number of the first.
        frames: of each.
        conditions: smoothing strength, and whether there is a scan.
    """
    networks = load_networks(smoothing(0.0))
    assert networks.depth is networks.labels is not None
    networks.depth.backend = OncePerImage(networks.depth.backend)
    total: dict[float, dict[str, Score]] = {FINE.resolution: {}, COARSE.resolution: {}}
    for k in range(first, first + worlds):
        world = World(KINDS[k % len(KINDS)], HELD_OUT + k, fps=RATE)
        robot = Robot(networks, world, conditions)
        found = drive(world, robot.say, range(100, 100 + frames), (FINE, COARSE), far=FAR)
        for sums, scores in zip(total.values(), found, strict=True):
            for name, score in scores.items():
                sums.setdefault(name, Score()).add(score)
    return total


@pytest.fixture(scope="module")
def scores() -> dict[float, dict[str, Score]]:
    return measure(worlds=6, frames=12, conditions=CONDITIONS[1:])


def test_with_true_depth_the_grid_is_that_of_the_world(scores: dict[float, dict[str, Score]]):
    for resolution, least in ((0.1, 0.93), (0.2, 0.97)):
        score = scores[resolution][TRUE_DEPTH]
        assert score.wanted > 1000
        assert score.recall >= least
        assert score.precision >= 0.995
        assert score.missed == 0


@pytest.mark.parametrize("scan", [False, True])
def test_with_the_filter_on_obstacles_within_5_m_are_where_the_costmap_has_them(
    scores: dict[float, dict[str, Score]], scan: bool
):
    # Cells of 0.2 m, one cell of tolerance. With cells of 0.1 m the network's depth error, 5 % of
    # the distance, is more than a cell from 2 m on; docs/navigation.md has more worlds.
    coarse, fine = (scores[size][name_of(0.5, scan)] for size in (0.2, 0.1))
    assert coarse.recall >= 0.95
    assert coarse.precision >= 0.9
    assert fine.recall >= 0.9
    assert fine.precision >= 0.7
    assert fine.error < 0.13


@pytest.mark.parametrize("scan", [False, True])
def test_walkers_are_in_the_costmap_and_are_called_persons(
    scores: dict[float, dict[str, Score]], scan: bool
):
    score = scores[0.2][name_of(0.5, scan)]
    assert score.walkers > 10
    # Few are seen. Those missed walk in a yard where the scan sees far things only.
    assert score.missed <= (0.25 if scan else 0.1) * score.walkers
    assert score.unnamed <= 0.1 * score.walkers


def test_the_filter_leaves_no_more_ghosts_than_the_network_alone(
    scores: dict[float, dict[str, Score]],
):
    for by_name in scores.values():
        with_filter, alone = (by_name[name_of(strength, True)] for strength in (0.5, 0.0))
        assert with_filter.vacated == alone.vacated
        assert with_filter.ghosts <= alone.ghosts + 0.1 * alone.vacated


# --- the layer


def wall_ahead(metres: float, height: float = 1.0) -> np.ndarray:
    """Points of a wall 2 m wide across the x axis."""
    y, z = np.meshgrid(np.linspace(-1, 1, 81), np.linspace(0.05, height, 39))
    return np.stack([np.full(y.size, metres), y.ravel(), z.ravel()], 1)


CAMERA = np.array([0.05, 0.05, 0.6])


def test_what_moved_away_is_cleared_by_what_is_seen_behind_it() -> None:
    layer = VoxelLayer(Layout((6.0, 6.0), 0.1))
    layer.update(wall_ahead(2.05), CAMERA)
    near = layer.layout.mask(wall_ahead(2.05))
    assert layer.occupied[near].all()
    # A higher wall behind it, and the floor in front of that: rays go through all its voxels.
    x, y = np.meshgrid(np.linspace(0.5, 4.0, 141), np.linspace(-1, 1, 81))
    floor = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], 1)
    layer.update(np.concatenate([wall_ahead(4.05, 1.6), floor]), CAMERA)
    seen = layer.layout.mask(wall_ahead(2.05) * [1, 0.4, 1])
    assert not layer.occupied[seen].any()


def test_nothing_seen_behind_clears_nothing() -> None:
    layer = VoxelLayer(Layout((6.0, 6.0), 0.1))
    layer.update(wall_ahead(2.05), CAMERA)
    before = layer.occupied
    layer.update(np.full((10, 3), np.nan), CAMERA)
    np.testing.assert_array_equal(layer.occupied, before)


def test_a_walker_in_front_of_the_sky_leaves_no_ghost_where_points_stand_for_the_sky() -> None:
    depth = np.full((48, 64), np.inf, np.float32)
    camera = CameraModel(64, 48, 55.0, 55.0, 31.5, 23.5)
    odom_from_camera = np.eye(4)
    odom_from_camera[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    odom_from_camera[:3, 3] = CAMERA
    sky, nothing = (
        in_world(points(depth, None, None, camera, far=far), odom_from_camera)
        for far in (FAR, 0.0)
    )
    for cloud, left in ((nothing, True), (sky, False)):
        layer = VoxelLayer(Layout((6.0, 6.0), 0.1))
        layer.update(np.array([[2.0, 0.0, 0.8]]), CAMERA)
        assert layer.occupied.sum() == 1
        layer.update(cloud, CAMERA)
        assert layer.occupied.any() == left


def test_height_band_and_range_limit_what_is_marked() -> None:
    layer = VoxelLayer(Layout((6.0, 6.0), 0.1))
    floor = np.array([[2.0, 0.0, 0.02], [2.0, 1.0, 0.1]])
    lintel = np.array([[2.0, -1.0, 1.9]])
    far = np.array([[5.6, 0.0, 0.5]])
    layer.update(np.concatenate([floor, lintel, far]), CAMERA)
    assert not layer.occupied.any()
    layer.update(np.array([[4.0, 0.0, 0.5]]), CAMERA)
    assert layer.occupied.sum() == 1


def test_obstacles_out_of_the_rolling_window_are_forgotten() -> None:
    layer = VoxelLayer(Layout((20.0, 6.0), 0.1))
    layer.update(wall_ahead(2.05), CAMERA)
    layer.update(np.zeros((0, 3)), CAMERA - np.array([8.0, 0, 0]))
    assert not layer.occupied.any()


def test_more_voxels_than_nav2_has_are_refused() -> None:
    with pytest.raises(ValueError, match="z_voxels is 20, but must be 1 to 16"):
        VoxelLayer(Layout((6.0, 6.0), 0.1), LayerSettings(z_voxels=20))


def test_an_obstacle_in_the_wrong_place_costs_recall_and_precision() -> None:
    world = World("room", HELD_OUT, fps=RATE)
    judge = Judge(world)
    judge.see(world.frame(0))
    right = judge.score(judge.perfect.occupied)
    assert right.recall == 1
    assert right.precision == 1
    moved = judge.score(np.roll(judge.perfect.occupied, (4, 4), (0, 1)))
    assert moved.recall < 0.7
    assert moved.precision < 0.7
    nothing = judge.score(np.zeros(judge.layout.shape, bool))
    assert nothing.recall == 0
    assert np.isnan(nothing.precision)


# --- config/nav2_costmap.yaml and config/nav2_semantic.yaml


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two parameter files as ROS reads them: the later one wins, key by key."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


BOTH = merged(COSTMAP, SEMANTIC)


def nodes(tree: dict[str, Any] = BOTH) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node's full name and parameters."""

    def walk(name: str, part: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, value in part.items():
            if key == "ros__parameters":
                yield name, value
            else:
                yield from walk(f"{name}/{key}", value)

    yield from walk("", tree)


def topics(part: dict[str, Any]) -> Iterator[str]:
    for key, value in part.items():
        if isinstance(value, dict):
            yield from topics(value)
        elif key == "topic" or (key.endswith("_topic") and not key.startswith(("cmd", "state"))):
            yield value


def published() -> set[str]:
    text = (REPO / "docs" / "topics.md").read_text("utf-8")
    table = text.partition("## Published")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE))


def test_every_topic_of_the_costmap_is_one_that_the_node_publishes() -> None:
    named = {topic for _, parameters in nodes() for topic in topics(parameters)}
    own = {"/local_costmap/published_footprint"}
    assert {name.removeprefix("/") for name in named - own} <= published()
    assert {"/depth/points", "/semantic/labels", "/semantic/label_info"} <= named


def test_the_costmap_marks_what_the_measurement_marked() -> None:
    parameters = dict(nodes())["/local_costmap/local_costmap"]
    layer = parameters["voxel_layer"]
    given = {**layer["dpt"], **layer, **parameters}
    for item in fields(LayerSettings):
        assert given[item.name] == getattr(FINE, item.name), item.name
    # One source clears with all points, floor and ceiling too, but the layer marks its band only.
    assert layer["dpt"]["min_obstacle_height"] < 0 < layer["min_obstacle_height"]
    assert layer["dpt"]["max_obstacle_height"] > layer["max_obstacle_height"]


def test_points_that_stand_for_the_sky_clear_to_the_end_and_are_marked_nowhere() -> None:
    def ranges(part: dict[str, Any], name: str) -> Iterator[float]:
        for key, value in part.items():
            if isinstance(value, dict):
                yield from ranges(value, name)
            elif key == name:
                yield value

    marked, cleared = (
        [m for _, part in nodes() for m in ranges(part, name)]
        for name in ("obstacle_max_range", "raytrace_max_range")
    )
    assert len(marked) == len(cleared) >= 2
    assert max(marked) < FAR
    # Nav2 stops two cells before a point.
    assert max(cleared) < FAR - 2 * COARSE.resolution
    settings = Settings.parse(COSTMAP["/**/dpt"]["ros__parameters"])
    assert settings.points_far == FAR


@pytest.mark.parametrize("tree", [COSTMAP, BOTH], ids=["released packages", "with labels"])
def test_every_layer_and_source_that_is_named_is_there(tree: dict[str, Any]) -> None:
    for name, parameters in nodes(tree):
        for plugin in parameters.get("plugins", []):
            assert "plugin" in parameters[plugin], (name, plugin)
            for source in parameters[plugin].get("observation_sources", "").split():
                assert isinstance(parameters[plugin][source], dict)
    monitor = dict(nodes())["/collision_monitor"]
    for part in (*monitor["observation_sources"], *monitor["polygons"]):
        assert "type" in monitor[part]


def test_the_first_stanza_needs_nothing_but_nav2() -> None:
    for name, parameters in nodes(COSTMAP):
        for plugin in parameters.get("plugins", []):
            assert parameters[plugin]["plugin"].startswith("nav2_costmap_2d::"), (name, plugin)


def test_the_semantic_layer_has_a_cost_for_every_label_group() -> None:
    groups, _ = load_groups()
    source = dict(nodes())["/local_costmap/local_costmap"]["semantic_layer"]["dpt"]
    named = [name for kind in source["class_types"] for name in source[kind]["classes"]]
    assert set(named) == {*groups, REST}  # it logs an error for each group without a type
    assert len(named) == len(set(named))


# --- the table of the docs


def rows(total: dict[float, dict[str, Score]]) -> Iterator[str]:
    yield "| cell | condition | recall | precision | error | ghosts | missed | unnamed |"
    yield "|---|---|---|---|---|---|---|---|"
    for resolution, by_name in total.items():
        for name, s in by_name.items():
            unnamed = "" if name == TRUE_DEPTH else f"{s.unnamed} of {s.walkers}"
            ghosts = f"{100 * s.ghosts / max(s.vacated, 1):.0f} %"
            yield (
                f"| {resolution:g} m | {name} | {s.recall:.3f} | {s.precision:.3f} |"
                f" {s.error:.2f} m | {ghosts} | {s.missed} of {s.walkers} | {unnamed} |"
            )


if __name__ == "__main__":
    print("\n".join(rows(measure(*(int(word) for word in sys.argv[1:4])))))
