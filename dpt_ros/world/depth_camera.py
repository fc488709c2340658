# SPDX-License-Identifier: Apache-2.0
"""A depth camera as they are: the exact depth of a synthetic world, measured badly.

What is modelled, and where it is described:

- Noise and steps that are constant in disparity, so that they grow with depth squared:
  sigma_z = z^2 * subpixel / (f * baseline). Khoshelham and Elberink (2012), "Accuracy and
  Resolution of Kinect Depth Data for Indoor Mapping Applications", Sensors 12(2); Grunnet-Jepsen
  et al., "Best-Known-Methods for Tuning Intel RealSense D400 Depth Cameras for Best Performance".
- Edges that wander by about a pixel, with values between foreground and background: the image is
  sampled at shifted places before noise and steps are added. Handa et al. (2014), "A Benchmark
  for RGB-D Visual Odometry, 3D Reconstruction and SLAM"; the size of the shift is of Nguyen,
  Izadi and Lovell (2012), "Modeling Kinect Sensor Noise for Improved 3D Reconstruction and
  Tracking". The same values at edges of time-of-flight cameras ("flying pixels"): Foix, Alenya
  and Torras (2011), "Lock-in Time-of-Flight (ToF) Cameras: A Survey".
- The shadow of the baseline: what the second imager or the projector does not see has no depth,
  beside every near object and along one border.
- No depth where too little light comes back: dark, far, grazing or shiny surfaces, and the sun
  beside the projector. A stereo camera matches the surface's own texture as well, blank walls
  have none. The balance of these is a model of this file, chosen so that the share of valid
  pixels is that of users' recordings; it is not measured on a device.
- Glass (a part of the doors and of the framed pictures): no depth, or that of the mirror image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.scale.anchors import finite_transform
from dpt_ros.world import classes
from dpt_ros.world.appearance import Appearance, appearance
from dpt_ros.world.geometry import Buffer, Pose, Rays, draw, reciprocal
from dpt_ros.world.world import World

_LARGEST_MM = 65_535
_MATT = classes.WALL, classes.CEILING, classes.GRASS
_HUNG = classes.DOOR, classes.WALL  # what covers its whole rectangle: doors and pictures
_WINDOW = 13  # pixels of the sensor that are matched as one


@dataclass(frozen=True)
class DepthSensor:
    """A kind of depth camera."""

    near: float  # metres
    far: float  # metres
    columns: int  # pixels across its own image; blur and shifts are in these
    baseline: float  # metres to the second imager or the projector, to the right; 0 for none
    # Standard deviation of the inverse depth, 1/m: metres at a distance of 1 m; up to twice as
    # much where the signal is weak.
    noise: float
    step: float  # of the inverse depth, 1/m; 0 for none
    blur: float  # pixels over which depth mixes at an edge; a measurement shifts an edge as far
    projector: float  # its own light: the square of the metres at which a white wall is lost
    texture: float  # how far the surface's own texture helps; 0 for other than stereo
    sun: float  # how far sunlight weakens its own light
    max_incidence: float = 83.0  # degrees from the surface normal, from which on depth is lost


# Focal length times baseline of 60 degrees across: 734 pixels x 0.05 m, 554 pixels x 0.075 m.
STEREO = DepthSensor(0.3, 10.0, 848, 0.05, 0.08 / 36.7, 1 / 32 / 36.7, 1.0, 16.0, 30.0, 5.0)
"""Active infrared stereo; 0.08 pixels of disparity noise, steps of 1/32."""
STRUCTURED_LIGHT = DepthSensor(0.5, 5.0, 640, 0.075, 0.02 / 41.6, 1 / 8 / 41.6, 0.8, 50, 0.0, 100)
"""A projected pattern; steps of 1/8 of a pixel, as Khoshelham and Elberink describe them."""
TIME_OF_FLIGHT = DepthSensor(0.2, 6.0, 640, 0.0, 0.0015, 0.0, 1.5, 40.0, 0.0, 50.0)
"""Continuous-wave time of flight: no shadow of a baseline, broad mixed edges."""


@dataclass(frozen=True)
class DepthImage:
    """A measured depth image.

    Args:
        depth: (H, W) float32, metres along optical Z; NaN where there is none.
        truth: (H, W) float32, exact, +Inf for sky, from the same place.
        camera: intrinsics.
        camera_from_sensor: (4, 4) float64, from the depth camera's optical frame into that of the
            world's camera.
        stamp_ns: when it was measured.
    """

    depth: np.ndarray
    truth: np.ndarray
    camera: CameraModel
    camera_from_sensor: np.ndarray
    stamp_ns: int

    @property
    def millimetres(self) -> np.ndarray:
        """(H, W) uint16 as in 16UC1 (REP 118); 0 where there is none."""
        mm = np.rint(np.nan_to_num(self.depth, nan=0.0) * 1000)
        return np.where(mm <= _LARGEST_MM, mm, 0).astype(np.uint16)


class DepthCamera:
    """A depth camera on the robot that carries the camera of a synthetic world.

    ``measure(i)`` depends on the arguments and ``i`` alone.

    Args:
        world: any.
        sensor: its kind.
        camera: intrinsics; None for those of the world's camera.
        camera_from_sensor: (4, 4), from its optical frame into that of the world's camera; None
            if its image is registered to that camera.

    Raises:
        ValueError: ``camera_from_sensor`` is not a finite 4x4 transform.
    """

    def __init__(
        self,
        world: World,
        sensor: DepthSensor = STEREO,
        camera: CameraModel | None = None,
        camera_from_sensor: np.ndarray | None = None,
    ) -> None:
        mount = finite_transform(np.eye(4) if camera_from_sensor is None else camera_from_sensor)
        self.sensor, self.camera, self.camera_from_sensor = sensor, camera or world.camera, mount
        self._world, self._rays = world, Rays(self.camera)
        self._table = table = world.scene.rectangles.freeze()
        self._seed = [world.seed, classes.KINDS.index(world.kind), 9]
        # Materials by texture: brightness in infrared, gloss; by rectangle: glass.
        rng = np.random.default_rng(self._seed)
        rounds = world.scene.rounds_at(0.0)
        count = 1 + max(int(table.texture.max()), *(p.surface.texture for p in rounds), 0)
        self._infrared = np.exp(rng.normal(0, 0.25, count)).astype(np.float32)
        glossy = rng.random(count) < 0.3
        self._gloss = np.where(glossy, rng.uniform(0.5, 0.95, count), 0).astype(np.float32)
        glazed, texture = rng.random(count) < 0.4, table.texture.astype(np.intp)
        hung = (table.tile == table.size).all(1) & np.isin(table.label, _HUNG)
        self._gloss[texture[np.isin(table.label, _MATT) & ~hung]] = 0
        self._glass = np.flatnonzero(hung & glazed[texture])

    def measure(self, i: int) -> DepthImage:
        """The depth image at the time of frame ``i``."""
        world, sensor, seconds = self._world, self.sensor, i / self._world.fps
        odom_from_sensor = world.scene.drive.pose(seconds).matrix() @ self.camera_from_sensor
        pose = Pose(odom_from_sensor[:3, 3], odom_from_sensor[:3, :3])
        seen = draw(self._rays, pose, self._table, world.scene.rounds_at(seconds))

        always, now = (np.random.default_rng([*self._seed, k]) for k in (0, i + 1))
        margin = np.log(np.maximum(self._signal(seen), 1e-6))
        margin += 0.8 * self._clouds(always, 40) + 0.25 * self._clouds(now, 10)
        measured, lost = self._through_glass(seen, self._clouds(always, 40))
        lost |= self._hidden(seen.inverse) | (margin < 0)

        blur = sensor.blur * self.camera.width / sensor.columns
        noise = np.clip(2 * np.exp(-0.5 * margin), 1, 2) * self._clouds(now, 3)
        mixed = cv2.GaussianBlur(measured, (0, 0), max(blur, 0.3))
        y, x = np.indices(mixed.shape, np.float32)
        for place in (x, y):
            place += self._clouds(now, 4) * np.float32(blur)
        mixed = cv2.remap(mixed, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        mixed += np.float32(sensor.noise) * noise
        if sensor.step:
            mixed = np.rint(mixed / sensor.step) * np.float32(sensor.step)
        valid = ~lost & (mixed >= 1 / sensor.far) & (mixed <= 1 / sensor.near)
        depth = reciprocal(np.where(valid, mixed, np.float32(0)), np.nan)
        truth, stamp = reciprocal(seen.inverse, np.inf), round(i * 1e9 / world.fps)
        return DepthImage(depth, truth, self.camera, self.camera_from_sensor, stamp)

    def _clouds(self, rng: np.random.Generator, pixels: float) -> np.ndarray:
        """Smooth noise, (H, W) float32, standard deviation 1; ``pixels`` of the sensor's own image
        from one random number to the next."""
        height, width = self.camera.height, self.camera.width
        cell = max(pixels * width / self.sensor.columns, 1.0)
        size = int(height / cell) + 4, int(width / cell) + 4
        grid = rng.standard_normal(size, np.float32)
        x = (np.arange(width, dtype=np.float32) / np.float32(cell))[None].repeat(height, 0)
        y = (np.arange(height, dtype=np.float32) / np.float32(cell))[:, None].repeat(width, 1)
        smooth = cv2.remap(grid, x + 1, y + 1, cv2.INTER_CUBIC)
        # A cubic between independent numbers has 0.8 of their deviation on average.
        return smooth if cell == 1 else smooth * np.float32(1.25)

    def _signal(self, seen: Buffer) -> np.ndarray:
        """(H, W) float32: what comes back to the sensor; below 1 it measures nothing."""
        scene, sensor = self._world.scene, self.sensor
        look = appearance(scene.atlas, self._table, self._rays, seen)
        texture = look.texture.astype(np.intp)
        grey = look.albedo.mean(2) * (self._infrared[texture] / 255)
        square = sum(r * r for r in look.ray)
        cosine = -sum(n * r for n, r in zip(look.normal, look.ray, strict=True)) / np.sqrt(square)
        cosine = np.clip(cosine, 0, 1)
        shine = self._gloss[texture]
        # Straight back from a shiny surface comes the projector itself, else little.
        diffuse = grey * (1 - shine) * cosine * np.where(shine * cosine > 0.49, 0.1, 1)
        projected = sensor.projector * diffuse / (look.depth**2 * square)
        projected /= 1 + sensor.sun * self._sunlight(look, seen.pose)
        window = 2 * round(_WINDOW * self.camera.width / sensor.columns / 2) + 1
        around = (max(window, 3),) * 2
        mean = cv2.blur(grey, around)
        contrast = np.sqrt(np.maximum(cv2.blur(grey * grey, around) - mean * mean, 0))
        own = sensor.texture * contrast * (1 - shine) / (mean + 0.08)
        steep = cosine < np.cos(np.radians(sensor.max_incidence))
        return np.where((seen.index < 0) | steep, 0, projected + own).astype(np.float32)

    def _sunlight(self, look: Appearance, pose: Pose) -> np.ndarray | float:
        """(H, W) irradiance by the sun and the sky, 1 for the brightest; 0 indoors."""
        scene = self._world.scene
        if scene.sky is None:
            return 0.0
        light: np.ndarray | float = 0.2
        for lamp in scene.lights:
            toward = lamp.position / np.linalg.norm(lamp.position)
            facing = sum(n * np.float32(t) for n, t in zip(look.normal, toward, strict=True))
            light = light + np.maximum(facing, 0) * np.float32(lamp.power)
        x, y, z = (
            np.float32(p) + look.depth * r for p, r in zip(pose.position, look.ray, strict=True)
        )
        return light * np.where(z < 0.05, scene.shadow_at(x, y), 1)

    def _through_glass(self, seen: Buffer, clouds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inverse depth (H, W) with the mirror images in panes of glass; where there is none."""
        inverse, lost = seen.inverse.copy(), np.zeros(seen.inverse.shape, bool)
        for k in self._glass.tolist():
            pane = seen.index == k
            if not pane.any():
                continue
            normal, pose = self._table.normal[k], seen.pose
            mirror = np.eye(3) - 2 * np.outer(normal, normal)
            origin = self._table.origin[k]
            position = origin + mirror @ (pose.position - origin)
            behind = Pose(position, mirror @ pose.rotation)
            image = draw(self._rays, behind, self._table, seen.rounds)
            np.copyto(inverse, image.inverse, where=pane)
            lost |= pane & (clouds < 0)
        return inverse, lost

    def _hidden(self, inverse: np.ndarray) -> np.ndarray:
        """(H, W) bool: what the second imager or the projector does not see."""
        if not self.sensor.baseline:
            return np.zeros(inverse.shape, bool)
        disparity = np.float32(self.camera.fx * self.sensor.baseline) * inverse
        there = np.arange(self.camera.width, dtype=np.float32) - disparity
        # Hidden by something to the right that appears farther left in the other image.
        least = np.minimum.accumulate(there[:, ::-1], axis=1)[:, ::-1]
        hidden = there < 0
        hidden[:, :-1] |= least[:, 1:] <= there[:, :-1]
        return hidden
