# SPDX-License-Identifier: Apache-2.0
"""TUM RGB-D (Sturm et al., IROS 2012)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpt_ros.datasets.files import FileDataset, read_depth_png, read_lines, read_rgb
from dpt_ros.datasets.sample import DatasetError, Sample
from dpt_ros.engine.frame import CameraModel

_PER_METRE = 5000.0
# Sequences of freiburg3 are published without distortion; the other cameras have some.
_FREIBURG3 = CameraModel(640, 480, 535.4, 539.2, 320.1, 247.6)


class TumDataset(FileDataset):
    """TUM RGB-D: one sequence, or a folder of them.

    Expected in a sequence: ``rgb.txt`` and ``depth.txt`` (time and file on each line) and the
    files they name; depth PNGs have 5000 units per metre, 0 where unknown. Each image gets the
    depth map nearest in time.

    Args:
        max_difference: seconds between an image and its depth map; an image without one is left
            out.
        every: take every ``every``-th pair of a sequence.
        match: only sequences whose name contains this.
    """

    name = "tum"

    def __init__(
        self, root: Path, split: str = "test", max_difference: float = 0.02, every: int = 1,
        match: str = "",
    ) -> None:  # fmt: skip
        if every < 1:
            raise ValueError(f"every is {every}, but must be at least 1.")
        folders = [root] if (root / "rgb.txt").exists() else sorted(root.iterdir())
        folders = [f for f in folders if (f / "rgb.txt").exists() and match in f.name]
        if not folders:
            wanted = f" of a sequence whose name contains {match!r}" if match else ""
            raise DatasetError(f"No rgb.txt{wanted} found in {root} or in a folder of it.")
        self._entries: list[tuple[Path, float, str, str]] = []
        for folder in folders:
            pairs = _associate(folder, max_difference)
            if not pairs:
                raise DatasetError(
                    f"No image of {folder} has a depth map within {max_difference:g} s."
                )
            self._entries += [(folder, *pair) for pair in pairs[::every]]

    def read(self, index: int) -> Sample:
        folder, seconds, image, truth = self._entries[index]
        rgb = read_rgb(folder / image)
        depth = read_depth_png(folder / truth, _PER_METRE, rgb.shape[:2])
        known = "freiburg3" in folder.name and rgb.shape[:2] == (480, 640)
        camera, stamp = _FREIBURG3 if known else None, round(seconds * 1e9)
        name, sequence = f"{folder.name}/{image}", folder.name
        return Sample(name, rgb, depth, camera=camera, sequence=sequence, stamp_ns=stamp)


def _associate(folder: Path, limit: float) -> list[tuple[float, str, str]]:
    """(time, image, depth map) in the order of the images; no depth map is used twice."""
    images, depths = _listed(folder / "rgb.txt"), _listed(folder / "depth.txt")
    times = np.array([seconds for seconds, _ in depths])
    pairs: dict[int, tuple[float, int]] = {}
    for i, (seconds, _) in enumerate(images if depths else []):
        k = int(np.argmin(np.abs(times - seconds)))
        apart = abs(times[k] - seconds)
        if apart <= limit and (k not in pairs or apart < pairs[k][0]):
            pairs[k] = apart, i
    chosen = sorted((i, k) for k, (_, i) in pairs.items())
    return [(images[i][0], images[i][1], depths[k][1]) for i, k in chosen]


def _listed(path: Path) -> list[tuple[float, str]]:
    rows = []
    for line in read_lines(path, "the list of a TUM RGB-D sequence"):
        words = line.split()
        try:
            rows.append((float(words[0]), words[1]))
        except (ValueError, IndexError) as error:
            raise DatasetError(
                f"{path} has the line {line!r}, but expected a time and the name of a file."
            ) from error
    return rows
