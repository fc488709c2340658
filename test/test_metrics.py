# SPDX-License-Identifier: Apache-2.0
"""Measures of depth and labels, against values worked out by hand and against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpt_ros.engine.metrics import Confusion, depth_metrics


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
