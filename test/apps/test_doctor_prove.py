# SPDX-License-Identifier: Apache-2.0
"""dpt_doctor --prove, with formula-made weights, and answers made from them by transformers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.downloads import sha256
from helpers.golden import BIAS, golden_photo, golden_state, huggingface_keys
from PIL import Image

from dpt_ros.apps import doctor
from dpt_ros.apps.doctor.prove import (
    _RESIZES,
    ANSWERS,
    RELATIVE,
    _runs,
    read_answers,
    source_input,
)
from dpt_ros.model import DPT, create_model, save_checkpoint
from dpt_ros.model.zoo import ZOO, Geometry, ResNetGeometry

EMBEDDED = "dpt_hybrid_embedded"
HYBRID = "Intel/dpt-hybrid-midas"
SIDE = 96
TORCH = ("--backend", "torch")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DPT_ROS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of a tiny network and a picture of the public one's size."""
    folder = tmp_path_factory.mktemp("files")
    Image.fromarray(golden_photo(3, 480, 640)).save(folder / "photo.png")
    save_checkpoint(tiny(), folder / "weights.safetensors", torch.float32)
    return folder


def tiny() -> DPT:
    """The embedded network with few layers, whose file describes them; depth is above 0."""
    resnet = ResNetGeometry((1, 1, 1), (16, 32, 64), stem=8, bottle_ratio=0.5, norm_groups=4)
    geometry = Geometry(
        width=32, depth=2, heads=2, grid=(15, 20), resnet=resnet, block_taps=(0, 1),
        reassemble_channels=(16, 32, 8, 8), features=8, depth_head=(8, 4),
    )  # fmt: skip
    torch.manual_seed(0)
    model = DPT(replace(ZOO[EMBEDDED], geometry=geometry)).eval()
    with torch.no_grad():
        model.depth_head.conv3.weight.mul_(200)
        model.depth_head.conv3.bias.fill_(3.0)
    return model


def answer(files: Path, resize: str = "bilinear", **changes: Any) -> dict[str, Any]:
    """What the embedded network, plain, gives for the picture; and where both are."""
    model = create_model(EMBEDDED, files / "weights.safetensors", fold=False, invert=False)
    photo = Image.open(files / "photo.png")
    with torch.inference_mode():
        maps = model(torch.from_numpy(source_input(photo, (SIDE, SIDE), resize)))
    values = maps["depth"][0, :3, :3].numpy()
    assert values.min() > 1
    assert np.ptp(values) > 0.1  # not the same everywhere
    row = {
        "networks": [EMBEDDED],
        "side": SIDE,
        "values": np.round(values, 4).tolist(),
        "source": "this test",
    }
    for key, name in (("picture", "photo.png"), ("weights", "weights.safetensors")):
        content = (files / name).read_bytes()
        row[key] = {"url": f"http://127.0.0.1:9/{name}", "sha256": sha256(content)}
    return {**row, **changes}


