# SPDX-License-Identifier: Apache-2.0
"""Frames for the runners, and their predictions compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dpt_ros.engine.frame import CameraModel, Frame, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.host import HostRunner, Runner
from dpt_ros.engine.runner.streams import CudaStreams, Streams
from dpt_ros.engine.scale.anchors import Anchors
from dpt_ros.engine.settings import Settings

WIDTH, HEIGHT = 64, 48
PERIOD = 33_000_000  # nanoseconds
CAMERA = CameraModel(WIDTH, HEIGHT, 60.0, 60.0, 31.5, 23.5)

DEFAULT = Settings(input_width=WIDTH, input_height=HEIGHT)
SMALL = replace(DEFAULT, smoothing_strength=0.0)
SMOOTH = replace(DEFAULT, smoothing_strength=0.5)

# What depends on one image alone, and all there is.
EVERYTHING = OutputRequest(depth=True, inverse=True, labels=True, confidence=True)
ALL = replace(EVERYTHING, deviation=True, points=True)


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Coarse random squares, others for every number."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width].copy()


def frame(number: int, **changes: object) -> Frame:
    """A single frame, without pose."""
    made = Frame(picture(number), "rgb8", stamp_ns=number, frame_id="eye", camera=CAMERA)
    return replace(made, **changes)


def moving_picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Coarse squares that move by a pixel per frame."""
    coarse = np.random.default_rng(7).integers(
        0, 255, (height // 8 + 1, width // 8 + 3, 3), np.uint8
    )
    whole = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    return whole[:height, number : number + width].copy()


def video_frame(number: int, source: str = "", **changes: object) -> Frame:
    """A frame of the moving picture, with pose and the direction of gravity."""
    made = Frame(
        moving_picture(number), "rgb8", 10**9 + number * PERIOD, "eye", source, CAMERA,
        odom_from_camera=np.eye(4), down=np.array([0.0, 1.0, 0.0]),
    )  # fmt: skip
    return replace(made, **changes)


def make(kind: type, networks: Networks, settings: Settings) -> Runner:
    """A ``HostRunner``, or a ``StreamRunner`` on the host."""
    return kind(networks, settings, *(() if kind is HostRunner else (Streams(), print)))


def run(
    runner: Runner,
    frames: Frame | Sequence[Frame],
    outputs: OutputRequest,
    settings: Settings = SMALL,
) -> list[Prediction]:
    """The predictions of a batch, with arrays of their own."""
    ticket = runner.start([frames] if isinstance(frames, Frame) else frames, outputs, settings)
    copies = []
    for prediction in ticket.wait():
        arrays = {k: v.copy() for k, v in vars(prediction).items() if isinstance(v, np.ndarray)}
        copies.append(replace(prediction, **arrays))
    ticket.release()
    return copies


def one(networks: Networks, seen: Frame, outputs: OutputRequest, settings: Settings = SMALL):
    """The prediction of the CPU's runner for one frame."""
    return run(HostRunner(networks, settings), seen, outputs, settings)[0]


def on_streams(
    networks: Networks, streams: Streams | None = None, notes: list[str] | None = None
) -> StreamRunner:
    """The GPU's runner on the host's streams."""
    notes = [] if notes is None else notes
    return StreamRunner(networks, SMALL, streams or Streams(), notes.append)


def gpu_runner(networks: Networks, notes: list[str], **changes: object) -> StreamRunner:
    """The GPU's runner on a GPU."""
    settings = replace(SMALL, **changes)
    return StreamRunner(networks, settings, CudaStreams(networks.device), notes.append)


def same(one: Prediction, other: Prediction) -> None:
    """Depth within 1e-4, 99.9 % of the labels, confidence within 2 of 255."""
    np.testing.assert_allclose(one.depth, other.depth, rtol=1e-4)
    np.testing.assert_allclose(one.inverse, other.inverse, rtol=1e-4)
    assert (one.labels == other.labels).mean() > 0.999
    assert np.abs(one.confidence.astype(int) - other.confidence).max() <= 2


def same_video(one: Prediction, other: Prediction) -> None:
    """Every array within 1e-3 where numbers are continuous, and 99.9 % of the labels."""
    assert one.metric == other.metric
    assert one.reset == other.reset
    for name in ("depth", "inverse", "deviation", "fused", "fused_sigma"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), name
        if mine is None:
            continue
        assert mine.shape == theirs.shape, name
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(theirs), name)
        error = np.abs(mine - theirs) / np.abs(theirs)
        # Gates of the filter open at a threshold: single pixels may fall on its other side.
        assert np.nanquantile(error, 0.999) < 1e-3, (name, np.nanquantile(error, 0.999))
    for name, most in (("labels", 0.001), ("confidence", 0.005), ("fused_origin", 0.001)):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert mine.shape == theirs.shape, name
            far = np.abs(mine.astype(int) - theirs) > (3 if name == "confidence" else 0)
            assert far.mean() <= most, (name, far.mean())
    assert (one.points is None) == (other.points is None)
    if one.points is not None:
        assert one.points.shape == other.points.shape
        np.testing.assert_array_equal(one.points["label"], one.labels)


def scan_of(prediction: Prediction, factor: float) -> Anchors:
    """Anchors of ``factor`` times the depth, at every fourth pixel of some rows."""
    v, u = (a.ravel() for a in np.mgrid[8:40:8, 4:60:4])
    metres = factor * prediction.depth[v, u]
    stamp = prediction.frame.stamp_ns
    return Anchors(u.astype("f4"), v.astype("f4"), metres, stamp, WIDTH, HEIGHT)


def cloud(number: int) -> Anchors:
    """Anchors of a lidar or a depth camera, all over the picture."""
    v, u = (a.ravel().astype(np.float32) for a in np.mgrid[4:44:5, 4:60:5])
    metres = (1.5 + 3.0 * (1 - v / HEIGHT) + 0.01 * u).astype(np.float32)
    return Anchors(u, v, metres, 10**9 + number * PERIOD, WIDTH, HEIGHT)
