# SPDX-License-Identifier: Apache-2.0
"""What is kept of cameras: over changes of outputs and settings, in state_dicts, in a bank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.networks import embedded_networks
from helpers.runner_frames import (
    ALL,
    EVERYTHING,
    SMOOTH,
    cloud,
    moving_picture,
    on_streams,
    run,
    same_video,
    video_frame,
)

from dpt_ros.engine.frame import OutputRequest
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.runner.bank import Bank
from dpt_ros.engine.runner.host import HostRunner, Runner

DEPTH = OutputRequest(labels=False, deviation=True)


@pytest.fixture(scope="module")
def networks() -> Networks:
    return embedded_networks()


def make(kind: str, networks: Networks) -> Runner:
    return HostRunner(networks, SMOOTH) if kind == "host" else on_streams(networks)


KINDS = pytest.mark.parametrize("kind", ["host", "streams"])


@KINDS
def test_labels_asked_for_later_and_no_longer_leave_depth_as_it_would_be(networks, kind):
    runner, plain = make(kind, networks), make(kind, networks)
    for number in range(9):
        wanted = replace(DEPTH, labels=3 <= number < 6)
        found = run(runner, video_frame(number), wanted, SMOOTH)[0]
        expected = run(plain, video_frame(number), DEPTH, SMOOTH)[0]
        np.testing.assert_array_equal(found.depth, expected.depth)
        assert (found.labels is not None) == wanted.labels
        assert found.reset == ("" if number else "first frame")


@KINDS
def test_smoothing_that_is_switched_off_and_on_again_begins_anew(networks, kind):
    runner = make(kind, networks)
    off = replace(SMOOTH, smoothing_strength=0.0)
    for number, settings in enumerate((SMOOTH, SMOOTH, off, off, SMOOTH, SMOOTH)):
        found = run(runner, video_frame(number), ALL, settings)[0]
        if number in (2, 3, 4):
            alone = run(make(kind, networks), video_frame(number), ALL, off)[0]
            np.testing.assert_allclose(found.depth, alone.depth, rtol=1e-5)
        assert found.reset == ("first frame" if number in (0, 4) else "")
        assert np.isfinite(found.depth).all()


@KINDS
def test_an_image_of_another_size_without_calibration_leaves_no_nan(networks, kind):
    runner = make(kind, networks)
    for number in range(8):
        size = (48, 64) if number % 4 < 2 else (96, 128)
        seen = video_frame(number, pixels=moving_picture(number, *size), camera=None)
        assert np.isfinite(run(runner, seen, EVERYTHING, SMOOTH)[0].depth).all()


@KINDS
def test_each_of_six_cameras_has_its_own_past(networks, kind):
    runner = make(kind, networks)
    alone = {str(k): make(kind, networks) for k in range(6)}
    for number in range(4):
        for name, plain in alone.items():
            anchors = cloud(number) if name == "5" else None
            seen = video_frame(number + 3 * int(name), name, anchors=anchors)
            found = run(runner, seen, ALL, SMOOTH)[0]
            same_video(found, run(plain, seen, ALL, SMOOTH)[0])


@pytest.mark.parametrize("into", ["host", "streams"])
@pytest.mark.parametrize("kind", ["host", "streams"])
def test_a_state_dict_continues_in_a_runner_of_either_kind(networks, kind, into):
    runner, other = make(kind, networks), make(into, networks)
    for number in range(3):
        for name in ("front", "rear"):
            seen = video_frame(number, name, anchors=cloud(number) if name == "rear" else None)
            run(runner, seen, ALL, SMOOTH)
    run(other, video_frame(0, "left"), ALL, SMOOTH)  # forgotten by what is loaded
    other.load_state_dict(runner.state_dict())
    for number in range(3, 6):
        for name in ("front", "rear"):
            seen = video_frame(number, name)
            found, expected = (run(one, seen, ALL, SMOOTH)[0] for one in (other, runner))
            assert found.reset == ""
            if kind == into:
                np.testing.assert_array_equal(found.depth, expected.depth)
                np.testing.assert_array_equal(found.labels, expected.labels)
            else:  # a device has its own grey levels
                error = np.abs(found.depth / expected.depth - 1)
                assert np.quantile(error, 0.9) < 0.02
    assert set(other.state_dict()) == {"front", "rear"}


def test_a_bank_that_grows_keeps_every_state_and_one_that_cannot_stays_as_it_was(monkeypatch):
    bank = Bank(torch.device("cpu"), 1)
    assert bank.row("a") == 1
    bank.load("a", 2, {"maps": torch.full((1, 4), 7.0)})
    assert bank.row("b") is None
    before = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, **kind: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bank.grow()
    monkeypatch.setattr(torch, "zeros", before)
    assert bank.row("b") is None
    assert bank.state("a", 2)["maps"].tolist() == [[7.0] * 4]
    bank.grow()
    assert bank.row("b") == 3
    assert bank.state("a", 2)["maps"].tolist() == [[7.0] * 4]
