# SPDX-License-Identifier: Apache-2.0
"""How steady networks are on videos with everything known: the temporal metrics of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dpt_ros.datasets import DatasetError, Sample
from dpt_ros.metrics.depth import fit_scale_and_shift
from dpt_ros.metrics.temporal import DepthStability, LabelStability, Reference, Tracker

DEPTH_MEASURES = ("tepe", "tae", "opw", "rtc", "edge", "ghost", "miss")
LABEL_MEASURES = ("tc", "vc8", "vc16", "mover_iou", "ghost_label")
_MOVERS = ("person",)


class Videos:
    """The temporal metrics of predictions as they come, frame by frame, with no filter.

    Relative inverse depth is fitted to the truth of a video's first frame, and the fit is held.

    Args:
        names: of the dataset's classes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._video = _Video(self._names)
        self._sequence: str | None = None
        self._found: dict[str, dict[str, float]] = {}

    def add(self, sample: Sample, predictions: Mapping[str, np.ndarray]) -> None:
        """The next frame.

        Args:
            sample: with ``sequence`` and ``truth``.
            predictions: "metric" (metres) or "zero-shot" (relative inverse depth), and "labels"
                (ids of the dataset); each may be missing.

        Raises:
            DatasetError: the sample has no such truth.
        """
        if sample.truth is None:
            raise DatasetError(
                f"{sample.name} has no flow, poses and movers, which the temporal metrics need."
            )
        if sample.sequence != self._sequence:
            self._close()
            self._sequence = sample.sequence
        self._video.add(self._video.tracker.update(sample.truth), predictions)

    def result(self) -> dict[str, dict[str, float]]:
        """By name of the video its measures, as in ``engine.temporal_metrics``."""
        self._close()
        return self._found

    def _close(self) -> None:
        if self._sequence is not None:
            self._found[self._sequence] = self._video.result()
        self._video, self._sequence = _Video(self._names), None


class _Video:
    """The running measures of one video."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.tracker = Tracker()
        self._names = names
        self._depth: DepthStability | None = None
        self._labels: LabelStability | None = None
        self._fit: tuple[float, float] | None = None

    def add(self, reference: Reference, predictions: Mapping[str, np.ndarray]) -> None:
        inverse: np.ndarray | None = None
        if "metric" in predictions:
            inverse = 1 / np.maximum(predictions["metric"], 1e-3)
        elif "zero-shot" in predictions:
            relative = predictions["zero-shot"]
            if self._fit is None:
                self._fit = fit_scale_and_shift(relative, reference.inverse, reference.known)
            inverse = self._fit[0] * relative + self._fit[1]
        if inverse is not None:
            self._depth = self._depth or DepthStability(stride=2)
            self._depth.update(reference, inverse.astype(np.float32))
        if "labels" in predictions:
            if self._labels is None:
                movers = [self._names.index(name) + 1 for name in _MOVERS if name in self._names]
                self._labels = LabelStability(len(self._names), movers)
            self._labels.update(reference, predictions["labels"])

    def result(self) -> dict[str, float]:
        values: dict[str, float] = {}
        if self._depth is not None:
            found = self._depth.result()
            values |= {name: found[name] for name in DEPTH_MEASURES}
        if self._labels is not None:
            found = self._labels.result()
            values |= {name: found[name] for name in LABEL_MEASURES}
        return values
