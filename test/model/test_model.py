# SPDX-License-Identifier: Apache-2.0
"""The networks' architecture, at sizes that cost nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.golden import key_list
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import StdConv2dSame
from torch import Tensor, nn

from dpt_ros.model import DPT, create_model, list_models, model_spec
from dpt_ros.model.decoder import Fusion, Read, Reassemble
from dpt_ros.model.encoder import (
    PlainConv2dSame,
    build_resnet,
    fold_weight_standardization,
    standardized_weight,
)
from dpt_ros.model.heads import DepthHead
from dpt_ros.model.zoo import EMBEDDED, Geometry, ModelSpec

TINY_HYBRID = replace(
    EMBEDDED, width=32, depth=2, heads=2, block_taps=(0, 1), features=8, depth_head=(8, 4)
)
TINY_PLAIN = Geometry(
    width=32,
    depth=4,
    heads=2,
    grid=(4, 4),
    resnet=None,
    stage_taps=(),
    block_taps=(0, 1, 2, 3),
    reassemble_channels=(8, 16, 24, 32),
    features=8,
    depth_head=(8, 4),
)


def tiny(geometry: Geometry = TINY_HYBRID, **fields: object) -> DPT:
    torch.manual_seed(0)
    spec = ModelSpec("tiny", ("depth", "labels"), geometry, "for tests", num_classes=3)
    return DPT(replace(spec, **fields)).eval()


def meta_model(name: str) -> DPT:
    with torch.device("meta"):
        return DPT(model_spec(name)).eval()


@pytest.mark.parametrize("name", list_models())
def test_every_network_maps_images_to_maps_of_their_size(name: str) -> None:
    model = meta_model(name)
    side = model.spec.multiple_of
    outputs = model(torch.empty(2, 3, 3 * side, 5 * side, device="meta"))
    assert set(outputs) == set(model.tasks)
    if "depth" in outputs:
        assert outputs["depth"].shape == (2, 3 * side, 5 * side)
    if "labels" in outputs:
        assert outputs["labels"].shape == (2, model.spec.num_classes, 3 * side, 5 * side)


@pytest.mark.parametrize("geometry", [TINY_HYBRID, TINY_PLAIN], ids=["hybrid", "plain"])
@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 2), rows=st.integers(2, 8), columns=st.integers(2, 8))
def test_any_batch_and_any_multiple_of_16_goes_through(
    geometry: Geometry, batch: int, rows: int, columns: int
) -> None:
    outputs = tiny(geometry)(torch.zeros(batch, 3, 16 * rows, 16 * columns))
    assert outputs["depth"].shape == (batch, 16 * rows, 16 * columns)
    assert outputs["labels"].shape == (batch, 3, 16 * rows, 16 * columns)
    assert outputs["depth"].isfinite().all()
    assert outputs["labels"].isfinite().all()


def test_the_images_of_a_batch_do_not_see_each_other() -> None:
    model, images = tiny(), torch.rand(3, 3, 64, 96)
    together = model(images)["depth"]
    alone = torch.cat([model(image[None])["depth"] for image in images])
    torch.testing.assert_close(together, alone)


# Parameters of the published networks, and those that are never used: the transformer's final
# norm, its classifier and the first residual unit of the deepest fusion stage.
@pytest.mark.parametrize(
    ("name", "kind", "published", "classifier"),
    [
        ("dpt_hybrid_midas", "depth_hybrid", 123_146_985, 769_000),
        ("dpt_large_midas", "depth_large", 344_055_465, 1_025_000),
        ("dpt_base_midas", "depth_base", 111_647_081, 769_000),
        ("dpt_hybrid_ade20k", "seg_hybrid", 124_076_884, 769_000),
        ("dpt_large_ade20k", "seg_large", 344_985_364, 1_025_000),
        ("dpt_base_ade20k", "seg_base", 112_576_980, 769_000),
    ],
)
def test_the_parameters_are_those_of_the_published_network(
    name: str, kind: str, published: int, classifier: int
) -> None:
    with torch.device("meta"):
        model = DPT(model_spec(name, **({"auxiliary": True} if "seg" in kind else {})))
    norm = 2 * model.spec.geometry.width
    unit = sum(
        torch.Size(shape).numel()
        for key, shape in key_list(kind).items()
        if key.startswith("scratch.refinenet4.resConfUnit1.")
        and not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found + classifier + norm + unit == published


@pytest.mark.parametrize("name", ["dpt_hybrid_midas", "dpt_large_ade20k", "dpt_base_midas"])
def test_epsilons_and_paddings_are_the_published_ones(name: str) -> None:
    model = meta_model(name)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
        elif isinstance(module, nn.GroupNorm):
            assert module.eps == 1e-5
            assert module.num_groups == 32
        elif isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-5
        elif isinstance(module, StdConv2dSame):
            assert module.eps == 1e-8
            assert module.same_pad == (module.stride != (1, 1))
        elif isinstance(module, nn.GELU):
            assert module.approximate == "none"


def test_the_pooling_of_the_stem_pads_with_minus_infinity_after_the_image() -> None:
    pool = tiny().encoder.resnet.stem.pool
    image = torch.full((1, 1, 4, 4), -5.0)
    image[..., 0, 0] = -1.0
    assert pool(image).flatten().tolist() == [-1.0, -5.0, -5.0, -5.0]


def test_strided_convolutions_pad_after_the_image_first() -> None:
    conv = tiny().encoder.resnet.stages[1].blocks[0].conv2
    assert conv.stride == (2, 2)
    assert conv.kernel_size == (3, 3)
    image = torch.zeros(1, conv.in_channels, 8, 8)
    image[..., 0, 0] = 1.0
    response = conv(image)
    # Without padding before the image its corner is seen by one kernel only, at its corner.
    assert response[..., 0, 0].abs().sum() > 0
    assert response[..., 1:, :].abs().sum() == 0
    assert response[..., :, 1:].abs().sum() == 0
    expected = create_reference_weight(conv)[..., 0, 0].sum(dim=1)
    torch.testing.assert_close(response[0, :, 0, 0], expected)


def create_reference_weight(conv: StdConv2dSame) -> Tensor:
    weight = conv.weight.detach()
    mean = weight.mean(dim=(1, 2, 3), keepdim=True)
    variance = ((weight - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
    return (weight - mean) / torch.sqrt(variance + 1e-8)


def test_readouts_are_those_of_the_paper() -> None:
    tokens = torch.randn(2, 1 + 6, 4)
    token, patches = tokens[:, :1], tokens[:, 1:]
    torch.testing.assert_close(Read(4, "ignore")(tokens), patches)
    torch.testing.assert_close(Read(4, "add")(tokens), patches + token)
    project = Read(4, "project")
    weight, bias = project.project.weight, project.project.bias
    joined = torch.cat([patches, token.repeat(1, 6, 1)], dim=2)
    torch.testing.assert_close(project(tokens), nn.GELU()(joined @ weight.T + bias))


@pytest.mark.parametrize("readout", ["ignore", "add", "project"])
def test_every_readout_gives_a_whole_network(readout: str) -> None:
    model = tiny(readout=readout)
    assert model(torch.zeros(1, 3, 32, 32))["depth"].shape == (1, 32, 32)
    has_projection = any("read.project" in key for key in model.state_dict())
    assert has_projection == (readout == "project")


@pytest.mark.parametrize(("factor", "size"), [(4, 24), (2, 12), (1, 6), (0.5, 3)])
def test_tokens_are_put_back_where_their_patches_were(factor: float, size: int) -> None:
    reassemble = Reassemble(4, 4, 4, factor, "ignore")
    tokens = torch.zeros(1, 1 + 6 * 8, 4)
    changed = tokens.clone()
    changed[:, 1 + 8 * 5 + 7] = 1.0  # the last row's last column
    difference = (reassemble(changed, (6, 8)) - reassemble(tokens, (6, 8))).abs().sum(1)[0]
    assert difference.shape == (size, size * 8 // 6)
    assert difference[-1, -1] > 0
    assert difference[: size // 2].sum() == 0
    assert difference[:, : size // 2].sum() == 0


def test_the_residual_unit_adds_to_the_input_and_not_to_its_positive_part() -> None:
    fusion = Fusion(4, batch_norm=False)
    for conv in (fusion.unit.conv2, fusion.skip_unit.conv2):
        nn.init.zeros_(conv.weight)
    nn.init.dirac_(fusion.out.weight)
    skip, path = torch.randn(1, 4, 3, 5), torch.randn(1, 4, 3, 5)
    torch.testing.assert_close(fusion(skip, path, (3, 5)), skip + path)


def test_positions_are_resized_bilinearly_and_follow_the_parameter() -> None:
    encoder = tiny(TINY_PLAIN).encoder
    with torch.no_grad():
        encoder.pos_embed.copy_(torch.randn_like(encoder.pos_embed))
        assert encoder.positions((4, 4)) is encoder.pos_embed
        resized = encoder.positions((2, 2))
        # Halving without antialiasing averages the four positions around each new one.
        grid = encoder.pos_embed[0, 1:].unflatten(0, (4, 4))
        expected = grid.unflatten(0, (2, 2)).unflatten(2, (2, 2)).mean(dim=(1, 3))
        torch.testing.assert_close(resized[0, 1:].unflatten(0, (2, 2)), expected)
        torch.testing.assert_close(resized[:, 0], encoder.pos_embed[:, 0])
        assert encoder.positions((2, 2)) is resized
        encoder.pos_embed.mul_(2)
        torch.testing.assert_close(encoder.positions((2, 2)), 2 * resized)
        encoder.double()
        assert encoder.positions((2, 2)).dtype == torch.float64


def test_a_network_made_without_gradients_runs_at_any_size() -> None:
    with torch.inference_mode():
        assert tiny(TINY_PLAIN)(torch.zeros(1, 3, 32, 48))["depth"].shape == (1, 32, 48)


def test_a_metric_head_computes_in_float32_and_saturates() -> None:
    head = DepthHead(4, (4, 4), scale=0.5, shift=0.1, invert=True)
    nn.init.zeros_(head.conv3.weight)
    for bias, metres in [(-1.0, 10.0), (0.0, 10.0), (1.8, 1.0)]:
        nn.init.constant_(head.conv3.bias, bias)
        depth = head(torch.zeros(1, 4, 2, 3))
        assert depth.shape == (1, 4, 6)
        assert depth.dtype == torch.float32
        torch.testing.assert_close(depth, torch.full_like(depth, metres))
    half = head.bfloat16()(torch.zeros(1, 4, 2, 3, dtype=torch.bfloat16))
    assert half.dtype == torch.float32


def test_zero_inverse_depth_is_finite_metres() -> None:
    head = DepthHead(4, (4, 4), shift=0.0, invert=True)
    nn.init.zeros_(head.conv3.weight)
    nn.init.zeros_(head.conv3.bias)
    torch.testing.assert_close(head(torch.zeros(1, 4, 2, 2)), torch.full((1, 4, 4), 1e8))


def test_the_embedded_network_trains() -> None:
    torch.manual_seed(0)
    model = create_model("dpt_hybrid_embedded", weights="random", auxiliary=True).train()
    outputs = model(torch.rand(2, 3, 64, 96))
    assert outputs["auxiliary"].shape == (2, 10, 32, 48)
    # Nothing learned yet: about three metres everywhere, no class preferred.
    assert ((outputs["depth"] > 1) & (outputs["depth"] < 10)).all()
    assert outputs["labels"].abs().max() < 3
    loss = outputs["depth"].mean() + sum(
        outputs[k].square().mean() for k in ("labels", "auxiliary")
    )
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []
    model.eval()
    assert set(model(torch.rand(1, 3, 32, 32))) == {"depth", "labels"}


def test_the_embedded_network_fits_into_the_package() -> None:
    model = meta_model("dpt_hybrid_embedded")
    assert sum(value.numel() for value in model.state_dict().values()) * 2 < 8_000_000
    assert (model.metric, model.spec.multiple_of) == (True, 16)
    assert model.spec.net_height % 16 == 0
    assert model.spec.net_width % 16 == 0


@pytest.mark.parametrize("weight_std", ["timm", "timm045"])
def test_folding_changes_no_output(weight_std: str) -> None:
    torch.manual_seed(0)
    model = create_model("dpt_hybrid_embedded", weights="random", weight_std=weight_std)
    for module in model.modules():
        if isinstance(module, StdConv2dSame):  # far from standard, so that folding has work to do
            nn.init.normal_(module.weight, mean=0.01, std=0.02)
    image = torch.rand(1, 3, 48, 64)
    expected = model(image)
    fold_weight_standardization(model)
    for task, output in model(image).items():
        torch.testing.assert_close(output, expected[task], atol=1e-5, rtol=1e-5)


def test_the_two_weight_standardizations_differ_where_the_deviation_is_small() -> None:
    geometry = TINY_HYBRID.resnet
    weights = {}
    for weight_std in ("timm", "timm045"):
        conv = build_resnet(geometry, weight_std).stem.conv
        with torch.no_grad():
            conv.weight.copy_(
                torch.linspace(-1e-4, 1e-4, conv.weight.numel()).view_as(conv.weight)
            )
        weights[weight_std] = standardized_weight(conv.double())
        deviation = conv.weight.std(dim=(1, 2, 3), correction=0, keepdim=True)
        centred = conv.weight - conv.weight.mean(dim=(1, 2, 3), keepdim=True)
        if weight_std == "timm":
            expected = centred / (deviation**2 + 1e-8).sqrt()
        else:
            expected = centred / (deviation + 1e-5)
        torch.testing.assert_close(weights[weight_std], expected)
    assert not torch.allclose(weights["timm"], weights["timm045"], rtol=0.1)


def test_folding_replaces_every_standardized_convolution_and_keeps_the_names() -> None:
    plain = create_model("dpt_hybrid_embedded", weights="random")
    torch.manual_seed(0)
    folded = create_model("dpt_hybrid_embedded", weights="random", fold=True)
    assert not any(isinstance(module, StdConv2dSame) for module in folded.modules())
    assert any(isinstance(module, PlainConv2dSame) for module in folded.modules())
    assert list(folded.state_dict()) == list(plain.state_dict())
    for module in folded.modules():
        if isinstance(module, PlainConv2dSame):
            weight = module.weight.flatten(1)
            torch.testing.assert_close(weight.mean(1), torch.zeros(len(weight)), atol=1e-6, rtol=0)
            torch.testing.assert_close(
                weight.var(1, correction=0), torch.ones(len(weight)), atol=1e-3, rtol=0
            )
