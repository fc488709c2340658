# SPDX-License-Identifier: Apache-2.0
"""Measures of depth and labels, against values worked out by hand and against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpt_ros.metrics.depth import (
    Confusion,
    aligned_depth,
    crop_mask,
    depth_metrics,
    fit_scale_and_shift,
    ordinal_misses,
    zero_shot_metrics,
)


def test_depth_metrics_of_two_pixels_worked_out_by_hand() -> None:
    got = depth_metrics(np.array([[2.0, 3.0]]), np.array([[1.0, 4.0]]))
    assert got["abs_rel"] == pytest.approx((1.0 + 0.25) / 2)
    assert got["rmse"] == pytest.approx(1.0)
    assert got["rmse_log"] == pytest.approx(
        math.sqrt((math.log(2) ** 2 + math.log(0.75) ** 2) / 2)
    )
    assert got["log10"] == pytest.approx((math.log10(2) - math.log10(0.75)) / 2)
    # ratios 2 and 1.333: only the second is below 1.25 ** 2, and 2 is not below 1.25 ** 3 = 1.953
    assert (got["delta1"], got["delta2"], got["delta3"]) == (0.0, 0.5, 0.5)
    assert got["pixels"] == 2


def test_a_perfect_prediction_has_no_error() -> None:
    truth = np.linspace(0.5, 39, 100)
    got = depth_metrics(truth, truth)
    assert got["abs_rel"] == 0
    assert got["rmse"] == 0
    assert got["delta1"] == 1


def test_sky_and_unknown_truth_are_not_judged() -> None:
    truth = np.array([1.0, np.inf, np.nan, 0.0, 50.0])
    got = depth_metrics(np.array([1.0, 5.0, 5.0, 5.0, 5.0]), truth)
    assert got["pixels"] == 1
    assert got["abs_rel"] == 0


def test_silence_counts_as_the_far_end() -> None:
    got = depth_metrics(np.array([np.nan, np.inf, -1.0]), np.array([4.0, 4.0, 4.0]), 0.1, 40.0)
    assert got["abs_rel"] == pytest.approx((9 + 9 + 0.975) / 3)


def test_nothing_to_judge_gives_nan() -> None:
    got = depth_metrics(np.ones(3), np.full(3, np.inf))
    assert got["pixels"] == 0
    assert math.isnan(got["abs_rel"])


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        depth_metrics(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        Confusion(3).add(np.ones(2, np.uint8), np.ones(3, np.uint8))


def test_iou_worked_out_by_hand() -> None:
    confusion = Confusion(3)
    truth = np.array([[1, 1, 1, 2], [2, 2, 0, 255]], np.uint8)
    guess = np.array([[1, 1, 2, 2], [2, 0, 1, 1]], np.uint8)
    confusion.add(guess, truth)
    # class 1: hit 2, truth 3, predicted 2 (judged pixels only); class 2: hit 2, truth 3, predicted
    # 3
    assert confusion.iou()[:2] == pytest.approx([2 / 3, 2 / 4])
    assert math.isnan(confusion.iou()[2])
    assert confusion.metrics() == {
        "pixel_accuracy": pytest.approx(4 / 6),
        "miou": pytest.approx((2 / 3 + 0.5) / 2),
    }


def test_an_empty_confusion_is_nan() -> None:
    assert all(math.isnan(v) for v in Confusion(2).metrics().values())


labels = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=60)


@given(labels, st.integers(1, 12))
def test_confusion_agrees_with_sets_of_pixels(pairs: list[tuple[int, int]], n: int) -> None:
    guess, truth = (np.array(side, np.uint8) for side in zip(*pairs, strict=True))
    confusion = Confusion(n)
    half = len(pairs) // 2
    confusion.add(guess[:half], truth[:half])
    confusion.add(guess[half:], truth[half:])
    judged = {k for k, (_, t) in enumerate(pairs) if 1 <= t <= n}
    for c in range(1, n + 1):
        there = {k for k in judged if pairs[k][1] == c}
        said = {k for k in judged if pairs[k][0] == c}
        if there | said:
            assert confusion.iou()[c - 1] == pytest.approx(len(there & said) / len(there | said))
        else:
            assert math.isnan(confusion.iou()[c - 1])


@given(st.lists(st.tuples(st.floats(0.1, 40), st.floats(0.1, 40)), min_size=1, max_size=30))
def test_depth_metrics_agree_with_a_plain_loop(pairs: list[tuple[float, float]]) -> None:
    guess, truth = (np.array(side) for side in zip(*pairs, strict=True))
    got = depth_metrics(guess, truth)
    n = len(pairs)
    assert got["abs_rel"] == pytest.approx(sum(abs(p - t) / t for p, t in pairs) / n)
    assert got["rmse"] == pytest.approx(math.sqrt(sum((p - t) ** 2 for p, t in pairs) / n))
    assert got["delta2"] == pytest.approx(
        sum(max(p / t, t / p) < 1.5625 for p, t in pairs) / n, abs=1.01 / n
    )


def test_crops_are_those_of_the_published_code() -> None:
    eigen = crop_mask((480, 640), "eigen")
    assert eigen[45:471, 41:601].all()
    assert eigen.sum() == 426 * 560
    garg = crop_mask((375, 1242), "garg")
    assert garg[153:371, 44:1197].all()
    assert garg.sum() == 218 * 1153
    assert crop_mask((3, 4), "").all()
    with pytest.raises(ValueError, match="480 x 640 pixels, not for 240 x 320"):
        crop_mask((240, 320), "eigen")
    with pytest.raises(ValueError, match="'', eigen or garg"):
        crop_mask((480, 640), "grag")


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A prediction, a truth in metres and what of it is known, from rough to nearly right."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 20, (24, 32))
    guess = truth * np.exp(rng.normal(0, 0.25, truth.shape))
    return guess, truth, rng.random(truth.shape) < 0.7


def test_depth_metrics_agree_with_scikit_learn_and_torchmetrics() -> None:
    learn = pytest.importorskip("sklearn.metrics")
    torchmetrics = pytest.importorskip("torchmetrics")
    for seed in range(5):
        guess, truth, known = scene(seed)
        got = depth_metrics(guess, np.where(known, truth, np.nan))
        p, g = guess[known].clip(0.1, 40), truth[known]
        absolute, squared = learn.mean_absolute_error, learn.mean_squared_error
        expected = {
            "abs_rel": learn.mean_absolute_percentage_error(g, p),
            "rmse": squared(g, p) ** 0.5,
            "rmse_log": squared(np.log(g), np.log(p)) ** 0.5,
            "log10": absolute(np.log10(g), np.log10(p)),
        }
        for k in (1, 2, 3):
            near = np.abs(np.log(p / g)) < k * np.log(1.25)
            expected[f"delta{k}"] = learn.accuracy_score(np.ones_like(near), near)
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, abs=1e-6)
        p, g = torch.from_numpy(p), torch.from_numpy(g)
        for name, metric, pair in (
            ("abs_rel", torchmetrics.MeanAbsolutePercentageError(), (p, g)),
            ("rmse", torchmetrics.MeanSquaredError(squared=False), (p, g)),
            ("rmse_log", torchmetrics.MeanSquaredError(squared=False), (p.log(), g.log())),
            ("log10", torchmetrics.MeanAbsoluteError(), (p.log10(), g.log10())),
        ):
            assert got[name] == pytest.approx(float(metric.double()(*pair)), abs=1e-6)


def test_zero_shot_metrics_agree_with_scikit_learn() -> None:
    learn = pytest.importorskip("sklearn.metrics")
    linear = pytest.importorskip("sklearn.linear_model")
    for seed in range(5):
        guess, truth, known = scene(seed)
        relative = 37 / guess + 11
        line = linear.LinearRegression().fit(relative[known][:, None], 1 / truth[known])
        scale, shift = fit_scale_and_shift(relative, 1 / truth, known)
        assert scale == pytest.approx(line.coef_[0], abs=1e-6)
        assert shift == pytest.approx(line.intercept_, abs=1e-6)
        depth = 1 / line.predict(relative.reshape(-1, 1)).clip(1 / 10).reshape(truth.shape)
        ours = aligned_depth(relative, truth, known, 10.0)
        assert ours == pytest.approx(depth, abs=1e-6)
        got = zero_shot_metrics(ours, truth, known)
        p, g = depth[known], truth[known]
        assert got["abs_rel"] == pytest.approx(learn.mean_absolute_percentage_error(g, p))
        bad = np.maximum(p / g, g / p) > 1.25
        share = 100 * learn.zero_one_loss(np.zeros_like(bad), bad)
        assert got["bad"] == pytest.approx(share, abs=1e-6)


def test_a_right_shape_is_perfect_after_the_fit_and_a_constant_one_is_the_mean() -> None:
    _, truth, known = scene(1)
    depth = aligned_depth(5 / truth + 3, truth, known, 100.0)
    assert depth == pytest.approx(truth)
    assert zero_shot_metrics(depth, truth, known)["bad"] == 0
    flat = aligned_depth(np.full(truth.shape, 2.0), truth, known, 100.0)
    assert 1 / flat == pytest.approx(np.full(truth.shape, (1 / truth[known]).mean()))


def test_nothing_known_gives_nan_after_a_fit_too() -> None:
    nothing = np.zeros((2, 3), bool)
    depth = aligned_depth(np.ones((2, 3)), np.full((2, 3), np.nan), nothing, 10.0)
    assert np.isnan(depth).all()
    got = zero_shot_metrics(depth, depth, nothing)
    assert math.isnan(got["abs_rel"])
    assert math.isnan(got["bad"])


def test_whdr_agrees_with_scikit_learn() -> None:
    learn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    inverse = rng.normal(size=(20, 30))
    places = rng.integers(0, (20, 30, 20, 30), (200, 4))
    nearer = rng.choice([-1, 1], 200)
    said = np.sign(inverse[places[:, 0], places[:, 1]] - inverse[places[:, 2], places[:, 3]])
    pairs = np.column_stack([places, nearer])
    misses = ordinal_misses(inverse, pairs)
    assert misses.mean() == pytest.approx(learn.zero_one_loss(nearer, said), abs=1e-6)
    assert ordinal_misses(np.ones((20, 30)), pairs).all()  # no order at all is no answer
    with pytest.raises(ValueError, match=r"\(K, 5\), but have \(5,\)"):
        ordinal_misses(inverse, pairs[0])


def test_confusion_agrees_with_scikit_learn_and_torchmetrics() -> None:
    learn = pytest.importorskip("sklearn.metrics")
    classification = pytest.importorskip("torchmetrics.classification")
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 8, (50, 60), np.uint8)  # 0 is not judged
    guess = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(1, 8, truth.shape))
    guess[truth == 0] = 3
    guess = guess.astype(np.uint8)
    confusion = Confusion(7)
    confusion.add(guess, truth)
    judged = truth > 0
    g, p = truth[judged], guess[judged]
    iou = learn.jaccard_score(g, p, labels=range(1, 8), average=None)
    assert confusion.iou() == pytest.approx(iou, abs=1e-6)
    got = confusion.metrics()
    assert got["pixel_accuracy"] == pytest.approx(learn.accuracy_score(g, p), abs=1e-6)
    assert got["miou"] == pytest.approx(iou.mean(), abs=1e-6)
    target = torch.from_numpy(truth.astype(np.int64)) - 1
    index = classification.MulticlassJaccardIndex(7, average=None, ignore_index=-1)
    theirs = index(torch.from_numpy(guess.astype(np.int64)) - 1, target)
    assert confusion.iou() == pytest.approx(theirs.numpy(), abs=1e-6)
