# SPDX-License-Identifier: Apache-2.0
"""Occupancy grids: what Nav2's voxel layer makes of clouds, the true grid of a world, scores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np

from dpt_ros.engine.output.point_cloud import points as make_cloud
from dpt_ros.world.classes import BOX, CEILING, COLUMN, PERSON, WALL
from dpt_ros.world.geometry import Round
from dpt_ros.world.world import View, World

_MARGIN = 2.0  # metres of grid beyond the walls, for obstacles that are seen behind them
_LEAST_PIXELS = 12  # of a walker, among those looked at, for it to count as seen
_MEMORY = 3.0  # seconds for which a place that a walker has left is watched
_MOST_VOXELS = 16  # per column, in Nav2's voxel_grid


@dataclass(frozen=True)
class LayerSettings:
    """Settings of Nav2's VoxelLayer, by its own names; those of config/nav2_costmap.yaml.

    Args:
        resolution: metres per cell.
        z_resolution, z_voxels, origin_z: size, number and start of the voxels of a column, metres.
        mark_threshold: so many marked voxels do not yet make a cell occupied.
        min_obstacle_height, max_obstacle_height: metres; what is marked.
        obstacle_min_range, obstacle_max_range: metres from the camera; what is marked.
        raytrace_max_range: metres; how far is cleared.
        width: metres; side of the window that rolls along with the robot.
    """

    resolution: float = 0.1
    z_resolution: float = 0.1
    z_voxels: int = _MOST_VOXELS
    origin_z: float = 0.0
    mark_threshold: int = 0
    min_obstacle_height: float = 0.15
    max_obstacle_height: float = 1.0
    obstacle_min_range: float = 0.0
    obstacle_max_range: float = 5.0
    raytrace_max_range: float = 6.0
    width: float = 12.0


class Layout:
    """Cells over a world of half size ``half`` (metres) around the origin; z is up."""

    def __init__(self, half: tuple[float, float], resolution: float) -> None:
        self.resolution = resolution
        cells = np.ceil((np.array(half) + _MARGIN) / resolution).astype(int)
        self.shape: tuple[int, int] = (2 * int(cells[0]), 2 * int(cells[1]))
        self.origin = -cells * resolution
        centers = [
            o + (np.arange(n) + 0.5) * resolution
            for o, n in zip(self.origin, self.shape, strict=True)
        ]
        self._x, self._y = centers[0][:, None], centers[1][None, :]

    def cells(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns and rows of (N, 2+) points, those outside of the grid left out."""
        at = np.floor((points[:, :2] - self.origin) / self.resolution).astype(np.intp)
        inside = ((at >= 0) & (at < self.shape)).all(1)
        return at[inside, 0], at[inside, 1]

    def mask(self, points: np.ndarray) -> np.ndarray:
        """Bool grid of the cells that hold a point."""
        grid = np.zeros(self.shape, bool)
        grid[self.cells(points)] = True
        return grid

    def within(self, position: np.ndarray, metres: float) -> np.ndarray:
        """Bool grid of the cells whose centres are nearer than that."""
        square = (self._x - position[0]) ** 2 + (self._y - position[1]) ** 2
        return np.asarray(square < metres**2)

    def window(self, position: np.ndarray, width: float) -> np.ndarray:
        """Bool grid of the square window around a robot."""
        reach = width / 2
        inside = np.abs(self._x - position[0]) < reach
        return np.asarray(inside & (np.abs(self._y - position[1]) < reach))


