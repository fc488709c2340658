# SPDX-License-Identifier: Apache-2.0
"""What a batch costs the host: calls to the device, bytes up and down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.gpu_rehearsal import Kernels, RehearsalStreams, RehearsedNetwork, rehearsal
from helpers.lenses import lens, pinhole
from helpers.networks import embedded_networks
from helpers.runner_frames import ALL, DEFAULT, HEIGHT, WIDTH, cloud, video_frame
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.step import NUMBERS

MOST_CALLS = 12


class CountedStreams(RehearsalStreams):
    """Streams that count what is called on them."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__(kernels)
        self.calls: list[str] = []

    def record_event(self, event: Any, lane: str) -> None:
        self.calls.append("record")
        super().record_event(event, lane)

    def wait_event(self, event: Any, lane: str) -> None:
        self.calls.append("wait")
        super().wait_event(event, lane)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        replay = super().capture(work)

        def counted() -> None:
            self.calls.append("replay")
            with _disable_current_modes():
                replay()

        return counted

    def synchronize(self) -> None:
        self.calls.append("synchronize")
        super().synchronize()


class CountedOperations(TorchDispatchMode):
    """Every operation that is not part of a graph, with its bytes."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self.calls = calls
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(result, Tensor):
            self.calls.append(func.overloadpacket.__name__)
            self.bytes.append(result.numel() * result.element_size())
        return result


@pytest.mark.parametrize("cameras", [1, 2, 3, 4])
@pytest.mark.parametrize("shared", [True, False], ids=["one network", "two networks"])
def test_a_batch_takes_twelve_calls_whatever_it_has_to_do(shared, cameras, **changes):
    fused = "sense" in changes
    outputs = replace(ALL, fused=fused)
    networks = embedded_networks(RehearsedNetwork, shared)
    with rehearsal() as kernels:
        streams = CountedStreams(kernels)
        runner = StreamRunner(networks, DEFAULT, streams, print)
        for number in range(6):
            anchors = cloud(number)
            frames = [
                video_frame(number, str(k), anchors=anchors, **changes) for k in range(cameras)
            ]
            streams.calls.clear()
            with CountedOperations(streams.calls) as operations:
                ticket = runner.start(frames, outputs, DEFAULT)
            ticket.wait()
            ticket.release()
    assert len(streams.calls) <= MOST_CALLS, streams.calls
    assert sorted(set(streams.calls)) == ["copy_", "record", "replay", "wait"]
    batch = 4 if cameras == 3 else cameras
    up, _, _, down = operations.bytes
    assert 0 <= up - batch * (WIDTH * HEIGHT * (3 + 4 * fused) + 4 * NUMBERS) < 32
    # depth, inverse, deviation, labels, confidence, five words of a point; and a few numbers
    each = 4 + 4 + 4 + 1 + 1 + 20 + (4 + 1 + 4) * fused
    assert 0 <= down - batch * WIDTH * HEIGHT * each <= batch * 256


def test_a_lens_costs_no_call_and_no_byte_more():
    taken, camera = lens("plumb_bob", WIDTH, HEIGHT), pinhole("plumb_bob", WIDTH, HEIGHT, 1.6)
    test_a_batch_takes_twelve_calls_whatever_it_has_to_do(True, 2, lens=taken, camera=camera)


def test_what_a_depth_camera_sees_costs_its_bytes_and_no_call_more():
    measured = np.full((HEIGHT, WIDTH), 3.0, np.float32)
    test_a_batch_takes_twelve_calls_whatever_it_has_to_do(True, 2, sense=lambda camera: measured)
