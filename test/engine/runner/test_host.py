# SPDX-License-Identifier: Apache-2.0
"""Chains and runners with a real, small network: what comes out."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.gpu_rehearsal import RehearsalStreams, rehearsal
from helpers.networks import embedded_networks
from helpers.runner_frames import (
    EVERYTHING,
    SMALL,
    SMOOTH,
    frame,
    gpu_runner,
    on_streams,
    one,
    picture,
    run,
    same,
    scan_of,
)

from dpt_ros.engine.frame import CameraModel, OutputRequest
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.loading import NetworkError, load_networks
from dpt_ros.engine.output.flying_pixels import flying_pixel_mask
from dpt_ros.engine.pipeline import make_runner
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.host import HostRunner, Runner
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.settings import Settings


@pytest.fixture(scope="module")
def networks() -> Networks:
    return embedded_networks()


def test_a_prediction_has_what_was_asked_for_and_nothing_else(networks):
    whole = one(networks, frame(1), EVERYTHING)
    assert whole.depth.shape == whole.inverse.shape == (48, 64)
    assert whole.depth.dtype == whole.inverse.dtype == np.float32
    assert whole.labels.dtype == whole.confidence.dtype == np.uint8
    assert whole.labels.min() >= 1
    assert whole.labels.max() <= 10
    assert set(whole.seconds) == {"convert", "preprocess", "network", "refine", "postprocess"}
    only_labels = one(networks, frame(1), OutputRequest(depth=False))
    assert only_labels.depth is None
    assert only_labels.inverse is None
    assert only_labels.confidence is None
    np.testing.assert_array_equal(only_labels.labels, whole.labels)


def test_inverse_depth_of_a_metric_network_is_one_over_its_metres(networks):
    both = one(networks, frame(90), OutputRequest(inverse=True))
    np.testing.assert_allclose(both.inverse, 1 / both.depth, rtol=1e-6)


def test_depth_beyond_the_range_is_infinite(networks):
    free = one(networks, frame(90), OutputRequest()).depth
    limit = float(np.median(free))
    limited = one(networks, frame(90), OutputRequest(), replace(SMALL, max_range=limit)).depth
    assert np.isinf(limited[free > limit]).all()
    np.testing.assert_array_equal(limited[free <= limit], free[free <= limit])
    assert np.isinf(limited).any()


def test_outputs_have_the_size_of_the_image_or_of_the_network(networks):
    large = frame(1, pixels=picture(1, 100, 160))
    as_image = one(networks, large, EVERYTHING)
    assert as_image.depth.shape == as_image.labels.shape == (100, 160)
    as_network = one(networks, large, EVERYTHING, replace(SMALL, output_size="network"))
    assert as_network.depth.shape == as_network.labels.shape == (48, 80)
    assert as_network.camera.width == 80


def test_the_camera_of_a_prediction_fits_its_depth(networks):
    settings = replace(SMALL, input_width=32, input_height=32, output_size="network")
    camera = one(networks, frame(1), OutputRequest(), settings).camera
    assert (camera.width, camera.height) == (48, 32)
    assert camera.fx == pytest.approx(45.0)
    assert camera.cx == pytest.approx(23.5)


def test_two_networks_say_together_what_each_says_alone(networks):
    apart = embedded_networks(shared=False)
    expected = one(networks, frame(5), EVERYTHING)
    actual = one(apart, frame(5), EVERYTHING)
    np.testing.assert_array_equal(actual.labels, expected.labels)
    np.testing.assert_allclose(actual.depth, expected.depth, rtol=1e-6)


@pytest.mark.parametrize("runner", ["host", "streams"])
def test_an_unknown_encoding_is_refused_with_the_known_ones(networks, runner):
    made = HostRunner(networks, SMALL) if runner == "host" else on_streams(networks)
    with pytest.raises(ValueError, match=r"rgb9.*known are.*rgb8"):
        made.start([frame(1, encoding="rgb9")], OutputRequest(), SMALL)


# The runner of a GPU, on the host's streams


@pytest.mark.parametrize("size", [(48, 64), (100, 160)])
def test_the_steps_of_a_gpu_say_what_those_of_the_cpu_say(networks, size):
    seen = frame(3, pixels=picture(3, *size))
    same(run(on_streams(networks), seen, EVERYTHING)[0], one(networks, seen, EVERYTHING))


@pytest.mark.parametrize("shared", [True, False])
def test_every_run_before_and_after_recording_says_the_same_of_its_own_frame(networks, shared):
    runner = on_streams(embedded_networks(shared=shared))
    for number in range(7):
        seen = frame(number)
        same(run(runner, seen, EVERYTHING)[0], one(networks, seen, EVERYTHING))


def test_a_graph_that_outlives_its_program_is_found(networks):
    with rehearsal() as kernels:
        runner = on_streams(networks, RehearsalStreams(kernels))
        for number in range(3):
            run(runner, frame(number), EVERYTHING)
        (program,) = runner._programs.values()
        replay = program._run
        runner._programs.clear()
        del program
        gc.collect()
        with pytest.raises(AssertionError, match="freed"):
            replay()


def test_a_batch_says_of_each_camera_what_it_would_say_of_it_alone(networks):
    runner = on_streams(networks)
    for _ in range(4):
        batch = run(runner, [frame(n, source=f"camera{n}") for n in (1, 2, 3)], EVERYTHING)
        for prediction, number in zip(batch, (1, 2, 3), strict=True):
            assert prediction.frame.source == f"camera{number}"
            same(prediction, one(networks, frame(number), EVERYTHING))


def test_frames_in_flight_do_not_write_over_each_other(networks):
    runner = on_streams(networks)
    for _ in range(3):
        tickets = [runner.start([frame(n)], EVERYTHING, SMALL) for n in range(runner.in_flight)]
        for number, ticket in enumerate(tickets):
            same(ticket.wait()[0], one(networks, frame(number), EVERYTHING))
            ticket.release()


def test_a_range_that_changes_while_frames_flow_takes_effect(networks):
    runner = on_streams(networks)
    free = run(runner, frame(9), EVERYTHING)[0].depth
    limit = float(np.median(free))
    for _ in range(4):
        run(runner, frame(9), EVERYTHING)
    limited = run(runner, frame(9), EVERYTHING, replace(SMALL, max_range=limit))[0].depth
    np.testing.assert_array_equal(np.isinf(limited), free > limit)
    assert np.isfinite(run(runner, frame(9), EVERYTHING)[0].depth).all()


def test_sixteen_bit_pixels_reach_the_network_unchanged(networks):
    deep = frame(1, pixels=picture(1).astype(np.uint16) * 257, encoding="rgb16")
    same(run(on_streams(networks), deep, EVERYTHING)[0], one(networks, frame(1), EVERYTHING))


# The temporal filter between the halves of a chain


def sequence(networks: Networks, runner: Runner, count: int = 6, **changes: object):
    """Predictions of noisy pictures of one scene, 30 per second."""
    random = np.random.default_rng(4)
    predictions = []
    for number in range(count):
        noisy = np.clip(picture(2) + random.normal(0, 12, (48, 64, 3)), 0, 255).astype(np.uint8)
        seen = frame(1_000_000_000 + number * 33_000_000, pixels=noisy)
        seen = replace(seen, odom_from_camera=np.eye(4), **changes)
        predictions += run(runner, seen, replace(EVERYTHING, deviation=True), SMOOTH)
    return predictions


def test_smoothing_calms_a_standing_scene_and_leaves_its_first_frame_alone(networks):
    smooth = sequence(networks, HostRunner(networks, SMOOTH), 12)
    random = np.random.default_rng(4)
    noisy = np.clip(picture(2) + random.normal(0, 12, (48, 64, 3)), 0, 255).astype(np.uint8)
    raw = one(networks, frame(1, pixels=noisy), EVERYTHING)
    np.testing.assert_allclose(smooth[0].depth, raw.depth, rtol=1e-5)
    assert smooth[0].reset == "first frame"
    assert {p.reset for p in smooth[1:]} == {""}
    early = np.abs(np.diff(np.log([p.depth for p in smooth[:3]]), axis=0)).mean()
    late = np.abs(np.diff(np.log([p.depth for p in smooth[-3:]]), axis=0)).mean()
    assert late < 0.6 * early
    assert smooth[-1].deviation.mean() < smooth[0].deviation.mean()


def test_smoothing_on_the_steps_of_a_gpu_says_what_it_says_on_a_cpu(networks):
    expected = sequence(networks, HostRunner(networks, SMOOTH))
    actual = sequence(networks, StreamRunner(networks, SMOOTH, Streams(), print))
    for number, (fast, exact) in enumerate(zip(actual, expected, strict=True)):
        error = np.abs(fast.depth - exact.depth) / exact.depth
        assert np.quantile(error, 0.99) < 1e-3, number
        assert (fast.labels == exact.labels).mean() > 0.99
        np.testing.assert_allclose(
            np.median(fast.deviation), np.median(exact.deviation), rtol=0.01
        )
        assert fast.reset == exact.reset


def test_reset_forgets_the_past_of_every_camera(networks):
    runner = HostRunner(networks, SMOOTH)
    sequence(networks, runner, 3)
    runner.reset()
    later = frame(1_000_000_000 + 3 * 33_000_000)
    assert run(runner, later, EVERYTHING, SMOOTH)[0].reset == "first frame"
    assert run(runner, replace(later, source="other"), EVERYTHING, SMOOTH)[0].reset


def test_labels_alone_are_smoothed_too(networks):
    runner = HostRunner(networks, SMOOTH)
    labels = OutputRequest(depth=False)
    for number in range(3):
        seen = frame(1_000_000_000 + number * 33_000_000, pixels=picture(2))
        prediction = run(runner, seen, labels, SMOOTH)[0]
        assert prediction.depth is None
        assert prediction.labels.shape == (48, 64)
    assert prediction.reset == ""


# Metres, points and groups


@pytest.mark.parametrize("kind", [HostRunner, StreamRunner])
def test_anchors_correct_the_metres_of_the_frame_they_belong_to(networks, kind):
    def make() -> Runner:
        more = () if kind is HostRunner else (Streams(), print)
        return kind(networks, SMALL, *more)

    seen = frame(1, pixels=picture(2))
    raw = run(make(), seen, EVERYTHING)[0]
    assert raw.scale["scale source"] == "network"
    corrected = run(make(), replace(seen, anchors=scan_of(raw, 1.5)), EVERYTHING)[0]
    assert corrected.scale["scale source"] == "anchors"
    ratio = np.median(corrected.depth / raw.depth)
    assert 1.3 < ratio < 1.55


def test_without_a_source_of_metres_only_inverse_depth_is_said(networks):
    settings = replace(SMALL, scale_source="none")
    silent = run(HostRunner(networks, settings), frame(1), EVERYTHING, settings)[0]
    assert not silent.metric
    assert silent.depth is None
    assert silent.inverse is not None
    assert silent.labels is not None


@pytest.mark.parametrize("kind", [HostRunner, StreamRunner])
@pytest.mark.parametrize("stride", [1, 3])
def test_points_and_labels_belong_together_pixel_by_pixel(networks, kind, stride):
    settings = replace(SMALL, points_stride=stride, points_max_incidence=90.0)
    more = () if kind is HostRunner else (Streams(), print)
    runner = kind(networks, settings, *more)
    wanted = OutputRequest(confidence=True, points=True)
    camera = CameraModel(160, 100, 150.0, 150.0, 79.5, 49.5)
    seen = frame(1, pixels=picture(3, 100, 160), camera=camera)
    for _ in range(4):
        said = run(runner, seen, wanted, settings)[0]
    assert said.points.shape == said.labels.shape == said.confidence.shape
    np.testing.assert_array_equal(said.points["label"], said.labels)
    depth = said.depth[::stride, ::stride]
    np.testing.assert_array_equal(said.points["z"], depth)
    colour = said.points["rgb"][0, 0]
    assert [colour >> 16 & 255, colour >> 8 & 255, colour & 255] == list(seen.pixels[0, 0])
    _, columns = np.mgrid[: depth.shape[0], : depth.shape[1]] * stride
    expected = (columns - camera.cx) / camera.fx * depth
    np.testing.assert_allclose(said.points["x"], expected, rtol=1e-5, atol=1e-6)


def test_points_leave_out_what_is_smeared_over_edges_and_depth_does_not(networks):
    camera = CameraModel(160, 100, 150.0, 150.0, 79.5, 49.5)
    seen = frame(1, pixels=picture(3, 100, 160), camera=camera)
    wanted = OutputRequest(points=True)
    settings = replace(SMALL, points_max_incidence=60.0)
    runner = HostRunner(networks, settings)
    said = run(runner, seen, wanted, settings)[0]
    smear = flying_pixel_mask(torch.from_numpy(said.depth), camera, 60.0).numpy()
    assert 0.01 < smear.mean() < 0.99
    np.testing.assert_array_equal(np.isnan(said.points["z"]), smear)
    assert not np.isnan(said.depth).any()


def test_points_without_a_camera_are_left_out(networks):
    said = one(networks, frame(1, camera=None), OutputRequest(points=True))
    assert said.points is None
    assert said.depth is not None


def test_labels_speak_of_groups_where_groups_are_asked_for():
    lines = ("ground: floor", "people: person")
    grouped = load_networks(Settings(label_groups=lines))
    assert grouped.class_names == ("ground", "people", "other")
    assert grouped.floor == (1,)
    labels = one(grouped, frame(1), EVERYTHING).labels
    alone = load_networks(Settings())
    fine = one(alone, frame(1), EVERYTHING)
    floor = (fine.labels == alone.floor[0]) & (fine.confidence > 128)
    assert floor.sum() > 100
    assert set(np.unique(labels)) <= {1, 2, 3}
    assert (labels[floor] == 1).all()


def test_a_wrong_label_group_is_refused_with_a_hint():
    with pytest.raises(NetworkError, match=r"label_groups: .*'flor'.*did you mean 'floor'"):
        load_networks(Settings(label_groups=("ground: flor",)))


def test_a_camera_that_keeps_changing_its_size_does_not_fill_the_memory(networks):
    runner = on_streams(networks)
    for width in range(64, 64 + 20):
        run(runner, frame(1, pixels=picture(1, 48, width)), OutputRequest(labels=False))
    assert len(runner._programs) <= 8


# On a GPU


@pytest.fixture(scope="module")
def on_gpu() -> Networks:
    return embedded_networks(shared=False, device=torch.device("cuda"), dtype=torch.float16)


@pytest.mark.gpu
def test_make_runner_takes_streams_for_a_gpu(on_gpu):
    assert isinstance(make_runner(on_gpu, SMALL, print), StreamRunner)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(48, 64), (480, 640)])
def test_the_gpu_says_what_the_cpu_says_within_half_precision(networks, on_gpu, size):
    notes: list[str] = []
    runner = gpu_runner(on_gpu, notes)
    for number in range(6):
        seen = frame(number, pixels=picture(number, *size))
        fast = run(runner, seen, EVERYTHING)[0]
        exact = one(networks, seen, EVERYTHING)
        assert np.mean(np.abs(fast.depth - exact.depth) / exact.depth) < 5e-3
        assert (fast.labels == exact.labels).mean() > 0.98
    assert notes == []


@pytest.mark.gpu
def test_a_replayed_graph_says_bit_for_bit_what_eager_says(on_gpu):
    notes: list[str] = []
    graphs, eager = gpu_runner(on_gpu, notes), gpu_runner(on_gpu, notes, cuda_graphs=False)
    for number in range(8):
        replayed = run(graphs, frame(number), EVERYTHING)[0]
        launched = run(eager, frame(number), EVERYTHING)[0]
        np.testing.assert_array_equal(replayed.depth, launched.depth)
        np.testing.assert_array_equal(replayed.labels, launched.labels)
    assert notes == []


@pytest.mark.gpu
def test_frames_overlap_on_the_gpu_and_none_takes_another_ones_result(on_gpu):
    notes: list[str] = []
    runner = gpu_runner(on_gpu, notes)
    expected = [run(runner, frame(n), EVERYTHING)[0] for n in range(4)]
    for _ in range(50):
        tickets = [runner.start([frame(n)], EVERYTHING, SMALL) for n in range(runner.in_flight)]
        for number, ticket in enumerate(tickets):
            np.testing.assert_array_equal(ticket.wait()[0].depth, expected[number].depth)
            ticket.release()
    assert notes == []


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_in_the_steady_state(on_gpu):
    runner = gpu_runner(on_gpu, [])
    for number in range(6):
        run(runner, frame(number), EVERYTHING)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ticket = runner.start([frame(1)], EVERYTHING, SMALL)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ticket.wait()
    ticket.release()


@pytest.mark.gpu
def test_memory_does_not_grow_over_ten_thousand_frames(on_gpu):
    runner = gpu_runner(on_gpu, [])
    for number in range(10):
        run(runner, frame(number), EVERYTHING)
    before = torch.cuda.memory_stats()["allocation.all.allocated"], torch.cuda.memory_reserved()
    seen = [frame(n) for n in range(3)]
    for _ in range(10_000 // 3):
        tickets = [runner.start([one], EVERYTHING, SMALL) for one in seen]
        for ticket in tickets:
            ticket.wait()
            ticket.release()
    after = torch.cuda.memory_stats()["allocation.all.allocated"], torch.cuda.memory_reserved()
    assert after == before
