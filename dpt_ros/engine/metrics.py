# SPDX-License-Identifier: Apache-2.0
"""How good depth and labels are: the usual measures, in numpy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


def depth_metrics(
    prediction: np.ndarray, truth: np.ndarray, min_depth: float = 0.1, max_depth: float = 40.0
) -> dict[str, float]:
    """The measures of Eigen et al. (2014) over the pixels whose true depth is within the range.

    Args:
        prediction, truth: metres, same shape. Where the prediction is NaN, infinite or outside the
            range, it counts as the nearest end of the range (NaN as the far end): a network may
            not gain by staying silent.

    Returns:
        "abs_rel", "rmse" (metres), "rmse_log", "log10", "delta1", "delta2", "delta3", and
        "pixels", how many were compared; all but the last are NaN if there was none.

    Raises:
        ValueError: if the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(
            f"Prediction and truth must have one shape, but have {prediction.shape} "
            f"and {truth.shape}."
        )
    known = np.isfinite(truth) & (truth >= min_depth) & (truth <= max_depth)
    d = truth[known].astype(np.float64)
    names = ("abs_rel", "rmse", "rmse_log", "log10", "delta1", "delta2", "delta3")
    if d.size == 0:
        return dict.fromkeys(names, float("nan")) | {"pixels": 0.0}
    p = np.nan_to_num(prediction[known].astype(np.float64), nan=max_depth, posinf=max_depth)
    p = np.clip(p, min_depth, max_depth)
    log = np.log(p) - np.log(d)
    ratio = np.exp(np.abs(log))
    values = (
        np.mean(np.abs(p - d) / d),
        np.sqrt(np.mean((p - d) ** 2)),
        np.sqrt(np.mean(log**2)),
        np.mean(np.abs(log)) / np.log(10),
        *(np.mean(ratio < 1.25**k) for k in (1, 2, 3)),
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)} | {
        "pixels": float(d.size)
    }


@dataclass
class Confusion:
    """A confusion matrix that grows image by image.

    Args:
        num_classes: N; ids 1..N are classes, as on the wire. A true id 0 or 255 is not judged; a
            predicted 0 or 255 on a judged pixel is a miss.
    """

    num_classes: int
    counts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        # row: truth 1..N; column: prediction, 0 for "none"
        self.counts = np.zeros((self.num_classes, self.num_classes + 1), np.int64)

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count one pair of label images (uint8, same shape). Raises ValueError if the shapes
        differ."""
        if prediction.shape != truth.shape:
            raise ValueError(
                f"Prediction and truth must have one shape, but have {prediction.shape} "
                f"and {truth.shape}."
            )
        n = self.num_classes
        judged = (truth >= 1) & (truth <= n)
        row = truth[judged].astype(np.int64) - 1
        column = prediction[judged].astype(np.int64)
        column[column > n] = 0
        self.counts += np.bincount(row * (n + 1) + column, minlength=n * (n + 1)).reshape(n, n + 1)

    def iou(self) -> np.ndarray:
        """(N,) intersection over union; NaN for a class that was neither there nor predicted."""
        hit = np.diag(self.counts[:, 1:]).astype(np.float64)
        union = self.counts.sum(1) + self.counts[:, 1:].sum(0) - hit
        return np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0)

    def metrics(self) -> dict[str, float]:
        """ "pixel_accuracy" and "miou" (mean over the classes that occur); NaN while nothing was
        judged."""
        total = self.counts.sum()
        if total == 0:
            return {"pixel_accuracy": float("nan"), "miou": float("nan")}
        accuracy = np.diag(self.counts[:, 1:]).sum() / total
        return {"pixel_accuracy": float(accuracy), "miou": float(np.nanmean(self.iou()))}
