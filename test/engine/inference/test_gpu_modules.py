# SPDX-License-Identifier: Apache-2.0
import copy
from collections import Counter

import pytest
import torch
from helpers.plain_torch import plain_torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dpt_ros.engine.inference import kernels
from dpt_ros.engine.inference.fold import fold
from dpt_ros.engine.inference.gpu_modules import fuse
from dpt_ros.model import create_model
from dpt_ros.model.dpt import DPT
from dpt_ros.model.factory import model_spec

KERNELS = (
    "group_norm_act",
    "upsample_add",
    "bias_act",
    "add_layer_norm",
    "depth_tail",
    "classify_upsampled",
)


def network(name, **overrides):
    """Random weights in which no parameter and no statistic keeps its neutral start."""
    generator = torch.Generator().manual_seed(7)
    torch.manual_seed(7)
    model = create_model(name, weights="random", **overrides)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.1 * noise)
            elif parameter_name.endswith(("conv3.weight", "classify.weight")) and "head" in (
                parameter_name
            ):
                parameter.copy_(0.2 * noise)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
            elif buffer_name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def outputs(model, images):
    with torch.inference_mode():
        result = model(images)
    if model.spec.invert:
        result["depth"] = 1 / result["depth"]  # what the network computes: metres magnify errors
    return result


def images(batch, height, width):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


