# SPDX-License-Identifier: Apache-2.0
"""The temporal metrics of predictions on videos with complete ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dpt_ros.datasets import DatasetError, Sample
from dpt_ros.metrics.depth import fit_scale_and_shift
from dpt_ros.metrics.temporal import DepthStability, LabelStability, Tracker

_DEPTH = ("tepe", "tae", "opw", "rtc", "edge", "ghost", "miss")
_MEASURES = (*_DEPTH, "tc", "vc8", "vc16", "mover_iou", "ghost_label")
_MOVERS = ("person",)


class Videos:
    """The temporal metrics of single-frame predictions, without the filter; ``names``: of the
    dataset's classes.

    Relative inverse depth is fitted to the truth of a video's first frame; the fit is kept for the
    rest of the video.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._movers = [self._names.index(name) + 1 for name in _MOVERS if name in self._names]
        self._sequence = ""
        self._results: dict[str, dict[str, float]] = {}

    def _start(self, sequence: str) -> None:
        self._sequence, self._tracker = sequence, Tracker()
        self._depth: DepthStability | None = None
        self._labels: LabelStability | None = None
        self._fit: tuple[float, float] | None = None

    def add(self, sample: Sample, predictions: Mapping[str, np.ndarray]) -> None:
        """The next frame: a sample with ``sequence`` and ``truth`` (else a DatasetError), and the
        predictions, (H, W) each: "metric" (metres) or "zero-shot" (relative inverse depth), and
        "labels" (ids of the dataset); each may be missing."""
        if sample.truth is None:
            raise DatasetError(
                f"{sample.name} has no flow, poses and mask of moving objects, which the temporal "
                "metrics need."
            )
        if sample.sequence != self._sequence:
            self.result()
            self._start(sample.sequence)
        reference = self._tracker.update(sample.truth)
        inverse = None
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
            self._labels = self._labels or LabelStability(len(self._names), self._movers)
            self._labels.update(reference, predictions["labels"])

    def result(self) -> dict[str, dict[str, float]]:
        """By name of the video its measures, named as in ``metrics.temporal``."""
        if self._sequence:
            found = self._depth.result() if self._depth else {}
            found |= self._labels.result() if self._labels else {}
            self._results[self._sequence] = {n: found[n] for n in _MEASURES if n in found}
        return self._results
