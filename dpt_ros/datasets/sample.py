# SPDX-License-Identifier: Apache-2.0
"""One image with its ground truth, and a sequence of them: the interface of every dataset."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from dpt_ros.engine.frame import CameraModel
from dpt_ros.metrics.temporal_truth import Truth


class DatasetError(ValueError):
    """A dataset's files are missing or are not what was published."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An image and its ground truth; None for what the dataset does not have.

    Args:
        name: of the image within its dataset.
        rgb: (H, W, 3) uint8.
        depth: (H, W) float32, metres along optical Z, NaN where unknown, +Inf for sky.
        inverse: (H, W) float32, relative inverse depth, NaN where unknown, 0 for sky; computed
            from ``depth`` (1/m) where only that is given.
        labels: (H, W) uint8, class ids 1..N; 0 and 255 are not evaluated.
        pairs: (K, 5) float64, pairs of points with known order: row 1, column 1, row 2, column 2
            (pixels from 0), and 1 where point 1 is nearer, -1 where point 2 is.
        camera: intrinsics of ``rgb``.
        sequence: name of the video; the frames of one video are consecutive. "" for a single
            image.
        stamp_ns: time, nanoseconds.
        truth: the complete ground truth of a video frame, for the temporal metrics.
    """

    name: str
    rgb: np.ndarray
    depth: np.ndarray | None = None
    inverse: np.ndarray | None = None
    labels: np.ndarray | None = None
    pairs: np.ndarray | None = None
    camera: CameraModel | None = None
    sequence: str = ""
    stamp_ns: int = 0
    truth: Truth | None = None

    def __post_init__(self) -> None:
        if self.inverse is None and self.depth is not None:
            object.__setattr__(self, "inverse", (1 / self.depth).astype(np.float32))


class Dataset(Sequence[Sample]):
    """Samples that are read when they are accessed.

    Attributes:
        name: of the dataset, as ``open_dataset`` takes it.
        class_names: the name of class id k + 1 is at k; None without labels.
        variant: the published or common form of the dataset; "" where there is only one.
        notes: remarks for a reader of results: what was skipped and why.
    """

    name: str
    class_names: tuple[str, ...] | None = None
    variant: str = ""
    notes: tuple[str, ...] = ()

    @abstractmethod
    def read(self, index: int) -> Sample:
        """The sample at ``index``, 0 <= index < len.

        Raises:
            DatasetError: one of its files is missing or is not what was published.
        """

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return Subset(self, range(len(self))[index])
        return self.read(range(len(self))[index])


class Subset(Dataset):
    """The samples of ``dataset`` at ``indices``, in that order; read when they are accessed."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.name, self.class_names = dataset.name, dataset.class_names
        self.variant, self.notes = dataset.variant, dataset.notes
        self._dataset, self._indices = dataset, indices

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> Sample:
        return self._dataset.read(self._indices[index])
