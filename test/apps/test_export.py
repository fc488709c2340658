# SPDX-License-Identifier: Apache-2.0
"""dpt_export: a file of dpt_train written, described and compared."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from dpt_ros.apps.export import main
from dpt_ros.data.onnx_metadata import read_metadata
from dpt_ros.model import create_model
from dpt_ros.model.describe import describe

for _package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(_package)

NAME = "dpt_hybrid_embedded"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as dpt_train writes it, of a network whose depth has no metres."""
    path = tmp_path_factory.mktemp("trained") / "mine.safetensors"
    model = create_model(NAME, fold=False, invert=False, scale=1.0, shift=0.0)
    save_file(model.state_dict(), path, describe(model.spec))
    return path


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    out = trained.with_suffix(".onnx")
    small = ["--batch", "1", "--size", "64x96", "--threads", "1"]
    assert main([str(trained), str(out), *small]) == 0
    return out


def test_a_trained_file_is_exported_with_its_own_description(
    trained: Path, exported: Path
) -> None:
    found = {key: json.loads(value) for key, value in read_metadata(exported).items()}
    assert found["dpt_ros.network"] == NAME
    assert not found["dpt_ros.spec"]["metric"]
    digest = hashlib.sha256(trained.read_bytes()).hexdigest()
    assert found["dpt_ros.source"] == {"weights": "mine.safetensors", "sha256": digest}


def test_an_existing_file_is_compared_and_a_difference_is_exit_code_1(
    trained: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = exported.read_bytes()
    command = [str(exported), "--parity-only", "--threads", "1"]
    assert main([str(trained), *command]) == 0
    out = capsys.readouterr().out
    assert "1      64      96" in out
    assert "equal." in out
    assert main([NAME, *command, "--weights", "random"]) == 1
    assert "1 of 1 shapes differ by more" in capsys.readouterr().out
    assert exported.read_bytes() == before


def test_a_frame_is_exported_and_compared_with_the_camera_it_is_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "frame.onnx")
    frame = [NAME, out, "--frame", "--encoding", "nv12", "--size", "48x64", "--threads", "1"]
    assert main([*frame, "--image-size", "60x80", "--parity"]) == 0
    assert "3 frames" in capsys.readouterr().out
    assert main([*frame, "--image-size", "60x90", "--parity-only"]) == 1
    assert "is for nv12, pixels (90, 80), batch 1: give" in capsys.readouterr().err
    assert main([NAME, out, "--step", "--parity-only"]) == 1
    assert "is not a step, but a frame" in capsys.readouterr().err
    assert main([NAME, out, "--parity-only"]) == 1
    assert "cannot be used as a network: it is a frame" in capsys.readouterr().err
    assert main([*frame, "-p", "label_groups:=['no: zebra']"]) == 1
    assert "zebra" in capsys.readouterr().err
    assert main([*frame, "-p", "no.such:=1"]) == 1
    assert "Unknown parameter 'no.such'" in capsys.readouterr().err


def test_a_file_that_does_not_name_its_network_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plain.safetensors"
    save_file(create_model(NAME).state_dict(), path)
    assert main([str(path), str(tmp_path / "a.onnx")]) == 1
    assert f"give the network's name, and --weights {path}" in capsys.readouterr().err


def test_an_interruption_is_exit_code_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dpt_ros.apps.export.command.export_network", stop)
    assert main([NAME, str(tmp_path / "a.onnx")]) == 130
    assert "interrupted" in capsys.readouterr().err
