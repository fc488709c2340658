# SPDX-License-Identifier: Apache-2.0
"""Training and test frames rendered once, from many worlds, and kept in a folder as memory-mapped
arrays."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dpt_ros.world.classes import KINDS
from dpt_ros.world.world import World

_SPAN = 9000  # frames of a world to choose from: five minutes of driving


@dataclass(frozen=True)
class FrameSet:
    """N frames as arrays.

    Args:
        rgb: (N, H, W, 3) uint8.
        inverse: (N, H, W) float16 inverse depth, 1/m, 0 for sky.
        labels: (N, H, W) uint8.
    """

    rgb: np.ndarray
    inverse: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rgb)


def _fingerprint() -> str:
    """Changes with the renderer's source, so that no old pictures are taken for new ones."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:10]


def _open(folder: Path, mode: str, shape: tuple[int, ...] | None = None) -> FrameSet:
    arrays = []
    for name, dtype, tail in (
        ("rgb", np.uint8, (3,)),
        ("inverse", np.float16, ()),
        ("labels", np.uint8, ()),
    ):
        path = folder / f"{name}.npy"
        full = None if shape is None else shape + tail
        arrays.append(
            np.lib.format.open_memmap(path, mode, dtype, full)
            if full is not None
            else np.load(path, mmap_mode="r")
        )
    return FrameSet(*arrays)


def _render_world(
    folder: Path, slot: int, seed: int, per_world: int, size: tuple[int, int]
) -> int:
    cv2.setNumThreads(1)
    world = World(KINDS[seed % len(KINDS)], seed, *size)
    chosen = np.random.default_rng([seed, 3]).choice(_SPAN, per_world, replace=False)
    target = [
        np.lib.format.open_memmap(folder / f"{name}.npy", "r+")
        for name in ("rgb", "inverse", "labels")
    ]
    for k, i in enumerate(chosen):
        view = world.frame(int(i))
        row = slot * per_world + k
        for array, value in zip(target, (view.rgb, 1 / view.depth, view.labels), strict=True):
            array[row] = value
    return slot


def render_set(
    cache: Path,
    seeds: range,
    per_world: int,
    width: int = 320,
    height: int = 240,
    workers: int = 2,
) -> FrameSet:
    """Frames of the worlds with these seeds (their kinds take turns), rendered unless ``cache``
    has them already.

    Args:
        cache: folder for the frames; about 6 bytes per pixel and frame.
        seeds: of the worlds.
        per_world: frames of each, picked at random moments.
        workers: processes that render.
    """
    name = f"{seeds.start}-{seeds.stop}x{per_world}-{width}x{height}-{_fingerprint()}"
    folder, done = cache / name, cache / name / "complete.json"
    if done.exists():
        return _open(folder, "r")
    folder.mkdir(parents=True, exist_ok=True)
    _open(folder, "w+", (len(seeds) * per_world, height, width))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        jobs = pool.map(
            _render_world,
            repeat(folder),
            range(len(seeds)),
            seeds,
            repeat(per_world),
            repeat((width, height)),
            chunksize=4,
        )
        for _ in tqdm(jobs, total=len(seeds), unit="world", desc="rendering"):
            pass
    done.write_text(json.dumps({"seeds": [seeds.start, seeds.stop], "per_world": per_world}))
    return _open(folder, "r")
