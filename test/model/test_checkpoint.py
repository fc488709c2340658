# SPDX-License-Identifier: Apache-2.0
"""Files of weights: published key lists load whole, everything else is refused with a reason."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.golden import huggingface_keys, key_list
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpt_ros.model import DPT, CheckpointError, create_model, model_spec, save_checkpoint
from dpt_ros.model.checkpoint import filter_state_dict, read_tensors

EMBEDDED = "dpt_hybrid_embedded"
UNUSED = (
    "pretrained.model.norm.",
    "pretrained.model.head.",
    "scratch.refinenet4.resConfUnit1.",
)


def skeleton(name: str, **overrides: object) -> DPT:
    with torch.device("meta"):
        return DPT(model_spec(name, **overrides))


def tagged(kind: str) -> dict[str, Tensor]:
    """A published state dict whose every tensor is full of its own number, in little memory."""
    return {
        key: torch.tensor(float(index)).expand(shape)
        for index, (key, shape) in enumerate(key_list(kind).items())
    }


def tags(state: dict[str, Tensor]) -> dict[str, tuple[float, ...]]:
    """Which numbers each tensor holds: one, or three where query, key and value are stacked."""
    found = {}
    for key, value in state.items():
        parts = value.chunk(3) if ".attn.qkv." in key else (value,)
        ends = [part.flatten()[[0, -1]].tolist() for part in parts]
        assert all(first == last for first, last in ends)
        found[key] = tuple(first for first, _ in ends)
    return found


@pytest.mark.parametrize(
    ("name", "kind", "auxiliary"),
    [
        ("dpt_hybrid_midas", "depth_hybrid", None),
        ("dpt_large_midas", "depth_large", None),
        ("dpt_base_midas", "depth_base", None),
        ("dpt_hybrid_ade20k", "seg_hybrid", False),
        ("dpt_large_ade20k", "seg_large", False),
        ("dpt_base_ade20k", "seg_base", False),
        ("dpt_base_ade20k", "seg_base", True),
    ],
)
def test_every_published_key_is_used_once_or_known_to_be_unused(
    name: str, kind: str, auxiliary: bool | None
) -> None:
    overrides = {} if auxiliary is None else {"auxiliary": auxiliary}
    unused = UNUSED if auxiliary else (*UNUSED, "auxlayer.")
    tensors = tagged(kind)
    state = filter_state_dict(tensors, skeleton(name, **overrides))
    used = sorted(tag for values in tags(state).values() for tag in set(values))
    assert used == [float(i) for i, key in enumerate(tensors) if not key.startswith(unused)]


@pytest.mark.parametrize(
    ("name", "kind", "official"),
    [
        ("Intel/dpt-hybrid-midas", "hybrid", "depth_hybrid"),
        ("Intel/dpt-large", "large", "depth_large"),
        ("Intel/dpt-large-ade", "large_ade", "seg_large"),
    ],
)
def test_every_key_of_transformers_goes_where_the_official_one_goes(
    name: str, kind: str, official: str
) -> None:
    numbers = {key: float(index) for index, key in enumerate(key_list(official))}
    # Thirds of a stacked projection are told apart by what is added to its number.
    tensors = {
        key: torch.tensor(numbers[source] + (0.0 if third is None else third / 4)).expand(shape)
        for key, (shape, source, third) in huggingface_keys(kind).items()
    }
    model = skeleton(name)
    theirs = tags(filter_state_dict(tensors, model))
    for key, (number, *_) in tags(filter_state_dict(tagged(official), model)).items():
        thirds = (0.0, 0.25, 0.5) if ".attn.qkv." in key else (0.0,)
        assert theirs[key] == tuple(number + third for third in thirds)


@pytest.fixture(scope="module")
def model() -> DPT:
    return create_model(EMBEDDED, weights="random")


@pytest.fixture
def state(model: DPT) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def load(state: dict[str, Tensor], tmp_path: Path) -> DPT:
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    return create_model(EMBEDDED, path)


def test_a_saved_network_comes_back(model: DPT, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_checkpoint(model, path, torch.float32)
    again = create_model(EMBEDDED, path, fold=False)
    assert not again.training
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in again.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    image = torch.rand(1, 3, 48, 64)
    torch.testing.assert_close(create_model(EMBEDDED, path)(image), model(image))
    save_checkpoint(model, path)
    assert path.stat().st_size < 8_000_000
    half = create_model(EMBEDDED, path, fold=False)
    assert {p.dtype for p in half.parameters()} == {torch.float32}


def test_a_loaded_network_does_not_need_its_file_any_more(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    loaded = load(state, tmp_path)
    expected = loaded(torch.zeros(1, 3, 32, 32))["depth"]
    os.truncate(tmp_path / "weights.pt", 0)
    assert torch.equal(loaded(torch.zeros(1, 3, 32, 32))["depth"], expected)


def test_a_folded_network_is_not_saved(tmp_path: Path) -> None:
    folded = create_model(EMBEDDED, weights="random", fold=True)
    with pytest.raises(CheckpointError, match="fold=False"):
        save_checkpoint(folded, tmp_path / "weights.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_training_file_gives_its_model(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": state, "optimizer": {"step": 3}, "epoch": 7}, tmp_path / "last.pt")
    assert read_tensors(tmp_path / "last.pt").keys() == state.keys()


def test_batch_counters_may_be_absent(state: dict[str, Tensor], tmp_path: Path) -> None:
    weights = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    assert len(weights) < len(state)
    assert load(weights, tmp_path).state_dict().keys() == state.keys()


def test_missing_and_left_over_keys_are_listed(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state["encoder.cls_token"]
    state["encoder.surprise"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as refused:
        load(state, tmp_path)
    assert refused.value.missing == ("encoder.cls_token",)
    assert refused.value.unexpected == ("encoder.surprise",)
    assert "1 missing: encoder.cls_token; 1 unexpected: encoder.surprise" in str(refused.value)
    assert "weights.pt is not a checkpoint of dpt_hybrid_embedded" in str(refused.value)


def test_a_wrong_shape_is_named_with_both_shapes(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["encoder.pos_embed"] = torch.zeros(1, 577, 160)
    with pytest.raises(CheckpointError, match=r"pos_embed \(1, 577, 160\) instead of \(1, "):
        load(state, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(
    value: float, state: dict[str, Tensor], tmp_path: Path
) -> None:
    state["depth_head.conv3.bias"].fill_(value)
    with pytest.raises(CheckpointError, match=r"1 with NaN or infinity: depth_head\.conv3\.bias"):
        load(state, tmp_path)


def test_a_checkpoint_of_another_network_is_refused_with_short_and_full_lists() -> None:
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in key_list("depth_base").items()}
    with pytest.raises(CheckpointError) as refused:
        filter_state_dict(tensors, skeleton("dpt_hybrid_midas"), "base.pt")
    assert "more" in str(refused.value)
    assert len(str(refused.value)) < 2500
    assert any(key.startswith("encoder.resnet.") for key in refused.value.missing)
    assert "pretrained.act_postprocess1.3.weight" in refused.value.unexpected
    assert "scratch.layer1_rn.weight" in refused.value.misshapen


def test_a_readout_without_projection_refuses_the_published_one() -> None:
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in key_list("depth_base").items()}
    with pytest.raises(CheckpointError) as refused:
        filter_state_dict(tensors, skeleton("dpt_base_midas", readout="ignore"))
    assert len(refused.value.unexpected) == 8
    assert not refused.value.missing
    assert all(".0.project.0." in key for key in refused.value.unexpected)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_single_loss_or_addition_is_noticed(model: DPT, data: st.DataObject) -> None:
    state = dict(model.state_dict())
    keys = [key for key in state if not key.endswith("num_batches_tracked")]
    key = data.draw(st.sampled_from(keys))
    if data.draw(st.booleans()):
        del state[key]
        expected = (key,), ()
    else:
        extra = f"{key}{data.draw(st.text(min_size=1, max_size=5))}"
        state[extra] = torch.zeros(1)
        expected = (), (extra,)
    with pytest.raises(CheckpointError) as refused:
        filter_state_dict(state, model)
    assert (refused.value.missing, refused.value.unexpected) == expected


class Program:
    """What a malicious file unpickles to: a call of any function."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT)


