# SPDX-License-Identifier: Apache-2.0
"""The synthetic world as a dataset."""

from __future__ import annotations

import numpy as np

from dpt_ros.datasets.files import inverse_of
from dpt_ros.datasets.sample import Dataset, Sample
from dpt_ros.world import CLASSES, KINDS, World

HELD_OUT = 1_000_000  # seeds from here on are never trained on
_SPAN = 9000  # frames of a world to choose from: five minutes of driving


class WorldDataset(Dataset):
    """Frames of many seeded worlds, rendered when they are asked for.

    Args:
        split: "test": worlds that no shipped network has seen; "train": those from seed 0 on.
        worlds: how many; their kinds take turns.
        frames: of each world.
        width, height: pixels.
        video: consecutive frames from a random moment on, with the truth that the temporal
            metrics need; else frames at random moments.
        step: of a video, every how many frames of 30 per second one is taken.
    """

    name = "world"
    class_names = CLASSES

    def __init__(
        self,
        split: str = "test",
        worlds: int = 60,
        frames: int = 5,
        width: int = 320,
        height: int = 240,
        video: bool = False,
        step: int = 1,
    ) -> None:
        for what, value in (("worlds", worlds), ("frames", frames), ("step", step)):
            if value < 1:
                raise ValueError(f"{what} is {value}, but must be at least 1.")
        first = HELD_OUT if split == "test" else 0
        self.seeds = range(first, first + worlds)
        self.frames, self.size, self.video, self.step = frames, (width, height), video, step
        self._world: tuple[int, World] | None = None

    def __len__(self) -> int:
        return len(self.seeds) * self.frames

    def read(self, index: int) -> Sample:
        seed, k = self.seeds[index // self.frames], index % self.frames
        if self._world is None or self._world[0] != seed:
            fps = 30.0 / self.step
            self._world = seed, World(KINDS[seed % len(KINDS)], seed, *self.size, fps)
        world = self._world[1]
        rng = np.random.default_rng([seed, 3])
        if self.video:
            i = int(rng.integers(_SPAN // self.step)) + k
        else:
            i = int(rng.choice(_SPAN, self.frames, replace=False)[k])
        view = world.frame(i)
        return Sample(
            name=f"{world.kind}-{seed}-{i}",
            rgb=view.rgb,
            depth=view.depth,
            inverse=inverse_of(view.depth),
            labels=view.labels,
            camera=view.camera,
            sequence=f"{world.kind}-{seed}" if self.video else "",
            stamp_ns=view.stamp_ns,
            truth=view if self.video else None,
        )
