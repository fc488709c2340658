# SPDX-License-Identifier: Apache-2.0
"""Frames for the rehearsal of the GPU's runner, and its results compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dpt_ros.engine.frame import CameraModel, Frame, OutputRequest, Prediction
from dpt_ros.engine.runner.host import Runner
from dpt_ros.engine.scale.anchors import Anchors
from dpt_ros.engine.settings import Settings

WIDTH, HEIGHT = 64, 48


CAMERA = CameraModel(WIDTH, HEIGHT, 60.0, 60.0, 31.5, 23.5)


DEFAULT = Settings(input_width=WIDTH, input_height=HEIGHT)


ALL = OutputRequest(
    depth=True, inverse=True, labels=True, confidence=True, deviation=True, points=True
)


PERIOD = 33_000_000


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A scene of coarse squares that moves a pixel per frame."""
    coarse = np.random.default_rng(7).integers(
        0, 255, (height // 8 + 1, width // 8 + 3, 3), np.uint8
    )
    whole = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    return whole[:height, number : number + width].copy()


def frame(number: int, source: str = "", **changes: object) -> Frame:
    made = Frame(
        picture(number), "rgb8", 10**9 + number * PERIOD, "eye", source, CAMERA,
        odom_from_camera=np.eye(4), down=np.array([0.0, 1.0, 0.0]),
    )  # fmt: skip
    return replace(made, **changes)


def run(
    runner: Runner, frames: Sequence[Frame], outputs: OutputRequest, settings: Settings
) -> list[Prediction]:
    """The predictions of a batch, with arrays of their own."""
    ticket = runner.start(frames, outputs, settings)
    copies = []
    for prediction in ticket.wait():
        arrays = {k: v.copy() for k, v in vars(prediction).items() if isinstance(v, np.ndarray)}
        copies.append(replace(prediction, **arrays))
    ticket.release()
    return copies


def same(one: Prediction, other: Prediction) -> None:
    """Every array within 1e-3 where numbers are continuous, and 99.9 % of the labels."""
    assert one.metric == other.metric
    assert one.reset == other.reset
    for name in ("depth", "inverse", "deviation"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), name
        if mine is None:
            continue
        assert mine.shape == theirs.shape, name
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(theirs), name)
        error = np.abs(mine - theirs) / np.abs(theirs)
        # Gates of the filter open at a threshold: single pixels may fall on its other side.
        assert np.nanquantile(error, 0.999) < 1e-3, (name, np.nanquantile(error, 0.999))
    for name, most in (("labels", 0.001), ("confidence", 0.005)):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert mine.shape == theirs.shape, name
            far = np.abs(mine.astype(int) - theirs) > (0 if name == "labels" else 3)
            assert far.mean() <= most, (name, far.mean())
    assert (one.points is None) == (other.points is None)
    if one.points is not None:
        assert one.points.shape == other.points.shape
        np.testing.assert_array_equal(one.points["label"], one.labels)


def cloud(number: int) -> Anchors:
    """What a lidar or a depth camera sees, all over the picture."""
    v, u = (a.ravel().astype(np.float32) for a in np.mgrid[4:44:5, 4:60:5])
    metres = (1.5 + 3.0 * (1 - v / HEIGHT) + 0.01 * u).astype(np.float32)
    return Anchors(u, v, metres, 10**9 + number * PERIOD, WIDTH, HEIGHT)
