# SPDX-License-Identifier: Apache-2.0
"""Depth in the Wild (Chen et al., NeurIPS 2016): which of two points of an image is nearer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpt_ros.datasets.files import FileDataset, find_path, read_lines, read_rgb
from dpt_ros.datasets.sample import DatasetError, Sample


class DiwDataset(FileDataset):
    """DIW: ``DIW_test.csv`` (74,441 images), with ``./DIW_test/NAME.thumb`` on one line and
    ``row,column,row,column,relation,width,height`` of the two points on the next; pixels count
    from 1, and ``>`` means that the first point is farther.

    The list may be in the folder, or in ``DIW_Annotations``; images in the folder or in
    ``DIW_test`` (``DIW_train_val`` for training).
    """

    name = "diw"

    def __init__(self, root: Path, split: str = "test") -> None:
        self._root, self._images = root, "DIW_test" if split == "test" else "DIW_train_val"
        folders = (root, root / "DIW_Annotations", root / "DIW_Annotations_splitted")
        listing = find_path("the list of DIW", *(f / f"DIW_{split}.csv" for f in folders))
        lines = read_lines(listing, "the list of DIW")
        if not lines or len(lines) % 2:
            raise DatasetError(
                f"{listing} has {len(lines)} lines, but the list of DIW has two for each image: "
                "its name and its pair of points."
            )
        self._listing = listing
        self._entries = list(zip(lines[::2], lines[1::2], strict=True))

    def read(self, index: int) -> Sample:
        name, line = self._entries[index]
        plain = Path(name).name
        folders = self._root / name, self._root / self._images / plain, self._root / plain
        rgb = read_rgb(find_path("an image of DIW", *folders))
        return Sample(name.removeprefix("./"), rgb, pairs=self._pair(line, rgb.shape[:2])[None])

    def _pair(self, line: str, shape: tuple[int, int]) -> np.ndarray:
        """The (5,) row of ``Sample.pairs`` for a line of the list."""
        words = [word.strip() for word in line.split(",")]
        try:
            places = [float(word) - 1 for word in words[:4]]
            ordinal = {">": -1.0, "<": 1.0}[words[4]]
        except (ValueError, KeyError, IndexError) as error:
            raise DatasetError(
                f"{self._listing} has the line {line!r}, but expected row,column,row,column,"
                "relation,..., the relation > or <."
            ) from error
        # a few published points lie on the far edge, one pixel outside
        limits = np.array([shape[0], shape[1], shape[0], shape[1]]) - 1
        return np.array([*np.clip(places, 0, limits), ordinal])
