# SPDX-License-Identifier: Apache-2.0
"""The frame on fake CUDA tensors: no device mix, no wait, and a budget of launches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.fake_device import CUDA, FakeGpu, fake_gpu
from helpers.lenses import lens, pinhole
from helpers.runner_frames import ALL, CAMERA, DEFAULT, video_frame

from dpt_ros.engine.frame import Kind
from dpt_ros.engine.input.encodings import ENCODINGS
from dpt_ros.engine.runner.bank import Bank
from dpt_ros.engine.runner.chain import Chain
from dpt_ros.engine.runner.program import Program
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.settings import Settings

# Kernels of one frame by number of networks, at 64x48 and with all outputs. A change may lower
# them only.
BUDGET = {1: 330, 2: 620}


# The positions' cache looks at where they lie in memory.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


class FakeStreams(Streams):
    device = CUDA


def launches(
    gpu: FakeGpu, batch: int, kind: Kind, settings: Settings, count: int = 3
) -> list[int]:
    """Kernels of each of some frames; uploads of constants by the first one are not counted."""
    smoothed = settings.smoothing_strength > 0
    chain = Chain(gpu.networks, kind, smoothed, settings, FakeStreams())
    program = Program(chain, FakeStreams(), Bank(CUDA, 4), batch, 0)
    found = []
    for _ in range(count):
        before = gpu.counts.total()
        program._step()
        found.append(gpu.counts.total() - before)
        gpu.counts.uploads *= len(found) > 1
    return found


@pytest.mark.parametrize("networks", [1, 2])
def test_a_frame_stays_on_its_device_waits_for_nothing_and_keeps_to_its_budget(networks):
    with fake_gpu(networks == 1) as gpu:
        _, second, third = launches(gpu, 1, Kind.of(video_frame(0), ALL), DEFAULT)
        assert gpu.counts.waits == []
        assert gpu.counts.uploads == 0
    assert second == third  # the first makes the constants
    assert 0 < third <= BUDGET[networks], gpu.counts.launches


@pytest.mark.parametrize("batch", [2, 4])
def test_a_batch_takes_about_as_many_kernels_as_one_frame(batch):
    kind = Kind.of(video_frame(0), replace(ALL, points=False))
    with fake_gpu() as gpu:
        one = launches(gpu, 1, kind, DEFAULT)[-1]
        many = launches(gpu, batch, kind, DEFAULT)[-1]
        assert gpu.counts.waits == []
    assert many <= one + 8


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_every_encoding_is_read_on_the_device(encoding):
    form = ENCODINGS[encoding]
    rows = int(48 * form.planes)
    shape = (rows, 64, form.channels) if form.channels else (rows, 64)
    seen = video_frame(0, pixels=np.zeros(shape, form.dtype), encoding=encoding)
    settings = replace(DEFAULT, smoothing_strength=0.0)
    with fake_gpu() as gpu:
        launches(gpu, 1, Kind.of(seen, ALL), settings, 1)
        assert gpu.counts.waits == []
        assert gpu.counts.launches["preprocess_kernel"] == 1


@pytest.mark.parametrize(("wider", "most"), [(1.0, 1), (1.6, 4)])
def test_a_lens_takes_a_kernel_and_what_it_does_not_show_three_more(wider, most):
    taken, camera = lens("plumb_bob", 64, 48), pinhole("plumb_bob", 64, 48, wider)
    with fake_gpu() as gpu:
        without = launches(gpu, 1, Kind.of(video_frame(0), ALL), DEFAULT)[-1]
        gpu.counts.launches.clear()
        kind = Kind.of(video_frame(0, lens=taken, camera=camera), ALL)
        found = launches(gpu, 1, kind, DEFAULT)[-1]
        assert gpu.counts.waits == []
        assert gpu.counts.launches["rectify_kernel"] == 3  # of three frames
    assert found == without + most


@pytest.mark.parametrize("batch", [1, 4])
def test_what_a_depth_camera_sees_takes_few_kernels_more(batch):
    seen = video_frame(0, sense=lambda camera: None)
    outputs = replace(ALL, points=False)
    with fake_gpu() as gpu:
        without = launches(gpu, batch, Kind.of(seen, outputs), DEFAULT)[-1]
        gpu.counts.launches.clear()
        kind = Kind.of(seen, replace(outputs, fused=True))
        _, second, third = launches(gpu, batch, kind, DEFAULT)
        assert gpu.counts.waits == []
        assert gpu.counts.uploads == 0
        names = ("decide", "weigh", "pull", "push", "select")
        assert [gpu.counts.launches[f"{name}_kernel"] for name in names] == [3] * 5
    assert second == third == without + 5 + 3  # and its three results into the frame's buffer


@pytest.mark.parametrize(
    "changes",
    [
        {"output_size": "network"},
        {"points_stride": 3},
        {"points_far": 30.0, "max_range": 3.0},
        {"points_max_incidence": 90.0},
        {"scale_source": "none"},
        {"smoothing_strength": 0.0},
        {"input_width": 96, "input_height": 64},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(48, 64), (100, 160)])
def test_every_way_of_finishing_stays_on_the_device(changes, size):
    camera = CAMERA.scaled(size[1], size[0])
    pixels = np.zeros((*size, 3), np.uint8)
    kind = Kind.of(video_frame(0, pixels=pixels, camera=camera), ALL)
    with fake_gpu(shared=False) as gpu:
        launches(gpu, 1, kind, replace(DEFAULT, **changes), 2)
        assert gpu.counts.waits == []


def test_what_the_checks_are_there_for_is_found():
    with fake_gpu() as gpu:
        values = torch.empty(4, device=CUDA)
        values.to("cpu")
        values.cpu()
        assert gpu.counts.waits == ["_to_copy", "cpu"]
        for wrong in (
            lambda: bool(values[0] > 0),
            lambda: values[0].item(),
            lambda: values[values > 0],
            lambda: values + torch.empty(4),
        ):
            with pytest.raises(Exception, match=r"device|_local_scalar|nonzero"):
                wrong()
