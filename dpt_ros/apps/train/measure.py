# SPDX-License-Identifier: Apache-2.0
"""The loss of a batch, the evaluation on held-out images, and TensorBoard's curves and images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt_ros.apps.train.pictures import Batch, picture_of
from dpt_ros.apps.train.recipe import Recipe
from dpt_ros.data import class_id_table, class_names, palette
from dpt_ros.datasets import Dataset
from dpt_ros.engine.inference.predict import predict_image
from dpt_ros.engine.output.color import inverse_to_color, labels_to_color
from dpt_ros.metrics.depth import Confusion, aligned_depth, depth_metrics
from dpt_ros.model import losses
from dpt_ros.model.dpt import DPT
from dpt_ros.model.zoo import ModelSpec

_FARTHEST = 1000.0  # metres; cap of aligned relative depth


def loss_of(
    outputs: dict[str, Tensor],
    batch: Batch,
    spec: ModelSpec,
    recipe: Recipe,
    weight: Tensor | None,
    share: losses.Share,
) -> dict[str, Tensor]:
    """The terms of the loss by name.

    Args:
        outputs: of ``DPT.forward`` in training: "depth" (B, H, W), metres or relative inverse
            depth; "labels", "auxiliary" (B, num_classes, H, W), logits.
        weight: (num_classes,) of the classes.
        share: see ``dpt_ros.model.losses``.
    """
    terms = {}
    if "depth" in outputs:
        depth = outputs["depth"].float()
        kind = recipe.depth_loss or ("log" if spec.invert else "ssi")
        if kind == "ssi":
            inverse = 1 / depth if spec.invert else depth
            known = batch.inverse > 0  # NaN is not
            given = (inverse, batch.inverse, known, recipe.gradient)
            loss = losses.scale_shift_invariant_loss(*given, share=share)
        else:
            # sky has no depth: the target is the farthest that the network can predict
            floor = max(spec.shift, 1e-3)
            known = ~batch.inverse.isnan()
            inverse = 1 / depth if spec.invert else depth.clamp(min=floor)
            metres = losses.metric_loss if kind == "log" else losses.silog_loss
            loss = metres(inverse, batch.inverse, known, recipe.gradient, floor=floor, share=share)
        terms["depth"] = loss
    if "labels" in outputs:
        terms["labels"] = losses.label_loss(outputs["labels"].float(), batch.labels, weight, share)
    if "auxiliary" in outputs:
        half = batch.labels[:, ::2, ::2]
        loss = losses.label_loss(outputs["auxiliary"].float(), half, weight, share)
        terms["auxiliary"] = recipe.auxiliary * loss
    return terms


def class_weights(count: np.ndarray) -> Tensor:
    """Mild weights for rare classes, frequency ** -0.3, with a mean of 1 over the pixels:
    (num_classes,) float32 of ``count``, (num_classes,) pixels of each class."""
    share = np.asarray(np.maximum(count / max(int(count.sum()), 1), 1e-4), np.float64)
    weight = share**-0.3
    return torch.from_numpy(weight / float((weight * share).sum())).float()


def weights_of(sources: Sequence[Dataset], names: Sequence[str]) -> Tensor:
    """``class_weights`` from about 500 images of the datasets."""
    count = np.zeros(256, np.int64)
    for source in sources:
        table = class_id_table(source.class_names or (), names)
        for i in range(0, len(source), max(1, len(source) * len(sources) // 500)):
            labels = picture_of(source[i], table).labels
            count += np.bincount(labels[::4, ::4].ravel(), minlength=256)
    return class_weights(count[1 : len(names) + 1])


def evaluate(model: DPT, dataset: Dataset, limit: int, max_depth: float) -> dict[str, Any]:
    """Evaluate a network with ``predict_image``, as a user runs it, on at most ``limit`` images,
    evenly spread, up to ``max_depth``, metres.

    Returns:
        the names of ``depth_metrics`` (mean over images; no sky; relative networks are first
        fitted to the truth), those of ``Confusion.metrics`` (over all pixels), "iou" by class
        name, and "images".
    """
    count = min(len(dataset), limit)
    rows: list[dict[str, float]] = []
    with_labels = "labels" in model.tasks and dataset.class_names is not None
    names = class_names(model.spec.class_names) if with_labels else ()
    confusion = Confusion(len(names)) if with_labels else None
    table = class_id_table(dataset.class_names or (), names)
    for i in np.linspace(0, len(dataset) - 1, count).astype(int):
        sample = dataset[int(i)]
        truth = picture_of(sample, table)
        result = predict_image(model, sample.rgb)
        if "depth" in result and np.isfinite(truth.inverse).any():
            inverse = truth.inverse
            metres = np.where(inverse > 0, 1 / np.maximum(inverse, 1e-8), np.inf)
            metres[np.isnan(inverse)] = np.nan
            depth = result["depth"]
            if not model.metric:
                depth = aligned_depth(depth, metres, inverse > 0, _FARTHEST)
            rows.append(depth_metrics(depth, metres, max_depth=max_depth))
        if confusion is not None:
            confusion.add(result["labels"], truth.labels)
    report: dict[str, Any] = {"images": count}
    for name in rows[0] if rows else ():
        if name != "pixels":
            report[name] = float(np.nanmean([row[name] for row in rows]))
    if confusion is not None:
        report |= confusion.metrics()
        iou = confusion.iou().round(4).tolist()
        report["iou"] = {name: v for name, v in zip(names, iou, strict=True) if v == v}
    return report


class Board:
    """Writes events into ``folder`` for ``tensorboard --logdir``; those that an interrupted run
    wrote after ``step`` are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step or None)

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)
        self._writer.flush()

    def pictures(self, model: DPT, dataset: Dataset, step: int) -> None:
        """Write ``picture_board`` of three samples, evenly spread."""
        for k, i in enumerate(np.linspace(0, len(dataset) - 1, 3).astype(int)):
            picture = picture_board(model, dataset, int(i))
            self._writer.add_image(f"pictures/{k}", picture, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def picture_board(model: DPT, dataset: Dataset, index: int) -> np.ndarray:
    """(rows H, 3 W, 3) uint8 RGB: a row per task, each of image, ground truth and prediction."""
    sample = dataset[index]
    labels = "labels" in model.tasks
    names = class_names(model.spec.class_names) if labels else ()
    truth = picture_of(sample, class_id_table(dataset.class_names or (), names))
    result = predict_image(model, sample.rgb)
    rows = []
    if "depth" in result:
        inverse = result["depth"]
        inverse = 1 / np.maximum(inverse, 1e-3) if model.metric else inverse
        known = truth.inverse[np.isfinite(truth.inverse)]
        near = float(np.quantile(known, 0.98)) if known.size else 1.0
        scale = near if model.metric else max(float(np.quantile(inverse, 0.98)), 1e-6)
        both = inverse_to_color(truth.inverse, near), inverse_to_color(inverse, scale)
        rows.append([sample.rgb, *both])
    if "labels" in result:
        colors = palette(model.spec.class_names)
        label_images = (truth.labels, result["labels"])
        rows.append([sample.rgb, *(labels_to_color(ids, colors) for ids in label_images)])
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])
