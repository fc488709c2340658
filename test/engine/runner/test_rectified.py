# SPDX-License-Identifier: Apache-2.0
"""Frames of a camera with a lens: rectified once, in front of everything else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.lenses import lens, pinhole
from helpers.networks import embedded_networks
from helpers.runner_frames import (
    ALL,
    DEFAULT,
    HEIGHT,
    SMALL,
    SMOOTH,
    WIDTH,
    frame,
    on_streams,
    one,
    picture,
    run,
)

from dpt_ros.engine.frame import Frame, Kind, OutputRequest
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.input.rectify import Rectifier, places
from dpt_ros.engine.runner.chain import Chain
from dpt_ros.engine.runner.host import HostRunner
from dpt_ros.engine.scale.anchors import Anchors
from dpt_ros.engine.scale.ground import GRID_COLUMNS, GRID_ROWS, floor_inverse_depth

LENS = lens("plumb_bob", WIDTH, HEIGHT)
FULL, WIDE = (pinhole("plumb_bob", WIDTH, HEIGHT, wider) for wider in (1.0, 1.6))
ARRAYS = ("depth", "inverse", "labels", "confidence", "deviation", "points")


@pytest.fixture(scope="module")
def networks() -> Networks:
    return embedded_networks()


def raw_frame(number: int, camera=FULL, **changes: object) -> Frame:
    return frame(number, camera=camera, lens=LENS, **changes)


def test_a_raw_frame_gives_what_the_rectified_picture_gives(networks):
    rectify = Rectifier(LENS, FULL, "rgb8", (HEIGHT, WIDTH), None)
    assert rectify.seen is None
    runners = HostRunner(networks, SMOOTH), HostRunner(networks, SMOOTH)
    for number in range(3):
        mine = run(runners[0], raw_frame(number), ALL, SMOOTH)[0]
        straight = frame(number, camera=FULL, pixels=rectify([picture(number)])[0])
        theirs = run(runners[1], straight, ALL, SMOOTH)[0]
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), name)
        assert mine.camera == theirs.camera


def test_pixels_without_a_lens_are_not_touched(networks):
    kind = Kind.of(frame(1), ALL)
    assert kind.lens is None
    pixels = [picture(1)]
    assert Chain(networks, kind, False, SMALL).rectify(pixels) is pixels


@pytest.mark.parametrize("size", ["input", "network"])
@pytest.mark.parametrize("streams", [False, True])
def test_what_the_lens_does_not_show_is_unknown(networks, size, streams):
    settings = replace(SMALL, output_size=size, input_width=96, input_height=64)
    _, seen = places(LENS, WIDE)
    assert 0.4 < seen.mean() < 0.9
    runner = on_streams(networks) if streams else HostRunner(networks, settings)
    settings = SMALL if streams else settings
    found = run(runner, raw_frame(1, WIDE), ALL, settings)[0]
    if found.depth.shape == seen.shape:
        np.testing.assert_array_equal(np.isnan(found.depth), ~seen)
        np.testing.assert_array_equal(found.labels == 0, ~seen)
    hidden = np.isnan(found.depth)
    assert 0.1 < hidden.mean() < 0.6
    assert hidden[0].all()
    assert not hidden[hidden.shape[0] // 2, hidden.shape[1] // 2]
    assert not found.labels[hidden].any()
    assert not found.confidence[hidden].any()
    for name in ("inverse", "deviation"):
        np.testing.assert_array_equal(np.isnan(getattr(found, name)), hidden, name)
    assert np.isnan(found.points["z"][hidden]).all()
    assert np.isfinite(found.points["z"]).any()


def test_raw_and_rectified_frames_are_of_different_kinds():
    outputs = OutputRequest()
    kinds = {Kind.of(one, outputs) for one in (frame(1), raw_frame(1), raw_frame(1, WIDE))}
    assert len(kinds) == 3
    assert Kind.of(raw_frame(1), outputs) == Kind.of(raw_frame(2), outputs)


def test_a_lens_without_a_camera_is_refused(networks):
    with pytest.raises(ValueError, match="a lens, but no camera for which to rectify it"):
        one(networks, raw_frame(1, None), OutputRequest())


def test_a_lens_of_another_size_is_refused(networks):
    with pytest.raises(ValueError, match="for 64x48 pixels, but the picture has 48x32"):
        one(networks, raw_frame(1, pixels=picture(1, 32, 48)), OutputRequest())


def test_anchors_and_floor_are_not_looked_for_where_nothing_is_seen(networks):
    _, seen = places(LENS, WIDE)
    v, u = np.mgrid[2:46:3, 2:62:3].reshape(2, -1).astype(np.float32)
    anchors = Anchors(u, v, np.full_like(u, 3.0), 1, WIDTH, HEIGHT)
    inside = anchors.within(seen)
    assert 0 < len(inside) < len(anchors)
    assert seen[inside.v.astype(int), inside.u.astype(int)].all()
    floor = floor_inverse_depth(WIDE, np.array([0.0, 1.0, 0.0]), 0.5, seen)
    every = floor_inverse_depth(WIDE, np.array([0.0, 1.0, 0.0]), 0.5)
    floor, every = (one.reshape(GRID_ROWS, GRID_COLUMNS) for one in (floor, every))
    assert 0 < (floor > 0).sum() < (every > 0).sum()
    assert not floor[-1].any()
    found = one(networks, raw_frame(1, WIDE, anchors=anchors), ALL, DEFAULT)
    assert found.scale["scale pairs"] != "0"
    without = replace(anchors, metres=np.where(seen[v.astype(int), u.astype(int)], 3.0, 90.0))
    same = one(networks, raw_frame(1, WIDE, anchors=without), ALL, DEFAULT)
    np.testing.assert_array_equal(same.depth, found.depth)
