# SPDX-License-Identifier: Apache-2.0
"""Class labels: ADE20K (Zhou et al., CVPR 2017), Pascal Context (Mottaghi et al., CVPR 2014)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpt_ros.data import class_names
from dpt_ros.datasets.files import need, need_one, read_labels, read_lines, read_rgb
from dpt_ros.datasets.sample import Dataset, DatasetError, Sample

# fmt: off
PASCAL_CONTEXT = (
    "aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle",
    "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow",
    "cup", "curtain", "dog", "door", "fence", "floor", "flower", "food", "grass", "ground",
    "horse", "keyboard", "light", "motorbike", "mountain", "mouse", "person", "plate", "platform",
    "pottedplant", "road", "rock", "sheep", "shelves", "sidewalk", "sign", "sky", "snow", "sofa",
    "table", "track", "train", "tree", "truck", "tvmonitor", "wall", "water", "window", "wood",
)
# fmt: on


class Ade20kDataset(Dataset):
    """ADE20K as in the scene parsing challenge: 150 classes, 2000 validation pictures.

    Expected: ``images/validation/NAME.jpg`` and ``annotations/validation/NAME.png`` with class
    ids, 0 where none was given (``training`` for training); also one folder further down, in
    ``ADEChallengeData2016``.
    """

    name = "ade20k"
    class_names = class_names("labels_ade20k.json")

    def __init__(self, root: Path, split: str = "test") -> None:
        part = "validation" if split == "test" else "training"
        self._images = need_one(
            (root / "images" / part, root / "ADEChallengeData2016" / "images" / part),
            f"the {part} pictures of ADE20K",
        )
        self._labels = need(
            self._images.parents[1] / "annotations" / part, f"the {part} labels of ADE20K"
        )
        self._names = sorted(path.stem for path in self._images.glob("*.jpg"))
        if not self._names:
            raise DatasetError(f"No picture (*.jpg) found in {self._images}.")

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> Sample:
        name = self._names[index]
        rgb = read_rgb(self._images / f"{name}.jpg")
        labels = read_labels(self._labels / f"{name}.png", rgb.shape[:2])
        _check_ids(labels, 150, self._labels / f"{name}.png")
        return Sample(name, rgb, labels=labels)


class PascalContextDataset(Dataset):
    """Pascal Context: 59 classes on pictures of VOC 2010, 5105 for validation.

    Expected: ``JPEGImages/NAME.jpg``, ``SegmentationClassContext/NAME.png`` with class ids in the
    order of ``PASCAL_CONTEXT``, 0 for background, and the list
    ``ImageSets/SegmentationContext/val.txt`` (``train.txt``): the layout that the published
    annotations are usually converted to. Also in ``VOCdevkit/VOC2010`` of the folder.

    Args:
        background: judge the background too, as the class with id 60; else it is left out, as in
            the tables of 59 classes.
    """

    name = "pascal_context"

    def __init__(self, root: Path, split: str = "test", background: bool = False) -> None:
        names = f"ImageSets/SegmentationContext/{'val' if split == 'test' else 'train'}.txt"
        listing = need_one(
            (root / names, root / "VOCdevkit" / "VOC2010" / names), "the list of Pascal Context"
        )
        self._root = listing.parents[2]
        self._background = background
        self._names = read_lines(listing, "the list of Pascal Context")
        if not self._names:
            raise DatasetError(f"{listing} lists no picture.")
        self.class_names = (*PASCAL_CONTEXT, "background") if background else PASCAL_CONTEXT
        self.variant = f"{len(self.class_names)} classes"

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> Sample:
        name = self._names[index]
        rgb = read_rgb(self._root / "JPEGImages" / f"{name}.jpg")
        path = self._root / "SegmentationClassContext" / f"{name}.png"
        labels = read_labels(path, rgb.shape[:2])
        _check_ids(labels, len(PASCAL_CONTEXT), path)
        if self._background:
            labels = np.where(labels == 0, len(PASCAL_CONTEXT) + 1, labels).astype(np.uint8)
        return Sample(name, rgb, labels=labels)


def _check_ids(labels: np.ndarray, count: int, path: Path) -> None:
    odd = np.unique(labels[(labels > count) & (labels != 255)])
    if odd.size:
        raise DatasetError(
            f"{path} holds the class id {odd[0]}, but ids must be 0..{count} or 255."
        )
