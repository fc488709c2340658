# SPDX-License-Identifier: Apache-2.0
"""The measures of steadiness on cases with a known answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dpt_ros.apps.bench.temporal.shots import Shot, make_shot
from dpt_ros.engine.frame import CameraModel
from dpt_ros.metrics.temporal import (
    DepthStability,
    LabelStability,
    Reference,
    Tracker,
    frames_to_90,
)
from dpt_ros.world import CLASSES, View
from dpt_ros.world.classes import BOX, FLOOR, PERSON, WALL

HEIGHT, WIDTH = 24, 32
CAMERA = CameraModel(WIDTH, HEIGHT, 30.0, 30.0, 15.5, 11.5)


def wall(k: int, depth: float = 4.0) -> View:
    """Frame ``k`` of a standing camera before a wall."""
    shape = (HEIGHT, WIDTH)
    return View(
        np.full((*shape, 3), 100, np.uint8),
        np.full(shape, depth, np.float32),
        np.full(shape, WALL, np.uint8),
        np.zeros((*shape, 2), np.float32),
        np.full(shape, k > 0),
        np.zeros(shape, bool),
        np.eye(4),
        CAMERA,
        round(k * 1e9 / 30),
    )


def passing(k: int, depth: float = 2.0, speed: int = 4) -> View:
    """A person 6 pixels wide that passes before the wall, ``speed`` pixels per frame."""
    view = wall(k)
    columns = np.arange(WIDTH)
    now = (columns >= speed * k) & (columns < speed * k + 6)
    before = (columns >= speed * (k - 1)) & (columns < speed * (k - 1) + 6)
    view.depth[:, now], view.labels[:, now], view.movers[:, now] = depth, PERSON, True
    view.flow[:, now, 0] = -speed
    view.flow_valid[:, before & ~now] = False
    return view


def judge(views: list[View], predicted: list[np.ndarray]) -> dict[str, float]:
    tracker, meter = Tracker(), DepthStability()
    for view, inverse in zip(views, predicted, strict=True):
        meter.update(tracker.update(view), inverse)
    return meter.result()


def judge_labels(views: list[View], predicted: list[np.ndarray]) -> dict[str, float]:
    tracker, meter = Tracker(), LabelStability(len(CLASSES), (PERSON,), clips=(2, 8))
    for view, labels in zip(views, predicted, strict=True):
        meter.update(tracker.update(view), labels)
    return meter.result()


@pytest.fixture(scope="module")
def moving() -> Shot:
    return make_shot("moving", 0, 20, 160, 120)


@pytest.fixture(scope="module")
def references(moving: Shot) -> list[Reference]:
    tracker = Tracker()
    return [tracker.update(view) for view in moving.views]


def test_the_truth_itself_has_no_error_although_the_camera_moves(moving: Shot) -> None:
    found = judge(moving.views, [1 / view.depth for view in moving.views])
    assert found["tepe"] < 0.1  # what bilinear sampling leaves
    # scattered to whole pixels, over depth edges, without a z-buffer: the floor of this measure
    assert found["tae"] < 1.0
    for name in ("abs_rel", "edge", "ghost", "miss"):
        assert found[name] == pytest.approx(0, abs=1e-6)
    assert found["delta1"] == 100
    assert np.isnan(found["std"])
    assert np.isnan(found["drift"])
    labels = judge_labels(moving.views, [view.labels for view in moving.views])
    assert labels["miou"] == labels["vc8"] == labels["mover_iou"] == 100
    assert labels["ghost_label"] == 0
    assert labels["tc"] > 96  # nearest neighbours at boundaries


def test_a_scale_that_flickers_by_a_known_share_gives_that_tepe() -> None:
    views = [wall(k) for k in range(10)]
    found = judge(views, [(1.1 if k % 2 else 1.0) / view.depth for k, view in enumerate(views)])
    assert found["tepe"] == pytest.approx(10, abs=0.01)
    assert found["std"] == pytest.approx(100 * np.std([0, 0.1] * 5, ddof=1), abs=0.01)
    assert found["opw"] == pytest.approx(4 - 4 / 1.1, abs=1e-3)
    assert found["rtc"] == 0
    assert found["abs_rel"] == pytest.approx((0 + 1 - 1 / 1.1) / 2, abs=1e-4)


def test_what_was_hidden_before_cannot_flicker() -> None:
    views = [wall(k) for k in range(4)]
    predicted = [1 / view.depth for view in views]
    for k, view in enumerate(views):
        view.flow_valid[:, :16] = False
        predicted[k][:, :16] *= 1 + 0.2 * (k % 2)
    assert judge(views, predicted)["tepe"] == pytest.approx(0, abs=1e-4)


def test_the_deviation_over_time_can_leave_out_the_start() -> None:
    tracker, all_of_it, settled = Tracker(), DepthStability(), DepthStability(settle=3)
    for k in range(8):
        reference = tracker.update(wall(k))
        for meter in (all_of_it, settled):
            meter.update(reference, np.full((HEIGHT, WIDTH), 0.3 if k < 3 else 0.25))
    assert all_of_it.result()["std"] > 5
    assert settled.result()["std"] == pytest.approx(0, abs=1e-6)


def test_true_looming_is_no_flicker_but_a_depth_that_misses_it_is() -> None:
    views = [wall(k, depth=4 - 0.1 * k) for k in range(10)]
    assert judge(views, [1 / view.depth for view in views])["tepe"] == pytest.approx(0, abs=1e-3)
    frozen = judge(views, [1 / views[0].depth] * 10)
    steps = [1 - (4 - 0.1 * k) / (4 - 0.1 * (k - 1)) for k in range(1, 10)]
    assert frozen["tepe"] == pytest.approx(100 * np.mean(steps), abs=0.01)


def test_tae_forgives_one_scale_and_shift_for_the_whole_video_but_no_change(moving: Shot) -> None:
    truth = [1 / view.depth for view in moving.views]
    clean = judge(moving.views, truth)["tae"]
    assert judge(moving.views, [0.5 * q + 0.1 for q in truth])["tae"] == pytest.approx(
        clean, abs=0.05
    )
    swinging = [q * (1.1 if k % 2 else 1.0) for k, q in enumerate(truth)]
    assert judge(moving.views, swinging)["tae"] == pytest.approx(10, abs=1.5)


def test_drift_is_the_slope_of_the_scale() -> None:
    views = [wall(30 * k) for k in range(25)]
    growing = [1 / (view.depth * (1 + 0.05 * k / 60)) for k, view in enumerate(views)]
    assert judge(views, growing)["drift"] == pytest.approx(5, abs=0.01)


def test_a_ghost_is_counted_where_an_object_left_and_nowhere_else() -> None:
    views = [passing(k) for k in range(5)]
    truth = [1 / view.depth for view in views]
    assert judge(views, truth)["ghost"] == 0
    late = [truth[0], *truth[:-1]]  # everything is seen one frame late
    found = judge(views, late)
    # 4 columns are uncovered per frame and stay watched: 4, 8, 12, 16; the last 4 are ghosts
    assert found["ghost"] == pytest.approx(100 * 16 / 40)
    # 4 of the person's 6 columns still show the wall, but for the first frame
    assert found["miss"] == pytest.approx(100 * 4 * 4 / 30)


def test_an_uncovered_place_counts_for_eight_frames() -> None:
    views = [passing(k, speed=6) for k in range(2)] + [wall(k) for k in range(2, 14)]
    views[2].flow_valid[:, 6:12] = False
    tracker = Tracker()
    left = [int(tracker.update(view).uncovered[0].sum()) for view in views]
    assert left == [0, *[6], *[12] * 7, 6, *[0] * 4]


def test_an_object_that_was_hardly_nearer_leaves_no_ghost() -> None:
    tracker = Tracker()
    for k in range(3):
        assert not tracker.update(passing(k, depth=3.6)).uncovered.any()


def test_a_cut_is_compared_with_nothing_before_it() -> None:
    tracker, meter = Tracker(), DepthStability()
    for k, depth in enumerate((2.0, 2.0, 5.0, 5.0)):
        meter.update(
            tracker.update(wall(k, depth), cut=k == 2), np.full((HEIGHT, WIDTH), 1 / depth)
        )
    assert meter.result()["tepe"] == pytest.approx(0, abs=1e-4)
    assert np.isnan(meter.result()["ghost"])  # nothing left


def test_a_prediction_of_another_size_is_refused() -> None:
    reference = Tracker().update(wall(0))
    with pytest.raises(ValueError, match="shape"):
        DepthStability().update(reference, np.ones((4, 4)))
    with pytest.raises(ValueError, match="shape"):
        LabelStability(10, (PERSON,)).update(reference, np.ones((4, 4), np.uint8))


def test_nan_counts_as_far_and_never_spreads() -> None:
    views = [wall(k) for k in range(3)]
    silent = [np.full((HEIGHT, WIDTH), np.nan, np.float32)] * 3
    found = judge(views, silent)
    assert found["abs_rel"] == pytest.approx(9)  # 40 m instead of 4
    assert found["tepe"] == 0


def test_video_consistency_counts_steady_labels_even_if_wrong() -> None:
    views = [wall(k) for k in range(10)]
    wrong = judge_labels(views, [np.full((HEIGHT, WIDTH), BOX, np.uint8)] * 10)
    assert wrong["vc8"] == 100
    assert wrong["miou"] == 0
    flicker = [view.labels.copy() for view in views]
    flicker[5][:, :8] = FLOOR  # a quarter of the picture, once
    found = judge_labels(views, flicker)
    assert found["vc8"] == pytest.approx(75)  # each of the three clips of 8 holds frame 5
    assert found["vc2"] == pytest.approx(100 - 25 * 2 / 9)
    assert found["tc"] == pytest.approx(100 * (9 - 0.5) / 9)


def test_labels_that_come_late_are_ghost_labels_and_miss_the_mover() -> None:
    views = [passing(k) for k in range(5)]
    late = [views[0].labels, *[view.labels for view in views[:-1]]]
    found = judge_labels(views, late)
    assert found["ghost_label"] == pytest.approx(100 * 16 / 40)
    assert found["mover_iou"] == pytest.approx(100 * (6 + 4 * 2) / (6 + 4 * 10))


def test_a_wrong_label_where_an_object_left_is_a_ghost_only_if_it_is_the_objects() -> None:
    views = [passing(k) for k in range(5)]
    wrong = [np.where(view.movers, PERSON, BOX).astype(np.uint8) for view in views]
    assert judge_labels(views, wrong)["ghost_label"] == 0


def test_frames_to_90_percent_of_a_step() -> None:
    assert frames_to_90([1, 1, 2, 2], 2, 1, 2) == 0
    assert frames_to_90([2, 2, 1.5, 1.11, 1.05], 2, 2, 1) == 2
    assert np.isnan(frames_to_90([1, 1, 1.5], 2, 1, 2))
    ema = [1 - 0.6 ** (k + 1) for k in range(10)]
    assert frames_to_90([0.0, *ema], 1, 0, 1) == 4
    with pytest.raises(ValueError, match="no step"):
        frames_to_90([1, 1], 1, 1, 1)


def test_a_size_that_changes_without_a_cut_is_refused() -> None:
    tracker = Tracker()
    tracker.update(wall(0))
    small = replace(wall(1), depth=np.ones((4, 4), np.float32))
    with pytest.raises(ValueError, match="size changed"):
        tracker.update(small)
