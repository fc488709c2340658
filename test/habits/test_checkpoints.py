# SPDX-License-Identifier: Apache-2.0
"""Files of weights as training tools and downloads leave them: one test per kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from dpt_ros.model import DPT, CheckpointError, create_model, save_checkpoint

NAME = "dpt_hybrid_embedded"


@pytest.fixture(scope="module")
def model() -> DPT:
    return create_model(NAME, weights="random")


@pytest.fixture(scope="module")
def state(model: DPT) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def equal(path: Path, state: dict[str, Tensor]) -> bool:
    loaded = create_model(NAME, path, fold=False).state_dict()
    return all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."]
)
def test_what_training_tools_put_before_every_key_is_taken_off(tmp_path, state, prefix) -> None:
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "w.pt")
    assert equal(tmp_path / "w.pt", state)


def test_a_prefix_of_some_keys_alone_is_not_taken_off(tmp_path, state) -> None:
    keys = list(state)
    torch.save({("module." * (key == keys[0])) + key: state[key] for key in keys}, tmp_path / "w")
    with pytest.raises(CheckpointError, match=rf"1 unexpected: module\.{keys[0]}"):
        create_model(NAME, tmp_path / "w")


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_the_network_of_a_training_file_is_found(tmp_path, state, wrapper) -> None:
    more = {"epoch": 7, "optimizer_state_dict": {"step": 3}}
    torch.save({wrapper: state, **more}, tmp_path / "w.ckpt")
    assert equal(tmp_path / "w.ckpt", state)
    torch.save({"model": {wrapper: {f"model.{k}": v for k, v in state.items()}}}, tmp_path / "w")
    assert equal(tmp_path / "w", state)


def test_a_file_in_parts_is_read_by_its_index_any_part_or_its_folder(tmp_path, state) -> None:
    halves: list[dict[str, Tensor]] = [{}, {}]
    for number, (key, value) in enumerate(state.items()):
        halves[number % 2][key] = value
    parts = [tmp_path / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for part, half in zip(parts, halves, strict=True):
        safetensors.torch.save_file(half, part)
    assert equal(parts[1], state)
    index = tmp_path / "model.safetensors.index.json"
    names = {key: part.name for part, half in zip(parts, halves, strict=True) for key in half}
    index.write_text(json.dumps({"weight_map": names}))
    assert equal(index, state)
    assert equal(tmp_path, state)
    parts[0].unlink()
    with pytest.raises(CheckpointError, match=r"parts that are not there: model-00001-of"):
        create_model(NAME, index)
    with pytest.raises(CheckpointError, match=r"is one of 2 parts of a checkpoint, but 1 of"):
        create_model(NAME, parts[1])
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"parts that are not there: secret\.safetensors"):
        create_model(NAME, index)
    index.write_text(json.dumps({"weights": names}))
    with pytest.raises(CheckpointError, match='is not the index of a checkpoint: no "weight_map"'):
        create_model(NAME, index)


def test_a_folder_without_a_checkpoint_is_told_what_is_looked_for(tmp_path) -> None:
    with pytest.raises(
        CheckpointError, match=r"holds no model\.safetensors or pytorch_model\.bin"
    ):
        create_model(NAME, tmp_path)


@pytest.mark.parametrize("suffix", ["bin", "pt", "safetensors", "ckpt"])
def test_the_contents_tell_what_a_file_is_not_its_name(tmp_path, model, state, suffix) -> None:
    save_checkpoint(model, tmp_path / f"ours.{suffix}", torch.float32)
    assert equal(tmp_path / f"ours.{suffix}", state)
    torch.save(state, tmp_path / f"theirs.{suffix}")
    assert equal(tmp_path / f"theirs.{suffix}", state)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        ("<!DOCTYPE html>\n<html><head><title>Sign in</title>", "a web page in the place of"),
        ('{"architectures": ["DPTForDepthEstimation"]}', "JSON text; the weights are beside it"),
        ("", "an empty file"),
        (
            "\x08\n\x12\x07pytorch:",
            "an ONNX file; the node and dpt_bag run it with -p backend:=onnx",
        ),
        ("any words", "damaged, or no file of safetensors or PyTorch"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, sentence) -> None:
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_text(content)
        with pytest.raises(CheckpointError, match=sentence) as refused:
            create_model(NAME, tmp_path / name)
        assert "run any program" not in str(refused.value)
