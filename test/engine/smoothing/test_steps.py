# SPDX-License-Identifier: Apache-2.0
"""The steps of the temporal filter by themselves, and the filter with each teller of motion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.filter_clips import CAMERA, FRAME, H, W, feed, noisy, picture, settled, slope

from dpt_ros.engine.output import postprocess
from dpt_ros.engine.packed import pack
from dpt_ros.engine.smoothing import maps, steps
from dpt_ros.engine.smoothing.filter import TemporalFilter, TemporalSettings, plan_frame
from dpt_ros.engine.smoothing.maps import pixel_grid
from dpt_ros.engine.smoothing.motion import (
    flow_disagreement,
    outside,
    project,
    solve,
    warp,
)
from dpt_ros.engine.smoothing.state import FILTER_FIELDS, MOTION_FIELDS, FilterState
from dpt_ros.engine.smoothing.steps import look, smooth_logits
from dpt_ros.engine.smoothing.update import blend, clamp

NOISE = 0.05
GAINS = {
    "measurement_noise": NOISE,
    "min_gain": 0.1,
    "label_gain": 0.25,
    "moving_gain": 0.3,
    "has_flow": 1,
}
NUMBERS = torch.from_numpy(pack(FILTER_FIELDS, GAINS))[None]
HERE = pixel_grid(8, 8, torch.device("cpu"))[None]


def flat(value: float) -> torch.Tensor:
    return torch.full((1, 8, 8), value)


def looked(now: float = 1.0, residual: float = 0.0) -> torch.Tensor:
    """A frame of one inverse depth whose flow says that nothing moves."""
    front = torch.stack([flat(now), flat(1.0), flat(100.0)], 1)
    return torch.cat([front, HERE[:, :2], flat(residual)[:, None], torch.ones(1, 2, 8, 8)], 1)


def weight(now: float, was: float, variance: float = 0.0, **given: float) -> float:
    """The gain where past and present say this; ``moving``, ``left`` and ``residual`` by flow."""
    seen = looked(now, given.get("residual", 0.0))
    seen[0, 0, 3, 3], seen[0, 0, 5, 5] = 0.1, 9.0  # so that nothing is clamped
    maps = torch.stack([flat(was), flat(variance), flat(100.0), flat(given.get("left", 0.0))], 1)
    turn, ego = np.eye(3), "moving" in given
    turn[0, 2] = given.get("outside", 0.0)
    if given.get("moving"):
        seen[:, 3] += 2  # flow contradicts the camera, which stands still
        maps[:, 2] = 200.0
    motion = {
        "turn": turn, "form": [0, 0, 1, 0], "has_ego": ego, "reliable": ego, "fit": [1, 0],
        "affine": [1, 0], "usual": [1, 0],
    }  # fmt: skip
    has_flow = ego or "residual" in given
    numbers = torch.from_numpy(pack(FILTER_FIELDS, GAINS | {"has_flow": has_flow}))[None]
    packed = torch.from_numpy(pack(MOTION_FIELDS, motion))[None]
    found = blend(seen, flat(now), maps, packed, torch.tensor([[1.0, 1.0]]), numbers)
    return float(found[3][0, 4, 4])


def test_the_gain_is_kalmans_and_never_less_than_the_least() -> None:
    assert weight(1.0, 1.0) == pytest.approx(0.1)
    assert weight(1.0, 1.0, variance=NOISE**2) == pytest.approx(0.5)
    assert weight(1.0, 1.0, outside=8.0) == pytest.approx(1.0, abs=1e-4)


def test_the_gate_opens_between_two_deviations_and_sooner_for_what_left() -> None:
    for deviations in (1.0, 1.4):
        assert weight(1.0, 1.0 - deviations * NOISE) == pytest.approx(0.1)
    assert weight(1.0, 1.0 + 1.1 * NOISE) == pytest.approx(0.1)
    # 2 deviations farther count 2.6, of a gate from 1.5 to 3
    assert weight(1.0, 1.0 + 2 * NOISE) == pytest.approx(0.1 + 0.9 * 1.1 / 1.5, abs=1e-4)
    assert weight(1.0, 1.0 - 1.8 * NOISE) == pytest.approx(0.1 + 0.9 * 0.3 / 1.5, abs=1e-4)
    assert weight(1.0, 1.0 - 2.1 * NOISE) == 1.0
    assert weight(1.0, 1.0 + 3 * NOISE) == 1.0


def test_what_moves_by_itself_and_where_it_was_are_believed_sooner() -> None:
    assert weight(1.0, 1.0, moving=1.0) == pytest.approx(0.3)
    assert weight(1.0, 1.0, moving=0.0, left=1.0) == pytest.approx(0.5)
    assert weight(1.0, 1.0, moving=1.0, left=1.0) == pytest.approx(0.3)
    assert weight(1.0, 1.0, moving=1.0, residual=30.0) == 1.0
    assert weight(1.0, 1.0, moving=0.0, residual=30.0) == pytest.approx(0.1)
    assert weight(1.0, 1.0, residual=30.0) == 1.0  # nothing but flow tells the motion


def test_the_past_is_kept_within_its_neighbourhood() -> None:
    now = flat(2.0)
    now[0, 3, 3] = 3.0
    noise = torch.full((1, 1, 1), NOISE)
    high, low = (clamp(flat(value), now, noise)[0] for value in (9.0, 0.1))
    assert float(high[6, 6]) == pytest.approx(2.0 * (1 + 1.5 * NOISE))
    assert float(high[4, 4]) == pytest.approx(3.0 + 2.0 * 1.5 * NOISE)
    assert float(low[4, 4]) == pytest.approx(2.0 * (1 - 1.5 * NOISE))


def test_flow_contradicts_the_camera_beyond_a_pixel_and_a_half_and_some_of_the_way() -> None:
    def of(apart: float, way: float) -> tuple[float, float]:
        seen = looked(residual=3.0)
        seen[:, 3] += way
        position = torch.stack([seen[:, 3], seen[:, 4] + apart], 1)
        past, exposure = flat(120.0), torch.tensor([0.8])
        differs, worse = flow_disagreement(seen, HERE[0], position, past, exposure)
        return float(differs.float().mean()), float(worse.mean())

    assert of(1.4, 0.0)[0] == 0
    assert of(1.6, 0.0)[0] == 1
    assert of(1.9, 10.0)[0] == 0
    assert of(2.1, 10.0)[0] == 1
    assert of(0.0, 0.0)[1] == pytest.approx(abs(0.8 * 120 - 100) - 3)


def test_labels_keep_their_past_as_far_as_depth_does() -> None:
    fresh = torch.stack([flat(1.0), flat(-1.0)], 1)
    for weight_, belief in ((0.1, 0.75), (0.375, 0.375), (0.6, 0.0)):
        found = smooth_logits(fresh, -fresh, HERE[:, :2], flat(weight_), NUMBERS)
        assert float(found[0, 0, 4, 4]) == pytest.approx(1 - 2 * belief, abs=1e-5)
    for other in (None, torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 4, 4)):
        found = smooth_logits(fresh + 3, other, HERE[:, :2], flat(0.1), NUMBERS)
        torch.testing.assert_close(found, fresh + 3)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 10, 150])
def test_labels_of_any_number_of_classes_are_the_same_in_numpy_and_torch(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    logits = torch.randn(1, count, 6, 8, generator=generator)
    logits[0, -1, 2, 3] = torch.nan
    position = HERE[:, :2] + torch.rand(1, 2, 8, 8, generator=generator)
    form = torch.channels_last  # as networks on a CPU give them
    fresh = logits.contiguous(memory_format=form)
    for past in (logits.nan_to_num(0.0), logits.nan_to_num(0.0).contiguous(memory_format=form)):
        given = (fresh, past.flip(3), position, flat(0.1), NUMBERS)
        found = smooth_logits(*given)
        with postprocess.torch_only():
            expected = smooth_logits(*given)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(smooth_logits(fresh, None, position, flat(0.1), NUMBERS),
                               logits.nan_to_num(0.0))  # fmt: skip


def test_a_camera_that_stands_still_sees_nothing_that_was_outside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(8, 500, 2)
        focal, centre = rng.uniform(0.4, 3) * width, rng.uniform(0.3, 0.7, 2) * (width, height)
        camera = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
        matrices = (np.eye(3), np.zeros(3), camera, np.linalg.inv(camera))
        turn, along, _ = warp(*(torch.from_numpy(np.float32(one)[None]) for one in matrices))
        grid = pixel_grid(int(height), int(width), torch.device("cpu"))
        position = project(turn, along, grid, torch.ones(1, height, width))
        assert not outside(position, (height, width)).any()


def test_elimination_without_pivots_solves_the_normal_equations() -> None:
    rows = torch.randn(3, 40, 6, generator=torch.Generator().manual_seed(0))
    matrix, side = rows.transpose(1, 2) @ rows + torch.eye(6), torch.ones(3, 6)
    known = torch.linalg.solve(matrix, side[..., None])
    torch.testing.assert_close(solve(matrix, side[..., None]), known)
    one = solve(matrix[:1].numpy(), side[:1, :, None].numpy())
    torch.testing.assert_close(torch.from_numpy(one), known[:1])


# --- the whole filter


@pytest.mark.parametrize("told_by", ["odometry", "flow"])
def test_labels_follow_the_world_whatever_tells_the_motion(told_by: str) -> None:
    """Checks of two classes, seen by a camera that turns, with logits that are wrong at random."""
    rng = np.random.default_rng(6)
    steadier = TemporalFilter(TemporalSettings(use_flow=told_by == "flow"))
    wide = picture(3, 3 * H, 4 * W)
    y, x = np.indices((3 * H, 4 * W))
    checks = (x // 16 + y // 12) % 2
    smoothed = raw = 0
    for k in range(14):
        across, down = 2 * k, (2 * k if told_by == "flow" else 0)
        part = (slice(down, down + H), slice(across, across + W))
        angle = across / CAMERA.fx
        pose = np.eye(4)
        pose[0, :3] = [np.cos(angle), 0, np.sin(angle)]
        pose[2, :3] = [-np.sin(angle), 0, np.cos(angle)]
        truth = checks[part]
        logits = np.stack([1.0 - truth, truth]) + rng.normal(size=(2, H, W))
        steady = feed(
            steadier, k, np.full((H, W), 0.1, np.float32), np.ascontiguousarray(wide[part]),
            logits=logits.astype(np.float32), odom_from_camera=None if told_by == "flow" else pose,
        )  # fmt: skip
        assert steady.labels is not None
        if k >= 8:
            inner = (slice(8, -8), slice(15, -15))
            smoothed += int((steady.labels.numpy() != truth + 1)[inner].sum())
            raw += int((logits.argmax(0) != truth)[inner].sum())
    assert smoothed < raw / 2


def test_flow_of_any_size_tells_the_pixel_where_a_place_was() -> None:
    flow = torch.zeros(1, 5, 8, 10)
    flow[:, 0], flow[:, 1] = 1.5, 1.0  # of 10 x 8 pixels: 6 across and 2 down of 40 x 16
    found = look(torch.ones(1, 16, 40), torch.zeros(1, 8, 10), flow)[0, 3:5]
    here = pixel_grid(16, 40, torch.device("cpu"))
    x, y = found - here[:2]
    torch.testing.assert_close(x, torch.full((16, 40), 6.0))
    torch.testing.assert_close(y, torch.full((16, 40), 2.0))


def test_each_camera_of_a_batch_is_filtered_as_alone_in_numpy_and_torch_whatever_a_fresh_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    floor = torch.from_numpy(slope())
    numbers, fresh = [], torch.tensor([False, False, True, False])
    for pose, image, stamp in ((0.01, True, FRAME), (None, True, FRAME), (0, True, 0),
                               (0.02, False, FRAME)):  # fmt: skip
        poses = [None if pose is None else shifted(x) for x in (0.0, pose or 0.0)]
        size, set_ = (H, W), TemporalSettings()
        history = plan_frame(None, set_, 0, CAMERA, poses[0], "", size, image)[2]
        packed, reason, _ = plan_frame(history, set_, stamp, CAMERA, poses[1], "", size, image)
        assert bool(reason) == (stamp == 0)
        numbers.append(torch.from_numpy(packed))
    count = len(numbers)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    raw = torch.stack([torch.from_numpy(noisy(slope(), rng)) for _ in range(count)])
    raw[1, 5:9, 3:20] = torch.nan
    luma = torch.stack([torch.from_numpy(picture(k)[..., 1]).float() for k in range(count)])
    past = floor.expand(count, H, W)
    maps = torch.stack([past, 0.002 * torch.ones_like(past), luma.roll(1, 2), past * 0], 1)
    affine = torch.tensor([[1.0, 0.0], [1.1, 0.01], [0.9, 0.0], [1.0, 0.0]])
    age = torch.tensor([3.0, 9.0, 5.0, 1.0])
    state = [maps, random(3, 30, 40), affine, age, luma.roll(1, 2)]
    for values in state:
        values[fresh] = torch.nan
    frame = [raw, affine.nan_to_num(1.0), random(3, 30, 40), luma, torch.stack(numbers)]
    after, *together = steps.smooth(FilterState(*state), *frame)
    assert all(bool(torch.isfinite(one[fresh]).all()) for one in vars(after).values())
    assert bool((together[3][fresh] == 1).all())
    flow = steps.optical_flow(luma, state[-1])
    monkeypatch.setattr(steps, "optical_flow", lambda *_: flow)
    monkeypatch.setattr("dpt_ros.engine.output.postprocess.on_host", lambda values: False)
    in_torch = steps.smooth(FilterState(*state), *frame)
    monkeypatch.undo()
    for k in range(count):
        alone = steps.smooth(FilterState(*(x[k : k + 1] for x in state)),
                             *(x[k : k + 1] for x in frame))  # fmt: skip
        for one, other, third in zip(
            [*vars(after).values(), *together], [*vars(alone[0]).values(), *alone[1:]],
            [*vars(in_torch[0]).values(), *in_torch[1:]], strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(one[k], other[0], atol=1e-3, rtol=1e-3, equal_nan=True)
            torch.testing.assert_close(third[k], other[0], atol=1e-3, rtol=1e-3, equal_nan=True)


def shifted(metres: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = metres
    return pose


def turned(angle: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return pose


@pytest.mark.parametrize(
    ("pose", "believed"),
    [
        (shifted(9 / 30), True),
        (shifted(11 / 30), False),
        (turned(6 / 30), True),
        (turned(-6.6 / 30), False),
    ],
    ids=["9 m/s", "11 m/s", "6 rad/s", "6.6 rad/s"],
)
def test_odometry_that_no_robot_can_do_is_not_believed(pose: np.ndarray, believed: bool) -> None:
    def after(pose: np.ndarray) -> torch.Tensor:
        steadier = settled(settings=TemporalSettings(use_flow=False))
        return feed(steadier, 12, slope(), picture(), odom_from_camera=pose).inverse_depth

    assert torch.equal(after(pose), after(shifted(50.0))) != believed


def test_odometry_that_the_whole_picture_contradicts_does_no_harm() -> None:
    steadier = settled()
    for k in range(12, 20):
        pose = turned(0.1 * (k - 11))
        steady = feed(steadier, k, slope(), picture(), odom_from_camera=pose)
        assert steady.reset == ""
        assert np.abs(steady.inverse_depth.numpy() / slope() - 1).max() < 0.02
        assert float(steady.gain.mean()) < 0.3


def test_what_is_said_of_doubt_is_the_kalman_filters_and_of_labels_softmax() -> None:
    steadier = settled(settings=TemporalSettings(measurement_noise=0.1))
    logits = np.random.default_rng(0).normal(size=(3, H, W)).astype(np.float32)
    steady = feed(TemporalFilter(), 0, slope(), picture(), logits=logits)
    share = torch.softmax(torch.from_numpy(logits), 0).amax(0)
    assert steady.confidence is not None
    assert (steady.confidence.float() - 255 * share).abs().max() <= 0.51
    steady = feed(steadier, 12, slope(), picture())
    torch.testing.assert_close(steady.variance, 0.01 * steady.gain)


def test_odometry_that_ends_is_missed_without_a_reset() -> None:
    steadier = settled()
    for k in range(12, 18):
        steady = feed(steadier, k, slope(), picture(), odom_from_camera=None)
        assert steady.reset == ""
        assert np.abs(steady.inverse_depth.numpy() / slope() - 1).max() < 0.05


def test_without_odometry_scale_returns_sooner_to_what_the_network_says() -> None:
    def after(pose: np.ndarray | None) -> float:
        steadier = settled(30)
        for k in range(30, 36):
            steady = feed(steadier, k, 1.2 * slope(), picture(), odom_from_camera=pose)
        return float(np.median(steady.inverse_depth.numpy() / slope()))

    assert after(None) > after(np.eye(4)) + 0.02


@pytest.mark.parametrize("known", [True, False], ids=["odometry", "nothing"])
def test_a_filter_that_is_restored_goes_on_as_the_other(known: bool) -> None:
    given = {} if known else {"camera": None, "odom_from_camera": None}
    one, other = TemporalFilter(TemporalSettings(use_flow=False)), TemporalFilter()
    other.settings = one.settings
    rng = np.random.default_rng(1)

    def step(steadier: TemporalFilter, k: int, inverse: np.ndarray) -> bytes:
        if known:
            given["odom_from_camera"] = np.eye(4)
            given["odom_from_camera"][2, 3] = 0.01 * k
        logits = np.random.default_rng(k).normal(size=(3, 20, 30)).astype(np.float32)
        found = feed(steadier, k, inverse, picture(), logits=logits, **given)
        assert found.logits is not None
        return found.inverse_depth.numpy().tobytes() + found.logits.numpy().tobytes()

    assert TemporalFilter().state_dict() == {}
    for k in range(3):
        step(one, k, noisy(slope(), rng))
    # As a GPU takes it
    assert all(part.is_contiguous() for part in one.state_dict()["past"].values())
    other.load_state_dict(one.state_dict(), torch.device("cpu"))
    for k in (3, 4):
        inverse = noisy(slope(), rng)
        assert step(one, k, inverse) == step(other, k, inverse)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("height", "width"), [(12, 16), (1, 16), (12, 1)])
def test_where_opencv_rounds_positions_maps_are_sampled_exactly_too(
    monkeypatch, mixed, height, width
) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((1, 4, height, width), np.float32)
    x, y = (rng.uniform(-1, size, (1, 9, 7)).astype(np.float32) for size in (width, height))
    where = torch.from_numpy(
        np.stack([x * 2 / max(width - 1, 1) - 1, y * 2 / max(height - 1, 1) - 1], -1)
    )
    expected = torch.nn.functional.grid_sample(
        torch.from_numpy(values), where, padding_mode="border", align_corners=True
    )
    given = maps.interleaved(values) if mixed else values
    for exact in (maps._EXACT_REMAP, False):
        monkeypatch.setattr(maps, "_EXACT_REMAP", exact)
        np.testing.assert_allclose(maps.sample(given, np.stack([x, y], 1)), expected, atol=1e-5)
