# SPDX-License-Identifier: Apache-2.0
"""The temporal filter on scenes whose answer is known by construction."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from helpers.filter_clips import CAMERA, H, W, feed, noisy, picture, settled, slope
from hypothesis import given, settings
from hypothesis import strategies as st

from dpt_ros import engine
from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.smoothing.filter import TemporalFilter, TemporalSettings
from dpt_ros.engine.smoothing.motion import (
    advance,
    project,
    refine,
    relative_pose,
    warp,
)
from dpt_ros.engine.smoothing.registration import fit_affine
from dpt_ros.world import World


def test_strength_zero_passes_every_bit_through() -> None:
    steadier = TemporalFilter(TemporalSettings(strength=0.0))
    rng = np.random.default_rng(0)
    for k in range(4):
        inverse = noisy(slope(), rng)
        inverse[3, 4], inverse[5, 6], inverse[7, 8] = np.nan, np.inf, 0
        logits = rng.normal(size=(5, H // 2, W // 2)).astype(np.float32)
        steady = feed(steadier, k, inverse, picture(), logits=logits)
        assert steady.inverse_depth.numpy().tobytes() == inverse.tobytes()
        assert steady.logits is not None
        assert steady.logits.numpy().tobytes() == logits.tobytes()


def test_the_first_frame_goes_out_as_the_network_gave_it() -> None:
    inverse = noisy(slope(), np.random.default_rng(0))
    steady = feed(TemporalFilter(), 0, inverse, picture())
    assert steady.reset == "first frame"
    np.testing.assert_array_equal(steady.inverse_depth.numpy(), inverse)
    assert float(steady.gain.min()) == 1.0


@pytest.mark.parametrize(
    ("index", "given", "word"),
    [
        (11, {}, "stamp not newer"),
        (5, {}, "stamp not newer"),
        (60, {}, "gap"),
        (12, {"camera": CameraModel(W, H, 71.0, 71.0, 39.5, 29.5)}, "camera changed"),
        (12, {"camera": None}, "camera changed"),
        (12, {"frame_id": "rear"}, "frame_id changed"),
    ],
)
def test_what_breaks_the_row_forgets_the_past_and_says_why(
    index: int, given: dict[str, object], word: str
) -> None:
    steadier = settled()
    inverse = 2 * slope()
    steady = feed(steadier, index, inverse, picture(), **given)
    assert steady.reset == word
    np.testing.assert_array_equal(steady.inverse_depth.numpy(), inverse)
    following = feed(steadier, index + 1, inverse, picture(), **given)
    assert following.reset == ""


def test_another_size_forgets_the_past() -> None:
    inverse = slope(H + 12, W)
    steady = feed(settled(), 12, inverse, picture(0, H + 12, W))
    assert steady.reset == "size changed"
    np.testing.assert_array_equal(steady.inverse_depth.numpy(), inverse)


def test_reset_forgets_the_past() -> None:
    steadier = settled()
    steadier.reset()
    assert feed(steadier, 12, 2 * slope(), picture()).reset == "first frame"


def test_a_cut_forgets_the_past_in_the_same_frame() -> None:
    steadier = settled()
    rng = np.random.default_rng(5)
    inverse = (0.2 + rng.random((H, W)) ** 3).astype(np.float32)
    steady = feed(steadier, 12, inverse, 255 - picture())
    assert steady.reset == "scene cut"
    np.testing.assert_allclose(steady.inverse_depth.numpy(), inverse, rtol=1e-6)


def test_a_change_of_exposure_is_no_cut() -> None:
    steadier = settled()
    steady = feed(steadier, 12, slope(), (0.55 * picture()).astype(np.uint8))
    assert steady.reset == ""
    assert float(steady.gain.mean()) < 0.4


def test_the_same_frames_give_the_same_bytes() -> None:
    results = []
    for _ in range(2):
        rng = np.random.default_rng(3)
        steadier = TemporalFilter()
        for k in range(5):
            logits = rng.normal(size=(4, H // 2, W // 2)).astype(np.float32)
            last = feed(steadier, k, noisy(slope(), rng), picture(), logits=logits)
        assert last.labels is not None
        results.append((last.inverse_depth.numpy().tobytes(), last.labels.numpy().tobytes()))
    assert results[0] == results[1]


def test_what_is_not_known_comes_back_as_it_is_and_leaves_no_trace() -> None:
    holed, whole = TemporalFilter(), TemporalFilter()
    hole = (slice(20, 40), slice(30, 50))
    for k in range(8):
        inverse = slope()
        broken = inverse.copy()
        if k == 4:
            broken[hole] = np.nan
            broken[20:25, 30:35] = np.inf
            broken[35:40, 45:50] = 0
            broken[35:40, 30:35] = -1
            broken[25:30, 40:45] = 1e16
        steady = feed(holed, k, broken, picture())
        usual = feed(whole, k, inverse, picture())
        if k == 4:
            np.testing.assert_array_equal(steady.inverse_depth.numpy()[hole], broken[hole])
    assert torch.isfinite(steady.inverse_depth).all()
    np.testing.assert_allclose(
        steady.inverse_depth.numpy(), usual.inverse_depth.numpy(), rtol=0.02
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e10, 1e20, 3e38])
def test_a_frame_of_nothing_comes_back_as_it_is_and_the_next_begins_anew(value: float) -> None:
    steadier = settled()
    nothing = np.full((H, W), value, np.float32)
    came = feed(steadier, 12, nothing, picture()).inverse_depth
    np.testing.assert_array_equal(came.numpy(), nothing)
    after = feed(steadier, 13, 3 * slope(), picture())
    np.testing.assert_allclose(after.inverse_depth.numpy(), 3 * slope(), rtol=1e-4)


def test_a_still_scene_becomes_three_times_steadier_and_stays_right() -> None:
    rng = np.random.default_rng(2)
    steadier = TemporalFilter()
    raw, out = [], []
    for k in range(40):
        inverse = noisy(slope(), rng)
        steady = feed(steadier, k, inverse, picture())
        if k >= 10:
            raw.append(inverse / slope())
            out.append(steady.inverse_depth.numpy() / slope())
    assert np.std(out, axis=0).mean() < np.std(raw, axis=0).mean() / 3
    assert np.abs(np.mean(out) - 1) < 0.015
    # what is said of the error is what it is, within a factor
    told = float(steady.variance.mean()) ** 0.5
    assert 0.3 < told / (np.abs(np.array(out) - 1).mean() + 1e-6) < 5


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_more_strength_is_calmer(strength: float) -> None:
    def flicker(value: float) -> float:
        rng = np.random.default_rng(2)
        steadier = TemporalFilter(TemporalSettings(strength=value))
        out = [feed(steadier, k, noisy(slope(), rng), picture()).inverse_depth.numpy()
               for k in range(25)]  # fmt: skip
        return float(np.abs(np.diff(out[10:], axis=0)).mean())

    assert flicker(strength) < flicker(strength / 2)


def test_something_nearer_is_believed_in_the_same_frame() -> None:
    steadier = settled()
    inverse = slope()
    inverse[15:45, 25:55] = 2.0
    rgb = picture()
    rgb[15:45, 25:55] = picture(9)[15:45, 25:55]
    steady = feed(steadier, 12, inverse, rgb)
    assert steady.reset == ""
    assert np.median(steady.inverse_depth.numpy()[18:42, 28:52]) > 1.95


def test_something_that_left_leaves_no_ghost() -> None:
    steadier = TemporalFilter()
    plain = picture()
    for k in range(20):
        inverse, rgb = slope(), plain.copy()
        left = 5 + 3 * k
        inverse[20:40, left : left + 12] = 2.0
        rgb[20:40, left : left + 12] = picture(9)[20:40, 5:17]
        steady = feed(steadier, k, inverse, rgb)
        if k > 3:
            behind = steady.inverse_depth.numpy()[22:38, max(left - 12, 0) : left - 1]
            truth = slope()[22:38, max(left - 12, 0) : left - 1]
            assert (behind > 1.15 * truth).mean() < 0.02


def test_a_flicker_of_the_whole_is_taken_out_by_registration() -> None:
    steadier = settled(30)
    steady = feed(steadier, 30, 1.2 * slope(), picture())
    ratio = steady.inverse_depth.numpy() / slope()
    assert abs(np.median(ratio) - 1) < 0.06
    assert float(steady.affine[0]) < 0.9


def test_anchors_turn_relative_depth_into_metres_from_the_first_frame_on() -> None:
    steadier = TemporalFilter()
    rng = np.random.default_rng(4)
    for k in range(20):
        factor = float(np.exp(0.1 * rng.normal()))
        relative = (slope() - 0.1) / (2.0 * factor)
        steady = feed(steadier, k, relative.astype(np.float32), picture(),
                      metric_affine=(2.0 * factor, 0.1))  # fmt: skip
        np.testing.assert_allclose(steady.inverse_depth.numpy(), slope(), rtol=0.03)


def test_labels_follow_the_world_when_the_camera_turns() -> None:
    """Stripes of two classes, seen by a turning camera, with logits that are wrong at random."""
    rng = np.random.default_rng(6)
    steadier = TemporalFilter()
    wide = picture(3, H, 4 * W)
    stripes = (np.arange(4 * W) // 16) % 2
    right = wrong = 0
    for k in range(14):
        # a far wall: turning moves it by whole pixels
        angle = k * 2 / CAMERA.fx
        pose = np.eye(4)
        pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0],
                        [-np.sin(angle), 0, np.cos(angle)]]  # fmt: skip
        part = slice(2 * k, 2 * k + W)
        truth = np.broadcast_to(stripes[part], (H, W))
        logits = np.stack([1.0 - truth, truth]) + rng.normal(size=(2, H, W))
        inverse = np.full((H, W), 0.1, np.float32)
        steady = feed(steadier, k, inverse, np.ascontiguousarray(wide[:, part]),
                      logits=logits.astype(np.float32), odom_from_camera=pose)  # fmt: skip
        assert steady.labels is not None
        if k >= 8:
            inner = (slice(5, -5), slice(15, -15))
            right += int((steady.labels.numpy() != truth + 1)[inner].sum())
            wrong += int((logits.argmax(0) != truth)[inner].sum())
    assert right < wrong / 2


def test_labels_and_confidence_are_of_the_depths_size() -> None:
    logits = np.random.default_rng(0).normal(size=(7, 13, 17)).astype(np.float32)
    steady = feed(TemporalFilter(), 0, slope(), picture(), logits=logits)
    assert steady.labels is not None
    assert steady.confidence is not None
    assert steady.labels.shape == steady.confidence.shape == (H, W)
    assert steady.labels.dtype == steady.confidence.dtype == torch.uint8
    assert 1 <= int(steady.labels.min()) <= int(steady.labels.max()) <= 7
    assert int(steady.confidence.min()) >= 255 // 7


@pytest.mark.parametrize("source", ["odometry", "flow", "nothing", "odometry that jumps"])
def test_it_helps_whatever_tells_the_motion(source: str) -> None:
    world = World("corridor", 1_000_003, 160, 120, 30.0)
    steadier = TemporalFilter(TemporalSettings(use_flow=source != "nothing"))
    rng = np.random.default_rng(8)
    errors: dict[str, list[float]] = {"raw": [], "out": []}
    changes: dict[str, list[float]] = {"raw": [], "out": []}
    last: dict[str, np.ndarray] = {}
    for k in range(16):
        view = world.frame(200 + k)
        truth = (1 / view.depth).astype(np.float32)
        inverse = (noisy(truth, rng) + 1e-4).astype(np.float32)
        pose = view.odom_from_camera.copy()
        if source == "odometry that jumps" and k >= 8:
            pose[:3, 3] += [0.3, -0.2, 0]
        known = source.startswith("odometry")
        steady = steadier.update(
            inverse, None, view.rgb, view.stamp_ns, view.camera, pose if known else None
        )
        assert steady.reset == ("first frame" if k == 0 else "")
        near = truth > 0.05
        for name, value in (("raw", inverse), ("out", steady.inverse_depth.numpy())):
            ratio = value / np.maximum(truth, 1e-3)
            errors[name].append(float(np.abs(ratio - 1)[near].mean()))
            if name in last:
                changes[name].append(float(np.abs(ratio - last[name])[near].mean()))
            last[name] = ratio
    assert np.mean(changes["out"][4:]) < 0.6 * np.mean(changes["raw"][4:])
    assert np.mean(errors["out"][4:]) < np.mean(errors["raw"][4:])


def batch(*arrays: np.ndarray) -> list[torch.Tensor]:
    """Of one camera."""
    return [torch.from_numpy(np.float32(one)[None]) for one in arrays]


def test_refinement_takes_the_error_out_of_odometry() -> None:
    view = World("room", 5, 160, 120).frame(0)
    grid = view.camera.matrix()
    true = np.eye(4)
    true[:3, 3] = [0.01, 0.0, 0.03]
    true[:3, :3] = [[np.cos(0.01), 0, np.sin(0.01)], [0, 1, 0], [-np.sin(0.01), 0, np.cos(0.01)]]
    rotation, shift = relative_pose(np.eye(4), true)
    y, x = torch.meshgrid(torch.linspace(0, 119, 24), torch.linspace(0, 159, 32), indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)])
    inverse = torch.rand(1, *x.shape, generator=torch.Generator().manual_seed(0)) + 0.2
    turned, moved, to_grid, from_grid = batch(rotation, shift, grid, np.linalg.inv(grid))
    turn, along, _ = warp(turned, moved, to_grid, from_grid)
    seen_at = project(turn, along, places, inverse).flatten(2)
    found = refine(
        torch.eye(3)[None], torch.zeros(1, 3), from_grid, places.flatten(1), inverse.flatten(1),
        seen_at, torch.ones_like(seen_at), torch.full((1, 6), 0.05),
    )  # fmt: skip
    torch.testing.assert_close(found[0], turned, atol=3e-4, rtol=0)
    torch.testing.assert_close(found[1], moved, atol=2e-3, rtol=0)


def test_a_point_that_is_projected_back_has_the_depth_it_had() -> None:
    rotation, shift = relative_pose(np.eye(4), np.diag([1.0, 1, 1, 1]) + np.eye(4, k=1) * 0.05)
    grid = CAMERA.matrix()
    turn, along, form = warp(
        *batch(np.eye(3), np.array([0.02, -0.01, 0.2]), grid, np.linalg.inv(grid))
    )
    places = torch.tensor([30.0, 12.0, 1.0])[:, None, None]
    inverse = torch.tensor([[[0.5]]])
    before = 1 / (1 / inverse + 0.2)  # the camera came 0.2 m nearer to it
    assert shift.shape == (3,)
    assert rotation.shape == (3, 3)
    position = project(turn, along, places, inverse)
    torch.testing.assert_close(advance(form, position, before), inverse)


def test_the_fit_finds_scale_and_shift_among_outliers_and_does_not_flatten() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = torch.rand(2000, generator=rng) + 0.2
    raw = (truth - 0.05) / 1.1 * (1 + 0.05 * torch.randn(2000, generator=rng))
    target = truth * (1 + 0.02 * torch.randn(2000, generator=rng))
    target[:400] *= 1.6
    start = torch.tensor([[1.0, 0]])
    fit, fits = fit_affine(raw[None], target[None], torch.ones(1, 2000), start, start)
    assert abs(float(fit[0, 0]) - 1.1) < 0.04
    assert abs(float(fit[0, 1]) - 0.05) < 0.02
    assert 0.75 < float(fits) < 0.85


def test_too_few_samples_leave_the_map_as_it_was() -> None:
    start, none = torch.tensor([[1.3, 0.1]]), torch.zeros(1, 500)
    fit, _ = fit_affine(
        torch.rand(1, 500), torch.rand(1, 500), none, start, torch.tensor([[1.0, 0]])
    )
    torch.testing.assert_close(fit, start)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    picture_size=st.tuples(st.integers(8, 50), st.integers(8, 400)),
    classes=st.integers(1, 4),
    gaps=st.lists(st.floats(1 / 120, 0.7), min_size=2, max_size=4),
    parts=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 1000),
)
def test_any_size_and_rate_gives_finite_depth(
    height: int,
    width: int,
    picture_size: tuple[int, int],
    classes: int,
    gaps: list[float],
    parts: tuple[bool, bool, bool],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    steadier = TemporalFilter()
    stamp = 0
    camera = CameraModel(width, height, float(width), float(width), width / 2, height / 2)
    for gap in [0.0, *gaps]:
        stamp += int(gap * 1e9)
        inverse = rng.uniform(0.01, 3, (height, width)).astype(np.float32)
        inverse[0, 0] = np.nan
        pose = np.eye(4)
        pose[:3, 3] = rng.normal(0, 0.1, 3)
        steady = steadier.update(
            inverse,
            rng.normal(size=(classes, 9, 7)).astype(np.float32),
            rng.integers(0, 255, (*picture_size, 3), np.uint8) if parts[0] else None,
            stamp,
            camera if parts[1] else None,
            pose if parts[2] else None,
        )
        out = steady.inverse_depth.numpy()
        assert np.isnan(out[0, 0])
        assert np.isfinite(out.ravel()[1:]).all()
        assert (out.ravel()[1:] > 0).all()
        assert torch.isfinite(steady.variance).all()
        assert (gap > 0.5) == (steady.reset == "gap")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inverse_depth", np.ones((9, 9, 9), np.float32)),
        ("inverse_depth", np.ones((4, 40), np.float32)),
        ("logits", np.ones((3, 4), np.float32)),
        ("rgb", np.ones((20, 20), np.uint8)),
        ("rgb", np.ones((20, 20, 4), np.uint8)),
        ("rgb", np.ones((4, 20, 3), np.uint8)),
        ("odom_from_camera", np.eye(3)),
        ("metric_affine", (1.0, float("nan"))),
    ],
)
def test_a_wrong_argument_is_named(name: str, value: object) -> None:
    given = {"inverse_depth": slope(), "logits": None, "rgb": picture(), "stamp_ns": 0}
    with pytest.raises(ValueError, match=name):
        TemporalFilter().update(**(given | {name: value}))  # type: ignore[arg-type]


def test_the_old_names_work_and_tell_the_new_ones() -> None:
    scaled = feed(TemporalFilter(), 0, slope(), picture(), metric_affine=(2.0, 0.1))
    with pytest.warns(DeprecationWarning, match="use metric_affine") as warned:
        old = TemporalFilter().update(slope(), None, picture(), 0, anchors=(2.0, 0.1))
    assert warned[0].filename == __file__
    assert torch.equal(old.inverse_depth, scaled.inverse_depth)
    with pytest.warns(DeprecationWarning, match="flow is computed from rgb"):
        TemporalFilter().update(slope(), None, picture(), 0, flow=object())
    with pytest.warns(DeprecationWarning, match=r"from dpt_ros\.engine\."):
        module = importlib.import_module("dpt_ros.engine.temporal")
    assert module.TemporalFilter is engine.TemporalFilter is TemporalFilter


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(ValueError, match="strength is 2"):
        TemporalSettings(strength=2)
    with pytest.raises(ValueError, match="memory"):
        TemporalSettings(memory=0)


@pytest.mark.gpu
def test_the_gpu_says_what_the_cpu_says() -> None:
    outputs = []
    for device in ("cpu", "cuda"):
        rng = np.random.default_rng(0)
        steadier = TemporalFilter()
        for k in range(6):
            logits = torch.from_numpy(rng.normal(size=(4, 30, 40)).astype(np.float32))
            steady = feed(
                steadier, k, torch.from_numpy(noisy(slope(), rng)).to(device), picture(),
                logits=logits.to(device),
            )  # fmt: skip
            assert steady.inverse_depth.device.type == device
        assert steady.logits is not None
        outputs.append((steady.inverse_depth.cpu(), steady.logits.cpu()))
    for one, two in zip(*outputs, strict=True):
        assert ((one - two).abs() < 2e-3 + 1e-2 * one.abs()).float().mean() > 0.995
