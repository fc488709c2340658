# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.places import ROOT, TEST
from helpers.plain_torch import plain_torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from dpt_ros.engine.inference import kernels
from dpt_ros.engine.output.postprocess import classify, resize_labels
from dpt_ros.model.heads import DepthHead, SegmentationHead, upsample2

# batch, channels, groups, height, width
MAPS = [(2, 32, 8, 5, 7), (1, 24, 4, 9, 3), (2, 12, 3, 11, 4), (1, 32, 2, 1, 1)]
REAL_MAPS = [
    (1, 64, 32, 192, 192),
    (2, 256, 32, 96, 96),
    (1, 128, 32, 48, 48),
    (1, 256, 32, 24, 24),
    (2, 1024, 32, 24, 24),
    (1, 1024, 32, 30, 40),
    (1, 256, 8, 15, 20),
]


def random(*shape, dtype=torch.float32, device="cpu", mean=0.0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) + mean
    values = values.to(device, dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def close(actual, expected, dtype):
    """Equal to what float32 rounding of the type allows; ``expected`` is in float64 or 32."""
    tolerance = {torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert actual.shape == expected.shape
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=4 * tolerance
    )


def same_labels(actual, expected, logits, network_size, size):
    """Equal but where two classes lie closer than float32 can tell apart."""
    labels, sure = (x.cpu().int() for x in actual)
    expected_labels, expected_sure = (x.cpu().int() for x in expected)
    maps = F.interpolate(logits.cpu().double(), network_size, mode="bilinear", align_corners=True)
    first, second = maps.topk(min(2, maps.shape[1]), dim=1).values[:, [0, -1]].unbind(1)
    near = resize_labels(((first - second) < 1e-5).to(torch.uint8), size).bool()
    assert ((labels == expected_labels) | near).all()
    assert near.float().mean() < 0.01 or maps.shape[1] == 1
    assert (sure - expected_sure).abs().max() <= 1


# Each of these compares Triton's version with the plain one: interpreted on the CPU at small
# shapes, compiled on a GPU at real ones.


def check_group_norm(triton, device, dtype, shape):
    batch, channels, groups, height, width = shape
    x = random(batch, channels, height, width, dtype=dtype, device=device, mean=20.0)
    residual = random(batch, channels, height, width, dtype=dtype, device=device)
    weight, bias = (random(channels + i, dtype=dtype, device=device)[:channels] for i in (0, 1))
    for skip, relu in ((None, True), (residual, True), (None, False)):
        actual = triton.group_norm_act(x, weight, bias, groups, 1e-5, skip, relu)
        wide = [None if one is None else one.double() for one in (x, weight, bias, skip)]
        with plain_torch():
            expected = kernels.group_norm_act(*wide[:3], groups, 1e-5, wide[3], relu)
        assert actual.dtype == dtype
        assert actual.is_contiguous(memory_format=torch.channels_last)
        close(actual, expected, dtype)
    again = triton.group_norm_act(x, weight, bias, groups, 1e-5, None, False)
    assert torch.equal(actual, again)
    alone = triton.group_norm_act(x[:1], weight, bias, groups, 1e-5, None, False)
    assert torch.equal(alone, actual[:1])


def check_upsample(triton, device, dtype, shape, size):
    x = random(*shape, dtype=dtype, device=device)
    skip, residual = (
        random(*shape[:2], *size, dtype=dtype, device=device).roll(i) for i in (0, 1)
    )
    skip, residual = (y.contiguous(memory_format=torch.channels_last) for y in (skip, residual))
    bias = random(shape[1], dtype=dtype, device=device)
    with plain_torch():
        expected = kernels.upsample_add(x.float(), size)[0]
        close(triton.upsample_add(x, size)[0], expected, dtype)
        wide = [one.float() for one in (skip, residual, bias)]
        biased = triton.upsample_add(x, size, bias=bias)[0]
        close(biased, expected + wide[2][:, None, None], dtype)
        total, activated = triton.upsample_add(x, size, skip, residual, bias, relu=True)
        close(total, kernels.upsample_add(x.float(), size, *wide)[0], dtype)
        assert torch.equal(activated, total.relu())
        close(
            triton.bias_act(skip, bias, residual),
            kernels.bias_act(wide[0], wide[2], wide[1]),
            dtype,
        )
        close(
            triton.bias_act(skip, bias, relu=True),
            kernels.bias_act(wide[0], wide[2], relu=True),
            dtype,
        )


def check_layer_norm(triton, device, dtype, shape):
    x, y = (random(*shape[:2], shape[2] + i, device=device)[..., : shape[2]] for i in (0, 1))
    x, y = (x * 5 + 3).to(dtype), y.to(dtype)
    weight = random(shape[2], dtype=dtype, device=device)
    total, normed = triton.add_layer_norm(x, y, weight, weight + 1, 1e-6)
    assert torch.equal(total, x + y)
    expected = F.layer_norm(total.double(), shape[2:], weight.double(), weight.double() + 1, 1e-6)
    close(normed, expected, dtype)


def check_depth_tail(triton, device, dtype, shape):
    x = random(*shape, dtype=dtype, device=device)
    weight, x_bias = (random(shape[1] + i, dtype=dtype, device=device) for i in (0, 1))
    x_bias = x_bias[: shape[1]]
    bias = torch.tensor([0.3], dtype=dtype, device=device)
    for invert, shift, more in ((False, 0.0, None), (True, 0.1, x_bias)):
        actual = triton.depth_tail(x, weight, bias, 2.0, shift, invert, more)
        wide = None if more is None else more.float()
        with plain_torch():
            expected = kernels.depth_tail(x.float(), weight, bias, 2.0, shift, invert, wide)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)


