# SPDX-License-Identifier: Apache-2.0
"""A depth camera alone, the network alone and both fused, against the truth of held-out worlds.

``test_fused_navigation.py WORLDS FRAMES FIRST`` as a program prints the table. Worlds 100 to 121
were used to choose the fusion's constants, and MAX_SIGMA.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from helpers.occupancy import TRUE_DEPTH, LayerSettings, Said, Score, drive

from dpt_ros.engine.frame import Frame, OutputRequest
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.loading import load_networks
from dpt_ros.engine.output.flying_pixels import remove_flying_pixels
from dpt_ros.engine.output.fused_depth import NETWORK, SENSOR, FusionSettings, fuse, largest_ratio
from dpt_ros.engine.runner.host import HostRunner
from dpt_ros.engine.scale.anchors import project_depth
from dpt_ros.engine.settings import Settings
from dpt_ros.world import KINDS, DepthCamera, View, World

HELD_OUT = 1_000_000
COARSE = LayerSettings(resolution=0.2)
FAR = 7.0  # config/nav2_costmap.yaml
SETTINGS = Settings(
    device="cpu", depth_network="dpt_hybrid_embedded", label_network="dpt_hybrid_embedded"
)
SENSOR_ALONE, CLEANED, NETWORK_ALONE, FUSED = "sensor", "sensor, cleaned", "network", "fused"
MAX_SIGMA = 0.05  # points.max_sigma, as docs/camera.md has it for costmaps
CERTAIN = f"fused, max_sigma {MAX_SIGMA}"


@dataclass
class Pixels:
    """Sums over frames: ``covered`` of pixels with depth of those that have one, ``valid`` of the
    sensor; relative errors of filled pixels and of the network there; pixels kept and of these,
    identical ones."""

    frames: int = 0
    covered: float = 0.0
    valid: float = 0.0
    filled: list[float] = field(default_factory=list)
    network: list[float] = field(default_factory=list)
    kept: int = 0
    identical: int = 0

    def add(
        self, sensor: np.ndarray, depth: np.ndarray, fused: np.ndarray, origin: np.ndarray,
        truth: np.ndarray,
    ) -> None:  # fmt: skip
        solid = np.isfinite(truth)
        self.frames += 1
        self.covered += float(np.isfinite(fused[solid]).mean())
        self.valid += float(np.isfinite(sensor).mean())
        hole = solid & (origin == NETWORK) & np.isfinite(fused) & np.isfinite(depth)
        for errors, of in ((self.filled, fused), (self.network, depth)):
            errors.append(float(np.abs(of[hole] / truth[hole] - 1).mean()))
        kept = origin == SENSOR
        self.kept += int(kept.sum())
        self.identical += int((fused[kept].view(np.int32) == sensor[kept].view(np.int32)).sum())


class Robot:
    """The embedded network, scaled by a depth camera, and the camera's image filled by it."""

    def __init__(self, networks: Networks, world: World, pixels: Pixels) -> None:
        self._camera, self._pixels = DepthCamera(world), pixels
        self._runner = HostRunner(networks, SETTINGS)

    def say(self, i: int, view: View) -> Said:
        image = self._camera.measure(i)
        anchors = project_depth(
            image.depth, image.camera, image.camera_from_sensor, view.camera, image.stamp_ns
        )
        frame = Frame(
            view.rgb, "rgb8", view.stamp_ns, "camera", camera=view.camera,
            odom_from_camera=view.odom_from_camera, anchors=anchors,
        )  # fmt: skip
        wanted = OutputRequest(depth=True, labels=True, deviation=True)
        prediction = self._runner.start([frame], wanted, SETTINGS).wait()[0]
        assert prediction.depth is not None
        assert prediction.labels is not None
        assert prediction.deviation is not None
        width, incidence = image.depth.shape[1], SETTINGS.points_max_incidence
        settings = FusionSettings(edge=largest_ratio(view.camera, width, incidence))
        parts = image.depth, prediction.depth, prediction.deviation
        maps = fuse(*(torch.from_numpy(part)[None] for part in parts), settings)
        fused, origin, sigma = (part[0].numpy() for part in maps)
        self._pixels.add(image.depth, prediction.depth, fused, origin, view.depth)

        def clean(depth: np.ndarray) -> np.ndarray:
            """As in depth/points."""
            tensor = torch.from_numpy(depth)
            return remove_flying_pixels(tensor, view.camera, incidence).numpy()

        # What is kept of the sensor has no flying pixels any more.
        cleaned = np.where(origin == SENSOR, fused, clean(fused))
        clouds = {
            SENSOR_ALONE: image.depth,
            CLEANED: clean(image.depth),
            NETWORK_ALONE: clean(prediction.depth),
            FUSED: cleaned,
            CERTAIN: np.where(sigma <= MAX_SIGMA * fused, cleaned, np.float32(np.nan)),
        }
        return {name: (depth, prediction.labels) for name, depth in clouds.items()}


