# SPDX-License-Identifier: Apache-2.0
"""Motion: the robot that carries the camera, and the walkers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpt_ros.world.geometry import Pose, Round, Surface

CAMERA_HEIGHT = 0.6  # metres above the floor: one robot, so that the floor tells the scale
_RATE = 30.0  # samples per second of the stored drive


class Drive:
    """A robot's endless drive around a closed curve, at a limited speed and turning rate."""

    def __init__(self, curve: np.ndarray, rng: np.random.Generator, shake: float = 1.0) -> None:
        """``curve``: (N, 2) metres, its end leads to its start; ``shake`` scales the jitter."""
        closed = np.vstack([curve, curve[:1]])
        step = np.diff(closed, axis=0)
        heading = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
        laps = np.round((heading[-1] - heading[0]) / (2 * np.pi))
        turn = np.append(heading[1:], heading[0] + 2 * np.pi * laps)
        speed, turning = rng.uniform(0.35, 0.8), rng.uniform(0.5, 0.8)
        seconds = np.maximum(np.hypot(*step.T) / speed, np.abs(turn - heading) / turning)
        clock = np.concatenate([[0.0], np.cumsum(seconds)])
        samples = max(int(clock[-1] * _RATE), 8)
        self._period = samples / _RATE
        at = np.linspace(0, clock[-1], samples, endpoint=False)
        self._xy = np.stack([np.interp(at, clock, closed[:, k]) for k in range(2)], 1)
        direction = np.interp(at, clock[:-1] + seconds / 2, heading, period=None)
        lap = turn[-1] - heading[0]
        self._lap = 2 * np.pi * np.round(lap / (2 * np.pi))
        self._yaw = _smooth(direction - self._lap * np.arange(samples) / samples, 15)
        self._start = rng.uniform(0, self._period)
        self._pitch = np.radians(rng.normal(5.0, 0.7))
        self._height = CAMERA_HEIGHT * rng.normal(1.0, 0.01)
        self._shake = shake
        self._rate = rng.uniform(0.7, 9.0, (4, 3))
        self._phase = rng.uniform(0, 2 * np.pi, (4, 3))

    def pose(self, seconds: float) -> Pose:
        """The camera's pose at a time."""
        at = (seconds + self._start) / self._period
        k = (at % 1.0) * len(self._xy)
        low, part = int(k) % len(self._xy), k % 1.0
        high = (low + 1) % len(self._xy)
        x, y = (1 - part) * self._xy[low] + part * self._xy[high]
        yaw = (1 - part) * self._yaw[low] + part * self._yaw[high] + self._lap * at
        wobble = self._shake * np.sin(2 * np.pi * self._rate * seconds + self._phase).mean(1)
        yaw += np.radians(0.4) * wobble[0]
        pitch = self._pitch + np.radians(0.6) * wobble[1]
        roll = np.radians(0.6) * wobble[2]
        return look(np.array([x, y, self._height + 0.006 * wobble[3]]), yaw, pitch, roll)

    @property
    def curve(self) -> np.ndarray:
        """(N, 2) metres, the camera's path on the ground."""
        return self._xy


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Moving average of a closed sequence."""
    padded = np.concatenate([values[-width:], values, values[:width]])
    total = np.cumsum(np.insert(padded, 0, 0.0))
    window = 2 * width + 1
    return (total[window:] - total[:-window]) / window


def look(position: np.ndarray, yaw: float, pitch: float, roll: float = 0.0) -> Pose:
    """A camera at ``position`` looking along ``yaw``, ``pitch`` radians below the horizon."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    forward = np.array([cy * cp, sy * cp, -sp])
    right = np.array([sy, -cy, 0.0])
    down = np.cross(forward, right)
    cr, sr = np.cos(roll), np.sin(roll)
    return Pose(position, np.stack([cr * right + sr * down, cr * down - sr * right, forward], 1))


