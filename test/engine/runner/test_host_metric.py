# SPDX-License-Identifier: Apache-2.0
"""Several cameras in a batch, and points beyond range, on the CPU and on the steps of a GPU."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.networks import embedded_networks
from helpers.runner_frames import (
    EVERYTHING,
    SMALL,
    SMOOTH,
    frame,
    make,
    one,
    picture,
    run,
    scan_of,
    video_frame,
)

from dpt_ros.engine.frame import CameraModel, Kind, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.runner.chain import Chain, depth_limit
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.host import HostRunner
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.settings import Settings


@pytest.fixture(scope="module")
def networks() -> Networks:
    return embedded_networks(shared=True)


@pytest.mark.parametrize("kind", [HostRunner, StreamRunner])
def test_cameras_of_one_batch_have_anchors_and_a_past_each(networks, kind):
    runner = make(kind, networks, SMALL)
    seen = [frame(1, pixels=picture(2), source=name) for name in ("front", "rear")]
    raw = run(runner, seen, EVERYTHING, SMOOTH)
    factors = (1.5, 0.7)
    for step in range(1, 5):
        stamp = 1 + step * 33_000_000
        batch = [
            replace(one, stamp_ns=stamp, anchors=replace(scan_of(said, f), stamp_ns=stamp))
            for one, said, f in zip(seen, raw, factors, strict=True)
        ]
        corrected = run(runner, batch, EVERYTHING, SMOOTH)
    for said, before, factor in zip(corrected, raw, factors, strict=True):
        assert said.scale["scale source"] == "anchors"
        assert np.median(said.depth / before.depth) == pytest.approx(factor, rel=0.15)
        assert said.reset == ""
    late = [replace(batch[0], stamp_ns=0), replace(batch[1], stamp_ns=stamp + 33_000_000)]
    assert [bool(said.reset) for said in run(runner, late, EVERYTHING, SMOOTH)] == [True, False]


@pytest.mark.parametrize("kind", [HostRunner, StreamRunner])
def test_beyond_the_range_points_are_as_far_away_as_asked_for(networks, kind):
    camera = CameraModel(64, 48, 60.0, 60.0, 31.5, 23.5)
    wanted = OutputRequest(depth=True, points=True)
    limit = float(np.median(one(networks, frame(1), OutputRequest()).depth))
    settings = replace(SMALL, points_far=30.0, max_range=limit, points_max_incidence=90.0)
    runner = make(kind, networks, settings)
    for _ in range(4):
        said = run(runner, frame(1, camera=camera), wanted, settings)[0]
    beyond = np.isinf(said.depth)
    assert 0.3 < beyond.mean() < 0.7
    away = np.sqrt(sum(said.points[k].astype(float) ** 2 for k in "xyz"))
    np.testing.assert_allclose(away[beyond], 30.0, rtol=1e-5)
    np.testing.assert_array_equal(said.points["z"][~beyond], said.depth[~beyond])


@pytest.mark.parametrize("kind", [HostRunner, StreamRunner])
def test_points_leave_out_what_is_too_uncertain_and_count_it(networks, kind):
    wanted = OutputRequest(deviation=True, confidence=True, points=True)

    def third_of(settings: Settings) -> Prediction:
        runner = make(kind, networks, settings)
        return [run(runner, video_frame(k), wanted, settings)[0] for k in range(3)][-1]

    known = third_of(SMOOTH)
    assert known.uncertain is None
    sigma = known.deviation / known.depth
    limits = {"points_max_sigma": float(np.mean(sigma)), "points_min_confidence": 0.5}
    for names in (["points_max_sigma"], ["points_min_confidence"], list(limits)):
        said = third_of(replace(SMOOTH, **{name: limits[name] for name in names}))
        out, perhaps = np.zeros((2, *sigma.shape), bool)
        if "points_max_sigma" in names:  # what has the very limit may be on either side of it
            out |= sigma > limits["points_max_sigma"] * 1.0001
            perhaps |= sigma > limits["points_max_sigma"] * 0.9999
        if "points_min_confidence" in names:
            out |= known.confidence < 128
        assert 0.02 < out.mean() < 0.98
        assert np.isnan(said.points["z"][out]).all()
        assert out.sum() <= said.uncertain <= (out | perhaps).sum()
        kept = ~(out | perhaps)
        np.testing.assert_array_equal(said.points["z"][kept], known.points["z"][kept])
        np.testing.assert_array_equal(said.depth, known.depth)


@pytest.mark.parametrize("kind", [HostRunner, StreamRunner])
def test_confidence_that_only_points_need_is_no_output(networks, kind):
    settings = replace(SMALL, points_min_confidence=0.9)
    said = run(make(kind, networks, settings), frame(1), OutputRequest(points=True), settings)[0]
    assert said.confidence is None
    assert said.uncertain > 0


@pytest.mark.parametrize("shift", [1 / 50, 0.0])
@pytest.mark.parametrize("streams", [None, Streams()])
def test_what_scale_and_filter_leave_beyond_range_stays_infinite_when_it_is_resized(
    networks, streams, shift
):
    depth = copy(networks.depth)
    depth.spec = replace(depth.spec, shift=shift)
    networks = replace(networks, depth=depth)
    wanted = OutputRequest(inverse=True, labels=False, deviation=True)
    kind = Kind.of(frame(1, pixels=picture(1, 100, 160)), wanted)
    chain = Chain(networks, kind, True, SMALL, streams)
    inverse = torch.full((1, 48, 80), 0.2)
    inverse[..., 40:] = 0.0  # beyond range
    maps = {"inverse_depth": inverse, "variance": torch.full_like(inverse, 0.01)}
    limit = depth_limit(networks, SMALL)
    outputs = chain.finish(maps | {"reset_code": torch.zeros(1)}, picture(1, 100, 160), limit)
    near, far = outputs["depth"][0, :, :74], outputs["depth"][0, :, 86:]
    torch.testing.assert_close(near, torch.full_like(near, 5.0))
    assert (far == torch.inf).all()
    assert (outputs["inverse"][0, :, 86:] == 0).all()
    assert (outputs["deviation"][0, :, 86:] == torch.inf).all()


@pytest.mark.parametrize("encoding", ["bgr8", "mono8"])
def test_a_prediction_keeps_the_frame_as_the_camera_gave_it(networks, encoding):
    rgb = picture(4)
    if encoding == "mono8":
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
    pixels = rgb[..., 0].copy() if encoding == "mono8" else rgb[..., ::-1].copy()
    camera = CameraModel(64, 48, 60.0, 60.0, 31.5, 23.5)
    wanted = replace(EVERYTHING, points=True)
    seen = frame(4, pixels=pixels, encoding=encoding, camera=camera)
    said = run(HostRunner(networks, SMOOTH), seen, wanted, SMOOTH)[0]
    expected = run(
        HostRunner(networks, SMOOTH), replace(seen, pixels=rgb, encoding="rgb8"), wanted, SMOOTH
    )[0]
    assert said.frame is seen
    np.testing.assert_array_equal(said.depth, expected.depth)
    np.testing.assert_array_equal(said.labels, expected.labels)
    assert said.points.tobytes() == expected.points.tobytes()
