# SPDX-License-Identifier: Apache-2.0
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.scale_estimator import ScaleEstimator
from hypothesis import given, settings
from hypothesis import strategies as st

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.output import postprocess
from dpt_ros.engine.scale.anchors import Anchors, project_scan
from dpt_ros.engine.scale.estimator import limit_depth, metric_inverse_depth
from dpt_ros.engine.scale.ground import (
    GRID_COLUMNS,
    GRID_ROWS,
    down_direction,
    floor_ids,
    floor_inverse_depth,
)
from dpt_ros.engine.scale.plan import focal_factor
from dpt_ros.engine.scale.steps import relative_variance
from dpt_ros.engine.settings import Settings
from dpt_ros.metrics.depth import depth_metrics
from dpt_ros.model.zoo import ZOO
from dpt_ros.world import CLASSES, KINDS, World
from dpt_ros.world.scan import Scanner, level_mount

CAMERA = CameraModel(320, 240, 277.0, 277.0, 159.5, 119.5)
FRAME = 1_000_000_000 // 30
FLOOR = 2
FAR_SEED = 1_000_000  # training took 0 to 1799


def scene(seed=0):
    """Inverse depth of a slanted wall over a floor, (240, 320) float32: 0.9 to 6 m."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((240, 320), np.float32)
    wall = 0.25 + 0.15 * x / 320 + 0.02 * rng.uniform()
    floor = (y - 119.5) / 277 / 0.6
    return np.maximum(wall, floor).astype(np.float32)


def anchors_of(inverse, stamp_ns, rng, noise=0.01, count=60):
    u = rng.integers(4, 316, count)
    v = rng.integers(100, 230, count)
    metres = (1 / inverse[v, u]) * (1 + noise * rng.standard_normal(count))
    return Anchors(
        u.astype(np.float32), v.astype(np.float32), metres.astype(np.float32), stamp_ns, 320, 240
    )


def middle(scaled):
    return float(np.median(scaled.inverse_depth))


# --- over time


def test_a_relative_network_has_no_metres_before_the_first_fit():
    truth, rng = scene(), np.random.default_rng(0)
    network = (truth - 0.05) * 800
    estimator = ScaleEstimator(metric=False)
    first = estimator.update(network, 0, CAMERA)
    assert (first.metric, first.source, first.state) == (False, "none", "not metric yet")
    assert np.isinf(first.stats.sigma)
    assert (first.stats.scale, first.stats.shift) == (1.0, 0.0)
    np.testing.assert_array_equal(first.inverse_depth, network)
    second = estimator.update(network, FRAME, CAMERA, anchors_of(truth, FRAME, rng))
    assert (second.metric, second.source, second.state) == (True, "anchors", "fitted")
    np.testing.assert_allclose(second.inverse_depth, truth, rtol=0.03)
    assert all(isinstance(value, str) for value in second.diagnostics().values())


def test_without_anchors_a_relative_network_stays_relative_before_a_wall():
    wall = np.full((240, 320), 0.5, np.float32)
    anchors = anchors_of(wall, 0, np.random.default_rng(0))
    found = ScaleEstimator(metric=False).update(wall * 500, 0, CAMERA, anchors)
    assert (found.metric, found.reason) == (False, "no spread")


def test_before_a_wall_a_metric_network_has_its_scale_corrected():
    wall = np.full((240, 320), 0.5, np.float32)
    rng = np.random.default_rng(0)
    estimator = ScaleEstimator()
    for k in range(5):
        found = estimator.update(wall * 1.3, k * FRAME, CAMERA, anchors_of(wall, k * FRAME, rng))
    assert found.state == "scale only"
    assert middle(found) == pytest.approx(0.5, rel=0.02)
    assert abs(found.stats.shift) < 0.02


def test_after_the_scan_is_lost_the_last_fit_is_held_and_doubt_grows():
    truth, rng = scene(), np.random.default_rng(0)
    estimator = ScaleEstimator()
    for k in range(10):
        found = estimator.update(truth * 1.4, k * FRAME, CAMERA, anchors_of(truth, k * FRAME, rng))
    held = [estimator.update(truth * 1.4, k * FRAME, CAMERA) for k in range(10, 200, 10)]
    assert {(one.source, one.state) for one in held} == {("anchors", "held")}
    assert {(one.stats.scale, one.stats.shift) for one in held} == {
        (found.stats.scale, found.stats.shift)
    }
    sigmas = [found.stats.sigma, *(one.stats.sigma for one in held)]
    assert (np.diff(sigmas) > 0).all()
    assert sigmas[-1] > 3 * sigmas[0]
    for_ever = estimator.update(truth * 1.4, 10**15, CAMERA)
    assert for_ever.stats.sigma < 0.5


def test_anchors_of_another_time_are_left_out_with_the_reason():
    truth, rng = scene(), np.random.default_rng(0)
    found = ScaleEstimator().update(
        truth * 1.4, 10**9, CAMERA, anchors_of(truth, 10**9 - 400_000_000, rng)
    )
    assert (found.stats.scale, found.state) == (1.0, "uncorrected")
    assert found.reason == "anchors 0.40 s from the frame"
    assert found.stats.pairs == 0


@given(seed=st.integers(0, 10**6), gap=st.integers(1, 20))
@settings(deadline=None, max_examples=15)
def test_depth_of_a_steady_network_never_jumps(seed, gap):
    rng = np.random.default_rng(seed)
    truth = scene(seed)
    estimator = ScaleEstimator()
    out = []
    for k in range(45):
        anchors = anchors_of(truth, k * FRAME, rng, noise=0.03)
        if k % gap == 1:
            anchors = None
        elif k == 20:  # a scan of another place
            anchors = Anchors(anchors.u, anchors.v, anchors.metres * 2, anchors.stamp_ns, 320, 240)
        elif k == 30:  # nothing but one far corner
            anchors = anchors_of(truth, k * FRAME, rng, noise=0.2, count=9)
        out.append(middle(estimator.update(truth * 1.25, k * FRAME, CAMERA, anchors)))
    assert np.abs(np.diff(np.log(out[5:]))).max() < 0.06
    assert np.log(out[-1] / np.median(truth)) == pytest.approx(0, abs=0.05)


def test_anchors_that_come_late_are_faded_in():
    truth, rng = scene(), np.random.default_rng(0)
    estimator = ScaleEstimator()
    out = []
    for k in range(30):
        anchors = anchors_of(truth, k * FRAME, rng) if k >= 10 else None
        out.append(middle(estimator.update(truth * 2, k * FRAME, CAMERA, anchors)))
    assert np.abs(np.diff(np.log(out))).max() < 0.2
    assert out[9] == 2 * np.median(truth)
    assert out[-1] == pytest.approx(np.median(truth), rel=0.03)


@pytest.mark.parametrize("metric", [True, False])
def test_the_scale_of_a_drifting_network_drifts_less_than_2_percent_a_minute(metric):
    truth, rng = scene(), np.random.default_rng(0)
    estimator = ScaleEstimator(metric=metric)
    seconds, out = np.arange(0, 60, 0.2), []
    for t in seconds:
        network = (truth + 0.03 * t / 60) * (1 + 0.5 * t / 60) * (1 if metric else 700)
        stamp = round(t * 1e9)
        out.append(middle(estimator.update(network, stamp, CAMERA, anchors_of(truth, stamp, rng))))
    slope = np.polyfit(seconds / 60, np.log(out), 1)[0]
    assert abs(slope) < 0.02
    np.testing.assert_allclose(out[5:], np.median(truth), rtol=0.04)


def test_flicker_of_scale_and_shift_is_repaired():
    truth, rng = scene(), np.random.default_rng(0)
    estimator = ScaleEstimator()
    raw, out = [], []
    for k in range(90):
        network = truth * (1 + 0.08 * rng.standard_normal()) + 0.01 * rng.standard_normal()
        raw.append(np.log(np.median(network)))
        anchors = anchors_of(truth, k * FRAME, rng)
        out.append(np.log(middle(estimator.update(network, k * FRAME, CAMERA, anchors))))
    assert np.std(out[20:]) < 0.5 * np.std(raw[20:])


def test_a_clock_that_jumps_back_keeps_the_correction():
    truth, rng = scene(), np.random.default_rng(0)
    estimator = ScaleEstimator()
    found = estimator.update(truth * 1.3, 10**12, CAMERA, anchors_of(truth, 10**12, rng))
    again = estimator.update(truth * 1.3, 0, CAMERA)
    assert (again.stats.scale, again.stats.shift, again.state) == (
        found.stats.scale,
        found.stats.shift,
        "held",
    )


def test_unknown_and_beyond_range_stay_what_they_are():
    network = torch.tensor([[np.nan, 0.0, np.inf, 0.5, 0.01, -1.0]])
    assert metric_inverse_depth(network, torch.tensor([2.0, 3.0]))[0, 5] == 0
    out = metric_inverse_depth(network, torch.tensor([2.0, -0.1]))
    assert torch.isnan(out[0, 0])
    assert out[0, 1:].tolist() == [0.0, np.inf, pytest.approx(0.9), 0.0, 0.0]


def test_depth_is_nan_where_unknown_and_infinite_beyond_range():
    depth = torch.tensor([np.nan, -1.0, 0.0, 1e-10, 3.0, 5.0, np.inf])
    expected = torch.tensor([np.nan, np.nan, np.nan, np.nan, 3.0, np.inf, np.inf])
    torch.testing.assert_close(limit_depth(depth, 4.0), expected, equal_nan=True)


def test_a_picture_of_nothing_is_no_failure():
    rng = np.random.default_rng(0)
    for value in (np.nan, 0.0, np.inf):
        network = np.full((240, 320), value, np.float32)
        found = ScaleEstimator().update(network, 0, CAMERA, anchors_of(scene(), 0, rng))
        assert found.state == "uncorrected"
        assert found.reason == "too few pairs"
        np.testing.assert_array_equal(found.inverse_depth, network)


def test_the_variance_of_the_depth_is_that_of_drawn_corrections():
    truth, rng = scene(), np.random.default_rng(0)
    found = ScaleEstimator().update(
        torch.from_numpy(truth * 1.2), 0, CAMERA, anchors_of(truth, 0, rng)
    )
    x = np.array([0.3, 1.5], np.float32)
    c00, c01, c11 = found.covariance.tolist()
    center = found.stats.scale, found.stats.shift
    drawn = rng.multivariate_normal(center, [[c00, c01], [c01, c11]], 20_000)
    inverse = drawn[:, :1] * x + drawn[:, 1:]
    expected = inverse.var(0) / (found.stats.scale * x + found.stats.shift) ** 2
    variance = replace(found, raw_inverse_depth=torch.from_numpy(x)[None]).relative_variance()[0]
    np.testing.assert_allclose(variance, expected, rtol=0.05)


def test_the_variance_of_an_overflow_is_unknown_on_every_path_without_a_warning():
    raw = torch.tensor([[[np.inf, 1e30, np.nan, 0.5]]])
    given = raw, torch.tensor([[1.1, 0.1]]), torch.tensor([[0.01, 0.0, 0.001]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = relative_variance(*given)
    assert found.isnan().tolist() == [[[True, True, True, False]]]
    with postprocess.torch_only():
        torch.testing.assert_close(relative_variance(*given), found, equal_nan=True)


def test_anchors_of_a_larger_picture_are_looked_up_where_they_are():
    truth, rng = scene(), np.random.default_rng(0)
    same = anchors_of(truth, 0, rng)
    large = Anchors(2 * same.u + 0.5, 3 * same.v + 1, same.metres, 0, 640, 720)
    found = ScaleEstimator().update(truth * 1.4, 0, CAMERA, large)
    assert found.state == "fitted"
    assert found.stats.residual == pytest.approx(0.01, rel=0.5)
    np.testing.assert_allclose(found.inverse_depth, truth, rtol=0.05)


@pytest.mark.parametrize("across", [True, False], ids=["upright", "level"])
@pytest.mark.parametrize("side", [-1, 0], ids=["before", "behind"])
def test_a_pair_beside_an_edge_is_left_out(across, side):
    truth = np.repeat(np.linspace(0.3, 0.5, 240, dtype=np.float32)[:, None], 320, 1)
    truth[120:, 160:] = truth[:120, :160] = 2.0  # an upright edge and a level one
    plain = anchors_of(truth, 0, np.random.default_rng(0), noise=0, count=40)
    u, v = (160 + side, 60) if across else (60, 120 + side)
    # twenty of them say, of the one side of the edge, what is on the other
    u, v = np.full(20, u, np.float32), np.full(20, v, np.float32)
    wrong = Anchors(
        np.r_[plain.u, u], np.r_[plain.v, v], np.r_[plain.metres, 9 + 0 * u], 0, 320, 240
    )
    found = ScaleEstimator().update(truth, 0, CAMERA, wrong)
    off_edges = (np.abs(plain.u - 159.5) > 3) & (np.abs(plain.v - 119.5) > 3)
    assert found.stats.pairs <= 40
    assert found.stats.pairs >= off_edges.sum()


def test_the_ground_is_left_alone_where_it_was_not_asked_for_or_has_no_height():
    network, down = scene() * 1.4, np.array([0.0, 1.0, 0.0])
    for settings_ in (Settings(), Settings(scale_source="anchors", scale_camera_height=0.6)):
        estimator = ScaleEstimator(settings_, floor=(FLOOR,))
        found = estimator.update(network, 0, CAMERA, None, floor_labels(), down)
        assert (found.source, found.state, found.stats.pairs) == ("network", "uncorrected", 0)
    estimator = ScaleEstimator(
        Settings(scale_source="ground", scale_camera_height=0.6), floor=(FLOOR,)
    )
    anchors = anchors_of(scene() * 2, 0, np.random.default_rng(0))
    found = estimator.update(network, 0, CAMERA, anchors, floor_labels(), down)
    assert (found.source, found.state) == ("ground", "fitted")


def test_an_estimator_that_is_restored_goes_on_as_the_other():
    truth, rng = scene(), np.random.default_rng(0)
    one, other = ScaleEstimator(), ScaleEstimator()
    for k in range(3):
        one.update(truth * 1.4, k * FRAME, CAMERA, anchors_of(truth, k * FRAME, rng))
    other.load_state_dict(one.state_dict())
    for k in (3, 4):
        anchors = anchors_of(truth, k * FRAME, rng) if k == 4 else None
        a, b = (e.update(truth * 1.4, k * FRAME, CAMERA, anchors) for e in (one, other))
        np.testing.assert_array_equal(a.inverse_depth, b.inverse_depth)
        assert a.diagnostics() == b.diagnostics()


@pytest.mark.gpu
def test_a_gpu_says_the_same():
    truth, rng = scene(), np.random.default_rng(0)
    anchors = anchors_of(truth, 0, rng)
    network = torch.from_numpy(truth * 1.4)
    here = ScaleEstimator().update(network, 0, CAMERA, anchors)
    there = ScaleEstimator().update(network.cuda(), 0, CAMERA, anchors)
    assert there.inverse_depth.is_cuda
    torch.testing.assert_close(there.inverse_depth.cpu(), here.inverse_depth)


# --- sources


def logits_of(labels):
    """(C, h, w) of which labels, counted from 1, are the largest."""
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels).long() - 1)
    return one_hot.permute(2, 0, 1).float()


def floor_labels():
    labels = np.ones((240, 320), np.uint8)
    labels[scene() > 0.43] = FLOOR
    return logits_of(labels)


def test_the_floor_fixes_the_scale_where_the_camera_s_height_is_known():
    truth = scene()
    settings_ = Settings(scale_camera_height=0.6)
    for tilt in (-0.0175, 0.0, 0.0175):
        estimator = ScaleEstimator(settings_, floor=(FLOOR,))
        down = np.array([0.0, np.cos(tilt), np.sin(tilt)])
        for k in range(10):
            found = estimator.update(truth * 1.4, k * FRAME, CAMERA, None, floor_labels(), down)
        assert (found.source, found.state) == ("ground", "fitted")
        assert middle(found) == pytest.approx(np.median(truth), rel=0.06)


def test_what_is_not_labelled_floor_is_not_taken_for_it():
    truth = scene()
    estimator = ScaleEstimator(Settings(scale_camera_height=0.6), floor=(FLOOR,))
    labels = logits_of(np.ones((240, 320), np.uint8))
    found = estimator.update(truth * 1.4, 0, CAMERA, None, labels, np.array([0.0, 1.0, 0.0]))
    assert (found.source, found.state) == ("network", "uncorrected")
    assert found.reason == "too few pairs"


def test_the_ground_is_asked_when_a_held_fit_has_become_doubtful():
    truth, rng = scene(), np.random.default_rng(0)
    estimator = ScaleEstimator(Settings(scale_camera_height=0.6), floor=(FLOOR,))
    labels, down = floor_labels(), np.array([0.0, 1.0, 0.0])
    sources = []
    for k in range(600):
        stamp = k * 200_000_000
        anchors = anchors_of(truth, stamp, rng) if k < 10 else None
        found = estimator.update(truth * 1.4, stamp, CAMERA, anchors, labels, down)
        sources.append(found.source)
        assert k < 10 or middle(found) == pytest.approx(np.median(truth), rel=0.06)
    assert sources[:60] == ["anchors"] * 60
    assert sources[-1] == "ground"
    back = estimator.update(
        truth * 1.4, stamp + FRAME, CAMERA, anchors_of(truth, stamp + FRAME, rng), labels, down
    )
    assert back.source == "anchors"


def test_the_ground_is_asked_where_anchors_say_nothing_plausible():
    truth = scene()
    estimator = ScaleEstimator(Settings(scale_camera_height=0.6), floor=(FLOOR,))
    rng = np.random.default_rng(0)
    wrong = anchors_of(rng.uniform(0.03, 3, truth.shape), 0, rng)
    found = estimator.update(truth * 1.4, 0, CAMERA, wrong, floor_labels(), np.array([0.0, 1, 0]))
    assert (found.source, found.state, found.reason) == ("ground", "fitted", "")
    alone = ScaleEstimator(Settings(scale_camera_height=0.6), floor=(FLOOR,))
    same = alone.update(truth * 1.4, 0, CAMERA, None, floor_labels(), np.array([0.0, 1, 0]))
    assert (found.stats.scale, found.stats.shift) == (same.stats.scale, same.stats.shift)


def test_a_metric_network_starts_from_its_focal_length_and_depth_scale():
    estimator = ScaleEstimator(Settings(scale_factor=3.0), focal=2.0)
    found = estimator.update(scene(), 0, CAMERA)
    assert (found.stats.scale, found.stats.shift) == (pytest.approx(1 / 6), 0.0)
    assert found.diagnostics()["scale sigma"] == f"{100 * found.stats.sigma:.1f} %"


def test_a_missing_scan_is_no_reason_where_none_was_asked_for():
    reasons = {}
    for source in ("network", "auto", "anchors"):
        estimator = ScaleEstimator(Settings(scale_source=source))
        reasons[source] = estimator.update(scene(), 0, CAMERA).reason
    assert reasons == {"network": "", "auto": "", "anchors": "no anchors"}


def test_a_source_that_was_not_asked_for_is_not_used():
    truth, rng = scene(), np.random.default_rng(0)
    for source, state in (("network", "uncorrected"), ("none", "disabled")):
        estimator = ScaleEstimator(Settings(scale_source=source))
        found = estimator.update(truth, 0, CAMERA, anchors_of(truth * 2, 0, rng))
        assert (found.stats.scale, found.state, found.metric) == (1.0, state, source == "network")


def test_what_is_not_a_map_is_refused():
    with pytest.raises(ValueError, match="must be"):
        ScaleEstimator().update(np.zeros((1, 2, 3), np.float32), 0)


def test_metres_scale_with_the_focal_length():
    trained = {name: ZOO[name].focal for name in ZOO}
    nyu = CameraModel(640, 480, 518.86, 518.86, 319.5, 239.5)
    assert focal_factor(trained["dpt_hybrid_nyu"], nyu, 640) == pytest.approx(1.0)
    assert focal_factor(trained["dpt_hybrid_nyu"], nyu.scaled(1280, 960), 640) == pytest.approx(
        1.0
    )
    tele = CameraModel(640, 480, 2 * 518.86, 2 * 518.86, 319.5, 239.5)
    assert focal_factor(trained["dpt_hybrid_nyu"], tele, 640) == pytest.approx(2.0)
    assert focal_factor(trained["dpt_hybrid_midas"], tele, 384) == 1.0
    assert focal_factor(trained["dpt_hybrid_kitti"], None, 1216) == 1.0
    world = World("room", 3, 640, 480).camera
    assert focal_factor(trained["dpt_hybrid_embedded"], world, 320) == pytest.approx(1.0, abs=1e-4)
    found = ScaleEstimator(focal=2.0).update(scene(), 0)
    np.testing.assert_allclose(found.inverse_depth, scene() / 2)


def test_down_is_down_and_the_floor_is_where_it_is_seen():
    tilt = np.radians(10)
    base_from_camera = np.linalg.inv(level_mount(tilt))
    down = down_direction(base_from_camera)
    np.testing.assert_allclose(down, [0, np.cos(tilt), np.sin(tilt)], atol=1e-12)
    world = World("room", 5)
    pose = world.frame(0).odom_from_camera
    view = world.frame(0)
    inverse = floor_inverse_depth(view.camera, down_direction(pose), pose[2, 3])
    k = np.flatnonzero(inverse)
    rows = ((k // GRID_COLUMNS + 0.5) * 240 / GRID_ROWS).astype(int)
    columns = ((k % GRID_COLUMNS + 0.5) * 320 / GRID_COLUMNS).astype(int)
    inverse, floor = inverse[k], view.labels[rows, columns] == FLOOR
    assert floor.sum() > 20
    error = inverse[floor] * view.depth[rows, columns][floor]
    assert np.median(np.abs(error - 1)) < 0.01
    assert floor_ids(CLASSES) == (2, 5)


@pytest.fixture(scope="module")
def predictions():
    """What the embedded network says of five frames of each of twelve worlds new to it."""
    from dpt_ros.engine.inference.predict import predict_image
    from dpt_ros.model import create_model

    model = create_model("dpt_hybrid_embedded")
    found = []
    for k in range(12):
        world = World(KINDS[k % 3], FAR_SEED + k, fps=5)
        scanner = Scanner(world)
        frames = []
        for i in range(50, 55):
            view = world.frame(i)
            said = predict_image(model, view.rgb)
            frames.append((view, said["depth"], said["labels"], scanner.scan(i)))
        found.append(frames)
    return found


def abs_rel(predictions, with_scan, camera_height, flicker):
    errors, rng = [], np.random.default_rng(0)
    down = down_direction(np.linalg.inv(level_mount()))
    for frames in predictions:
        estimator = ScaleEstimator(
            Settings(scale_camera_height=camera_height), floor=floor_ids(CLASSES)
        )
        for view, depth, labels, scan in frames:
            network = (1 / depth) * 1.3 * (1 + flicker * rng.standard_normal())
            anchors = project_scan(
                scan.ranges,
                scan.angle_min,
                scan.angle_increment,
                scan.range_min,
                scan.range_max,
                scan.camera_from_sensor,
                view.camera,
                scan.stamp_ns,
            )
            logits = logits_of(np.asarray(labels))
            found = estimator.update(
                network, view.stamp_ns, view.camera, anchors if with_scan else None, logits, down
            )
            said = 1 / found.inverse_depth.clamp(min=1e-3).numpy()
            errors.append(depth_metrics(said, view.depth)["abs_rel"])
    return np.mean(errors)


@pytest.mark.parametrize("flicker", [0.0, 0.05])
def test_a_scan_repairs_the_scale_of_the_embedded_network(predictions, flicker):
    assert abs_rel(predictions, False, 0.0, flicker) > 0.2
    assert abs_rel(predictions, True, 0.0, flicker) <= 0.08


@pytest.mark.parametrize("flicker", [0.0, 0.05])
def test_the_camera_s_height_alone_repairs_the_scale_too(predictions, flicker):
    assert abs_rel(predictions, False, 0.6, flicker) <= 0.12