def measure(worlds: int, frames: int, first: int = 0) -> tuple[dict[str, Score], Pixels]:
    """Scores by name and sums over pixels.

    Args:
        worlds, first: how many, and the number of the first.
        frames: of each, at 10 per second.
    """
    networks, total, pixels = load_networks(SETTINGS), dict[str, Score](), Pixels()
    for k in range(first, first + worlds):
        world = World(KINDS[k % len(KINDS)], HELD_OUT + k, fps=10.0)
        say = Robot(networks, world, pixels).say
        for name, score in drive(world, say, range(100, 100 + frames), (COARSE,), far=FAR)[
            0
        ].items():
            total.setdefault(name, Score()).add(score)
    return total, pixels


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Score], Pixels]:
    return measure(worlds=4, frames=9, first=12)


def test_holes_are_filled_well_and_what_is_kept_is_identical(
    measured: tuple[dict[str, Score], Pixels],
) -> None:
    pixels = measured[1]
    assert 0.3 < pixels.valid / pixels.frames < 0.75
    assert pixels.covered / pixels.frames >= 0.98
    assert np.nanmean(pixels.filled) <= 0.08
    assert np.nanmean(pixels.filled) < np.nanmean(pixels.network)
    assert pixels.kept > 100_000
    assert pixels.identical == pixels.kept


def test_obstacles_are_found_and_no_more_are_made_up_than_by_the_sensor(
    measured: tuple[dict[str, Score], Pixels],
) -> None:
    scores = measured[0]
    sensor, fused, network = (scores[name] for name in (SENSOR_ALONE, CERTAIN, NETWORK_ALONE))
    assert fused.wanted > 200
    assert fused.recall >= 0.97
    assert fused.recall >= sensor.recall
    assert 1 - fused.precision <= 1 - sensor.precision + 0.005
    assert fused.precision > network.precision
    assert scores[TRUE_DEPTH].precision >= 0.995


def rows(total: dict[str, Score], pixels: Pixels) -> Iterator[str]:
    yield "| 0.2 m cells, within 5 m | recall | false obstacles | error | ghosts | missed |"
    yield "|---|---|---|---|---|---|"
    for name, s in total.items():
        ghosts = f"{100 * s.ghosts / max(s.vacated, 1):.0f} %"
        yield (
            f"| {name} | {s.recall:.4f} | {100 * (1 - s.precision):.2f} % | {s.error:.3f} m |"
            f" {ghosts} | {s.missed} of {s.walkers} |"
        )
    yield (
        f"sensor valid {pixels.valid / pixels.frames:.3f},"
        f" fused {pixels.covered / pixels.frames:.4f}"
        f" of the pixels that have a depth; AbsRel of filled pixels"
        f" {np.nanmean(pixels.filled):.4f}, of the network there {np.nanmean(pixels.network):.4f};"
        f" kept {pixels.kept}, identical {pixels.identical}"
    )


if __name__ == "__main__":
    print("\n".join(rows(*measure(*(int(word) for word in sys.argv[1:4])))))
