# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.scale import robust_fit
from dpt_ros.engine.scale.anchors import project_depth, project_points, project_scan
from dpt_ros.engine.scale.robust_fit import FIT_STATES, Fit
from dpt_ros.world import KINDS, World
from dpt_ros.world.scan import Scanner, level_mount

CAMERA = CameraModel(320, 240, 277.0, 277.0, 159.5, 119.5)
FAR_SEED = 1_000_000  # training took 0 to 1799


# --- the fit


def fit_pairs(raw, inverse):
    """The fit of all pairs, as numbers and the name of its state."""
    x, q = (np.asarray(part, np.float32) for part in (raw, inverse))
    with np.errstate(all="ignore"):
        found = robust_fit.fit_pairs(x, q, (x > 0) & (x < np.inf))
    return Fit(*found.tolist())._replace(state=FIT_STATES[int(found[0])])


@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-3, 1e3),
    share=st.floats(-0.4, 0.4),
    pairs=st.integers(40, 300),
)
@settings(deadline=None, max_examples=60)
def test_scale_and_shift_are_found_under_noise_and_30_percent_outliers(seed, scale, share, pairs):
    rng = np.random.default_rng(seed)
    inverse = rng.uniform(0.15, 1.5, pairs)
    shift = share * 0.15
    network = (inverse - shift) / scale * (1 + 0.03 * rng.standard_normal(pairs))
    wrong = rng.permutation(pairs)[: int(0.3 * pairs)]
    # a sensor that sees what the camera does not: behind things, or beside them
    network[wrong] *= rng.uniform(1.3, 4.0, len(wrong)) ** rng.choice([-1, 1], len(wrong))
    fit = fit_pairs(network, inverse)
    assert fit.state == "fitted"
    # 3 % noise. The largest errors of 36,000 fits were 0.16 at 0.2, else 0.03, with 40 pairs.
    for q, error in ((0.2, 1.4), (0.5, 0.3), (1.2, 0.3)):
        error *= pairs**-0.5
        assert fit.scale * (q - shift) / scale + fit.shift == pytest.approx(q, rel=error)
    assert fit.scale == pytest.approx(scale, rel=5 * np.sqrt(fit.c00) / fit.scale)


def test_one_sided_outliers_at_the_far_end_do_not_tilt_the_line():
    rng = np.random.default_rng(1)
    inverse = np.sort(rng.uniform(0.1, 1.0, 100))
    network = inverse * 1.2 + 0.1
    network[:35] = rng.uniform(0.8, 1.3, 35)
    fit = fit_pairs(network, inverse)
    assert (fit.scale, fit.shift) == pytest.approx((1 / 1.2, -0.1 / 1.2), rel=1e-3)


def test_without_noise_the_fit_is_exact_in_any_unit():
    inverse = np.linspace(0.1, 2, 50)
    for unit in (1e-4, 1.0, 1e4):
        fit = fit_pairs((inverse - 0.05) * unit, inverse)
        assert (fit.scale * unit, fit.shift) == pytest.approx((1.0, 0.05), rel=1e-6)


def test_noise_in_the_network_does_not_flatten_the_scene():
    rng = np.random.default_rng(0)
    slopes = []
    for _ in range(40):
        inverse = rng.uniform(0.3, 0.6, 200)
        slopes.append(fit_pairs(inverse * (1 + 0.08 * rng.standard_normal(200)), inverse).scale)
    assert np.mean(slopes) == pytest.approx(1.0, abs=0.05)


