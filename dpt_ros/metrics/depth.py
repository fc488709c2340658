# SPDX-License-Identifier: Apache-2.0
"""Accuracy of depth and labels: the usual measures.

Depth in metres: ``depth_metrics``. Relative inverse depth: ``zero_shot_metrics`` after a fit to
the truth, and ``ordinal_misses`` for pairs of points. Labels: ``Confusion``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def depth_metrics(
    prediction: np.ndarray, truth: np.ndarray, min_depth: float = 0.1, max_depth: float = 40.0
) -> dict[str, float]:
    """The measures of Eigen et al. (2014) over the pixels whose true depth is within the range.

    Args:
        prediction, truth: (H, W) metres. A prediction outside the range is clipped to it, and NaN
            counts as its far end: a missing prediction must not improve the result.
        min_depth, max_depth: the range, metres.

    Returns:
        "abs_rel", "rmse" (metres), "rmse_log", "log10", "delta1", "delta2", "delta3", and
        "pixels", how many were compared; all but the last are NaN if there was none.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(prediction, truth)
    known = np.isfinite(truth) & (truth >= min_depth) & (truth <= max_depth)
    d = truth[known].astype(np.float64)
    names = ("abs_rel", "rmse", "rmse_log", "log10", "delta1", "delta2", "delta3")
    if d.size == 0:
        return dict.fromkeys(names, float("nan")) | {"pixels": 0.0}
    p = np.nan_to_num(prediction[known].astype(np.float64), nan=max_depth, posinf=max_depth)
    p = np.clip(p, min_depth, max_depth)
    log = np.log(p) - np.log(d)
    ratio = np.exp(np.abs(log))
    values = [np.mean(np.abs(p - d) / d), np.sqrt(np.mean((p - d) ** 2)), np.sqrt(np.mean(log**2))]
    values += [np.mean(np.abs(log)) / np.log(10)]
    values += [np.mean(ratio < 1.25**k) for k in (1, 2, 3)]
    return dict(zip((*names, "pixels"), map(float, (*values, d.size)), strict=True))


