# SPDX-License-Identifier: Apache-2.0
"""Curves and images of a training run in TensorBoard."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpt_ros.apps.train.pictures import picture_of
from dpt_ros.data import class_id_table, class_names, palette
from dpt_ros.datasets import Dataset
from dpt_ros.engine.inference.predict import predict_image
from dpt_ros.engine.output.color import inverse_to_color, labels_to_color
from dpt_ros.model.dpt import DPT


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
