# SPDX-License-Identifier: Apache-2.0
"""Networks packed for the CPU: the same numbers, any size, no second copy of the weights."""

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

from dpt_ros.engine.inference import cpu_modules as onednn
from dpt_ros.engine.inference.fold import fold
from dpt_ros.model import create_model
from dpt_ros.model.dpt import DPT
from dpt_ros.model.zoo import LARGE, ZOO
from dpt_ros.world import World

NAME = "dpt_hybrid_embedded"


@pytest.fixture(autouse=True)
def packable():
    for dtype in onednn.DTYPES:
        reason = onednn.unavailable(dtype)
        assert reason is None, reason


@pytest.fixture(scope="module")
def frames():
    """Two pictures of the synthetic world, normalised, 240x320."""
    views = World("room", 5).frames(2, step=60)
    x = torch.stack([torch.from_numpy(view.rgb.copy()) for view in views])
    return (x.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


@pytest.fixture(scope="module")
def shipped():
    return create_model(NAME).requires_grad_(False)


def untrained(spec, seed=0):
    """Random weights in which no bias is zero and no batch norm is the identity."""
    torch.manual_seed(seed)
    model = DPT(spec).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def run(model, images):
    with torch.inference_mode():
        return model(images)


def assert_same(model, packed, images, tolerance=1e-4):
    expected, actual = run(model, images), run(packed, images)
    assert expected.keys() == actual.keys()
    for task, value in expected.items():
        scale = value.abs().max()
        assert actual[task].shape == value.shape
        assert (actual[task] - value).abs().max() < tolerance * scale, task


def test_packed_float32_equals_the_network_at_any_size_and_batch(shipped, frames):
    packed = copy.deepcopy(shipped)
    onednn.pack(packed, torch.float32)
    for height, width, batch in ((240, 320, 1), (96, 160, 1), (112, 80, 2), (240, 320, 2)):
        assert_same(shipped, packed, frames[:batch, :, :height, :width])


@pytest.mark.parametrize("dtype", onednn.DTYPES)
def test_two_threads_may_use_two_sizes_at_once(shipped, frames, dtype):
    packed = copy.deepcopy(shipped)
    onednn.pack(packed, dtype)
    frames = frames.to(dtype)
    inputs = [frames[:, :, :96, :160], frames[:1, :, :112, :80]]
    expected = [run(packed, images)["depth"] for images in inputs]

    def differences(which):
        return [(run(packed, inputs[which])["depth"] - expected[which]).abs().max()
                for _ in range(10)]  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        for which, found in enumerate(pool.map(differences, (0, 1))):
            assert max(found) <= 1e-5 * expected[which].abs().max()


@pytest.mark.parametrize("dtype", onednn.DTYPES)
def test_no_weight_is_reordered_at_a_size_seen_before(shipped, frames, dtype, capfd):
    packed = copy.deepcopy(shipped)
    onednn.pack(packed, dtype)
    images = frames[:1, :, :96, :160].to(dtype)
    run(packed, images)
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        run(packed, images)
    executed = capfd.readouterr().out
    assert ",convolution," in executed
    assert ",reorder," not in executed


_COUNT_PAGE_FAULTS = """
import resource, torch
from dpt_ros.engine.inference.cpu_modules import pack
from dpt_ros.model import create_model

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(1 << 20) for _ in range(12)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pack(create_model("dpt_hybrid_embedded", "random"), torch.float32)
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_memory_that_a_call_frees_serves_the_next():
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_PAGE_FAULTS], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 3000, "of 12,000 pages of 4 KiB"


@pytest.mark.parametrize("folded", [False, True])
def test_batch_norm_is_folded_once(folded):
    spec = replace(ZOO["dpt_hybrid_ade20k"], geometry=ZOO[NAME].geometry)
    model = untrained(spec)
    packed = copy.deepcopy(model)
    if folded:
        fold(packed)
    onednn.pack(packed, torch.float32)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in packed.modules())
    assert_same(model, packed, torch.randn(1, 3, 64, 96))


@pytest.mark.parametrize("readout", ["project", "add", "ignore"])
def test_a_plain_transformer_with_transposed_convolutions_is_the_same(readout):
    geometry = replace(
        LARGE, width=64, depth=4, heads=2, block_taps=(0, 1, 2, 3), grid=(4, 4), features=32,
        reassemble_channels=(16, 32, 64, 64), depth_head=(16, 8),
    )  # fmt: skip
    model = untrained(replace(ZOO["dpt_large_midas"], geometry=geometry, readout=readout))
    packed = copy.deepcopy(model)
    onednn.pack(packed, torch.float32)
    for size in ((64, 64), (96, 32)):
        assert_same(model, packed, torch.randn(2, 3, *size))


def test_bfloat16_stays_close_on_the_synthetic_world(shipped, frames):
    packed = copy.deepcopy(shipped)
    onednn.pack(packed, torch.bfloat16)
    expected, actual = run(shipped, frames), run(packed, frames.bfloat16())
    assert actual["depth"].dtype == torch.float32
    error = (actual["depth"] - expected["depth"]).abs() / expected["depth"]
    same = actual["labels"].argmax(1) == expected["labels"].argmax(1)
    assert error.mean() < 0.01
    assert same.float().mean() > 0.99


def test_bfloat16_takes_any_size_and_batch(shipped, frames):
    packed = copy.deepcopy(shipped)
    onednn.pack(packed, torch.bfloat16)
    whole = run(packed, frames.bfloat16())
    run(packed, frames[:1, :, :96, :160].bfloat16())
    one = run(packed, frames[1:].bfloat16())
    assert torch.allclose(one["depth"], whole["depth"][1:], rtol=0.05)


@pytest.mark.parametrize("dtype", onednn.DTYPES)
def test_every_layer_is_packed_and_no_plain_weight_is_kept(shipped, dtype):
    packed = copy.deepcopy(shipped)
    onednn.pack(packed, dtype)
    plain = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    assert not any(isinstance(module, plain) for module in packed.modules())
    kept = sum(parameter.numel() for parameter in packed.parameters())
    assert kept < 0.1 * sum(parameter.numel() for parameter in shipped.parameters())


def test_results_of_one_call_survive_the_next(shipped, frames):
    packed = copy.deepcopy(shipped)
    onednn.pack(packed, torch.float32)
    first = run(packed, frames[:1])
    before = {task: value.clone() for task, value in first.items()}
    run(packed, frames[1:])
    for task, value in first.items():
        assert torch.equal(value, before[task])


def test_what_cannot_be_packed_is_refused(shipped):
    with pytest.raises(ValueError, match="float16"):
        onednn.pack(shipped, torch.float16)
    with pytest.raises(ValueError, match="eval"):
        onednn.pack(copy.deepcopy(shipped).train(), torch.float32)


def test_without_the_operators_packing_is_refused_and_the_network_unchanged(shipped, monkeypatch):
    def missing(*arguments):
        raise AttributeError("no operator of that name")

    monkeypatch.setattr(onednn.PackedLinear, "__init__", missing)
    model = copy.deepcopy(shipped)
    with pytest.raises(RuntimeError, match="no operator of that name"):
        onednn.pack(model, torch.float32)
    assert_same(shipped, model, torch.randn(1, 3, 32, 32))


def test_native_bfloat16_is_detected(monkeypatch):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False
    )
    assert onednn.supports_bf16()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert not onednn.supports_bf16()
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch 2.9
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
        assert onednn.supports_bf16() is able
