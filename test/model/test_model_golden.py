# SPDX-License-Identifier: Apache-2.0
"""The networks against the published implementation and against transformers' port of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.golden import (
    golden_image,
    golden_state,
    golden_tensor,
    huggingface_keys,
    key_list,
    load_case,
    reference_cases,
)
from torch import Tensor

from dpt_ros.model import DPT, create_model

# Largest error over the largest value; both from the reference's own description.
DEPTH_TOLERANCE = {"depth": 2e-5, "nyu": 1e-4, "kitti": 3e-4}
LOGIT_TOLERANCE = 2e-4
# The older arithmetic is asked of one case of each kind, because forwards take seconds.
TIMM045_CASES = ("depth_hybrid_b2_256x320", "ade_hybrid_384x512")
NETWORKS = {
    "depth_hybrid": "dpt_hybrid_midas",
    "depth_large": "dpt_large_midas",
    "depth_base": "dpt_base_midas",
    "ade_hybrid": "dpt_hybrid_ade20k",
    "ade_large": "dpt_large_ade20k",
    "ade_base": "dpt_base_ade20k",
    "nyu_hybrid": "dpt_hybrid_nyu",
    "kitti_hybrid": "dpt_hybrid_kitti",
}


def weights_kind(case: str) -> str:
    task, backbone = case.split("_")[:2]
    return f"{'seg' if task == 'ade' else 'depth'}_{backbone}"


def network_name(case: str) -> str:
    return NETWORKS["_".join(case.split("_")[:2])]


def cases(*prefixes: str, weight_stds: tuple[str, ...] = ("timm", "timm045")) -> Any:
    """The cases at hand, weights first, so that each file of weights is made once."""
    found = sorted(reference_cases(*prefixes), key=weights_kind)
    rows = [
        pytest.param(case, std, id=f"{case}-{std}")
        for case in found
        for std in weight_stds
        if std == "timm" or case in TIMM045_CASES
    ]
    return pytest.mark.parametrize(("case", "weight_std"), rows)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Files like the published ones: same keys, shapes and format, weights by formula.

    They have up to 1.4 GB, so only the one asked for last is kept: tests go kind by kind.
    """
    folder = tmp_path_factory.mktemp("weights")

    def only(kind: str) -> Path:
        path = folder / f"{kind}.pt"
        if not path.exists():
            for other in folder.iterdir():
                other.unlink()
            torch.save(golden_state(kind), path)
        return path

    yield only
    for path in folder.iterdir():
        path.unlink()


def run(model: DPT, meta: dict[str, Any]) -> Tensor:
    batch, _, height, width = meta["input_shape"]
    with torch.inference_mode():
        (output,) = model(golden_image(meta["seed"], batch, height, width)).values()
    return output


def relative_error(found: np.ndarray, expected: np.ndarray, largest: float | None = None) -> float:
    """Largest error over ``largest``, by default the largest expected value."""
    return float(np.abs(found - expected).max() / (largest or np.abs(expected).max()))


@cases("depth", "nyu", "kitti")
def test_depth_equals_the_published_network(
    weights: Callable[[str], Path], case: str, weight_std: str
) -> None:
    arrays, meta = load_case(case)
    path = weights(weights_kind(case))
    model = create_model(network_name(case), path, weight_std=weight_std)
    taps = {key.removeprefix("tap/"): value for key, value in arrays.items() if "tap/" in key}
    seen: dict[str, Tensor] = {}
    if taps:
        watch(model, seen)
    depth = run(model, meta).numpy()
    tolerance = DEPTH_TOLERANCE[case.split("_")[0]]
    if weight_std == "timm045":
        assert relative_error(depth[:, ::2, ::2], arrays["depth_timm045"]) < tolerance
        return
    assert relative_error(depth[:, ::2, ::2], arrays["depth"]) < tolerance
    largest = float(arrays["depth"].max())
    assert relative_error(depth[:, -1], arrays["last_row"], largest) < tolerance
    assert relative_error(depth[:, :, -1], arrays["last_col"], largest) < tolerance
    assert relative_error(depth[:, ::16, ::16], arrays["depth_f64"], largest) < tolerance
    assert taps.keys() == seen.keys()
    for name, expected in taps.items():
        assert list(seen[name].shape) == meta["tap_shapes"][name]
        assert relative_error(thinned(seen[name]), expected) < tolerance, name