def check_labels(triton, device, dtype, shape, network_size, sizes):
    batch, classes, h, w = shape
    # Classes are padded in memory, as the fused label head gives them.
    logits = random(batch, classes + 2, h, w, dtype=dtype, device=device)[:, :classes]
    for size in sizes:
        actual = triton.classify_upsampled(logits, network_size, size, True)
        with plain_torch():
            expected = kernels.classify_upsampled(logits.float(), network_size, size, True)
        assert actual[0].dtype == actual[1].dtype == torch.uint8
        same_labels(actual, expected, logits, network_size, size)
        labels, nothing = triton.classify_upsampled(logits, network_size, size)
        assert torch.equal(labels, actual[0])
        assert nothing is None


def check_refusals(triton):
    x = torch.randn(2, 8, 4, 4)
    vector = torch.ones(8)
    for wrong in (
        lambda: triton.bias_act(x, vector),
        lambda: triton.group_norm_act(x, vector, vector, 2, 1e-5),
        lambda: triton.classify_upsampled(x, (8, 8), (8, 8)),
    ):
        with pytest.raises(ValueError, match="channels_last"):
            wrong()
    with pytest.raises(ValueError, match="one shape"):
        triton.bias_act(random(1, 8, 4, 4), vector, random(1, 8, 4, 5))
    with pytest.raises(ValueError, match="3 groups"):
        triton.group_norm_act(random(1, 8, 4, 4), vector, vector, 3, 1e-5)
    with pytest.raises(ValueError, match="float64"):
        triton.depth_tail(random(1, 8, 4, 4).double(), vector, vector, 1.0, 0.0, False)


def interpret():
    """Run in a process of its own with TRITON_INTERPRET=1: every kernel without a GPU."""
    from dpt_ros.engine.inference import triton_kernels as triton

    check_refusals(triton)
    for dtype in (torch.float32, torch.float16):
        for shape in MAPS if dtype == torch.float32 else MAPS[:1]:
            check_group_norm(triton, "cpu", dtype, shape)
            # The same small map as if it were a large one: many parts of several tiles.
            with pytest.MonkeyPatch.context() as patch:
                for name, value in (("_ONE_PASS", 0), ("_TILE", 256), ("_SLAB", 16)):
                    patch.setattr(triton, name, value)
                patch.setattr(triton, "_PARTS", 3)
                patch.setattr(triton, "_PROGRAMS", 1)
                check_group_norm(triton, "cpu", dtype, shape)
        for shape, size in (((2, 12, 5, 7), (10, 14)), ((1, 20, 1, 5), (2, 9))):
            check_upsample(triton, "cpu", dtype, shape, size)
        check_layer_norm(triton, "cpu", dtype, (2, 5, 48))
        check_depth_tail(triton, "cpu", dtype, (2, 20, 5, 7))
        for classes in (1, 10, 40):
            sizes = ((10, 14), (21, 33)) if classes == 10 else ((7, 9),)
            check_labels(triton, "cpu", dtype, (2, classes, 5, 7), (10, 14), sizes)
    check_whole_network(triton)
    print("interpreted")