@pytest.fixture
def prove(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs dpt_doctor --prove; its findings by name, and the exit code as "code"."""

    def run(*words: str, row: dict[str, Any] | None = None, **given: Path | None) -> Any:
        given = {
            "weights": files / "weights.safetensors", "picture": files / "photo.png", **given
        }  # fmt: skip
        words += tuple(f"--{key}={value}" for key, value in given.items() if value is not None)
        if row is not None:
            (tmp_path / "answers.json").write_text(json.dumps([row]))
            words += ("--answers", str(tmp_path / "answers.json"))
        name = row["networks"][0] if row else EMBEDDED
        name = next((word for word in words if word in ZOO), name)
        code = doctor.main(["--json", "--prove", name, *(w for w in words if w not in ZOO)])
        rows = json.loads(capsys.readouterr().out)["findings"]
        return {"code": code, **{row["name"]: row for row in rows}}

    return run


@pytest.mark.parametrize("resize", _RESIZES)
@pytest.mark.parametrize("side", [384, 480])
def test_the_input_is_that_of_the_source_bit_by_bit(resize: str, side: int) -> None:
    transformers = pytest.importorskip("transformers")
    # With Pillow, as when the answers were published; transformers 4 has it under the old name.
    kind = getattr(transformers, "DPTImageProcessorPil", transformers.DPTImageProcessor)
    half = [0.5, 0.5, 0.5]
    processor = kind(
        size={"height": side, "width": side},
        resample=Image.Resampling[resize.upper()],
        image_mean=half,
        image_std=half,
    )
    photo = Image.fromarray(golden_photo(3, 480, 640))
    theirs = np.asarray(processor(photo, return_tensors="np")["pixel_values"])
    ours = source_input(photo, (side, side), resize)
    assert ours.dtype == theirs.dtype == np.float32
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_backend_is_proven_and_says_by_how_much(files: Path, prove: Any, backend: str) -> None:
    pytest.importorskip(backend)
    done = prove(f"--backend={backend}", row=answer(files))
    assert done["code"] == 0, done
    for key in ("weights", "picture"):
        assert done[key]["message"].endswith(", as published")
    message = done[f"{backend} fp32"]["message"]
    assert message.startswith("as published: largest difference")
    assert "bilinear resize, allowed 0.0001 + 0.0001 * |value|" in message
    verdict = f"proven: {EMBEDDED} gives the values of this test: {backend} fp32"
    assert done["verdict"]["message"] == verdict


def test_every_backend_that_is_installed_is_tried() -> None:
    installed = {name for name in ("torch", "onnxruntime", "openvino") if find_spec(name)}
    assert {run.backend for run in _runs(None)} == installed
    assert [run.backend for run in _runs(["openvino"])] == ["openvino"]


@pytest.mark.gpu
def test_half_precision_on_a_gpu_is_proven_within_its_tolerance(files: Path, prove: Any) -> None:
    done = prove(*TORCH, row=answer(files))
    assert done["torch fp16 GPU"]["level"] == done["torch fp32 GPU"]["level"] == "OK", done


def test_answers_of_the_other_filter_are_met_too(files: Path, prove: Any) -> None:
    done = prove(*TORCH, row=answer(files, "bicubic"))
    assert done["code"] == 0
    assert "bicubic resize" in done["torch fp32"]["message"]


@pytest.mark.parametrize(("share", "level"), [(0.5, "OK"), (1.5, "error")])
def test_the_tolerance_is_the_stated_one(
    files: Path, prove: Any, share: float, level: str
) -> None:
    row = answer(files)
    model = create_model(EMBEDDED, files / "weights.safetensors", fold=False, invert=False)
    photo = Image.open(files / "photo.png")
    with torch.inference_mode():
        maps = model(torch.from_numpy(source_input(photo, (SIDE, SIDE), "bilinear")))
    exact = float(maps["depth"][0, 1, 1])
    row["values"][1][1] = exact + share * (1e-4 + RELATIVE["fp32"] * exact)
    done = prove(*TORCH, row=row)
    assert done["torch fp32"]["level"] == level, done
    if level == "error":
        assert done["code"] == 2
        assert "times too much" in done["torch fp32"]["message"]
        assert "not proven: dpt_hybrid_embedded with torch fp32" in done["verdict"]["message"]
        assert "please report this text" in done["verdict"]["cure"]


class Handler(SimpleHTTPRequestHandler):
    requested: list[str] = []  # noqa: RUF012 - the server makes the instances

    def do_GET(self) -> None:
        self.requested.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(files: Path) -> Iterator[str]:
    """The address of an HTTP server of the folder."""
    Handler.requested.clear()
    handler = partial(Handler, directory=str(files))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_weights_and_picture_are_downloaded_once_and_checked(
    files: Path, prove: Any, server: str, cache: Path
) -> None:
    row = answer(files)
    for key in ("picture", "weights"):
        row[key]["url"] = row[key]["url"].replace("http://127.0.0.1:9", server)
    for _ in range(2):
        done = prove(*TORCH, row=row, weights=None, picture=None)
        assert done["code"] == 0, done
    assert Handler.requested == ["/weights.safetensors", "/photo.png"]
    assert str(cache / "prove" / "photo.png") in done["picture"]["message"]


def test_a_mirror_with_another_file_is_refused(files: Path, prove: Any, server: str) -> None:
    row = answer(files)
    row["picture"]["sha256"] = "0" * 64
    mirror = f"{server}/photo.png"
    done = prove(*TORCH, f"--picture={mirror}", row=row, picture=None)
    assert done["code"] == 2
    assert f"{mirror} has sha256" in done["verdict"]["message"]
    row["picture"]["url"] = f"{server}/nothing.png"
    done = prove(*TORCH, row=row, picture=None)
    assert "nothing.png could not be downloaded: File not found" in done["verdict"]["message"]


def test_a_damaged_a_wrong_and_a_missing_picture_are_told_apart(
    files: Path, prove: Any, tmp_path: Path
) -> None:
    whole = (files / "photo.png").read_bytes()
    damaged = tmp_path / "damaged.png"
    for content in (whole[: len(whole) // 2], b"<html>not found</html>", b""):
        damaged.write_bytes(content)
        done = prove(*TORCH, picture=damaged)
        assert done["code"] == 2
        message = done["verdict"]["message"]
        assert f"{damaged} is no picture, or a damaged one" in message
        assert "Get http://images.cocodataset.org/val2017/000000039769.jpg" in message
    other = tmp_path / "other.png"
    Image.fromarray(golden_photo(3, 48, 64)).save(other)
    message = prove(*TORCH, picture=other)["verdict"]["message"]
    assert "has 64x48 pixels, but the published picture has 640x480: it is another one" in message
    message = prove(*TORCH, picture=tmp_path / "none.png")["verdict"]["message"]
    assert f"--picture: {tmp_path / 'none.png'} does not exist" in message


def test_wrong_weights_are_told_by_hash_and_keys(files: Path, prove: Any, tmp_path: Path) -> None:
    done = prove("dpt_hybrid_midas", *TORCH)  # the file of another network
    assert done["code"] == 2
    assert done["weights"]["level"] == "warning"
    assert "is published" in done["weights"]["message"]
    assert "not a checkpoint of dpt_hybrid_midas" in done["torch fp32"]["message"]
    page = tmp_path / "page.pt"
    page.write_text("<html>")
    done = prove("dpt_hybrid_midas", *TORCH, weights=page)
    assert "is not a checkpoint that can be read safely" in done["torch fp32"]["message"]
    done = prove("dpt_base_midas", *TORCH, weights=None)
    assert "No weights of dpt_base_midas are published" in done["verdict"]["message"]


def test_without_a_published_answer_hash_keys_and_range_are_checked_and_said_so(
    files: Path, prove: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = prove(*TORCH)
    assert done["code"] == 1
    assert done["picture"]["level"] == "warning"  # of the right size, but another one
    assert done["torch fp32"]["message"].startswith("plausible: depth ")
    text = (
        "not proven: no published answer; keys (not the hash, see above), shapes and value range"
    )
    assert done["verdict"]["message"].startswith(text)
    assert done["verdict"]["level"] == "warning"
    known = {"url": "", "sha256": sha256((files / "weights.safetensors").read_bytes())}
    row = replace(ZOO[EMBEDDED], **known)
    monkeypatch.setitem(ZOO, EMBEDDED, row)
    text = "not proven: no published answer; hash, keys, shapes and value range of"
    assert prove(*TORCH)["verdict"]["message"].startswith(text)


@pytest.mark.parametrize(
    ("part", "bias", "message"),
    [
        ("depth_head.conv3", -1e3, "depth is negative or constant"),
        ("depth_head.conv3", None, "80% of the pixels have none"),
        ("label_head.classify", 1e6, "one class is everywhere"),
    ],
)
def test_weights_that_saturate_are_an_error(
    files: Path, prove: Any, tmp_path: Path, part: str, bias: float | None, message: str
) -> None:
    model = tiny()
    layer = model.get_submodule(part)
    with torch.inference_mode():
        if bias is None:  # so that four of five pixels are below 0
            layer.bias[0] = 1e3
            photo = source_input(Image.open(files / "photo.png"), (240, 320), "bicubic")
            depth = model.depth_head(model.features(torch.from_numpy(photo))).reciprocal()
            bias = 1e3 + model.spec.shift - float(depth.quantile(0.8))
        layer.bias[0] = bias
    save_checkpoint(model, tmp_path / "saturated.safetensors", torch.float32)
    done = prove(*TORCH, weights=tmp_path / "saturated.safetensors")
    assert done["code"] == 2
    assert message in done["torch fp32"]["message"]


def test_broken_answers_are_refused(prove: Any, files: Path, tmp_path: Path) -> None:
    uneven = json.dumps([answer(files, values=[[1], [1, 2]])])
    for content in ('{"values": 1}', '[{"side": 3}]', "", uneven):
        (tmp_path / "mine.json").write_text(content)
        done = prove(*TORCH, "--answers", str(tmp_path / "mine.json"))
        assert done["code"] == 2
        assert "holds no answers" in done["verdict"]["message"]
        assert "expected a JSON list of objects with networks, side" in done["verdict"]["message"]
    (tmp_path / "mine.json").write_text(json.dumps([answer(files)]))
    assert read_answers(tmp_path / "mine.json")[0].source == "this test"


def test_every_published_network_with_an_answer_is_in_the_zoo_once() -> None:
    names = [name for row in ANSWERS for name in row.networks]
    assert len(names) == len(set(names)) == 8
    assert set(names) <= ZOO.keys()
    for row in ANSWERS:
        specs = [ZOO[name] for name in row.networks]
        assert {spec.geometry for spec in specs} == {specs[0].geometry}
        assert {spec.net_height for spec in specs} == {row.side}


def test_answers_made_by_transformers_are_proven_with_the_hybrid_network(
    prove: Any, files: Path, tmp_path: Path
) -> None:
    """The whole situation of a user: their picture processor and network, with our network."""
    transformers = pytest.importorskip("transformers")
    config = transformers.DPTConfig(
        is_hybrid=True, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, backbone_out_indices=[0, 1, 8, 11],
        neck_hidden_sizes=[256, 512, 768, 768], reassemble_factors=[1, 1, 1, 0.5],
        neck_ignore_stages=[0, 1], backbone_featmap_shape=[1, 1024, 24, 24],
    )  # fmt: skip
    with torch.device("meta"):
        port = transformers.DPTForDepthEstimation(config).eval()
    official, state = golden_state("depth_hybrid"), {}
    official[BIAS] = official[BIAS] + 1000  # above 0 in the corner, too
    for key, (_, source, third) in huggingface_keys("hybrid").items():
        value = official[source]
        state[key] = value if third is None else value.chunk(3)[third].clone()
    port.load_state_dict(state, assign=True)
    weights = tmp_path / "pytorch_model.bin"
    torch.save(state, weights)
    kind = getattr(transformers, "DPTImageProcessorPil", transformers.DPTImageProcessor)
    photo = Image.open(files / "photo.png")
    half = [0.5, 0.5, 0.5]
    pixels = kind(resample=2, image_mean=half, image_std=half)(photo, return_tensors="pt")
    with torch.inference_mode():
        depth = port(**pixels).predicted_depth[0, :3, :3] / 100
    assert float(depth.min()) > 1
    assert float(depth.max() - depth.min()) > 0.01
    row = {**answer(files), "networks": [HYBRID], "side": 384, "divisor": 100.0}
    row["values"] = depth.numpy().round(4).tolist()
    row["weights"]["sha256"] = sha256(weights.read_bytes())
    done = prove(*TORCH, row=row, weights=weights)
    assert done["code"] == 0, done
    assert done["verdict"]["message"].startswith(f"proven: {HYBRID} gives the values of")
    print(done["torch fp32"]["message"])
