# SPDX-License-Identifier: Apache-2.0
"""A planar laser scanner on the robot that carries the camera of a synthetic world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpt_ros.engine.frame import CameraModel
from dpt_ros.world.geometry import Pose, Rays, draw, reciprocal
from dpt_ros.world.world import World

_BEAMS = 720  # over the full circle
_RANGE_MIN = 0.1  # metres
_QUARTER = 1024  # columns of the four one-row images of 90 degrees that the ranges come from
CAMERA_PITCH = np.radians(5.0)  # nominal, below the horizon; see motion.Drive
BELOW_CAMERA = 0.3  # metres


@dataclass(frozen=True)
class Scan:
    """A planar scan; the fields are those of sensor_msgs/LaserScan.

    Args:
        ranges: (N,) float32 metres, +Inf where nothing is within range (REP 117).
        angle_min, angle_increment: radians, counter-clockwise about the scanner's Z.
        range_min, range_max: metres.
        camera_from_sensor: (4, 4) float64, from the scanner's frame (REP 103: x forward, y left,
            z up) into the camera's optical frame.
        stamp_ns: when it was measured.
    """

    ranges: np.ndarray
    angle_min: float
    angle_increment: float
    range_min: float
    range_max: float
    camera_from_sensor: np.ndarray
    stamp_ns: int


def level_mount(pitch: float = CAMERA_PITCH, below: float = BELOW_CAMERA) -> np.ndarray:
    """camera_from_sensor, (4, 4), of a level scanner under a camera that looks down by ``pitch``.

    Args:
        pitch: radians below the horizon.
        below: metres from the camera down to the scanner.
    """
    c, s = np.cos(pitch), np.sin(pitch)
    mount = np.eye(4)
    # columns: the scanner's forward, left and up in the optical frame
    mount[:3, :3] = np.array([[0, -s, c], [-1, 0, 0], [0, -c, -s]]).T
    mount[:3, 3] = -below * mount[:3, 2]
    return mount


class Scanner:
    """A scanner 0.3 m below the camera, rigidly fixed to it and level at the nominal pitch.

    It shakes with the camera, and is not quite level where the camera's true pitch differs from
    the nominal one. ``scan(i)`` depends on the arguments and ``i`` alone.

    Args:
        world: that it measures.
        noise: standard deviation of a range, metres.
        range_max: metres.
    """

    def __init__(self, world: World, noise: float = 0.01, range_max: float = 12.0) -> None:
        self._world, self._noise, self._range_max = world, noise, range_max
        self.camera_from_sensor = level_mount()
        self._table = world.scene.rectangles.freeze()
        half = _QUARTER / 2
        self._rays = Rays(CameraModel(_QUARTER, 1, half, half, half - 0.5, 0.0))

    def scan(self, i: int) -> Scan:
        """The scan at the time of frame ``i``."""
        world, seconds = self._world, i / self._world.fps
        rounds = world.scene.rounds_at(seconds)
        odom_from_sensor = world.scene.drive.pose(seconds).matrix() @ self.camera_from_sensor
        forward, left, up = odom_from_sensor[:3, :3].T
        position = odom_from_sensor[:3, 3]
        rows = []
        for quarter in range(4):  # from -180 degrees on
            turn = np.radians(-135 + 90 * quarter)
            ahead = np.cos(turn) * forward + np.sin(turn) * left
            right = np.sin(turn) * forward - np.cos(turn) * left
            pose = Pose(position, np.stack([right, -up, ahead], 1))
            inverse = draw(self._rays, pose, self._table, rounds).inverse[0]
            # columns go to the right, angles to the left; per metre of range, not of depth
            rows.append((inverse / np.hypot(1.0, self._rays.x))[::-1])
        circle = np.concatenate(rows)
        step = 2 * np.pi / _BEAMS
        angles = -np.pi + step * np.arange(_BEAMS)
        part, within = np.divmod(angles + np.pi, np.pi / 2)
        column = np.rint(_QUARTER / 2 * (1 + np.tan(within - np.pi / 4)) - 0.5)
        column = np.clip(column, 0, _QUARTER - 1)
        at = (np.minimum(part, 3) * _QUARTER + column).astype(np.intp)
        ranges = reciprocal(circle[at].astype(np.float64), np.inf)
        rng = np.random.default_rng([world.seed, 7, i])
        ranges += self._noise * rng.standard_normal(_BEAMS)
        limits = _RANGE_MIN, self._range_max
        within_range = (ranges >= limits[0]) & (ranges <= limits[1])
        ranges = np.where(within_range, ranges, np.inf).astype(np.float32)
        stamp = round(i * 1e9 / world.fps)
        return Scan(ranges, -np.pi, step, *limits, self.camera_from_sensor, stamp)
