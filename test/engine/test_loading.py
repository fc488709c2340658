# SPDX-License-Identifier: Apache-2.0
"""Choosing and loading the networks that the settings ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dpt_ros.engine import loading
from dpt_ros.engine.export.network import export_network
from dpt_ros.engine.inference.fold import fold
from dpt_ros.engine.inference.gpu_modules import fuse
from dpt_ros.engine.input.preprocess import network_input
from dpt_ros.engine.loading import NetworkError, load_networks
from dpt_ros.engine.settings import Settings
from dpt_ros.model import DPT, create_model, save_checkpoint
from dpt_ros.model.zoo import EMBEDDED_NAME, SMALL, ZOO
from dpt_ros.world import World

RANDOM = {"depth_weights": "random", "label_weights": "random"}


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DPT_ROS_CACHE", str(tmp_path / "cache"))


def test_without_a_download_auto_is_the_embedded_network_with_a_warning():
    networks = load_networks(Settings())
    assert networks.depth is networks.labels
    assert networks.depth_name == networks.label_name == EMBEDDED_NAME
    assert networks.metric
    assert networks.farthest == pytest.approx(0.98 * 50.0)
    assert networks.class_names[:2] == ("wall", "floor")
    assert sum("synthetic world only" in text for text in networks.warnings) == 2
    assert not networks.random


def test_auto_takes_the_network_that_a_file_describes(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    save_checkpoint(DPT(replace(ZOO["dpt_hybrid_nyu"], geometry=SMALL)), file)
    networks = load_networks(Settings(depth_weights=str(file), label_network="none"))
    assert networks.depth_name == "dpt_hybrid_nyu"
    assert any("dpt_hybrid_nyu, as" in text for text in networks.warnings)


def test_auto_prefers_a_downloaded_network(monkeypatch):
    asked = []

    def at_hand(name: str) -> Path | None:
        asked.append(name)
        return Path("there.pt") if name == "dpt_hybrid_kitti" else None

    monkeypatch.setattr("dpt_ros.model.cached_checkpoint", at_hand)
    with pytest.raises(NetworkError, match=r"^dpt_hybrid_kitti cannot be loaded \(depth_w"):
        load_networks(Settings(label_network="none"))
    assert asked == ["dpt_hybrid_nyu", "dpt_hybrid_kitti"]


def test_random_weights_are_used_only_on_request_with_a_warning():
    networks = load_networks(Settings(**RANDOM))
    assert networks.random
    assert any("predictions mean nothing" in text for text in networks.warnings)


def test_a_network_for_one_task_leaves_the_other_out():
    networks = load_networks(Settings(label_network="none"))
    assert networks.depth is not None
    assert networks.labels is None
    assert networks.class_names == ()


def test_a_file_is_taken_by_path(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_checkpoint(create_model(EMBEDDED_NAME, weights="random"), path)
    networks = load_networks(Settings(depth_network=EMBEDDED_NAME, depth_weights=str(path)))
    assert networks.depth is not networks.labels
    assert not networks.random


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            Settings(depth_network="dpt_hybrid_nyc"),
            "depth_network: Unknown network 'dpt_hybrid_nyc' (did you mean dpt_hybrid_nyu",
        ),
        (
            Settings(label_network="ade20k"),
            "label_network: Unknown network 'ade20k'",
        ),
        (Settings(depth_network="dpt_hybrid_nyu"), 'ask for "download"'),
        (Settings(depth_weights="/no/such/file.pt"), "no checkpoint file /no/such/file.pt"),
        (Settings(depth_network="none", label_network="none"), "nothing to compute"),
        (Settings(precision="fp16", device="cpu"), "precision is fp16, but a CPU"),
        (Settings(scale_source="ground"), "needs scale.camera_height"),
        (
            Settings(depth_network="dpt_hybrid_midas", scale_source="network", **RANDOM),
            "dpt_hybrid_midas predicts relative inverse depth; set scale.source",
        ),
        (Settings(compile=True, device="cpu"), "on a CPU torch.compile is slower"),
        (Settings(backend="openvino", device="cuda"), "device is cuda"),
        (Settings(compile=True, backend="onnxruntime"), "compile is true, but backend is onnx"),
        (Settings(precision="bf16", backend="onnxruntime"), "precision is bf16, but backend onn"),
        (Settings(depth_weights="a.onnx"), "an ONNX file, but backend is torch; set backend to"),
        (
            Settings(depth_weights="/no/a.onnx", backend="onnxruntime"),
            "depth_weights: /no/a.onnx cannot be read: No such file",
        ),
        (
            Settings(depth_network="dpt_hybrid_ade20k", depth_weights="random"),
            "dpt_hybrid_ade20k predicts labels, not depth; set depth_network",
        ),
    ],
)
def test_what_cannot_be_made_ready_is_refused_with_what_to_do(settings, sentence):
    with pytest.raises(NetworkError) as refusal:
        load_networks(settings)
    assert sentence in str(refusal.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_what_to_do():
    with pytest.raises(NetworkError, match="finds no usable GPU; check the driver"):
        load_networks(Settings(device="cuda"))


@pytest.mark.gpu
def test_a_gpu_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(NetworkError, match="there are only"):
        load_networks(Settings(device="cuda:99"))


@pytest.mark.parametrize("kind", ["room", "yard"])
def test_half_precision_agrees_with_single_precision(kind):
    # In float16 on the CPU: the rounding is a GPU's, the time is not.
    model = create_model(EMBEDDED_NAME)
    fold(model)
    fuse(model)
    rgb = World(kind, 9001, 192, 144).frame(5).rgb
    images = network_input(rgb, (144, 192), model.spec.mean, model.spec.std)
    with torch.inference_mode():
        exact = model(images)
        half = model.half()(images.half())
    error = ((half["depth"] - exact["depth"]).abs() / exact["depth"]).mean()
    same = (half["labels"].argmax(1) == exact["labels"].argmax(1)).double().mean()
    assert 0 < error <= 1e-3
    assert same >= 0.995


@pytest.mark.parametrize(
    ("device", "precision", "sentence"),
    [
        ("NPU", "auto", "openvino.device is NPU, but OpenVINO finds CPU only: install the driver"),
        ("CPU", "fp16", "precision is fp16, but OpenVINO on this CPU computes fp32"),
        ("AUTO", "fp16", "precision is fp16, but OpenVINO on this CPU computes fp32"),
    ],
)
def test_a_device_of_openvino_that_is_not_there_is_refused(device, precision, sentence):
    openvino = pytest.importorskip("openvino")
    if openvino.Core().available_devices != ["CPU"]:
        pytest.skip("OpenVINO finds more than the CPU here")
    chosen = Settings(backend="openvino", device="cpu", openvino_device=device)
    with pytest.raises(NetworkError) as refusal:
        load_networks(replace(chosen, precision=precision))
    assert sentence in str(refusal.value)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """The embedded network of one size, which is exported faster than one of open sizes."""
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "mine.onnx"
    export_network(create_model(EMBEDDED_NAME), path, size=(96, 128))
    return path


@pytest.mark.parametrize(
    "settings",
    [
        Settings(backend="openvino", threads=1, device="cpu"),
        Settings(backend="openvino", threads=1, device="cpu", openvino_device="AUTO"),
        Settings(backend="onnxruntime", threads=1, device="cpu"),
    ],
    ids=["openvino", "openvino AUTO", "onnxruntime"],
)
def test_backends_agree_with_torch(settings, onnx_file, monkeypatch):
    pytest.importorskip(settings.backend)
    monkeypatch.setattr(loading, "exported", lambda *given: onnx_file)
    settings = replace(settings, input_height=96, input_width=128)
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    expected = load_networks(Settings(device="cpu")).depth(images)
    actual = load_networks(settings).depth(images)
    for name, value in expected.items():
        assert (actual[name] - value).abs().max() <= 1e-4 * value.abs().max()
    assert torch.equal(actual["logits"].argmax(1), expected["logits"].argmax(1))


def test_an_onnx_file_is_run_as_it_is(onnx_file):
    file = str(onnx_file)
    settings = Settings(
        depth_weights=file, label_weights=file, backend="onnxruntime", device="cpu", threads=1
    )
    networks = load_networks(settings)
    assert networks.depth is networks.labels
    assert networks.depth_name == EMBEDDED_NAME
    assert networks.class_names[:2] == ("wall", "floor")
    assert networks.metric
    assert not networks.warnings
    # The file's size is the one that the node aims at.
    assert networks.depth.input_size(480, 640, settings) == (96, 128)


def test_an_onnx_file_of_another_network_is_refused(onnx_file, tmp_path):
    mine = Settings(depth_weights=str(onnx_file), backend="onnxruntime", device="cpu")
    with pytest.raises(NetworkError, match=r"is dpt_hybrid_nyu, but .* holds a dpt_hybrid_emb"):
        load_networks(replace(mine, depth_network="dpt_hybrid_nyu"))
    half = tmp_path / "half.onnx"
    half.write_bytes(onnx_file.read_bytes().replace(b'"fp32"', b'"fp16"'))
    mine = replace(mine, precision="fp32")
    with pytest.raises(NetworkError, match=r"precision is fp32, but .* is in fp16; set"):
        load_networks(replace(mine, depth_weights=str(half)))
    for content in (b"", b"\x08\x0a\x12\x07pytorch", b"version https://git-lfs.github.com"):
        (tmp_path / "not.onnx").write_bytes(content)
        with pytest.raises(NetworkError, match=r"depth_weights: .*not\.onnx"):
            load_networks(replace(mine, depth_weights=str(tmp_path / "not.onnx")))
