# SPDX-License-Identifier: Apache-2.0
"""Videos for the temporal filter: a moving, turning or standing camera among walking people,
exposure steps, cuts, and objects that appear, in worlds that no shipped network was trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np

from dpt_ros.world import KINDS, Noise, View, World
from dpt_ros.world.classes import BOX, COLUMN
from dpt_ros.world.geometry import Pose, Round, Surface
from dpt_ros.world.motion import look

FIRST_SEED = 1_000_000  # training took 0 to 1799
_RATES = {"15 fps": 15.0, "7.5 fps": 7.5, "minute": 10.0}  # frames per second, else 30
SHOTS = ("moving", "turning", "standing", "exposure", "15 fps", "7.5 fps", "cut", "step", "minute")
STEP = 12  # frames that an object stays, and stays away
# share of the picture that people fill: enough to measure, and whole people rather than legs
_ENOUGH, _MOST = 0.06, 0.15
_HIDDEN = np.array([0.0, 0.0, -1000.0])


@dataclass(frozen=True)
class Shot:
    """A rendered video."""

    views: list[View]
    cuts: tuple[int, ...] = ()  # frames that have nothing to do with the one before
    steps: tuple[tuple[int, bool], ...] = ()  # frame, whether an object appeared in it or left


def make_shot(name: str, seed: int, frames: int, width: int, height: int) -> Shot:
    """Render one of ``SHOTS``; ``seed`` (not negative) chooses the world and the moment.

    Raises:
        ValueError: there is no shot of that name.
    """
    if name not in SHOTS:
        raise ValueError(f"Unknown shot {name!r}. Available: {', '.join(SHOTS)}.")
    first = FIRST_SEED + 10 * seed
    motion = name if name in ("turning", "standing", "step") else "moving"
    fps = _RATES.get(name, 30.0)
    if name == "cut":
        half = frames // 2
        one = _render(motion, first, half, fps, width, height)
        two = _render(motion, first + 7, frames - half, fps, width, height)
        # odometry goes on as if there were no cut
        onto = one[-1].odom_from_camera @ np.linalg.inv(two[0].odom_from_camera)
        late = one[-1].stamp_ns + round(1e9 / fps) - two[0].stamp_ns
        for v in two:
            pose = onto @ v.odom_from_camera
            one.append(replace(v, odom_from_camera=pose, stamp_ns=v.stamp_ns + late))
        return Shot(one, (half,))
    views = _render(motion, first, frames, fps, width, height)
    for k, view in enumerate(views):  # the gain halves and doubles again every third of a second
        if name == "exposure" and k // 10 % 2:
            views[k] = replace(view, rgb=(view.rgb * np.float32(0.55)).astype(np.uint8))
    steps = tuple((k, k // STEP % 2 == 1) for k in range(STEP, frames - STEP // 2, STEP))
    return Shot(views, (), steps if name == "step" else ())


def _render(
    motion: str, seed: int, frames: int, fps: float, width: int, height: int
) -> list[View]:
    kind = KINDS[seed // 10 % len(KINDS)]
    for later in range(10):
        noise = Noise() if motion in ("moving", "turning") else Noise(shake=0, exposure=0.05)
        world = World(kind, seed + 7919 * later, width, height, fps, noise)
        preview = World(kind, seed + 7919 * later, 64, 48, fps, Noise(0, 0, 0, 0))
        for scene in (preview.scene, world.scene):
            for k, walker in enumerate(scene.walkers):  # 1.2 m/s, on small circles 1.5 rad/s
                speed = min(1.2, 0.75 * sum(walker.radii)) * np.sign(walker.speed)
                scene.walkers[k] = replace(walker, speed=speed)
        start = _best_start(motion, preview, frames)
        if start is not None:
            break
    else:
        raise ValueError(f"No {kind} near seed {seed} shows people to a {motion} camera.")
    for each in (preview, world):
        _face_people(motion, each, start)
    first = round(start * fps)
    column = _column(preview) if motion == "step" else None
    if column is not None:
        world.scene.rounds.append(column)
    views = []
    for k in range(frames):
        if column is not None:
            shown = k // STEP % 2 == 1
            world.scene.rounds[-1] = column if shown else replace(column, center=_HIDDEN)
        views.append(world.frame(first + k))
    views[0] = replace(views[0], flow_valid=np.zeros_like(views[0].flow_valid))
    origin = views[0].stamp_ns
    return [replace(view, stamp_ns=view.stamp_ns - origin) for view in views]


def _best_start(motion: str, preview: World, frames: int) -> float | None:
    """The second of the drive at which people are seen best; None if they are never seen."""
    drive, seconds = preview.scene.drive, frames / preview.fps
    best, found = 0.01, None
    for start in np.arange(0, 60, 2.5):
        preview.scene.drive = drive
        if motion == "moving":
            early, late = drive.pose(start), drive.pose(start + min(seconds, 2.0))
            if np.dot(early.rotation[:, 2], late.rotation[:, 2]) < np.cos(0.5):
                continue  # a turn
        _face_people(motion, preview, start)
        at = start * preview.fps + np.array([0.1, 0.5, 0.9]) * frames
        shares = [preview.frame(int(i)).movers.mean() for i in at]
        score = float(np.mean(np.minimum(shares, _ENOUGH)))
        if max(shares) < _MOST and score > best:
            best, found = score, float(start)
        if best > 0.8 * _ENOUGH:
            break
    preview.scene.drive = drive
    return found


def _face_people(motion: str, world: World, start: float) -> None:
    """Replace the drive by one that stands or turns at its place at ``start``, facing people."""
    if motion == "moving" or not world.scene.walkers:
        return
    drive = world.scene.drive
    place = drive.pose(start).position
    middles = np.array([walker.center for walker in world.scene.walkers])
    way = middles[np.argmin(np.hypot(*(middles - place[:2]).T))] - place[:2]
    toward = float(np.arctan2(way[1], way[0]))

    def turning(seconds: float) -> Pose:
        """On the spot, to and fro: at most 0.6 rad/s."""
        position = drive.pose(start).position
        tremor = np.array([1.3, 2.9, 5.3]) * 2 * np.pi * seconds
        yaw = toward + 0.5 * np.sin(1.2 * (seconds - start))
        pitch, roll = np.radians(5 + 0.3 * np.sin(tremor[0])), np.radians(0.3 * np.sin(tremor[1]))
        position[2] += 0.003 * np.sin(tremor[2])
        return look(position, yaw, float(pitch), float(roll))

    def standing(seconds: float) -> Pose:
        return look(place, toward, np.radians(5.0))

    pose = turning if motion == "turning" else standing
    world.scene.drive = SimpleNamespace(pose=pose)  # type: ignore[assignment]


def _column(world: World) -> Round:
    """A column in view, at 40 % of the distance of the scene, with the surface of one there."""
    scene, pose = world.scene, world.scene.drive.pose(0.0)
    depth = world.frame(0).depth[world.camera.height // 2]
    distance = max(0.4 * float(np.median(depth[np.isfinite(depth)])), 0.7)
    place = pose.position + distance * pose.rotation[:, 2] + 0.2 * distance * pose.rotation[:, 0]
    radius, tall = 0.12 * distance, 2 * place[2]
    surfaces = [part.surface for part in scene.rounds if part.walker < 0]
    if not surfaces:  # that of a box
        table = scene.rectangles.freeze()
        box = int(np.argmax(table.label == BOX))
        surfaces = [Surface(COLUMN, int(table.texture[box]), (0.5, 0.5))]
    center = np.array([place[0], place[1], tall / 2])
    return Round(center, np.diag([radius, radius, tall / 2]), True, surfaces[0])