@dataclass(frozen=True)
class Walker:
    """A person walking on an ellipse; made of ellipsoids and tubes that swing with the steps."""

    center: tuple[float, float]  # of the ellipse, metres
    radii: tuple[float, float]
    turn: float  # of the ellipse, radians
    speed: float  # metres per second along it (on average), negative for the other direction
    phase: float  # place on the ellipse at time 0, radians
    height: float  # metres
    build: float  # width relative to the height
    skin: Surface
    hair: Surface
    shirt: Surface
    trousers: Surface

    def place(self, seconds: float) -> tuple[np.ndarray, float]:
        """(2,) metres and heading in radians."""
        angle = self.phase + self.speed * seconds / (0.5 * (self.radii[0] + self.radii[1]))
        c, s = np.cos(self.turn), np.sin(self.turn)
        rotation = np.array([[c, -s], [s, c]])
        radii = np.array(self.radii)
        xy = np.array(self.center) + rotation @ (radii * [np.cos(angle), np.sin(angle)])
        tangent = rotation @ (radii * [-np.sin(angle), np.cos(angle)]) * np.sign(self.speed)
        return xy, float(np.arctan2(tangent[1], tangent[0]))

    def track(self) -> np.ndarray:
        """(24, 2) metres, points of the ellipse."""
        lap = 2 * np.pi * 0.5 * (self.radii[0] + self.radii[1]) / abs(self.speed)
        return np.array([self.place(lap * k / 24)[0] for k in range(24)])

    def parts(self, seconds: float, index: int) -> list[Round]:
        """The body of walker number ``index`` at a time."""
        (x, y), heading = self.place(seconds)
        h, wide = self.height, self.height * self.build
        forward = np.array([np.cos(heading), np.sin(heading), 0.0])
        side = np.array([-forward[1], forward[0], 0.0])
        up = np.array([0.0, 0.0, 1.0])
        upright = np.stack([forward, side, up], 1)
        foot = np.array([x, y, 0.0])
        step = np.sin(abs(self.speed) * seconds * 2 * np.pi / (0.8 * h) + self.phase)
        found: list[Round] = []

        def ellipsoid(at: np.ndarray, axes: tuple[float, float, float], look: Surface) -> None:
            found.append(Round(at, upright * axes, False, look, index))

        def limb(
            top: np.ndarray, length: float, swing: float, radius: float, look: Surface
        ) -> np.ndarray:
            down = np.sin(swing) * forward - np.cos(swing) * up
            along = np.stack([np.cross(side, down), side, down], 1)
            half_axes = along * (radius, radius, length / 2)
            found.append(Round(top + down * length / 2, half_axes, True, look, index))
            return top + down * length

        for way, sign in ((step, 1.0), (-step, -1.0)):
            hip = foot + up * 0.5 * h + side * sign * 0.055 * wide
            knee = limb(hip, 0.25 * h, 0.42 * way, 0.05 * wide, self.trousers)
            ellipsoid(knee, (0.05 * wide, 0.05 * wide, 0.05 * wide), self.trousers)
            swing = 0.42 * way - 0.3 * max(0.0, -way)
            ankle = limb(knee, 0.24 * h, swing, 0.038 * wide, self.trousers)
            ellipsoid(ankle + forward * 0.025 * h, (0.07 * h, 0.032 * h, 0.025 * h), self.hair)
            shoulder = foot + up * 0.80 * h + side * sign * 0.125 * wide
            elbow = limb(shoulder, 0.18 * h, -0.4 * way, 0.033 * wide, self.shirt)
            ellipsoid(elbow, (0.033 * wide,) * 3, self.shirt)
            hand = limb(elbow, 0.16 * h, -0.4 * way + 0.35, 0.027 * wide, self.shirt)
            ellipsoid(hand, (0.03 * h, 0.02 * h, 0.03 * h), self.skin)
        waist = upright * (0.065 * wide, 0.105 * wide, 0.15 * h)
        found.append(Round(foot + up * 0.65 * h, waist, True, self.shirt, index))
        ellipsoid(foot + up * 0.80 * h, (0.065 * wide, 0.145 * wide, 0.045 * h), self.shirt)
        ellipsoid(foot + up * 0.51 * h, (0.068 * wide, 0.108 * wide, 0.05 * h), self.trousers)
        ellipsoid(foot + up * 0.91 * h, (0.055 * h, 0.045 * h, 0.068 * h), self.skin)
        crown = foot + up * 0.935 * h - forward * 0.014 * h
        ellipsoid(crown, (0.056 * h, 0.05 * h, 0.058 * h), self.hair)
        return found
