# SPDX-License-Identifier: Apache-2.0
"""Networks on datasets: predictions, scores per image, means, and the best and worst images."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from dpt_ros.apps.evaluate.protocols import HIGHER_IS_BETTER, Protocol
from dpt_ros.apps.evaluate.videos import Videos
from dpt_ros.data import class_names
from dpt_ros.datasets import Dataset, DatasetError, Sample
from dpt_ros.engine.inference.predict import KITTI_CROP, predict_image
from dpt_ros.engine.input.preprocess import network_input, network_size
from dpt_ros.metrics.depth import (
    Confusion,
    aligned_depth,
    crop_mask,
    depth_metrics,
    ordinal_misses,
    zero_shot_metrics,
)
from dpt_ros.model.dpt import DPT
from dpt_ros.model.zoo import ModelSpec

_KEPT_WIDTH = 640  # pixels; larger images are kept smaller


@dataclass(frozen=True)
class Judged:
    """One image with its prediction, as it was judged, at most ``_KEPT_WIDTH`` pixels wide.

    Args:
        name: of the sample.
        score: the protocol's ranking measure.
        rgb: (H, W, 3) uint8.
        prediction, truth: depth in metres (float, NaN unknown) or class ids (uint8); of "order"
            the prediction is relative inverse depth and the truth the (K, 5) pairs.
    """

    name: str
    score: float
    rgb: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray


class Extremes:
    """Keeps the ``count`` best and worst images."""

    def __init__(self, count: int, higher_is_better: bool) -> None:
        self._count, self._sign = count, -1.0 if higher_is_better else 1.0
        self._worst: list[tuple[float, int, Judged]] = []
        self._best: list[tuple[float, int, Judged]] = []
        self._order = 0

    def add(self, score: float, make: Callable[[], Judged]) -> None:
        """Take an image into account, unless its score is NaN; it is made only if it is kept."""
        if not np.isfinite(score) or self._count < 1:
            return
        self._order -= 1  # of two equal ones the first stays
        badness = self._sign * score
        judged: Judged | None = None
        for heap, value in ((self._worst, badness), (self._best, -badness)):
            if len(heap) < self._count or (value, self._order) > heap[0][:2]:
                judged = judged or make()
                heapq.heappush(heap, (value, self._order, judged))
                if len(heap) > self._count:
                    heapq.heappop(heap)

    def worst(self) -> list[Judged]:
        """The worst first."""
        return [judged for _, _, judged in sorted(self._worst, key=lambda e: e[:2], reverse=True)]

    def best(self) -> list[Judged]:
        """The best first, without those that are among the worst."""
        bad = {id(judged) for judged in self.worst()}
        best = sorted(self._best, key=lambda e: e[:2], reverse=True)
        return [judged for _, _, judged in best if id(judged) not in bad]


@dataclass
class Part:
    """What came out of one protocol.

    Args:
        protocol: it.
        network: name of the zoo.
        measures: means over images, or over all pixels for labels.
        images: how many were judged.
        variant: of the dataset.
        rows: per image "name" and its measures.
        classes: per class intersection over union, NaN where it never occurs.
        notes: what a reader should know.
        worst, best: images.
    """

    protocol: Protocol
    network: str
    measures: dict[str, float]
    images: int
    variant: str
    rows: list[dict[str, Any]]
    classes: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    worst: list[Judged] = field(default_factory=list)
    best: list[Judged] = field(default_factory=list)

    def differences(self) -> tuple[str, ...]:
        """Why the published numbers are not comparable."""
        return self.protocol.differences(self.images, self.variant)


class Judge(ABC):
    """Scores one kind of prediction; ``add`` for every image, then ``result``."""

    def __init__(self, protocol: Protocol, spec: ModelSpec, dataset: Dataset, kept: int) -> None:
        self.protocol, self.network, self._variant = protocol, spec.name, dataset.variant
        self.rows: list[dict[str, Any]] = []
        self.notes: tuple[str, ...] = ()
        self.extremes = Extremes(kept, protocol.rank in HIGHER_IS_BETTER)

    @abstractmethod
    def add(self, sample: Sample, prediction: np.ndarray) -> None:
        """Judge a prediction for a sample.

        Raises:
            DatasetError: the sample has not the truth that the protocol needs.
        """

    def result(self) -> Part:
        """Means over the images."""
        names = self.protocol.measures
        means = {name: _mean([row[name] for row in self.rows]) for name in names}
        return self._part(means)

    def _part(self, measures: dict[str, float], classes: dict[str, float] | None = None) -> Part:
        judged = sum(np.isfinite(row[self.protocol.rank]) for row in self.rows)
        notes = self.notes
        if judged < len(self.rows):
            notes += (f"{len(self.rows) - judged} images have no ground truth.",)
        return Part(
            self.protocol, self.network, measures, int(judged), self._variant, self.rows,
            classes or {}, notes, self.extremes.worst(), self.extremes.best(),
        )  # fmt: skip

    def _keep(
        self,
        sample: Sample,
        values: dict[str, float],
        rgb: np.ndarray,
        prediction: np.ndarray,
        truth: np.ndarray,
    ) -> None:
        self.rows.append({"name": sample.name} | values)
        score = values[self.protocol.rank]
        kept = smaller if self.protocol.kind != "order" else smaller_with_pairs
        self.extremes.add(score, lambda: Judged(sample.name, score, *kept(rgb, prediction, truth)))


def smaller(
    rgb: np.ndarray, prediction: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three images at most ``_KEPT_WIDTH`` wide, copied. Of every block of pixels one is
    taken, if possible one whose truth is known, so that a sparse truth stays visible."""
    step = -(-rgb.shape[1] // _KEPT_WIDTH)
    height, width = (side // step for side in truth.shape)
    if step == 1 or height == 0:
        return rgb.copy(), prediction.copy(), truth.copy()

    def blocks(image: np.ndarray) -> np.ndarray:
        whole = image[: height * step, : width * step].reshape(height, step, width, step)
        return whole.swapaxes(1, 2).reshape(height, width, step * step)

    known = np.isfinite(truth) if truth.dtype != np.uint8 else (truth > 0) & (truth < 255)
    chosen = blocks(known).argmax(2)[..., None]
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    pick = [np.take_along_axis(blocks(image), chosen, 2)[..., 0] for image in (prediction, truth)]
    return small, pick[0], pick[1]


def smaller_with_pairs(
    rgb: np.ndarray, prediction: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As ``smaller``, with pairs of points instead of a truth."""
    factor = min(_KEPT_WIDTH / rgb.shape[1], 1.0)
    size = (round(rgb.shape[1] * factor), max(round(rgb.shape[0] * factor), 1))
    images = [cv2.resize(i, size, interpolation=cv2.INTER_AREA) for i in (rgb, prediction)]
    return images[0], images[1], pairs * [factor, factor, factor, factor, 1]


class DepthJudge(Judge):
    """Depth in metres, or relative inverse depth after a fit to each image."""

    def add(self, sample: Sample, prediction: np.ndarray) -> None:
        protocol = self.protocol
        if sample.depth is None:
            raise DatasetError(
                f"{sample.name} has no ground-truth depth to compare {self.network} with."
            )
        rgb, truth = sample.rgb, sample.depth
        judged = crop_mask(truth.shape, protocol.crop)
        if protocol.kb_crop:
            window = kb_window(rgb)
            rgb, truth, judged = rgb[window], truth[window], judged[window]
        inside = np.isfinite(truth) & (truth > protocol.low) & (truth < protocol.high)
        known = judged & inside
        truth = np.where(known, truth, np.float32(np.nan))
        if protocol.kind == "metric":
            values = depth_metrics(prediction, truth, protocol.low, protocol.high)
            depth = prediction
        else:
            depth = aligned_depth(prediction, truth, known, protocol.cap)
            values = zero_shot_metrics(depth, truth, known)
        del values["pixels"]
        self._keep(sample, values, rgb, depth, truth)


class OrderJudge(Judge):
    """Pairs of points; the mean is over pairs."""

    def add(self, sample: Sample, prediction: np.ndarray) -> None:
        if sample.pairs is None:
            raise DatasetError(f"{sample.name} has no pairs of points.")
        misses = ordinal_misses(prediction, sample.pairs)
        values = {"whdr": 100 * _mean(misses.tolist()), "pairs": float(len(misses))}
        self._keep(sample, values, sample.rgb, prediction, sample.pairs)

    def result(self) -> Part:
        pairs = sum(row["pairs"] for row in self.rows)
        wrong = sum(row["whdr"] * row["pairs"] for row in self.rows if row["pairs"])
        return self._part({"whdr": wrong / pairs if pairs else float("nan")})


class LabelJudge(Judge):
    """Class labels, pooled over all pixels; the network's classes become those of the dataset by
    name."""

    def __init__(self, protocol: Protocol, spec: ModelSpec, dataset: Dataset, kept: int) -> None:
        super().__init__(protocol, spec, dataset, kept)
        self._names = dataset.class_names or ()
        self.ids, self.notes = ids_by_name(spec, self._names)
        self._all = Confusion(len(self._names))

    def add(self, sample: Sample, prediction: np.ndarray) -> None:
        if sample.labels is None:
            raise DatasetError(
                f"{sample.name} has no ground-truth labels to compare {self.network} with."
            )
        labels = self.ids[prediction]
        one = Confusion(len(self._names))
        one.add(labels, sample.labels)
        self._all.counts += one.counts
        self._keep(sample, one.metrics(), sample.rgb, labels, sample.labels)

    def result(self) -> Part:
        classes = dict(zip(self._names, self._all.iou().tolist(), strict=True))
        return self._part(self._all.metrics(), classes)


def ids_by_name(spec: ModelSpec, names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """A table from the network's class ids to those of a dataset, and what to say about it.

    Returns:
        (256,) uint8, 0 for classes that the dataset does not have; remarks.

    Raises:
        ValueError: they have no class in common.
    """
    known = class_names(spec.class_names)
    table = np.zeros(256, np.uint8)
    for index, name in enumerate(known, start=1):
        if name in names:
            table[index] = names.index(name) + 1
    missing = [name for name in names if name not in known]
    if len(missing) == len(names):
        raise ValueError(
            f"{spec.name} has none of the classes of the dataset, which are "
            f"{', '.join(names[:5])} ..."
        )
    if not missing:
        return table, ()
    shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
    return table, (
        f"{spec.name} lacks {len(missing)} of the {len(names)} classes "
        f"({shown}); their pixels count as errors.",
    )


JUDGES: dict[str, Callable[[Protocol, ModelSpec, Dataset, int], Judge]] = {
    "metric": DepthJudge,
    "zero-shot": DepthJudge,
    "order": OrderJudge,
    "labels": LabelJudge,
}


def kb_window(rgb: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of KITTI's benchmark crop: bottom, centre.

    Raises:
        DatasetError: the picture is smaller.
    """
    height, width = KITTI_CROP
    if rgb.shape[0] < height or rgb.shape[1] < width:
        raise DatasetError(
            f"A picture of KITTI has at least {width}x{height} pixels, but this one has "
            f"{rgb.shape[1]}x{rgb.shape[0]}."
        )
    left = (rgb.shape[1] - width) // 2
    return slice(rgb.shape[0] - height, rgb.shape[0]), slice(left, left + width)


def predict(model: DPT, rgb: np.ndarray, protocols: Sequence[Protocol]) -> dict[str, np.ndarray]:
    """What the protocols judge, by their kind.

    Args:
        model: on its device.
        rgb: (H, W, 3) uint8.
        protocols: that this network answers.

    Returns:
        "metric": (H, W) float32, metres; "zero-shot" and "order": (H, W) float32, relative inverse
        depth; "labels": (H, W) uint8. Cropped where a protocol says so.
    """
    if any(protocol.kb_crop for protocol in protocols):
        rgb = np.ascontiguousarray(rgb[kb_window(rgb)])
    found: dict[str, np.ndarray] = {}
    relative = [p.kind for p in protocols if p.kind != "labels"] if not model.metric else []
    if relative:
        found |= dict.fromkeys(relative, _relative(model, rgb))
    if len(found) == len(protocols):
        return found
    outputs = predict_image(model, rgb)
    for protocol in protocols:
        if protocol.kind == "labels":
            found["labels"] = outputs["labels"]
        elif protocol.kind == "metric":
            found["metric"] = outputs["depth"]
        elif protocol.kind not in found:
            found[protocol.kind] = 1 / np.maximum(outputs["depth"], 1e-3)
    return found


def _relative(model: DPT, rgb: np.ndarray) -> np.ndarray:
    """Relative inverse depth as in the authors' evaluation: upsampled bilinearly, where
    ``predict_image``, like their script for pictures, takes bicubic."""
    spec, parameter = model.spec, next(model.parameters())
    shape = rgb.shape[:2]
    size = network_size(shape[0], shape[1], spec.net_height, spec.net_width, spec.multiple_of)
    images = network_input(rgb, size, spec.mean, spec.std, parameter.device)
    with torch.inference_mode():
        output = model(images.to(parameter.dtype))["depth"]
        output = F.interpolate(output[:, None].float(), shape, mode="bilinear")
    return output[0, 0].cpu().numpy()


def evaluate(
    dataset: Dataset,
    plan: Sequence[tuple[DPT, Sequence[Protocol]]],
    kept: int = 4,
    seen: Callable[[], object] = lambda: None,
    videos: Videos | None = None,
) -> list[Part]:
    """Judge networks on all samples of a dataset.

    Args:
        dataset: read once, in order.
        plan: each network with the protocols it answers.
        kept: how many of the best and of the worst images to keep.
        seen: called after every sample.
        videos: is given every sample and its predictions, with the dataset's class ids.

    Returns:
        one part per protocol, in the order of the plan.

    Raises:
        DatasetError: a sample cannot be read or lacks the truth.
        ValueError: a network and the dataset do not go together.
    """
    judges = [
        [JUDGES[protocol.kind](protocol, model.spec, dataset, kept) for protocol in protocols]
        for model, protocols in plan
    ]
    for index in range(len(dataset)):
        sample = dataset.read(index)
        predictions: dict[str, np.ndarray] = {}
        for (model, protocols), group in zip(plan, judges, strict=True):
            found = predict(model, sample.rgb, protocols)
            for judge in group:
                judge.add(sample, found[judge.protocol.kind])
                if isinstance(judge, LabelJudge):
                    found["labels"] = judge.ids[found["labels"]]
            predictions |= found
        if videos is not None:
            videos.add(sample, predictions)
        seen()
    return [judge.result() for group in judges for judge in group]


def _mean(values: Sequence[float]) -> float:
    found = np.array(values, np.float64)
    found = found[np.isfinite(found)]
    return float(found.mean()) if found.size else float("nan")