def _check_shapes(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(
            f"Prediction and truth must have the same shape, but have {prediction.shape} "
            f"and {truth.shape}."
        )


def crop_mask(shape: tuple[int, int], crop: str) -> np.ndarray:
    """Which pixels a protocol evaluates.

    Args:
        shape: (H, W) of the image.
        crop: "" for all; "eigen", rows 45..470 and columns 41..600 of NYU Depth V2 (Eigen et al.,
            2014); "garg", the part of a KITTI image that Garg et al. (2016) evaluate.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: there is no such crop, or "eigen" for another size than 480 x 640.
    """
    mask = np.zeros(shape, bool)
    height, width = shape
    if crop == "":
        mask[:] = True
    elif crop == "eigen":
        if shape != (480, 640):
            raise ValueError(
                f"The crop of Eigen et al. is for 480 x 640 pixels, not for {height} x {width}."
            )
        mask[45:471, 41:601] = True
    elif crop == "garg":
        rows = slice(int(0.40810811 * height), int(0.99189189 * height))
        mask[rows, int(0.03594771 * width) : int(0.96405229 * width)] = True
    else:
        raise ValueError(f"The crop is {crop!r}, but must be '', eigen or garg.")
    return mask


def fit_scale_and_shift(
    relative: np.ndarray, inverse: np.ndarray, known: np.ndarray
) -> tuple[float, float]:
    """The scale s and shift t with the least squared error of ``s * relative + t``.

    Args:
        relative: (H, W) relative inverse depth.
        inverse: (H, W) true inverse depth, read where ``known``.
        known: (H, W) bool.

    Returns:
        s and t; 0 and the mean of ``inverse`` where ``relative`` is constant, NaN where nothing
        is known.
    """
    p, g = relative[known].astype(np.float64), inverse[known].astype(np.float64)
    if not p.size:
        return float("nan"), float("nan")
    centred = p - p.mean()
    variance = float(centred @ centred)
    scale = float(centred @ (g - g.mean())) / variance if variance > 0 else 0.0
    return scale, float(g.mean() - scale * p.mean())


def aligned_depth(
    relative: np.ndarray, truth: np.ndarray, known: np.ndarray, cap: float
) -> np.ndarray:
    """Metres from relative inverse depth, fitted to the truth of its own image.

    Args:
        relative: (H, W) relative inverse depth.
        truth: (H, W) metres, read where ``known``.
        known: (H, W) bool.
        cap: largest depth of the result, metres.

    Returns:
        (H, W) float64, metres; NaN if nothing is known.
    """
    inverse = np.divide(1.0, truth.astype(np.float64), out=np.zeros(truth.shape), where=known)
    scale, shift = fit_scale_and_shift(relative, inverse, known)
    return 1 / np.maximum(scale * relative.astype(np.float64) + shift, 1 / cap)


def zero_shot_metrics(depth: np.ndarray, truth: np.ndarray, known: np.ndarray) -> dict[str, float]:
    """The measures of MiDaS (Ranftl et al., TPAMI 2020) and DPT for zero-shot transfer.

    Args:
        depth: (H, W) metres, from ``aligned_depth``.
        truth: (H, W) metres.
        known: (H, W) bool, what is evaluated.

    Returns:
        "abs_rel"; "bad", % of pixels with max(depth / truth, truth / depth) > 1.25; "pixels". NaN
        for the first two if nothing is known.
    """
    d, g = depth[known].astype(np.float64), truth[known].astype(np.float64)
    if not g.size:
        return {"abs_rel": float("nan"), "bad": float("nan"), "pixels": 0.0}
    bad = 100 * float(np.mean(np.maximum(d / g, g / d) > 1.25))
    abs_rel = float(np.mean(np.abs(d - g) / g))
    return {"abs_rel": abs_rel, "bad": bad, "pixels": float(g.size)}


def ordinal_misses(inverse: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Which pairs of points have the wrong order of depth. Their share is the WHDR (Bell et al.,
    2014; Chen et al., 2016) with equal weights.

    Args:
        inverse: (H, W) relative inverse depth; larger is nearer.
        pairs: (K, 5): row 1, column 1, row 2, column 2, and 1 where point 1 is nearer, -1 where
            point 2 is.

    Returns:
        (K,) bool; equal depths are a miss too.

    Raises:
        ValueError: the pairs have another shape.
    """
    if pairs.ndim != 2 or pairs.shape[1] != 5:
        raise ValueError(f"Pairs must have the shape (K, 5), but have {pairs.shape}.")
    places = np.rint(pairs[:, :4]).astype(np.intp)
    first = inverse[places[:, 0], places[:, 1]]
    second = inverse[places[:, 2], places[:, 3]]
    return np.sign(first - second) != pairs[:, 4]


class Confusion:
    """A confusion matrix, accumulated image by image.

    Args:
        num_classes: N; ids 1..N are classes. Pixels with a true id 0 or 255 are ignored; elsewhere
            a predicted 0 or 255 is an error.

    Attributes:
        counts: (N, N + 1) int64; rows: truth 1..N; columns: prediction 0..N, 0 for no class.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes + 1), np.int64)

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count the labels of a ``prediction`` and of the ``truth``, (H, W) uint8. Raises
        ValueError if the shapes differ."""
        _check_shapes(prediction, truth)
        n = self.num_classes
        known = (truth >= 1) & (truth <= n)
        row = truth[known].astype(np.int64) - 1
        column = prediction[known].astype(np.int64)
        column[column > n] = 0
        self.counts += np.bincount(row * (n + 1) + column, minlength=n * (n + 1)).reshape(n, n + 1)

    def iou(self) -> np.ndarray:
        """(N,) intersection over union; NaN for a class neither in the truth nor predicted."""
        hit = np.asarray(np.diag(self.counts[:, 1:]), np.float64)
        union = self.counts.sum(1) + self.counts[:, 1:].sum(0) - hit
        return np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0)

    def metrics(self) -> dict[str, float]:
        """ "pixel_accuracy" and "miou" (mean over the classes that occur); NaN without a known
        pixel."""
        total = self.counts.sum()
        if total == 0:
            return {"pixel_accuracy": float("nan"), "miou": float("nan")}
        accuracy = float(np.diag(self.counts[:, 1:]).sum()) / float(total)
        return {"pixel_accuracy": accuracy, "miou": float(np.nanmean(self.iou()))}


def finite_mean(values: Sequence[float]) -> float:
    """The mean of the finite ones of ``values``; NaN if there is none."""
    found = np.array(values, np.float64)
    found = found[np.isfinite(found)]
    return float(found.mean()) if found.size else float("nan")