def watch(model: DPT, seen: dict[str, Tensor]) -> None:
    """Keep the activations of a forward under the reference's names."""

    def keep(name: str, module: Any, inputs: Any, output: Tensor) -> None:
        seen[name] = output.clone()

    def keep_input(name: str, module: Any, inputs: tuple[Tensor]) -> None:
        seen[name] = inputs[0].clone()

    taps = [model.encoder.blocks[index] for index in model.spec.geometry.block_taps]
    if model.encoder.resnet is not None:
        stages = model.encoder.resnet.stages
        taps = [stages[0], stages[1], *taps]
        model.encoder.resnet.stem.register_forward_hook(partial(keep, "stem"))
        stages[2].register_forward_hook(partial(keep, "resnet_out"))
    model.encoder.blocks[0].register_forward_hook(partial(keep, "block0"))
    for index in range(4):
        taps[index].register_forward_hook(partial(keep, f"tap{index + 1}"))
        out = model.reassemble[index].out
        out.register_forward_pre_hook(partial(keep_input, f"layer{index + 1}"))
        out.register_forward_hook(partial(keep, f"layer{index + 1}_rn"))
        model.fusion[index].register_forward_hook(partial(keep, f"path{index + 1}"))
    model.depth_head.conv1.register_forward_hook(partial(keep, "head0"))
    model.depth_head.conv2.register_forward_hook(partial(keep, "head2"))


def thinned(tensor: Tensor) -> np.ndarray:
    if tensor.ndim == 3:
        return tensor[:, ::36, ::16].numpy()
    steps = [max(1, size // n) for size, n in zip(tensor.shape[1:], (16, 12, 12), strict=True)]
    return tensor[:, :: steps[0], :: steps[1], :: steps[2]].numpy()


def huggingface_model(kind: str) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    if kind == "large":
        config = transformers.DPTConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            backbone_out_indices=[5, 11, 17, 23],
            neck_hidden_sizes=[256, 512, 1024, 1024],
        )
    else:
        config = transformers.DPTConfig(
            is_hybrid=True,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            backbone_out_indices=[0, 1, 8, 11],
            neck_hidden_sizes=[256, 512, 768, 768],
            reassemble_factors=[1, 1, 1, 0.5],
            neck_ignore_stages=[0, 1],
            backbone_featmap_shape=[1, 1024, 24, 24],
        )
    return transformers.DPTForDepthEstimation(config).eval()


@pytest.mark.parametrize(
    ("kind", "name"), [("large", "Intel/dpt-large"), ("hybrid", "Intel/dpt-hybrid-midas")]
)
def test_transformers_port_predicts_the_same_and_its_files_load(
    weights: Callable[[str], Path], kind: str, name: str, tmp_path: Path
) -> None:
    with torch.device("meta"):
        port = huggingface_model(kind)
    assert set(port.state_dict()) == set(huggingface_keys(kind))
    official = torch.load(weights(f"depth_{kind}"), mmap=True)
    state = {}
    for key, (shape, source, third) in huggingface_keys(kind).items():
        value = official[source]
        state[key] = value if third is None else value.chunk(3)[third].clone()
        assert state[key].shape == shape
    port.load_state_dict(state, assign=True)
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path)
    model = create_model(name, path)
    path.unlink()
    image = golden_image(7, 1, 384, 384)
    with torch.inference_mode():
        theirs = port(pixel_values=image).predicted_depth.numpy()
        ours = model(image)["depth"].numpy()
    assert relative_error(ours, theirs) < DEPTH_TOLERANCE["depth"]


@cases("ade")
def test_labels_equal_the_published_network(
    weights: Callable[[str], Path], case: str, weight_std: str
) -> None:
    arrays, meta = load_case(case)
    path = weights(weights_kind(case))
    model = create_model(network_name(case), path, weight_std=weight_std, auxiliary=True)
    auxiliary: dict[str, Tensor] = {}
    model.fusion[0].register_forward_hook(
        lambda module, inputs, features: auxiliary.update(logits=model.auxiliary_head(features))
    )
    logits = run(model, meta).numpy()
    expected = arrays["logits" if weight_std == "timm" else "logits_timm045"]
    assert np.abs(logits[:, :, ::24, ::24] - expected).max() < LOGIT_TOLERANCE
    if weight_std == "timm":
        clear = ~np.unpackbits(arrays["close"]).astype(bool).reshape(arrays["argmax"].shape)
        assert (logits.argmax(1) == arrays["argmax"])[clear].all()
        found = auxiliary["logits"][:, ::3, ::24, ::24].numpy()
        assert np.abs(found - arrays["aux_logits"]).max() < LOGIT_TOLERANCE


def test_the_formula_gives_the_recipes_weights() -> None:
    key = "pretrained.model.cls_token"
    token = golden_tensor(key, key_list("depth_hybrid")[key])[0, 0, :3]
    np.testing.assert_allclose(token, [0.5048169, -0.43362474, -0.00609395], rtol=1e-6, atol=1e-8)
