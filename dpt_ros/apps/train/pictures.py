# SPDX-License-Identifier: Apache-2.0
"""From samples of datasets to training batches, each a function of seed and step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dpt_ros.apps.train.recipe import Recipe
from dpt_ros.data import class_id_table
from dpt_ros.datasets import Dataset as Samples
from dpt_ros.datasets import Sample
from dpt_ros.model.zoo import ModelSpec

CROP = 384  # pixels; the paper's training crop
GREY = 128  # of padding


class Batch(NamedTuple):
    """One step's images and truth."""

    images: Tensor  # (B, 3, H, W) float32, normalised for the network
    # (B, H, W) float32 inverse depth, 1/m where the truth is metric, 0 for sky, NaN where unknown
    inverse: Tensor
    labels: Tensor  # (B, H, W) int64 class indices from 0, -1 where there is no class


class Picture(NamedTuple):
    """One image and its ground truth before they are part of a batch."""

    rgb: np.ndarray  # (H, W, 3) uint8
    inverse: np.ndarray  # (H, W) float32, as in a batch
    labels: np.ndarray  # (H, W) uint8, the network's ids from 1, 0 for none


@dataclass(frozen=True)
class Augmentation:
    """Scaling, cropping and flipping of images; the fields are those of the recipe."""

    multiple_of: int
    longer: int = 0
    size: tuple[int, int] | None = None
    scaling: tuple[float, float] = (1.0, 1.0)
    crop: tuple[int, int] | None = None
    bottom: bool = False
    max_depth: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe, spec: ModelSpec, sources: Sequence[Samples]) -> Augmentation:
        """That of a recipe; raises ValueError if the network does not take crops of that size."""
        names = ("longer", "size", "scaling", "crop", "bottom", "max_depth")
        found = cls(spec.multiple_of, **{name: getattr(recipe, name) for name in names})
        untouched = not (found.longer or found.size or found.crop)
        if untouched and any(source.name != "world" for source in sources):
            own = (spec.net_width, spec.net_height)
            found = replace(found, longer=max(own), crop=own)
        if found.crop and any(side < 1 or side % spec.multiple_of for side in found.crop):
            raise ValueError(
                f"The crop is {found.crop[0]}x{found.crop[1]}, but {spec.name} takes sizes in "
                f"multiples of {spec.multiple_of}."
            )
        return found

    def net_size(self, shape: Sequence[int]) -> tuple[int, int]:
        """Width and height of the input of a network trained on images of ``shape`` (H, W)."""
        if self.crop is not None:
            return self.crop
        width, height = (
            max(round(n / self.multiple_of), 1) * self.multiple_of for n in self.target_size(shape)
        )
        return width, height

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Scale, crop and flip an image and its ground truth together, at random."""
        low, high = self.scaling
        factor = np.exp(rng.uniform(np.log(low), np.log(high)))
        place = rng.random(2)
        flip = rng.random() < 0.5
        picture = _resized(picture, self.target_size(picture.labels.shape, factor))
        picture = self._cropped(picture, place)
        if flip:
            picture = Picture(*(array[:, ::-1] for array in picture))
        if self.max_depth:
            inverse = picture.inverse.copy()
            inverse[(inverse > 0) & (inverse < 1 / self.max_depth)] = np.nan
            picture = picture._replace(inverse=inverse)
        return picture

    def target_size(self, shape: Sequence[int], factor: float = 1.0) -> tuple[int, int]:
        """Width and height to which an image of ``shape`` (H, W) is scaled."""
        width, height = self.size or (shape[1], shape[0])
        if self.longer:
            factor = factor * self.longer / max(width, height)
        return max(round(factor * width), 1), max(round(factor * height), 1)

    def _cropped(self, picture: Picture, place: np.ndarray) -> Picture:
        height, width = picture.labels.shape
        if self.crop is not None:
            crop_w, crop_h = self.crop
        else:
            crop_h, crop_w = (
                min(n, CROP) // self.multiple_of * self.multiple_of for n in (height, width)
            )
        down, right = max(crop_h - height, 0), max(crop_w - width, 0)
        if down or right:
            edges, fill = (0, down, 0, right, cv2.BORDER_CONSTANT), ((GREY,) * 3, (np.nan,), (0,))
            filled = zip(picture, fill, strict=True)
            picture = Picture(*(cv2.copyMakeBorder(a, *edges, value=v) for a, v in filled))
        rows, columns = max(height - crop_h, 0), max(width - crop_w, 0)
        top, left = (place * (rows + 1, columns + 1)).astype(int)
        if self.bottom:
            top, left = rows, columns // 2
        window = np.s_[top : top + crop_h, left : left + crop_w]
        return Picture(*(array[window] for array in picture))


def _resized(picture: Picture, size: tuple[int, int]) -> Picture:
    height, width = picture.labels.shape
    if size == (width, height):
        return picture
    how = cv2.INTER_AREA if size[0] < width else cv2.INTER_LINEAR
    rgb = cv2.resize(picture.rgb, size, interpolation=how)
    # Depths and classes must not be averaged over an edge: nearest neighbour.
    inverse, labels = (
        cv2.resize(array, size, interpolation=cv2.INTER_NEAREST_EXACT) for array in picture[1:]
    )
    return Picture(rgb, inverse, labels)


def picture_of(sample: Sample, table: np.ndarray) -> Picture:
    """A sample's image and ground truth for training; what the dataset lacks is unknown;
    ``table``: (256,) uint8, from the dataset's class ids to the network's."""
    shape = sample.rgb.shape[:2]
    inverse = np.full(shape, np.nan) if sample.inverse is None else sample.inverse
    labels = np.zeros(shape, np.uint8) if sample.labels is None else table[sample.labels]
    return Picture(sample.rgb, inverse.astype(np.float32), labels)


def check_batch(name: str, images: int, size: int) -> None:
    """Raise ValueError if a dataset has fewer ``images`` than a batch of ``size``."""
    if images < size:
        raise ValueError(
            f"A batch of {size} images needs at least as many in the dataset, but {name} has "
            f"{images}: set --batch to {images} or less, or use more images."
        )


class Batches(Dataset[Batch]):
    """The batch of every step, or one process's part of it; a function of the step alone, so that
    a resumed run equals an uninterrupted one.

    A single dataset is read epoch by epoch, each in a new order, without the incomplete last
    batch; of several, each image's dataset is drawn first, evenly (paper, section 4.1). ``names``:
    of the network's classes; ``size``: images of a batch, of all processes together; ``jitter``:
    random changes of brightness and colour; ``rank`` of ``processes``: which part of the batch.

    Raises:
        ValueError: a dataset has fewer images than a batch.
    """

    def __init__(
        self,
        sources: Sequence[Samples],
        spec: ModelSpec,
        names: Sequence[str],
        augmentation: Augmentation,
        size: int,
        seed: int = 0,
        jitter: bool = True,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        for source in sources:
            check_batch(source.name, len(source), size)
        self.sources, self.augmentation = sources, augmentation
        self.size, self.seed = size, seed
        self.jitter, self.mean, self.std = jitter, spec.mean, spec.std
        self.mine = range(rank * size // processes, (rank + 1) * size // processes)
        self.tables = [class_id_table(source.class_names or (), names) for source in sources]
        self._order: tuple[int, np.ndarray] | None = None

    def chosen(self, step: int) -> list[tuple[int, int]]:
        """Source and index of every picture of a step's whole batch."""
        if len(self.sources) > 1:
            rng = np.random.default_rng([self.seed, 2, step])
            drawn = rng.integers(len(self.sources), size=self.size)
            return [(int(k), int(rng.integers(len(self.sources[k])))) for k in drawn]
        total = len(self.sources[0])
        epoch, k = divmod(step, total // self.size)
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, 1, epoch])
            self._order = epoch, rng.permutation(total)
        return [(0, int(i)) for i in self._order[1][k * self.size : (k + 1) * self.size]]

    def __getitem__(self, step: int) -> Batch:
        chosen = self.chosen(step)
        pictures, lights = [], []
        for position in self.mine:
            source, index = chosen[position]
            rng = np.random.default_rng([self.seed, 3, step, position])
            picture = picture_of(self.sources[source][index], self.tables[source])
            pictures.append(self.augmentation.apply(picture, rng))
            # gain, contrast, gamma, tint
            ranges = [(0.8, 1.2), (0.75, 1.25), (0.75, 1.33)] + 3 * [(0.92, 1.08)]
            lights.append(rng.uniform(*np.transpose(ranges)))
        shapes = {picture.labels.shape for picture in pictures}
        if len(shapes) > 1:
            raise ValueError(
                "The training images of a batch have different sizes ("
                f"{', '.join(f'{w}x{h}' for h, w in sorted(shapes))}): give --crop or --size."
            )
        rgb, inverse, labels = (
            torch.from_numpy(np.stack(arrays)) for arrays in zip(*pictures, strict=True)
        )
        images = rgb.permute(0, 3, 1, 2).float() / 255
        if self.jitter:
            light = torch.from_numpy(np.array(lights, np.float32))[:, :, None, None]
            gain, contrast, gamma = light[:, 0:1], light[:, 1:2], light[:, 2:3]
            images = (images - 0.45) * contrast + 0.45 * gain  # around mid grey
            images = (images * light[:, 3:]).clamp_(0, 1) ** gamma
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (self.mean, self.std))
        images = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        return Batch(images, inverse, labels.long() - 1)


def stream(batches: Batches, step: int, workers: int, pin: bool) -> Iterator[Batch]:
    """The batches from ``step`` on, read ahead by ``workers`` processes (0: by this one)."""
    steps = itertools.count(step)
    return iter(DataLoader(batches, None, sampler=steps, num_workers=workers, pin_memory=pin))


def reduced(batch: Batch, multiple_of: int, factor: float = 0.6) -> Batch:
    """The same batch at ``factor`` times the size, rounded to what the network takes."""
    full = batch.images.shape[2:]
    size = tuple(max(round(factor * n / multiple_of), 1) * multiple_of for n in full)
    images = F.interpolate(batch.images, size, mode="bilinear", antialias=True)
    inverse = F.interpolate(batch.inverse[:, None], size, mode="nearest-exact")[:, 0]
    labels = F.interpolate(batch.labels[:, None].float(), size, mode="nearest-exact")[:, 0]
    images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images, inverse, labels.long())