def test_a_pickle_with_a_program_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "it-ran"
    torch.save({"weight": Program(trace)}, path)
    with pytest.raises(CheckpointError, match="more than tensors, which is refused"):
        create_model(EMBEDDED, path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"PK\x03\x04 cut", b"\x80\x02}q", bytes(100)]
)
def test_files_that_are_no_checkpoints_are_refused(
    suffix: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a checkpoint that can be read safely"):
        create_model(EMBEDDED, path)


def test_a_truncated_checkpoint_is_refused(model: DPT, tmp_path: Path) -> None:
    for path in (tmp_path / "weights.pt", tmp_path / "weights.safetensors"):
        if path.suffix == ".pt":
            torch.save(model.state_dict(), path)
        else:
            safetensors.torch.save_file(model.state_dict(), path)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(CheckpointError, match="is not a checkpoint that can be read safely"):
            create_model(EMBEDDED, path)


def saved(form: str) -> bytes:
    """A small file of tensors: safetensors, or PyTorch's zip or older pickle."""
    tensors = {"weight": torch.arange(3.0), "bias": torch.zeros(2, dtype=torch.float16)}
    if form == "safetensors":
        return safetensors.torch.save(tensors)
    buffer = io.BytesIO()
    torch.save(tensors, buffer, _use_new_zipfile_serialization=form == "zip")
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["safetensors", "zip", "pickle"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_damage_gives_tensors_or_a_refusal_and_nothing_else(
    form: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(saved(form))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{form}"
    path.write_bytes(content)
    try:
        tensors = read_tensors(path)
    except CheckpointError:
        return
    assert all(isinstance(value, Tensor) for value in tensors.values())


@pytest.mark.parametrize("content", [[1, 2], {"weight": 3}, {"optimizer": {}}, torch.zeros(2)])
def test_files_without_named_tensors_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="holds something else than named tensors"):
        create_model(EMBEDDED, tmp_path / "weights.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no checkpoint file .*nowhere\.pt"):
        create_model(EMBEDDED, tmp_path / "nowhere.pt")
