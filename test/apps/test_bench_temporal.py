# SPDX-License-Identifier: Apache-2.0
"""dpt_bench temporal: the noise model, the baselines, the videos, the targets, and a short run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dpt_ros.apps import bench
from dpt_ros.apps.bench import TEMPORAL_CONDITIONS
from dpt_ros.apps.bench.temporal.command import change, check_targets, means
from dpt_ros.apps.bench.temporal.noise import (
    Magnitudes,
    NoisyNetwork,
    NoisyOdometry,
    scan,
    theil_sen,
)
from dpt_ros.apps.bench.temporal.run import FILTER, Measured, baselines, label_image
from dpt_ros.apps.bench.temporal.shots import SHOTS, STEP, Shot, make_shot
from dpt_ros.metrics.temporal import DepthStability, LabelStability, Tracker, frames_to_90
from dpt_ros.world import CLASSES
from dpt_ros.world.classes import PERSON


@pytest.fixture(scope="module")
def moving() -> Shot:
    return make_shot("moving", 0, 20, 160, 120)


def test_the_noise_is_the_same_for_the_same_seed(moving: Shot) -> None:
    def errors(seed: int) -> list[np.ndarray]:
        noisy = NoisyNetwork(seed, len(CLASSES))
        return [array for view in moving.views[:3] for array in noisy.predict(view)]

    assert all(np.array_equal(a, b) for a, b in zip(errors(1), errors(1), strict=True))
    assert not np.array_equal(errors(1)[0], errors(2)[0])


def test_the_noise_is_as_large_as_documented() -> None:
    depth: list[dict[str, float]] = []
    labels: list[dict[str, float]] = []
    for name, seed in (("moving", 0), ("turning", 1), ("standing", 2)):
        shot = make_shot(name, seed, 20, 160, 120)
        noisy, rng = NoisyNetwork(seed, len(CLASSES)), np.random.default_rng(seed)
        tracker, meter = Tracker(), DepthStability(2)
        words = LabelStability(len(CLASSES), (PERSON,))
        for view in shot.views:
            reference = tracker.update(view)
            inverse, logits = noisy.predict(view)
            rows, columns, seen = scan(view, rng)
            scale, shift = theil_sen(inverse[rows, columns].astype(float), 1 / seen)
            meter.update(reference, np.maximum(scale * inverse + shift, 1e-3))
            words.update(reference, label_image(logits, view.depth.shape))
        depth.append(meter.result())
        labels.append(words.result())
    assert np.mean([d["tepe"] for d in depth]) == pytest.approx(3.1, abs=0.5)
    assert np.mean([d["abs_rel"] for d in depth]) == pytest.approx(0.044, abs=0.01)
    assert np.mean([d["vc8"] for d in labels]) == pytest.approx(86, abs=5)
    assert np.mean([d["vc16"] for d in labels]) == pytest.approx(77, abs=7)


def test_no_noise_leaves_the_truth(moving: Shot) -> None:
    silent = Magnitudes(*[0.0] * 6, rho=0.6, label_field=0, label_bias=0)
    view = moving.views[0]
    inverse, logits = NoisyNetwork(0, len(CLASSES), silent).predict(view)
    np.testing.assert_allclose(inverse, 1 / view.depth, rtol=1e-6)
    assert (label_image(logits, view.depth.shape) == view.labels).mean() > 0.97


def test_odometry_errs_per_frame_and_jumps_when_asked(moving: Shot) -> None:
    def steps(odometry: NoisyOdometry) -> np.ndarray:
        estimated = [odometry.pose(view.odom_from_camera) for view in moving.views]
        true = [view.odom_from_camera for view in moving.views]
        error = [
            np.linalg.inv(np.linalg.inv(a) @ b) @ (np.linalg.inv(c) @ d)
            for a, b, c, d in zip(true, true[1:], estimated, estimated[1:], strict=False)
        ]
        return np.array([np.linalg.norm(e[:3, 3]) for e in error])

    small = steps(NoisyOdometry(0))
    assert 0.0005 < small.mean() < 0.004
    assert steps(NoisyOdometry(0, factor=5)).mean() == pytest.approx(5 * small.mean(), rel=0.01)
    jumps = steps(NoisyOdometry(0, jump_every=10))
    assert np.flatnonzero(jumps > 0.2).tolist() == [9]
    assert (
        not steps(NoisyOdometry(0, factor=0)).any()
        or steps(NoisyOdometry(0, factor=0)).max() < 1e-9
    )


def test_theil_sen_finds_scale_and_shift_among_outliers_and_holds_before_a_flat_wall() -> None:
    inverse = np.linspace(0.1, 1, 40)
    measured = 1.3 * inverse + 0.05
    measured[::5] = 3
    assert theil_sen(inverse, measured) == pytest.approx((1.3, 0.05), abs=0.02)
    flat = np.linspace(0.5, 0.51, 40)
    assert theil_sen(flat, 1.3 * flat) == pytest.approx((1.3, 0))
    assert theil_sen(flat[:5], flat[:5]) == (1, 0)


@pytest.mark.parametrize("name", baselines())
def test_a_baseline_leaves_a_constant_video_alone(name: str) -> None:
    method = baselines()[name]
    rng = np.random.default_rng(0)
    inverse = rng.uniform(0.1, 1, (48, 64)).astype(np.float32)
    logits = rng.standard_normal((4, 24, 32)).astype(np.float32)
    rgb = rng.integers(0, 256, (48, 64, 3), np.uint8)
    for k in range(5):
        depth, words = method(inverse, logits, rgb, k * 33_333_333)
    np.testing.assert_allclose(depth, inverse, rtol=0.02 if name == "flow EMA" else 1e-6)
    if words is not None:
        np.testing.assert_allclose(words, logits, atol=0.1 if name == "flow EMA" else 1e-6)


@pytest.mark.parametrize(
    ("name", "reached"),
    [("raw", 0), ("EMA 0.4", 4), ("threshold EMA", 0), ("flow EMA", 0)],
)
def test_a_baseline_follows_a_step_as_fast_as_it_should(name: str, reached: int) -> None:
    method = baselines()[name]
    near = np.full((48, 64), 1.0, np.float32)
    values = []
    for k in range(12):
        inverse = near if k >= 3 else near / 3
        rgb = np.full((48, 64, 3), 200 if k >= 3 else 80, np.uint8)
        values.append(float(method(inverse, None, rgb, k * 33_333_333)[0][20, 20]))
    assert frames_to_90(values, 3, 1 / 3, 1) == reached


@pytest.mark.parametrize(("name", "still"), [("turning", False), ("standing", True)])
def test_a_shot_shows_people_and_moves_as_its_name_says(name: str, still: bool) -> None:
    shot = make_shot(name, 2, 20, 64, 48)
    assert len(shot.views) == 20
    assert np.mean([view.movers.mean() for view in shot.views]) > 0.01
    assert (np.diff([view.stamp_ns for view in shot.views]) > 0).all()
    assert not shot.views[0].flow_valid.any()
    poses = [view.odom_from_camera for view in shot.views]
    assert (np.ptp(poses, 0).max() < 1e-12) == still


def test_a_cut_is_known_to_the_truth_and_not_to_odometry() -> None:
    shot, again = (make_shot("cut", 2, 20, 64, 48) for _ in range(2))
    assert shot.cuts == (10,)
    assert not shot.views[10].flow_valid.any()
    before, after = (shot.views[k].odom_from_camera for k in (9, 10))
    assert np.linalg.norm(before[:3, 3] - after[:3, 3]) < 0.1
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(shot.views, again.views, strict=True))


def test_an_unknown_shot_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown shot 'flying'"):
        make_shot("flying", 0, 20, 64, 48)


def test_every_condition_has_a_shot_that_can_be_made() -> None:
    for name in {shot for shot, _ in TEMPORAL_CONDITIONS.values()}:
        assert name in SHOTS


def test_the_step_shot_brings_something_near_and_takes_it_away() -> None:
    shot = make_shot("step", 2, 3 * STEP, 64, 48)
    assert shot.steps == ((STEP, True), (2 * STEP, False))
    inverse = [1 / view.depth for view in shot.views]
    assert (inverse[STEP] > 1.5 * inverse[STEP - 1]).mean() > 0.02
    assert (inverse[2 * STEP - 1] > 1.5 * inverse[2 * STEP]).mean() > 0.02


def test_targets_tell_better_from_worse() -> None:
    raw = {"tepe": 4.0, "tae": 4.0, "abs_rel": 0.05, "edge": 0.1, "ghost": 1.0, "miss": 2.0,
           "tc": 90.0, "vc16": 76.0, "miou": 80.0}  # fmt: skip
    good = raw | {"tepe": 0.9, "tae": 1.0, "tc": 95.5, "vc16": 85.0}
    ghostly = good | {"ghost": 9.0, "tepe": 0.5}

    def results(ours: dict[str, float]) -> list[Measured]:
        rows = (("raw", raw), ("EMA 0.4", ghostly), (FILTER, ours))
        return [Measured("noise", "moving", name, 0, values, 1.0) for name, values in rows]

    assert change("tepe", 1.0, 4.0) == -75
    assert all(target.holds for target in check_targets(means(results(good))))
    failed = [t.target for t in check_targets(means(results(ghostly))) if not t.holds]
    assert failed == ["ghost"]


def test_the_bench_runs_and_writes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"out.{name}" for name in ("json", "png", "gif")}
    code = bench.main(
        ["temporal", "--frames", "20", "--seeds", "1", "--size", "96x64", "--source", "noise",
         "--workers", "1", "--conditions", "moving", "--json", str(files["json"]),
         "--picture", str(files["png"]), "--gif", str(files["gif"])]
    )  # fmt: skip
    assert code == 0
    output = capsys.readouterr().out
    assert "noise: moving" in output
    assert "targets hold" in output
    content = json.loads(files["json"].read_text())
    assert {run["method"] for run in content["runs"]} == {*baselines(), FILTER}
    assert all(file.stat().st_size > 1000 for file in files.values())


@pytest.mark.parametrize(
    "words",
    [["--conditions", "flying"], ["--frames", "3"], ["--set", "mood=1"], ["--size", "9x9"]],
)
def test_the_bench_refuses_what_it_does_not_know(words: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        bench.main(["temporal", *words])
    assert error.value.code == 2
