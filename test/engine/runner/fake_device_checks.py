# SPDX-License-Identifier: Apache-2.0
"""The frame on fake CUDA tensors: no device mix, no wait, and a budget of launches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.fake_device import CUDA, FakeGpu, fake_gpu
from helpers.runner_frames import ALL, CAMERA, DEFAULT, cloud, video_frame

from dpt_ros.engine.frame import Frame, OutputRequest
from dpt_ros.engine.input.encodings import ENCODINGS
from dpt_ros.engine.input.input_plan import TENSOR_DTYPES
from dpt_ros.engine.runner.chain import Chain, Kind
from dpt_ros.engine.runner.refinement import Refiner
from dpt_ros.engine.runner.streams import HostStreams
from dpt_ros.engine.settings import Settings

# Launches of one frame by step, at 64x48 and with all outputs. A change may lower them only.
BUDGET = {
    (1, "predict"): 175,
    (1, "refine"): 595,
    (1, "finish"): 54,
    (2, "predict"): 343,
    (2, "refine"): 595,
    (2, "finish"): 54,
}


# The positions' cache looks at where they lie in memory.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


class FakeStreams(HostStreams):
    device = CUDA


def steps(
    gpu: FakeGpu, frames: list[list[Frame]], outputs: OutputRequest, settings: Settings
) -> list[dict[str, int]]:
    """Launches by step, of each batch of frames in turn."""
    kind = Kind.of(frames[0][0], outputs)
    chain = Chain(gpu.networks, kind, True, settings, FakeStreams())
    refiner = Refiner(gpu.networks, settings)
    counts, found = gpu.counts, []

    def since(before: int) -> int:
        return counts.total() - before

    for batch in frames:
        dtype = TENSOR_DTYPES[ENCODINGS[kind.encoding].dtype]
        pixels = torch.empty((len(batch), *kind.shape), dtype=dtype, device=CUDA)
        limit = torch.empty((), device=CUDA)
        by_step = {}
        refiner.start_flow(batch, settings)
        before = counts.total()
        maps = chain.infer(chain.preprocess(pixels))
        by_step["predict"], before = since(before), counts.total()
        with torch.inference_mode():
            flows, scales = refiner.flow(batch, settings), refiner.scale(batch, maps)
            refiner.smooth(batch, maps, flows, scales, settings)
        by_step["refine"], before = since(before), counts.total()
        chain.finish(maps, pixels, limit)
        by_step["finish"] = since(before)
        found.append(by_step)
    return found


@pytest.mark.parametrize("networks", [1, 2])
def test_a_frame_stays_on_its_device_waits_for_nothing_and_keeps_to_its_budget(networks):
    with fake_gpu(networks == 1) as gpu:
        _, second, third = steps(gpu, [[video_frame(k)] for k in range(3)], ALL, DEFAULT)
        assert gpu.counts.waits == []
    assert second["predict"] == third["predict"]  # the first makes the positions
    budget = {step: most for (count, step), most in BUDGET.items() if count == networks}
    assert all(0 < third[step] <= most for step, most in budget.items()), (third, budget)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_batch_waits_for_nothing_and_predicts_in_as_many_launches_as_one_frame(count):
    with fake_gpu() as gpu:
        (one,) = steps(gpu, [[video_frame(0)]], ALL, DEFAULT)
        batches = [[video_frame(k, str(camera)) for camera in range(count)] for k in range(2)]
        _, many = steps(gpu, batches, ALL, DEFAULT)
        assert gpu.counts.waits == []
    assert many["predict"] <= one["predict"] + 8


def test_anchors_are_the_one_wait_of_a_frame():
    with fake_gpu() as gpu:
        steps(gpu, [[video_frame(k, anchors=cloud(k))] for k in range(3)], ALL, DEFAULT)
        assert gpu.counts.waits == ["cpu"] * 3


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_every_encoding_is_read_on_the_device(encoding):
    form = ENCODINGS[encoding]
    rows = int(48 * form.planes)
    shape = (rows, 64, form.channels) if form.channels else (rows, 64)
    seen = video_frame(0, pixels=np.zeros(shape, form.dtype), encoding=encoding)
    settings = replace(DEFAULT, smoothing_strength=0.0)
    with fake_gpu() as gpu:
        steps(gpu, [[seen]], ALL, settings)
        assert gpu.counts.waits == []
        assert gpu.counts.launches["preprocess_kernel"] == 1


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
    seen = [[video_frame(k, pixels=pixels, camera=camera)] for k in range(2)]
    with fake_gpu(shared=False) as gpu:
        steps(gpu, seen, ALL, replace(DEFAULT, **changes))
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
