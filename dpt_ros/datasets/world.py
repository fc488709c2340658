# SPDX-License-Identifier: Apache-2.0
"""The synthetic world as a dataset: rendered frame by frame, or once into a folder."""

from __future__ import annotations

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from itertools import repeat
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from dpt_ros.datasets.sample import Dataset, Sample
from dpt_ros.world import CLASSES, KINDS, World, classes

HELD_OUT = 1_000_000  # seeds from here on are never trained on
_SPAN = 9000  # frames of a world to choose from: five minutes of driving
_ARRAYS = {"rgb": (np.uint8, (3,)), "inverse": (np.float16, ()), "labels": (np.uint8, ())}


class WorldDataset(Dataset):
    """Frames of many seeded worlds, rendered when they are accessed.

    Args:
        split: "test": worlds that no shipped network was trained on; "train": those from seed 0
            on.
        worlds: how many; their kinds take turns.
        frames: of each world.
        width, height: pixels.
        video: consecutive frames from a random moment on, with the truth that the temporal
            metrics need; otherwise frames at random moments.
        step: of a video, every how many frames of 30 per second one is taken.

    Raises:
        ValueError: a number is below 1.
    """

    name = "world"
    class_names = CLASSES

    def __init__(
        self, split: str = "test", worlds: int = 60, frames: int = 5, width: int = 320,
        height: int = 240, video: bool = False, step: int = 1,
    ) -> None:  # fmt: skip
        for option, value in (("worlds", worlds), ("frames", frames), ("step", step)):
            if value < 1:
                raise ValueError(f"{option} is {value}, but must be at least 1.")
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
        video: dict[str, Any] = {"sequence": f"{world.kind}-{seed}", "truth": view}
        return Sample(
            f"{world.kind}-{seed}-{i}", view.rgb, view.depth, labels=view.labels,
            camera=view.camera, stamp_ns=view.stamp_ns, **(video if self.video else {}),
        )  # fmt: skip

    def rendered(self, cache: Path, workers: int = 2) -> RenderedWorld:
        """The single frames, rendered by ``workers`` processes unless the folder ``cache`` holds
        them already; about 6 bytes per pixel and frame."""
        (width, height), seeds = self.size, f"{self.seeds.start}-{self.seeds.stop}"
        folder = cache / f"{seeds}x{self.frames}-{width}x{height}-{_source_hash()}"
        complete = folder / "complete"
        single = copy(self)
        single.video, single._world = False, None
        if not complete.exists():
            folder.mkdir(parents=True, exist_ok=True)
            for name, (dtype, channels) in _ARRAYS.items():
                shape = (len(self), height, width, *channels)
                np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                jobs = pool.map(
                    _render, repeat(single), repeat(folder), range(len(self.seeds)), chunksize=4
                )
                for _ in tqdm(jobs, total=len(self.seeds), unit="world", desc="rendering"):
                    pass
            complete.touch()
        return RenderedWorld(*(np.load(folder / f"{n}.npy", mmap_mode="r") for n in _ARRAYS))


def _render(dataset: WorldDataset, folder: Path, world: int) -> None:
    """Write the frames of the ``world``-th seed into the arrays of ``folder``."""
    cv2.setNumThreads(1)
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="r+") for name in _ARRAYS]
    for index in range(world * dataset.frames, (world + 1) * dataset.frames):
        sample = dataset.read(index)
        for array, name in zip(arrays, _ARRAYS, strict=True):
            array[index] = getattr(sample, name)


def _source_hash() -> str:
    """Changes with the renderer's source, so that no outdated frames are read."""
    sources = [Path(__file__), *sorted(Path(classes.__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:10]


class RenderedWorld(Dataset):
    """N frames of the synthetic world as arrays.

    Args:
        rgb: (N, H, W, 3) uint8.
        inverse: (N, H, W) float16 inverse depth, 1/m, 0 for sky.
        labels: (N, H, W) uint8, class ids from 1.
    """

    name = "world"
    class_names = CLASSES

    def __init__(self, rgb: np.ndarray, inverse: np.ndarray, labels: np.ndarray) -> None:
        self.rgb, self.inverse, self.labels = rgb, inverse, labels

    def __len__(self) -> int:
        return len(self.rgb)

    def read(self, index: int) -> Sample:
        inverse = self.inverse[index].astype(np.float32)
        return Sample(
            name=str(index),
            rgb=np.ascontiguousarray(self.rgb[index]),
            depth=np.divide(1, inverse, out=np.full_like(inverse, np.inf), where=inverse > 0),
            inverse=inverse,
            labels=np.ascontiguousarray(self.labels[index]),
        )
