# SPDX-License-Identifier: Apache-2.0
"""Frames for a runner, and its results compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dpt_ros.engine.frame import CameraModel, Frame, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Network, Networks
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.host import HostRunner, Runner
from dpt_ros.engine.runner.streams import CudaStreams, HostStreams
from dpt_ros.engine.scale.anchors import Anchors
from dpt_ros.engine.settings import Settings
from dpt_ros.model import create_model

CAMERA = CameraModel(64, 48, 60.0, 60.0, 31.5, 23.5)


SMALL = Settings(input_width=64, input_height=48, smoothing_strength=0.0)


EVERYTHING = OutputRequest(depth=True, inverse=True, labels=True, confidence=True)


CPU = torch.device("cpu")


def make_networks(
    device: torch.device = CPU, dtype: torch.dtype = torch.float32, shared: bool = True
) -> Networks:
    """The embedded network with its own weights; one for both tasks, or one for each."""
    both = Network(create_model("dpt_hybrid_embedded"), device, dtype)
    other = both if shared else Network(create_model("dpt_hybrid_embedded"), device, dtype)
    return Networks(
        depth=both,
        labels=other,
        device=device,
        precision="fp32" if dtype == torch.float32 else "fp16",
        class_names=("thing",) * 10,
        palette=np.zeros((256, 3), np.uint8),
        random=False,
        notes=(),
    )


@pytest.fixture(scope="module")
def networks() -> Networks:
    return make_networks()


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    random = np.random.default_rng(number)
    coarse = random.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width].copy()


def frame(number: int, **changes: object) -> Frame:
    made = Frame(picture(number), "rgb8", stamp_ns=number, frame_id="eye", camera=CAMERA)
    return replace(made, **changes)


def run(
    runner: Runner, frames: Frame | list[Frame], outputs: OutputRequest, settings: Settings = SMALL
) -> list[Prediction]:
    """The predictions of a batch, with arrays of their own."""
    batch = [frames] if isinstance(frames, Frame) else frames
    ticket = runner.start(batch, outputs, settings)
    predictions = [
        replace(
            prediction,
            **{
                name: value.copy()
                for name in ("depth", "inverse", "labels", "confidence", "deviation", "points")
                if (value := getattr(prediction, name)) is not None
            },
        )
        for prediction in ticket.wait()
    ]
    ticket.release()
    return predictions


def one(networks: Networks, seen: Frame, outputs: OutputRequest, settings: Settings = SMALL):
    return run(HostRunner(networks, settings), seen, outputs, settings)[0]


def on_streams(
    networks: Networks, streams: HostStreams | None = None, notes: list[str] | None = None
) -> StreamRunner:
    notes = [] if notes is None else notes
    return StreamRunner(networks, SMALL, streams or HostStreams(), notes.append)


def same(one: Prediction, other: Prediction) -> None:
    np.testing.assert_allclose(one.depth, other.depth, rtol=1e-4)
    np.testing.assert_allclose(one.inverse, other.inverse, rtol=1e-4)
    assert (one.labels == other.labels).mean() > 0.999
    assert np.abs(one.confidence.astype(int) - other.confidence).max() <= 2


SMOOTH = replace(SMALL, smoothing_strength=0.5)


def scan_of(prediction: Prediction, factor: float) -> Anchors:
    """Anchors that say ``factor`` times the depth, at every fourth pixel of some rows."""
    v, u = (a.ravel() for a in np.mgrid[8:40:8, 4:60:4])
    metres = factor * prediction.depth[v, u]
    return Anchors(u.astype("f4"), v.astype("f4"), metres, prediction.frame.stamp_ns, 64, 48)


def gpu_runner(networks: Networks, notes: list[str], **changes: object) -> StreamRunner:
    settings = replace(SMALL, **changes)
    return StreamRunner(networks, settings, CudaStreams(networks.device), notes.append)