class Operations(TorchDispatchMode):
    """Counts what runs: an operation of torch that is no view, or one of the fused ones."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = Counter()
        self.inside = False
        for name in KERNELS:
            monkeypatch.setattr(kernels, name, self._counted(name, getattr(kernels, name)))
        # One kernel on a GPU; the meta device takes it apart.
        attention = self._counted("attention", F.scaled_dot_product_attention)
        monkeypatch.setattr(F, "scaled_dot_product_attention", attention)

    def _counted(self, name, function):
        def call(*arguments, **options):
            self.count[name] += 1
            self.inside = True
            try:
                return function(*arguments, **options)
            finally:
                self.inside = False

        return call

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        # Attention on the meta device leaves a clone behind, which is a view on a GPU.
        nothing = ("_unsafe_view", "clone", "detach", "empty")
        if not (self.inside or function.is_view or name in nothing):
            self.count[name] += 1
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(
    ("name", "overrides", "batch", "size"),
    [
        ("dpt_hybrid_embedded", {}, 2, (64, 96)),
        # 5 x 7 tokens: the coarsest map rounds up, and no map is exactly twice the one below.
        ("dpt_hybrid_embedded", {"readout": "project"}, 1, (80, 112)),
        ("dpt_hybrid_embedded", {"readout": "project"}, 2, (48, 64)),
        ("dpt_hybrid_embedded", {"readout": "ignore"}, 1, (48, 64)),
        ("dpt_hybrid_midas", {}, 1, (64, 64)),
        ("dpt_hybrid_ade20k", {}, 1, (64, 32)),
    ],
)
def test_a_fused_network_gives_the_same(name, overrides, batch, size, folded):
    model = network(name, **overrides)
    x = images(batch, *size)
    expected = outputs(model, x)
    if folded:
        fold(model)
    fuse(model)
    actual = outputs(model, x)
    assert actual.keys() == expected.keys()
    for task, values in expected.items():
        assert values.std() > 0.05
        # Random weights amplify rounding: plain torch lies 6e-5 of the spread from float64.
        tolerance = 3e-4 * float(values.std())
        torch.testing.assert_close(actual[task], values, rtol=0, atol=tolerance)
        assert actual[task].dtype == torch.float32


def test_a_network_of_plain_patches_can_be_fused():
    spec = model_spec("dpt_large_midas")
    with torch.device("meta"):
        model = DPT(spec).eval()
        fuse(model)
        with torch.inference_mode():
            assert model(torch.empty(2, 3, 64, 96))["depth"].shape == (2, 64, 96)


def test_the_label_heads_logits_are_those_of_half_the_size():
    model = network("dpt_hybrid_ade20k")
    fused = copy.deepcopy(model)
    fuse(fused)
    features = torch.randn(1, 256, 6, 8)
    with torch.inference_mode():
        expected = model.label_head(features)
        torch.testing.assert_close(fused.label_head(features), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape == (1, 150, 6, 8)


def test_a_fused_network_computes_in_bfloat16_and_gives_depth_in_float32():
    model = network("dpt_hybrid_embedded")
    x = images(1, 48, 64)
    expected = outputs(model, x)["depth"]
    fold(model)
    fuse(model)
    model.bfloat16().to(memory_format=torch.channels_last)
    actual = outputs(model, x.bfloat16())["depth"]
    assert actual.dtype == torch.float32
    assert ((actual - expected).abs() / expected).median() < 0.1


def test_what_cannot_be_fused_is_refused():
    model = create_model("dpt_hybrid_embedded", weights="random")
    with pytest.raises(ValueError, match=r"training mode.*eval\(\)"):
        fuse(model.train())
    model.eval()
    model.encoder.blocks[0].ls1 = torch.nn.Dropout()
    with pytest.raises(ValueError, match="A Dropout cannot be fused"):
        fuse(model)
    model.encoder.blocks[0].ls1 = torch.nn.Identity()
    fuse(model)
    with pytest.raises(ValueError, match="fused already"):
        fuse(model)


def test_a_fused_network_has_far_fewer_operations(monkeypatch):
    """Counted without computing: on the meta device, at the published size."""
    counts = {}
    for kind in ("plain", "folded", "fused"):
        with torch.device("meta"):
            model = DPT(model_spec("dpt_hybrid_midas")).eval()
        if kind != "plain":
            fold(model)
        if kind == "fused":
            fuse(model)
        x = torch.empty(1, 3, 384, 384, device="meta")
        with monkeypatch.context() as patch, torch.no_grad(), Operations(patch) as operations:
            model(x)
        counts[kind] = operations.count
    plain, folded, fused = (counts[kind] for kind in ("plain", "folded", "fused"))
    assert fused["group_norm_act"] == folded["native_group_norm"] > 50
    assert fused["native_group_norm"] == 0
    assert fused["add_layer_norm"] == 24
    assert fused["upsample_add"] == 5
    assert fused["depth_tail"] == 1
    assert plain.total() > 410
    assert fused.total() < 265


def far(actual, expected):
    """Mean error as a part of the spread."""
    return float((actual.float() - expected).abs().mean() / expected.std())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["dpt_hybrid_embedded", "dpt_hybrid_midas", "dpt_hybrid_ade20k"])
def test_a_fused_half_precision_network_on_a_gpu_is_as_exact_as_torchs_own(name, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    trained = name == "dpt_hybrid_embedded"
    model = create_model(name) if trained else network(name)
    fold(model)
    fused, half = copy.deepcopy(model), copy.deepcopy(model)
    fuse(fused)
    half, fused = (x.cuda().half().to(memory_format=torch.channels_last) for x in (half, fused))
    x = images(2, *((240, 320) if trained else (384, 480))).cuda()
    expected = outputs(model.cuda(), x)
    usual = outputs(half, x.half())
    actual = outputs(fused, x.half())
    for task, values in expected.items():
        assert actual[task].shape == values.shape
        assert far(actual[task], values) < 1.5 * far(usual[task], values) + 1e-4
        if trained:
            assert far(actual[task], values) < 0.02


@pytest.mark.gpu
def test_a_fused_network_on_a_gpu_gives_the_same_with_and_without_triton(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = network("dpt_hybrid_midas")
    fold(model)
    fuse(model)
    model.cuda().to(memory_format=torch.channels_last)
    x = images(1, 96, 128).cuda()
    actual = outputs(model, x)["depth"]
    with plain_torch():
        expected = outputs(model, x)["depth"]
    assert far(actual, expected) < 1e-3


@pytest.mark.gpu
def test_a_fused_network_can_be_captured_in_a_graph():
    pytest.importorskip("triton")
    model = network("dpt_hybrid_midas")
    fold(model)
    fuse(model)
    model.cuda().half().to(memory_format=torch.channels_last)
    x, other = (images(1, 384, 384 + i).cuda().half()[..., :384] for i in (0, 32))
    x = x.contiguous()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.inference_mode():
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        captured = model(x)["depth"]
    graph.replay()
    first = captured.clone()
    x.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    direct = outputs(model, x)["depth"]
    assert far(captured, direct) < 5e-2
    assert far(first, direct) > 1e-1