def check_whole_network(triton):
    """The fused network gives its kernels maps of the layout that they ask for."""
    from dpt_ros.engine.inference.gpu_modules import fuse
    from dpt_ros.model import create_model

    model = create_model("dpt_hybrid_embedded", weights="random")
    images = torch.randn(1, 3, 48, 64)
    with torch.inference_mode():
        expected = model(images)
        fuse(model)
        model.to(memory_format=torch.channels_last)
        kernels._triton = lambda x: triton
        actual = model(images)
        for task, values in expected.items():
            torch.testing.assert_close(actual[task], values, rtol=1e-4, atol=1e-4)


def test_every_triton_kernel_equals_plain_torch_when_interpreted():
    pytest.importorskip("triton")
    environment = dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [ROOT, TEST, Path(__file__).parent]))
    done = subprocess.run(
        [sys.executable, "-c", "import test_kernels; test_kernels.interpret()"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("interpreted\n")


@pytest.mark.parametrize("arch", [80, 90, 120])
def test_every_triton_kernel_compiles_without_a_gpu(arch):
    pytest.importorskip("triton")
    from helpers.cubins import network_cubins

    cubins = network_cubins(arch)
    names = {name.rpartition("_")[0] for name in cubins}
    norms = {f"group_norm_{part}" for part in ("one", "stats", "apply")}
    assert names == norms | {
        "upsample_add",
        "bias_act",
        "add_layer_norm",
        "depth_tail",
        "classify",
    }
    assert all(cubin.startswith(b"\x7fELF") for cubin in cubins.values())


@pytest.mark.parametrize("residual", [False, True])
def test_group_norm_shortcut_and_relu_are_those_of_torch(residual):
    norm = nn.GroupNorm(4, 16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, shortcut = random(2, 16, 5, 6), random(2, 16, 6, 5).transpose(2, 3)
    expected = norm(x) + shortcut if residual else norm(x)
    arguments = (x, norm.weight, norm.bias, 4, norm.eps, shortcut if residual else None)
    assert torch.equal(kernels.group_norm_act(*arguments), expected.relu())
    assert torch.equal(kernels.group_norm_act(*arguments, relu=False), expected)


@settings(max_examples=25, deadline=None)
@given(
    h=st.integers(1, 9), w=st.integers(1, 9), height=st.integers(1, 20), width=st.integers(1, 20)
)
def test_upsampling_takes_all_that_is_to_be_added(h, w, height, width):
    x, skip, bias = random(2, 3, h, w), random(2, 3, height, width), random(3)
    expected = F.interpolate(x, (height, width), mode="bilinear", align_corners=True)
    assert torch.equal(kernels.upsample_add(x, (height, width))[0], expected)
    expected = expected + 3 * skip + bias[:, None, None]
    total, activated = kernels.upsample_add(x, (height, width), skip, 2 * skip, bias, relu=True)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(activated, total.relu())


def test_bias_residual_and_relu_follow_a_convolution():
    conv = nn.Conv2d(3, 4, 3)
    x, residual = random(2, 3, 6, 6), random(2, 4, 4, 4)
    bare = F.conv2d(x, conv.weight)
    actual = kernels.bias_act(bare, conv.bias, residual, relu=True)
    torch.testing.assert_close(actual, F.relu(conv(x) + residual))
    assert torch.equal(kernels.bias_act(bare, None), bare)


def test_the_sum_and_its_layer_norm_come_together():
    norm = nn.LayerNorm(12, eps=1e-6)
    nn.init.normal_(norm.weight)
    x, y = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    total, normed = kernels.add_layer_norm(x, y, norm.weight, norm.bias, norm.eps)
    assert torch.equal(total, x + y)
    assert torch.equal(normed, norm(x + y))


@pytest.mark.parametrize("invert", [False, True])
def test_the_depth_tail_is_the_end_of_the_depth_head(invert):
    head = DepthHead(8, (8, 6), 0.5, 0.1 if invert else 0.0, invert)
    nn.init.normal_(head.conv3.weight)
    features = torch.randn(2, 8, 5, 6)
    x = F.interpolate(head.conv1(features), (10, 12), mode="bilinear", align_corners=True)
    bare = F.conv2d(x, head.conv2.weight, padding=1)
    last = (head.conv3.weight.flatten(), head.conv3.bias, head.scale, head.shift, invert)
    expected = head(features)
    torch.testing.assert_close(kernels.depth_tail(bare, *last, head.conv2.bias), expected)
    torch.testing.assert_close(kernels.depth_tail(head.conv2(x), *last), expected)
    assert kernels.depth_tail(head.conv2(x).bfloat16(), *last).dtype == torch.float32


@pytest.mark.parametrize("size", [(10, 12), (21, 33), (7, 5)])
def test_labels_are_those_of_the_full_logits_then_the_nearest(size):
    head = SegmentationHead(8, 40).eval()
    nn.init.normal_(head.classify.weight)
    features = torch.randn(2, 8, 5, 6)
    logits = head(features)
    labels, confidence = classify(upsample2(logits), (10, 12), confidence=True)
    actual, sure = kernels.classify_upsampled(logits, (10, 12), size, confidence=True)
    assert torch.equal(actual, resize_labels(labels, size))
    assert torch.equal(sure, resize_labels(confidence, size))
    assert kernels.classify_upsampled(logits, (10, 12), size)[1] is None


@pytest.fixture
def triton():
    pytest.importorskip("triton")
    from dpt_ros.engine.inference import triton_kernels

    return triton_kernels


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", REAL_MAPS)
def test_group_norm_on_a_gpu_at_real_shapes(triton, dtype, shape):
    check_group_norm(triton, "cuda", dtype, shape)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_everything_else_on_a_gpu_at_real_shapes(triton, dtype):
    for shape, size in (
        ((1, 256, 12, 12), (24, 24)),
        ((2, 256, 96, 96), (192, 192)),
        ((1, 48, 8, 10), (15, 20)),
    ):
        check_upsample(triton, "cuda", dtype, shape, size)
    check_layer_norm(triton, "cuda", dtype, (2, 577, 768))
    check_layer_norm(triton, "cuda", dtype, (1, 769, 1024))
    check_depth_tail(triton, "cuda", dtype, (2, 32, 384, 384))
    for classes, confidence_sizes in ((150, ((480, 640), (300, 400))), (10, ((720, 1280),))):
        check_labels(triton, "cuda", dtype, (1, classes, 240, 320), (480, 640), confidence_sizes)


@pytest.mark.gpu
def test_cuda_tensors_go_to_triton_and_to_plain_torch_when_switched_off(triton, monkeypatch):
    calls = []
    monkeypatch.setattr(triton, "bias_act", lambda *arguments: calls.append(arguments))
    x = random(1, 8, 4, 4, device="cuda")
    kernels.bias_act(x, None)
    assert len(calls) == 1
    with plain_torch():
        assert torch.equal(kernels.bias_act(x, None), x)
    assert len(calls) == 1


@pytest.mark.gpu
def test_kernels_can_be_captured_in_a_graph_and_replayed_on_new_data():
    half = {"dtype": torch.float16, "device": "cuda"}
    maps = [random(1, 256, side, side, **half) for side in (96, 48, 24)]
    weight, tokens = random(256, **half), random(1, 577, 256, **half)
    logits = random(1, 152, 48, 48, **half)[:, :150]

    def work():
        norms = [kernels.group_norm_act(x, weight, weight, 32, 1e-5, x) for x in maps]
        return [
            *norms,
            *kernels.upsample_add(maps[1], (96, 96), maps[0], norms[0], weight, relu=True),
            kernels.bias_act(maps[2], weight, norms[2], relu=True),
            *kernels.add_layer_norm(tokens, tokens, weight, weight, 1e-6),
            kernels.depth_tail(maps[0], weight, weight[:1], 1.0, 0.0, False, weight),
            *kernels.classify_upsampled(logits, (96, 96), (192, 192), True),
        ]

    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()
    for x in (*maps, tokens, logits):
        x.mul_(-0.5).add_(0.25)
    graph.replay()
    torch.cuda.synchronize()
    for replayed, direct in zip(outputs, work(), strict=True):
        assert torch.equal(replayed, direct)
