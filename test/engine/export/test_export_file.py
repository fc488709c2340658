# SPDX-License-Identifier: Apache-2.0
"""ONNX files are complete or not there, say what they are, and hold nothing of the machine."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.places import ROOT
from torch import Tensor, nn
from torch.export import Dim

from dpt_ros.data.onnx_metadata import read_metadata
from dpt_ros.engine.export import file

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

METADATA = {file.KIND: '"step"', file.FIELDS: json.dumps({"größe": [2, 3]})}


class Filter(nn.Module):
    """Two outputs of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(images).relu(), images.mean((1, 2))


def write(path: Path, module: nn.Module, **changes: object) -> None:
    arguments = {
        "inputs": ["images"],
        "outputs": ["edges", "means"],
        "dynamic_shapes": {"images": {0: Dim("batch"), 2: 32 * Dim("height")}},
        "metadata": METADATA,
    }
    file.write(module, (torch.zeros(2, 3, 64, 32),), path, **(arguments | changes))


@pytest.fixture(scope="module")
def module() -> Filter:
    torch.manual_seed(1)
    return Filter().eval()


@pytest.fixture(scope="module")
def path(module: Filter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "filter.onnx"
    write(path, module)
    return path


def test_a_file_has_the_names_given_and_runs_at_other_sizes(module: Filter, path: Path) -> None:
    images = torch.rand(3, 3, 96, 32)
    runs = file.open_session(path, threads=1)
    assert [one.name for one in runs.get_outputs()] == ["edges", "means"]
    assert runs.get_inputs()[0].shape == ["batch", 3, "32*height", 32]
    assert runs.get_outputs()[0].shape == ["batch", 4, "32*height", 32]
    with torch.no_grad():
        expected = module(images)
    for actual, want in zip(runs.run(None, {"images": images.numpy()}), expected, strict=True):
        np.testing.assert_allclose(actual, want, atol=1e-6)


def test_the_metadata_is_what_onnx_reads_and_needs_no_package(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(path)
    expected = {entry.key: entry.value for entry in model.metadata_props}
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert read_metadata(path) == expected == METADATA | {file.PRECISION: '"fp32"'}
    assert [(one.domain, one.version) for one in model.opset_import] == [("", file.OPSET)]
    assert model.producer_name == "dpt_ros"


def test_a_file_names_no_path_of_the_machine(path: Path) -> None:
    contents = path.read_bytes()
    for word in (str(ROOT), str(Path.home()), "site-packages", "stack_trace", ".py"):
        assert word.encode() not in contents


def test_weights_go_into_a_second_file_if_asked(
    module: Filter, path: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "filter.onnx"
    write(outside, module, external_data=True)
    weights = module.conv.weight.detach().numpy().tobytes()
    assert weights in path.read_bytes()
    assert weights not in outside.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["filter.onnx", "filter.onnx.data"]
    assert weights in (tmp_path / "filter.onnx.data").read_bytes()
    images = np.ones((1, 3, 32, 32), np.float32)
    results = (
        file.open_session(one, threads=1).run(None, {"images": images}) for one in (path, outside)
    )
    for inside, other in zip(*results, strict=True):
        np.testing.assert_array_equal(inside, other)


@pytest.mark.parametrize("reason", [KeyboardInterrupt, onnx.checker.ValidationError])
def test_an_interrupted_or_invalid_export_leaves_the_old_file_and_nothing_else(
    reason: type[BaseException], module: Filter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise reason

    monkeypatch.setattr(onnx.checker, "check_model", stop)
    target = tmp_path / "filter.onnx"
    target.write_bytes(b"old")
    with pytest.raises(reason):
        write(target, module, dynamic_shapes=None)
    assert os.listdir(tmp_path) == ["filter.onnx"]
    assert target.read_bytes() == b"old"


def test_an_export_prints_and_warns_nothing(
    module: Filter, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path / "filter.onnx", module, dynamic_shapes=None)
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_written_is_refused_before_the_work(
    module: Filter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("began")

    monkeypatch.setattr(torch.export, "export", work)
    with pytest.raises(FileNotFoundError, match=r"no/a\.onnx cannot be written: No such file"):
        write(tmp_path / "no" / "a.onnx", module)
    with pytest.raises(IsADirectoryError, match="cannot be written: it is a folder"):
        write(tmp_path, module)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="is not installed: pip install onnxscript"):
        write(tmp_path / "a.onnx", module)
    assert os.listdir(tmp_path) == []


def test_what_is_no_onnx_file_is_refused(path: Path, tmp_path: Path) -> None:
    contents, broken = path.read_bytes(), tmp_path / "broken.onnx"
    for wrong in (b"\x00", b"PK\x03\x04 a zip", b"<!doctype html>", contents[:-3], contents[:40]):
        broken.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"broken\.onnx is not a complete ONNX file"):
            read_metadata(broken)
