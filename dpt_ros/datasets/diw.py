# SPDX-License-Identifier: Apache-2.0
"""Depth in the Wild (Chen et al., NeurIPS 2016): which of two points of a picture is nearer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpt_ros.datasets.files import need_one, read_lines, read_rgb
from dpt_ros.datasets.sample import Dataset, DatasetError, Sample


class DiwDataset(Dataset):
    """DIW: ``DIW_test.csv`` (74,441 pictures), with ``./DIW_test/NAME.thumb`` on one line and
    ``row,column,row,column,relation,width,height`` of the two points on the next; pixels count
    from 1, and ``>`` says that the first point is farther.

    The list may stand in the folder, or in ``DIW_Annotations``; pictures in the folder or in
    ``DIW_test`` (``DIW_train_val`` for training).
    """

    name = "diw"

    def __init__(self, root: Path, split: str = "test") -> None:
        self._root, self._split = root, split
        name = f"DIW_{split}.csv"
        folders = (root, root / "DIW_Annotations", root / "DIW_Annotations_splitted")
        self._listing = need_one((folder / name for folder in folders), "the list of DIW")
        lines = read_lines(self._listing, "the list of DIW")
        if not lines or len(lines) % 2:
            raise DatasetError(
                f"{self._listing} has {len(lines)} lines, but the list of DIW has two for each "
                "picture: its name and its pair of points."
            )
        self._entries = list(zip(lines[::2], lines[1::2], strict=True))

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, index: int) -> Sample:
        name, line = self._entries[index]
        plain = Path(name).name
        folder = "DIW_test" if self._split == "test" else "DIW_train_val"
        rgb = read_rgb(
            need_one(
                (self._root / name, self._root / folder / plain, self._root / plain),
                "a picture of DIW",
            )
        )
        return Sample(name.removeprefix("./"), rgb, pairs=self._pair(line, rgb.shape[:2])[None])

    def _pair(self, line: str, shape: tuple[int, int]) -> np.ndarray:
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
