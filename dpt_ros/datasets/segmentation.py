# SPDX-License-Identifier: Apache-2.0
"""Class labels: ADE20K (Zhou et al., CVPR 2017), Pascal Context (Mottaghi et al., CVPR 2014)."""

from __future__ import annotations

from pathlib import Path

from dpt_ros.data import class_names
from dpt_ros.datasets.files import FileDataset, find_path, read_labels, read_lines, read_rgb
from dpt_ros.datasets.sample import Sample

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


class Ade20kDataset(FileDataset):
    """ADE20K as in the scene parsing challenge: 150 classes, 2000 validation images.

    Expected: ``images/validation/NAME.jpg`` and ``annotations/validation/NAME.png`` with class
    ids, 0 where none was given (``training`` for training); also one folder further down, in
    ``ADEChallengeData2016``.
    """

    name = "ade20k"
    class_names = class_names("labels_ade20k.json")

    def __init__(self, root: Path, split: str = "test") -> None:
        part = "validation" if split == "test" else "training"
        places = (root / "images" / part, root / "ADEChallengeData2016" / "images" / part)
        self._images = find_path(f"the {part} images of ADE20K", *places)
        annotations = self._images.parents[1] / "annotations" / part
        self._labels = find_path(f"the {part} labels of ADE20K", annotations)
        names = sorted(path.stem for path in self._images.glob("*.jpg"))
        self._list(names, f"No image (*.jpg) found in {self._images}.")

    def read(self, index: int) -> Sample:
        name = self._entries[index]
        rgb = read_rgb(self._images / f"{name}.jpg")
        labels = read_labels(self._labels / f"{name}.png", 150, rgb.shape[:2])
        return Sample(name, rgb, labels=labels)


class PascalContextDataset(FileDataset):
    """Pascal Context: 59 classes on images of VOC 2010, 5105 for validation.

    Expected: ``JPEGImages/NAME.jpg``, ``SegmentationClassContext/NAME.png`` with class ids in the
    order of ``PASCAL_CONTEXT``, 0 for background, and the list
    ``ImageSets/SegmentationContext/val.txt`` (``train.txt``): the layout that the published
    annotations are usually converted to. Also in ``VOCdevkit/VOC2010`` of the folder.

    Args:
        background: evaluate the background too, as the class with id 60; otherwise it is left
            out, as in the tables of 59 classes.
    """

    name = "pascal_context"

    def __init__(self, root: Path, split: str = "test", background: bool = False) -> None:
        names = f"ImageSets/SegmentationContext/{'val' if split == 'test' else 'train'}.txt"
        what = "the list of Pascal Context"
        listing = find_path(what, root / names, root / "VOCdevkit" / "VOC2010" / names)
        self._root = listing.parents[2]
        self._background = background
        self._list(read_lines(listing, what), f"{listing} lists no image.")
        self.class_names = (*PASCAL_CONTEXT, "background") if background else PASCAL_CONTEXT
        self.variant = f"{len(self.class_names)} classes"

    def read(self, index: int) -> Sample:
        name, count = self._entries[index], len(PASCAL_CONTEXT)
        rgb = read_rgb(self._root / "JPEGImages" / f"{name}.jpg")
        path = self._root / "SegmentationClassContext" / f"{name}.png"
        labels = read_labels(path, count, rgb.shape[:2])
        if self._background:
            labels[labels == 0] = count + 1
        return Sample(name, rgb, labels=labels)