def test_far_pairs_are_fitted_by_their_spread_relative_to_their_distance():
    inverse = np.linspace(0.05, 0.15, 60)  # 7 to 20 m
    fit = fit_pairs((inverse + 0.02) * 3, inverse)
    assert fit.state == "fitted"
    assert (fit.scale, fit.shift) == pytest.approx((1 / 3, -0.02), rel=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_of_a_flat_wall_a_tenth_of_noise_is_told(noise):
    rng = np.random.default_rng(0)
    fit = fit_pairs(0.5 * (1 + noise * rng.standard_normal(300)), np.full(300, 0.5))
    assert fit.state == "scale only"
    told = np.sqrt(fit.c00) / fit.measured
    # six independent pairs, each of at least 4 %
    assert told == pytest.approx(max(noise, 0.04) / np.sqrt(6), rel=0.15)


def test_a_flat_wall_gives_the_scale_only():
    rng = np.random.default_rng(0)
    inverse = 0.5 * (1 + 0.01 * rng.standard_normal(80))
    fit = fit_pairs(inverse / 1.3 * (1 + 0.03 * rng.standard_normal(80)), inverse)
    assert fit.state == "scale only"
    assert fit.scale * fit.raw == pytest.approx(0.5, rel=0.02)


def test_few_pairs_and_pairs_of_another_place_give_nothing():
    rng = np.random.default_rng(0)
    assert fit_pairs(np.ones(7), np.ones(7)).state == "too few pairs"
    network = np.array([np.nan, 0, -1, np.inf, *np.ones(7)])
    assert fit_pairs(network, np.ones(11)).state == "too few pairs"
    unrelated = fit_pairs(rng.uniform(0.1, 3, 100), rng.uniform(0.1, 3, 100))
    assert unrelated.state == "not plausible"
    upside_down = fit_pairs(1 / np.linspace(0.1, 3, 100), np.linspace(0.1, 3, 100))
    assert upside_down.state == "not plausible"


# --- projection


def test_a_beam_straight_ahead_falls_below_the_middle_of_the_picture():
    mount = level_mount(pitch=0.0, below=0.3)
    ranges = np.full(360, 2.0)
    anchors = project_scan(ranges, -np.pi, np.pi / 180, 0.1, 10.0, mount, CAMERA, 5)
    ahead = np.argmin(np.abs(anchors.u - 159.5))
    assert anchors.metres[ahead] == pytest.approx(2.0, abs=1e-3)
    assert anchors.v[ahead] == pytest.approx(119.5 + 277 * 0.3 / 2, abs=0.05)
    assert anchors.stamp_ns == 5
    # to the left is a smaller column, and depth is along the optical axis, not the beam
    left = np.argmin(anchors.u)
    angle = np.arctan((159.5 - anchors.u[left]) / 277)
    assert anchors.metres[left] == pytest.approx(2.0 * np.cos(angle), rel=1e-3)
    assert len(anchors) == pytest.approx(60, abs=2)


def test_what_is_no_measurement_is_no_anchor():
    mount = level_mount(0.0, 0.0)
    bad = np.array([np.nan, np.inf, -np.inf, 0.05, 11.0, -1.0])
    for value in bad:
        ranges = np.full(9, value)
        assert len(project_scan(ranges, -0.1, 0.025, 0.1, 10.0, mount, CAMERA, 0)) == 0
    points = np.array([[0, 0, -1.0], [0, 0, 0], [np.nan, 0, 1], [9, 0, 1], [0, -9, 1]])
    assert len(project_points(points, np.eye(4), CAMERA, 0)) == 0
    assert len(project_points(np.zeros((0, 3)), np.eye(4), CAMERA, 0)) == 0


def test_of_two_points_in_one_place_the_nearer_stays():
    points = np.array([[0.0, 0, 4], [0.0, 0, 1.5], [1.0, 0, 4]])
    anchors = project_points(points, np.eye(4), CAMERA, 0)
    assert sorted(anchors.metres.tolist()) == [1.5, 4.0]


def test_points_in_one_cell_of_the_picture_are_one_anchor_and_in_two_are_two():
    def places(*columns):
        x = (np.array(columns) - CAMERA.cx) / CAMERA.fx * 2
        points = np.stack([x, np.zeros_like(x), np.full_like(x, 2.0)], 1)
        return len(project_points(points, np.eye(4), CAMERA, 0))

    assert places(40.5, 43.5) == 1  # cells are 4 pixels wide here
    assert places(43.5, 44.5) == 2
    assert places(40.5, 41.5, 42.5, 43.5, 44.5, 300.5) == 3


def test_what_falls_on_the_very_border_is_no_anchor():
    for u, v, count in (
        (1.4, 120, 0), (1.6, 120, 1), (317.4, 120, 1), (317.6, 120, 0),
        (160, 1.4, 0), (160, 1.6, 1), (160, 237.4, 1), (160, 237.6, 0),
    ):  # fmt: skip
        point = [(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, 1.0]
        assert len(project_points(np.array([point]), np.eye(4), CAMERA, 0)) == count, (u, v)


def test_of_many_anchors_some_are_kept_evenly_from_end_to_end():
    columns = np.arange(0, 300, 4) + 10.5
    points = np.stack([(columns - CAMERA.cx) / CAMERA.fx, 0 * columns, 1 + 0 * columns], 1)
    anchors = project_points(points, np.eye(4), CAMERA, 7)
    few = anchors.thinned(38)
    assert len(few) == 38
    assert np.ptp(np.diff(few.u)) < 1e-3
    assert (few.u[0], few.u[-1]) == (anchors.u[0], anchors.u[-1])
    assert (few.stamp_ns, few.width, few.height) == (7, 320, 240)
    assert anchors.thinned(100) is anchors


def test_a_slanted_floor_in_a_large_depth_image_stays_where_it_is():
    large = CameraModel(640, 480, 554.0, 554.0, 319.5, 239.5)
    rows, columns = np.indices((480, 640), np.float32)
    inverse = 0.2 + 0.001 * rows + 0.0005 * columns
    anchors = project_depth((1 / inverse).astype(np.float32), large, np.eye(4), large, 0)
    expected = 1 / (0.2 + 0.001 * anchors.v + 0.0005 * anchors.u)
    np.testing.assert_allclose(anchors.metres, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_a_depth_image_is_moved_into_the_camera(dtype):
    other = CameraModel(160, 120, 140.0, 140.0, 79.5, 59.5)
    depth = np.full((120, 160), 3.0, np.float32)
    depth[:10] = 0
    depth[10:20] = 0 if dtype == np.uint16 else np.nan
    sent = (depth * 1000).astype(np.uint16) if dtype == np.uint16 else depth
    forward = np.eye(4)
    forward[2, 3] = 0.5
    anchors = project_depth(sent, other, forward, CAMERA, 0)
    np.testing.assert_allclose(anchors.metres, 3.5, rtol=1e-5)
    assert len(anchors) > 300
    assert len(anchors.thinned()) == 300


def test_wrong_shapes_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"must be \(N, 3\)"):
        project_points(np.zeros((5, 2)), np.eye(4), CAMERA, 0)
    with pytest.raises(ValueError, match="4x4"):
        project_points(np.zeros((5, 3)), np.full((4, 4), np.nan), CAMERA, 0)
    with pytest.raises(ValueError, match=r"must be \(N,\)"):
        project_scan(np.zeros((5, 2)), 0, 1, 0, 1, np.eye(4), CAMERA, 0)
    with pytest.raises(ValueError, match="is 20x10, but its camera_info is for 320x240"):
        project_depth(np.zeros((10, 20), np.float32), CAMERA, np.eye(4), CAMERA, 0)


# --- the scanner of the synthetic world


@pytest.mark.parametrize("kind", KINDS)
def test_the_synthetic_scan_is_what_the_camera_sees(kind):
    world = World(kind, FAR_SEED + 3)
    scan = Scanner(world).scan(100)
    view = world.frame(100)
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
    assert scan.stamp_ns == view.stamp_ns
    assert len(anchors) > 20
    seen = view.depth[np.rint(anchors.v).astype(int), np.rint(anchors.u).astype(int)]
    error = np.abs(anchors.metres / seen - 1)
    assert np.median(error) < 0.01
    assert np.mean(error < 0.05) > 0.8
    np.testing.assert_array_equal(Scanner(world).scan(100).ranges, scan.ranges)


def test_the_synthetic_scanner_sees_all_around():
    world = World("room", 4)
    ranges = Scanner(world, noise=0.0, range_max=30.0).scan(0).ranges
    assert np.isfinite(ranges).mean() > 0.95
    # a wall's inverse range is a sine of the angle: no seams where the quarters meet
    assert (np.abs(np.diff(1 / ranges, 2)) < 1e-3).mean() > 0.7
