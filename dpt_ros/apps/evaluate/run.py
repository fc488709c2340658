# SPDX-License-Identifier: Apache-2.0
"""Networks on datasets: predictions, measures per image, means, the best and worst images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from dpt_ros.apps.evaluate.protocols import HIGHER_IS_BETTER, ArgumentError, Protocol
from dpt_ros.apps.evaluate.videos import Videos
from dpt_ros.data import class_id_table, class_names
from dpt_ros.datasets import Dataset, DatasetError, Sample
from dpt_ros.engine.inference.predict import crop, predict_image
from dpt_ros.engine.input.preprocess import network_input, network_size
from dpt_ros.metrics import depth as scores
from dpt_ros.metrics.depth import Confusion, finite_mean
from dpt_ros.model.dpt import DPT
from dpt_ros.model.zoo import ModelSpec

_KEPT_WIDTH = 640  # pixels; larger images are kept smaller
_Three = tuple[np.ndarray, np.ndarray, np.ndarray]  # image, prediction, truth
_Evaluated = tuple[dict[str, float], np.ndarray, np.ndarray, np.ndarray]  # measures and the three


@dataclass(frozen=True)
class EvaluatedImage:
    """One image with its prediction as it was evaluated, at most ``_KEPT_WIDTH`` pixels wide."""

    name: str  # of the sample
    score: float  # the protocol's ranking measure
    rgb: np.ndarray  # (H, W, 3) uint8
    # (H, W), depth in metres (float, NaN unknown) or class ids (uint8); for "order" the prediction
    # is relative inverse depth and the truth the (K, 5) pairs
    prediction: np.ndarray
    truth: np.ndarray


class Extremes:
    """Keeps the ``count`` best and worst images; ``worst``: the worst first."""

    def __init__(self, count: int, higher_is_better: bool) -> None:
        self._count, self._sign = count, -1.0 if higher_is_better else 1.0
        self.worst: list[EvaluatedImage] = []
        self._best: list[EvaluatedImage] = []

    def add(self, score: float, make: Callable[[], EvaluatedImage]) -> None:
        """Add an image unless its score is NaN; ``make`` is called only if it is kept."""
        if not np.isfinite(score) or self._count < 1:
            return
        image: EvaluatedImage | None = None
        for kept, sign in ((self.worst, -self._sign), (self._best, self._sign)):
            if len(kept) < self._count or sign * score < sign * kept[-1].score:
                image = image or make()
                kept.append(image)
                kept.sort(key=lambda other: sign * other.score)
                del kept[self._count :]

    def best(self) -> list[EvaluatedImage]:
        """The best first, without those that are among the worst."""
        return [image for image in self._best if not any(image is bad for bad in self.worst)]


@dataclass
class Result:
    """The result of one protocol."""

    protocol: Protocol
    network: str  # its name
    measures: dict[str, float]  # means over images, or over all pixels for labels
    images: int  # how many were evaluated
    variant: str  # of the dataset
    rows: list[dict[str, Any]]  # per image "name" and its measures
    # per class intersection over union, NaN where it never occurs
    classes: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # remarks for a reader of the results
    worst: list[EvaluatedImage] = field(default_factory=list)
    best: list[EvaluatedImage] = field(default_factory=list)

    def differences(self) -> tuple[str, ...]:
        """Why the published numbers are not comparable."""
        return self.protocol.differences(self.images, self.variant)


class Evaluator:
    """Evaluates a network by one protocol: ``add`` for every image, then ``result``."""

    def __init__(self, protocol: Protocol, spec: ModelSpec, dataset: Dataset, kept: int) -> None:
        self.protocol, self.network, self._variant = protocol, spec.name, dataset.variant
        self.rows: list[dict[str, Any]] = []
        self.notes: tuple[str, ...] = ()
        self.extremes = Extremes(kept, protocol.rank in HIGHER_IS_BETTER)
        self._names = dataset.class_names or ()
        self._all = Confusion(len(self._names))
        self.ids = np.zeros(0, np.uint8)
        if protocol.kind == "labels":
            self.ids, self.notes = ids_by_name(spec, self._names)

    def add(self, sample: Sample, prediction: np.ndarray) -> None:
        """Evaluate a prediction of ``predict`` for a sample; raises DatasetError if the sample
        lacks the ground truth that the protocol needs."""
        what, truth, evaluate = {
            "order": ("pairs of points", sample.pairs, self._order),
            "labels": ("ground-truth labels", sample.labels, self._labels),
        }.get(self.protocol.kind, ("ground-truth depth", sample.depth, self._depth))
        if truth is None:
            raise DatasetError(f"{sample.name} has no {what} to evaluate {self.network} with.")
        values, *images = evaluate(sample.rgb, prediction, truth)
        self.rows.append({"name": sample.name} | values)
        score = values[self.protocol.rank]
        shrink = smaller if self.protocol.kind != "order" else smaller_with_pairs
        self.extremes.add(score, lambda: EvaluatedImage(sample.name, score, *shrink(*images)))

    def _depth(self, rgb: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> _Evaluated:
        """Depth in metres, or relative inverse depth after a fit to each image."""
        protocol = self.protocol
        known = scores.crop_mask(truth.shape, protocol.crop)
        if protocol.kb_crop:
            rgb, truth, known = crop(rgb), crop(truth), crop(known)
        known &= np.isfinite(truth) & (truth > protocol.low) & (truth < protocol.high)
        truth = np.where(known, truth, np.float32(np.nan))
        if protocol.kind == "metric":
            values = scores.depth_metrics(prediction, truth, protocol.low, protocol.high)
        else:
            prediction = scores.aligned_depth(prediction, truth, known, protocol.cap)
            values = scores.zero_shot_metrics(prediction, truth, known)
        del values["pixels"]
        return values, rgb, prediction, truth

    def _order(self, rgb: np.ndarray, prediction: np.ndarray, pairs: np.ndarray) -> _Evaluated:
        misses = scores.ordinal_misses(prediction, pairs)
        values = {"whdr": 100 * finite_mean(misses.tolist()), "pairs": float(len(misses))}
        return values, rgb, prediction, pairs

    def _labels(self, rgb: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> _Evaluated:
        """The network's classes are mapped to the dataset's by name."""
        labels, one = self.ids[prediction], Confusion(len(self._names))
        one.add(labels, truth)
        self._all.counts += one.counts
        return one.metrics(), rgb, labels, truth

    def result(self) -> Result:
        """Means over the images; over pairs of points; of labels over all pixels."""
        kind, rank, classes = self.protocol.kind, self.protocol.rank, dict[str, float]()
        names = self.protocol.measures
        if kind == "labels":
            measures = self._all.metrics()
            classes = dict(zip(self._names, self._all.iou().tolist(), strict=True))
        elif kind == "order":
            pairs = sum(row["pairs"] for row in self.rows)
            wrong = sum(row["whdr"] * row["pairs"] for row in self.rows if row["pairs"])
            measures = {"whdr": wrong / pairs if pairs else float("nan")}
        else:
            measures = {n: finite_mean([row[n] for row in self.rows]) for n in names}
        evaluated, notes = int(sum(np.isfinite(row[rank]) for row in self.rows)), self.notes
        if evaluated < len(self.rows):
            notes += (f"{len(self.rows) - evaluated} images have no ground truth.",)
        return Result(
            self.protocol, self.network, measures, evaluated, self._variant, self.rows, classes,
            notes, self.extremes.worst, self.extremes.best(),
        )  # fmt: skip


def smaller(rgb: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> _Three:
    """The three images at most ``_KEPT_WIDTH`` wide, copied. Of every block of pixels one is
    kept, if possible one with known truth, so that sparse truth stays visible."""
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


def smaller_with_pairs(rgb: np.ndarray, prediction: np.ndarray, pairs: np.ndarray) -> _Three:
    """As ``smaller``, with pairs of points instead of a truth."""
    factor = min(_KEPT_WIDTH / rgb.shape[1], 1.0)
    size = (round(rgb.shape[1] * factor), max(round(rgb.shape[0] * factor), 1))
    images = [cv2.resize(i, size, interpolation=cv2.INTER_AREA) for i in (rgb, prediction)]
    return images[0], images[1], pairs * [factor, factor, factor, factor, 1]


def ids_by_name(spec: ModelSpec, names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The table from the network's class ids to those of a dataset, (256,) uint8, 0 for classes
    that it does not have, and remarks. Raises ArgumentError without any class in common."""
    own = class_names(spec.class_names)
    missing = [name for name in names if name not in own]
    if len(missing) == len(names):
        which = f"which are {', '.join(names[:5])} ..."
        raise ArgumentError(f"{spec.name} has none of the classes of the dataset, {which}")
    shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
    note = f"{spec.name} lacks {len(missing)} of the {len(names)} classes ({shown})"
    note += "; their pixels count as errors."
    return class_id_table(own, names), (note,) if missing else ()