class VoxelLayer:
    """The obstacles that Nav2's VoxelLayer would hold after the clouds given to it.

    Each cloud first clears the voxels on the way from the camera to each of its points, up to two
    cells before the point and to ``raytrace_max_range``, then marks the voxels of points within
    height band and range. A cell is occupied while more than ``mark_threshold`` of its voxels are
    marked. After nav2_costmap_2d/plugins/voxel_layer.cpp and
    nav2_voxel_grid/voxel_grid.hpp of ros-navigation/navigation2, branch kilted.

    Args:
        layout: of the grid.
        settings: of the layer.

    Raises:
        ValueError: more voxels than a column of Nav2 can have.
    """

    def __init__(self, layout: Layout, settings: LayerSettings = LayerSettings()) -> None:
        if not 1 <= settings.z_voxels <= _MOST_VOXELS:
            raise ValueError(f"z_voxels is {settings.z_voxels}, but must be 1 to {_MOST_VOXELS}.")
        self.layout, self.settings = layout, settings
        self._voxels = np.zeros((*layout.shape, settings.z_voxels), bool)
        self._low = np.array([*layout.origin, settings.origin_z])
        self._size = np.array([layout.resolution, layout.resolution, settings.z_resolution])

    @property
    def occupied(self) -> np.ndarray:
        """Bool grid."""
        return np.asarray(self._voxels.sum(2) > self.settings.mark_threshold)

    def update(self, points: np.ndarray, position: np.ndarray) -> None:
        """Take a cloud.

        Args:
            points: (N, 3) metres in the world; NaN is passed over.
            position: (3,) of the camera.
        """
        s = self.settings
        points = points[np.isfinite(points).all(1)].astype(np.float64)
        self._voxels[~self.layout.window(position, s.width)] = False
        self._clear(points, position)
        away = np.linalg.norm(points - position, axis=1)
        near = (away >= s.obstacle_min_range) & (away < s.obstacle_max_range)
        self._voxels[self._inside(self._index(points[near & band(points, s)]))] = True

    def _clear(self, points: np.ndarray, position: np.ndarray) -> None:
        # One ray per voxel is enough, and much less than one per pixel.
        _, first = np.unique(self._number(points), return_index=True)
        ray = points[first] - position
        length = np.linalg.norm(ray, axis=1)
        ray, length = ray[length > 1e-6], length[length > 1e-6]
        end = position + ray * np.maximum(1 - 2 * self._size[0] / length, 0)[:, None]
        # Only as far as the floor and the top of the grid.
        low, high = self._low[2], self._low[2] + self._size[2] * self._voxels.shape[2] - 0.01
        fall = end[:, 2] - position[2]
        over = (np.clip(end[:, 2], low, high) - position[2]) / np.where(fall == 0, 1, fall)
        over = np.where(fall == 0, 1, np.clip(over, 0, 1))
        end = position + (end - position) * over[:, None]
        # Bresenham, all lines at once.
        a, b = self._index(position[None]), self._index(end)
        run = np.abs(b - a)
        steps = run.max(1)
        away = np.linalg.norm((end - position) / self._size, axis=1)
        most = self.settings.raytrace_max_range / self._size[0]
        count = (steps * np.minimum(1, most / np.maximum(away, 1e-9))).astype(np.intp) + 1
        line = np.repeat(np.arange(len(end)), count)
        step = np.arange(len(line)) - np.repeat(np.cumsum(count) - count, count)
        half = (np.maximum(steps, 1) // 2)[line, None]
        moved = (step[:, None] * run[line] + half) // np.maximum(steps, 1)[line, None]
        self._voxels[self._inside(a + np.sign(b - a)[line] * moved)] = False

    def _index(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) voxels of points, in the grid or not."""
        return np.floor((points - self._low) / self._size).astype(np.intp)

    def _number(self, points: np.ndarray) -> np.ndarray:
        """(N,) one number per voxel, also of those outside of the grid."""
        x, y, z = (self._index(points) + 5_000).T
        return np.asarray((x * 10_000 + y) * 10_000 + z)

    def _inside(self, index: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(index[((index >= 0) & (index < self._voxels.shape)).all(1)].T)


def band(points: np.ndarray, settings: LayerSettings) -> np.ndarray:
    """(N,) bool: which of (N, 3) points are within the height band that is marked."""
    z = points[:, 2]
    return np.asarray((z >= settings.min_obstacle_height) & (z <= settings.max_obstacle_height))


def in_world(cloud: np.ndarray, odom_from_camera: np.ndarray) -> np.ndarray:
    """(N, 3) points of an organised cloud (``output.point_cloud.points``) in the world's frame."""
    points = np.stack([cloud[name].ravel() for name in "xyz"], 1).astype(np.float64)
    return points @ odom_from_camera[:3, :3].T + odom_from_camera[:3, 3]


class TrueGrid:
    """What stands in a world, within the height band, from its geometry.

    Args:
        world: any.
        layout: of the grid.
        settings: for the height band.
    """

    def __init__(self, world: World, layout: Layout, settings: LayerSettings) -> None:
        self._world, self._layout, self._settings = world, layout, settings
        table = world.scene.rectangles.freeze()
        grid = np.zeros(layout.shape, bool)
        for k in range(len(table.label)):
            points = self._rectangle(table.origin[k], table.u[k], table.v[k], table.size[k])
            if table.disc[k]:
                middle = table.origin[k] + (table.u[k] + table.v[k]) * table.size[k, 0] / 2
                points = points[np.linalg.norm(points - middle, axis=1) <= table.size[k, 0] / 2]
            if table.normal[k, 2] > 0.9 and table.label[k] in (WALL, BOX, COLUMN):
                # The top of something solid, which is solid below too.
                points[:, 2] = np.minimum(points[:, 2], settings.max_obstacle_height)
            if table.label[k] != CEILING:
                grid |= layout.mask(points[band(points, settings)])
        for part in world.scene.rounds:
            grid |= layout.mask(self._filled(part))
        self.static = grid

    def _rectangle(
        self, origin: np.ndarray, u: np.ndarray, v: np.ndarray, size: np.ndarray
    ) -> np.ndarray:
        step = self._layout.resolution / 4
        a, b = (np.linspace(0, length, int(length / step) + 2) for length in size)
        points = origin + a[:, None, None] * u + b[None, :, None] * v
        return np.asarray(points.reshape(-1, 3))

    def _filled(self, part: Round) -> np.ndarray:
        """Points inside of a round, within the band."""
        unit = np.linspace(-1, 1, 9)
        x, y, z = (a.ravel() for a in np.meshgrid(unit, unit, np.linspace(-1, 1, 25)))
        inside = x**2 + y**2 + (0 if part.tube else z**2) <= 1
        points = np.stack([x, y, z], 1)[inside] @ part.axes.T + part.center
        return np.asarray(points[band(points, self._settings)])

    def walkers(self, seconds: float) -> list[np.ndarray]:
        """Bool grid of each walker at a time."""
        grids = []
        for k, walker in enumerate(self._world.scene.walkers):
            points = np.concatenate([self._filled(p) for p in walker.parts(seconds, k)])
            grids.append(self._layout.mask(points))
        return grids

    def nearest_walker(self, points: np.ndarray, seconds: float) -> np.ndarray:
        """(N,) index of the walker that each of (N, 3) points is nearest to."""
        places = [walker.place(seconds)[0] for walker in self._world.scene.walkers]
        away = [np.hypot(*(points[:, :2] - place).T) for place in places]
        return np.argmin(away, axis=0)


@dataclass
class Score:
    """Counts over frames; they add up over worlds.

    Args:
        wanted, found: cells of true obstacles that the camera has seen; those of them with an
            occupied cell at most one cell away.
        occupied, right: occupied cells, but for those where a walker was before, which count as
            ghosts; those of them with a true obstacle at most one cell away.
        off_by_metres: sum over occupied cells of the distance to the nearest true obstacle.
        vacated, ghosts: cells that a walker has left within three seconds and that a camera with
            true depth has seen free since; those of them still occupied.
        walkers, missed, unnamed: walkers seen, once per frame; those without an occupied cell at
            most one cell away; those without a point labelled person there.
    """

    wanted: int = 0
    found: int = 0
    occupied: int = 0
    right: int = 0
    off_by_metres: float = 0.0
    vacated: int = 0
    ghosts: int = 0
    walkers: int = 0
    missed: int = 0
    unnamed: int = 0

    def add(self, other: Score) -> None:
        """Take another's counts too."""
        for item in fields(self):
            total = getattr(self, item.name) + getattr(other, item.name)
            setattr(self, item.name, total)

    @property
    def recall(self) -> float:
        """Share of the true obstacle cells that were found, NaN without any."""
        return _ratio(self.found, self.wanted)

    @property
    def precision(self) -> float:
        """Share of the occupied cells that are right, NaN without any."""
        return _ratio(self.right, self.occupied)

    @property
    def error(self) -> float:
        """Mean distance of an occupied cell from the nearest true one, metres."""
        return _ratio(self.off_by_metres, self.occupied)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


class Judge:
    """Knows the truth of a drive through a world and scores occupancy grids against it.

    Args:
        world: where the robot drives.
        settings: of the layer that is judged.
        within: metres from the camera; nothing farther away counts.
        stride: pixels from one that is looked at to the next.
        far: see ``drive``.
    """

    def __init__(
        self,
        world: World,
        settings: LayerSettings = LayerSettings(),
        within: float = 5.0,
        stride: int = 4,
        far: float = 0.0,
    ) -> None:
        self.layout = Layout(world.scene.half, settings.resolution)
        self.truth = TrueGrid(world, self.layout, settings)
        self.settings, self._within = settings, within
        self._stride, self._far = stride, far
        # What a camera with true depth makes of the same drive.
        self.perfect = VoxelLayer(self.layout, settings)
        self._seen = np.zeros(self.layout.shape, bool)
        self._walked = np.zeros(self.layout.shape, bool)
        self._trail: deque[tuple[float, np.ndarray]] = deque()

    def see(self, view: View) -> None:
        """Take the truth of the next frame, before grids of this frame are scored."""
        stride, pose = self._stride, view.odom_from_camera
        cloud = make_cloud(view.depth, None, None, view.camera, stride, self._far)
        points = in_world(cloud, pose)
        good = np.isfinite(points).all(1)
        points, moving = points[good], view.movers[::stride, ::stride].ravel()[good]
        self._position, self._seconds = pose[:3, 3], view.stamp_ns * 1e-9
        self.perfect.update(points, self._position)
        near = np.linalg.norm(points - self._position, axis=1) < self._within
        hit = near & band(points, self.settings)
        window = self.layout.window(self._position, self.settings.width)
        self._seen = window & (self._seen | self.layout.mask(points[hit & ~moving]))
        self._moving_cells = self.layout.mask(points[hit & moving])
        self._walkers = self.truth.walkers(self._seconds)
        for cells in self._walkers:
            self._walked |= cells
        self._visible: list[int] = []
        if (hit & moving).any():
            owner = self.truth.nearest_walker(points[hit & moving], self._seconds)
            pixels = np.bincount(owner, minlength=len(self._walkers))
            self._visible = np.flatnonzero(pixels >= _LEAST_PIXELS).tolist()
        while self._trail and self._trail[0][0] < self._seconds - _MEMORY:
            self._trail.popleft()
        self._trail.append((self._seconds, self._moving_cells))

    def score(
        self,
        occupied: np.ndarray,
        points: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> Score:
        """The counts of one grid at this frame.

        Args:
            occupied: bool grid.
            points: (N, 3) of this frame in the world.
            labels: (N,) class ids of the points.
        """
        near = self.layout.within(self._position, self._within)
        now = np.any(self._walkers, axis=0) if self._walkers else np.zeros_like(near)
        true = self.truth.static | now
        wanted = ((self._seen & self.truth.static) | (self._moving_cells & now)) & near
        claimed = occupied & near & ~(_wider(self._walked) & ~_wider(true))
        away = cv2.distanceTransform((~true).astype(np.uint8), cv2.DIST_L2, 5)
        trail = np.any([cells for _, cells in self._trail], axis=0)
        vacated = trail & near & ~_wider(true) & ~self.perfect.occupied
        persons = np.zeros_like(near)
        if points is not None and labels is not None:
            persons = self.layout.mask(points[(labels == PERSON) & np.isfinite(points[:, 2])])
        seen = [self._walkers[k] for k in self._visible]
        around = [_wider(cells) for cells in seen]
        return Score(
            int(wanted.sum()),
            int((wanted & _wider(occupied)).sum()),
            int(claimed.sum()),
            int((claimed & _wider(true)).sum()),
            float(away[claimed].sum()) * self.layout.resolution,
            int(vacated.sum()),
            int((vacated & occupied).sum()),
            len(seen),
            sum(not (cells & occupied).any() for cells in around),
            sum(not (cells & persons).any() for cells in around),
        )


def _wider(grid: np.ndarray) -> np.ndarray:
    """The grid with the eight neighbours of every cell."""
    wide = cv2.dilate(grid.astype(np.uint8), np.ones((3, 3), np.uint8))
    return np.asarray(wide, bool)


# What is said of a frame by the name of who says it: depth (H, W) in metres, labels (H, W).
Said = Mapping[str, tuple[np.ndarray, np.ndarray]]
TRUE_DEPTH = "true depth"


def drive(
    world: World,
    say: Callable[[int, View], Said],
    frames: range,
    settings: Sequence[LayerSettings] = (LayerSettings(),),
    stride: int = 4,
    warm_up: int = 5,
    far: float = 0.0,
) -> list[dict[str, Score]]:
    """Drive through a world and score the grids made of what is said of its frames.

    Args:
        world: where the robot drives.
        say: gets the frame's number and the frame.
        frames: numbers of the frames that the robot sees; the rate is that of the world.
        settings: of the layers; each has its own grids.
        stride: pixels from point to point.
        warm_up: frames before the first one that is scored.
        far: metres to the points that stand for "beyond range" (``output.point_cloud.points``).

    Returns:
        The scores by name, for each of ``settings``; under ``TRUE_DEPTH`` those of a camera that
        sees depth as it is, which is the best that the layer can do.
    """
    judges = [Judge(world, one, stride=stride, far=far) for one in settings]
    layers: list[dict[str, VoxelLayer]] = [{} for _ in settings]
    scores: list[dict[str, Score]] = [{TRUE_DEPTH: Score()} for _ in settings]
    for count, i in enumerate(frames):
        view = world.frame(i)
        pose = view.odom_from_camera
        clouds = {
            name: make_cloud(depth, None, labels, view.camera, stride, far)
            for name, (depth, labels) in say(i, view).items()
        }
        for judge, layer, score in zip(judges, layers, scores, strict=True):
            judge.see(view)
            for name, cloud in clouds.items():
                points = in_world(cloud, pose)
                grid = layer.setdefault(name, VoxelLayer(judge.layout, judge.settings))
                grid.update(points, pose[:3, 3])
                if count >= warm_up:
                    labels = cloud["label"].ravel()
                    found = judge.score(grid.occupied, points, labels)
                    score.setdefault(name, Score()).add(found)
            if count >= warm_up:
                score[TRUE_DEPTH].add(judge.score(judge.perfect.occupied))
    return scores
