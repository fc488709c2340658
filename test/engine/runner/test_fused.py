# SPDX-License-Identifier: Apache-2.0
"""Fused depth on its way through the runners."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.networks import embedded_networks
from helpers.runner_frames import CAMERA, HEIGHT, SMOOTH, WIDTH, frame, make, run, video_frame

from dpt_ros.engine.frame import OutputRequest
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.host import HostRunner

NEAR = replace(SMOOTH, fused_near=0.01)
WANTED = OutputRequest(fused=True, points=True)
NETWORK, SENSOR = 2, 1


@pytest.fixture(scope="module")
def networks() -> Networks:
    return embedded_networks(shared=True)


def half_measured(depth: np.ndarray) -> np.ndarray:
    """A wall before everything, which the sensor sees on the left."""
    measured = np.full_like(depth, np.nan)
    measured[:, : WIDTH // 2] = 0.9 * depth.min()
    return measured


@pytest.mark.parametrize("kind", [HostRunner, StreamRunner])
def test_what_the_sensor_measured_comes_out_bit_for_bit_and_the_network_fills_the_rest(
    networks, kind
):
    runner = make(kind, networks, NEAR)
    known = run(runner, video_frame(0), WANTED, NEAR)[0]
    assert set(np.unique(known.fused_origin)) == {NETWORK}
    np.testing.assert_array_equal(known.fused, known.depth)
    for number in range(1, 6):  # eager runs, then as captured
        measured = half_measured(known.depth)
        seen = video_frame(number, sense=lambda camera, measured=measured: measured)
        found = run(runner, seen, WANTED, NEAR)[0]
        kept = found.fused_origin == SENSOR
        assert kept[:, : WIDTH // 2].all()
        assert not kept[:, WIDTH // 2 :].any()
        np.testing.assert_array_equal(found.fused[kept], measured[kept])
        assert (found.fused[~kept] > 0).all()
        assert (found.fused_sigma[kept] < found.fused_sigma[~kept].min()).all()


@pytest.mark.parametrize("kind", [HostRunner, StreamRunner])
def test_points_are_made_of_the_depth_that_is_asked_for(networks, kind):
    measured = np.full((HEIGHT, WIDTH), 0.02, np.float32)  # before everything
    for source in ("depth", "fused"):
        settings = replace(NEAR, points_source=source, points_max_incidence=90.0)
        runner = make(kind, networks, settings)
        for number in range(4):
            seen = video_frame(number, sense=lambda camera: measured)
            found = run(runner, seen, WANTED, settings)[0]
        expected = found.fused if source == "fused" else found.depth
        np.testing.assert_array_equal(found.points["z"], expected)


def test_the_sensor_is_asked_for_the_view_and_size_of_the_outputs(networks):
    asked = []
    settings = replace(SMOOTH, output_size="network", input_width=32, input_height=32)
    seen = frame(1, sense=asked.append)
    found = run(make(HostRunner, networks, settings), seen, WANTED, settings)[0]
    height, width = found.fused.shape
    assert asked == [CAMERA.scaled(width, height)]