def predict(
    model: DPT, rgb: np.ndarray, kinds: Sequence[str], kb_crop: bool = False
) -> dict[str, np.ndarray]:
    """The predictions for an image (H, W, 3) uint8 that protocols evaluate, by their kind:
    "metric": (H, W) float32, metres; "zero-shot" and "order": (H, W) float32, relative inverse
    depth; "labels": (H, W) uint8. ``kb_crop``: predict KITTI's benchmark crop only."""
    if kb_crop:
        rgb = np.ascontiguousarray(crop(rgb))
    found: dict[str, np.ndarray] = {}
    if not model.metric:
        depth_kinds = [kind for kind in kinds if kind != "labels"]
        found = dict.fromkeys(depth_kinds, _relative(model, rgb)) if depth_kinds else {}
    outputs = predict_image(model, rgb) if len(found) < len(kinds) else {}
    for kind in kinds:
        if kind == "labels":
            found[kind] = outputs["labels"]
        elif model.metric:
            depth = outputs["depth"]
            found[kind] = depth if kind == "metric" else 1 / np.maximum(depth, 1e-3)
    return found


def _relative(model: DPT, rgb: np.ndarray) -> np.ndarray:
    """Relative inverse depth as in the authors' evaluation: upsampled bilinearly, where
    ``predict_image``, like their script for images, uses bicubic."""
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
    progress: Callable[[], object] = lambda: None,
    videos: Videos | None = None,
) -> list[Result]:
    """Evaluate networks on all samples of a dataset, which is read once, in order.

    Args:
        plan: each network with its protocols; one result per protocol, in the same order.
        kept: how many of the best and of the worst images to keep.
        progress: called after every sample.
        videos: gets every sample and its predictions, with the dataset's class ids.

    Raises:
        DatasetError: a sample cannot be read or lacks the ground truth.
        ArgumentError: a network and the dataset do not go together.
    """
    evaluators = [
        [Evaluator(protocol, model.spec, dataset, kept) for protocol in protocols]
        for model, protocols in plan
    ]
    for index in range(len(dataset)):
        sample = dataset.read(index)
        predictions: dict[str, np.ndarray] = {}
        for (model, protocols), group in zip(plan, evaluators, strict=True):
            kinds = [protocol.kind for protocol in protocols]
            cropped = any(protocol.kb_crop for protocol in protocols)
            predictions |= predict(model, sample.rgb, kinds, cropped)
            for evaluator in group:
                kind = evaluator.protocol.kind
                evaluator.add(sample, predictions[kind])
                if kind == "labels":
                    predictions[kind] = evaluator.ids[predictions[kind]]
        if videos is not None:
            videos.add(sample, predictions)
        progress()
    return [evaluator.result() for group in evaluators for evaluator in group]
