# SPDX-License-Identifier: Apache-2.0
"""Frames with networks on backends other than PyTorch, on the host and as on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from helpers.gpu_rehearsal import Kernels, RehearsalStreams, RehearsedNetwork, rehearsal
from helpers.networks import CPU, embedded_networks, pair
from helpers.runner_frames import (
    ALL,
    DEFAULT,
    HEIGHT,
    WIDTH,
    picture,
    run,
    same_video,
    video_frame,
)

from dpt_ros.engine.export.network import export_network
from dpt_ros.engine.inference.network import Network, Networks
from dpt_ros.engine.inference.onnx_runtime import OnnxRuntimeModel
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.host import HostRunner
from dpt_ros.model import create_model, model_spec

NAME = "dpt_hybrid_embedded"


class NotCaptured(RehearsedNetwork):
    capturable = False


class NoCapture(RehearsalStreams):
    def capture(self, work: Callable[[], None]) -> NoReturn:
        raise AssertionError("a capture was tried")


@pytest.fixture(scope="module")
def host_networks() -> Networks:
    return embedded_networks()


@pytest.fixture(scope="module")
def onnx_networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """The embedded network in a file of the frames' size, on ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    path: Path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    export_network(create_model(NAME), path, batch=1, size=(HEIGHT, WIDTH))
    spec = model_spec(NAME)
    return pair(lambda: Network(spec, CPU, OnnxRuntimeModel(path, spec, CPU, threads=1)), True,
        device=CPU, precision="fp32")  # fmt: skip


@pytest.fixture
def rehearsed() -> Iterator[Kernels]:
    with rehearsal() as made:
        yield made


def as_on_the_host(host: Networks, gpu: Networks, kernels: Kernels, cameras: int) -> None:
    said: list[str] = []
    runner = StreamRunner(gpu, DEFAULT, NoCapture(kernels), said.append)
    plain = HostRunner(host, DEFAULT)
    for number in range(5):  # the third would be captured
        batch = [video_frame(number, str(k)) for k in range(cameras)]
        with kernels.paused():
            expected = [run(plain, [one], ALL, DEFAULT)[0] for one in batch]
        for mine, theirs in zip(run(runner, batch, ALL, DEFAULT), expected, strict=True):
            same_video(mine, theirs)
    assert said == []


@pytest.mark.parametrize("shared", [True, False], ids=["one network", "two networks"])
def test_what_cannot_be_captured_is_launched_and_no_capture_is_tried(
    host_networks, rehearsed, shared
):
    gpu = embedded_networks(NotCaptured, shared)
    assert not gpu.capturable
    as_on_the_host(host_networks, gpu, rehearsed, 1)


def test_one_network_that_cannot_be_captured_is_enough(host_networks, rehearsed):
    able, unable = embedded_networks(RehearsedNetwork), embedded_networks(NotCaptured)
    assert able.capturable
    as_on_the_host(host_networks, replace(able, labels=unable.labels), rehearsed, 1)


@pytest.mark.parametrize("cameras", [1, 2])
def test_onnx_runtime_gives_the_frames_of_torch_on_a_gpus_runner(
    host_networks, onnx_networks, rehearsed, cameras
):
    as_on_the_host(host_networks, onnx_networks, rehearsed, cameras)


def test_onnx_runtime_gives_the_frames_of_torch_on_the_host(host_networks, onnx_networks):
    mine, theirs = HostRunner(onnx_networks, DEFAULT), HostRunner(host_networks, DEFAULT)
    for number in range(4):
        frame = [video_frame(number)]
        same_video(run(mine, frame, ALL, DEFAULT)[0], run(theirs, frame, ALL, DEFAULT)[0])


def test_memory_stays_the_same_from_frame_to_frame(onnx_networks):
    runner = HostRunner(onnx_networks, DEFAULT)

    def after(count: int) -> int:
        for number in range(count):
            run(runner, [video_frame(number, pixels=picture(number))], ALL, DEFAULT)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096

    before = after(60)
    # A frame's maps together have 0.3 MB: 150 that are kept would be seen.
    assert after(150) - before < 8 << 20
