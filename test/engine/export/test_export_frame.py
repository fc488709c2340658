# SPDX-License-Identifier: Apache-2.0
"""The frame as an ONNX file, in ONNX Runtime, against PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.docs_code import run_example
from helpers.networks import export_embedded
from torch import Tensor, nn

from dpt_ros.engine.export.compare import compare_frame
from dpt_ros.engine.export.file import SPEC, ExportError, read_metadata, write
from dpt_ros.engine.export.frame import FrameModule, all_outputs
from dpt_ros.engine.frame import Kind, OutputRequest
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.input.device_preprocess import DeviceInput
from dpt_ros.engine.input.encodings import ENCODINGS
from dpt_ros.engine.settings import Settings

SETTINGS = Settings(input_width=128, input_height=96, label_groups=("ways: floor",))
ENCODING, SHAPE = "bayer_rggb16", (90, 122)


def pixels_of(encoding: str, height: int, width: int, batch: int = 1) -> np.ndarray:
    row, random = ENCODINGS[encoding], np.random.default_rng(len(encoding))
    shape = (batch, round(height * row.planes), width, *([row.channels] if row.channels else []))
    if row.dtype is np.float32:
        values = random.uniform(-0.1, 1.1, shape).astype(np.float32)
        values[:, 0, :3] = np.array([np.nan, np.inf, -np.inf]).reshape(3, *[1] * (values.ndim - 3))
        return values
    return random.integers(0, np.iinfo(row.dtype).max, shape, row.dtype, endpoint=True)


@pytest.fixture(scope="module")
def networks() -> Networks:
    return export_embedded(SETTINGS)


@pytest.fixture(scope="module")
def kind(networks: Networks) -> Kind:
    return Kind(ENCODING, SHAPE, "uint16", all_outputs(networks, False))


@pytest.fixture(scope="module")
def frame_file(tmp_path_factory: pytest.TempPathFactory, networks: Networks, kind: Kind) -> Path:
    path = tmp_path_factory.mktemp("frame") / "frame.onnx"
    FrameModule(networks, kind, SETTINGS).write(path, batch=2)
    return path


def test_a_frame_comes_out_as_from_pytorch(
    frame_file: Path, networks: Networks, kind: Kind
) -> None:
    frames = [pixels_of(ENCODING, *SHAPE, batch=2), np.zeros((2, *SHAPE), np.uint16)]
    worst = compare_frame(frame_file, FrameModule(networks, kind, SETTINGS), frames)
    assert set(worst) == {"depth", "labels", "confidence"}
    assert worst["depth"] < 1e-4
    assert worst["labels"] == 0
    assert worst["confidence"] < 1e-3


def test_the_file_says_what_it_takes_and_gives(frame_file: Path, networks: Networks) -> None:
    spec = json.loads(read_metadata(frame_file)[SPEC])
    assert (spec["encoding"], spec["pixels"], spec["batch"]) == (ENCODING, list(SHAPE), 2)
    assert tuple(entry["name"] for entry in spec["classes"]) == networks.class_names
    assert "ways" in networks.class_names
    model = onnx.load(frame_file)
    assert not {node.op_type for node in model.graph.node} & {"If", "Loop", "Scan"}


def test_the_example_in_the_docs_runs(
    frame_file: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(frame_file.parent)
    run_example("deploy_step.md", "frame example")
    assert " m: " in capsys.readouterr().out


class AllInputs(nn.Module):
    """The conversions of all encodings to a network's input."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        spec = ((24, 32), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "cpu")
        self.inputs = [DeviceInput(name, shape, *spec) for name, shape in shapes.items()]

    def forward(self, *pixels: Tensor) -> list[Tensor]:
        return [
            convert(FrameModule.bits(one))
            for convert, one in zip(self.inputs, pixels, strict=True)
        ]


def test_an_encoding_of_every_layout_and_type_becomes_the_same_input(tmp_path: Path) -> None:
    names = {(row.layout, row.dtype, row.channels): name for name, row in ENCODINGS.items()}
    pixels = {name: pixels_of(name, 16, 22) for name in names.values()}
    assert len(pixels) == 12
    module = AllInputs({name: one.shape[1:] for name, one in pixels.items()}).eval()
    given = [torch.from_numpy(one) for one in pixels.values()]
    path, names = tmp_path / "inputs.onnx", [f"in_{name}" for name in pixels]
    write(module, tuple(given), path, inputs=names, outputs=list(pixels), metadata={},
          rewrite=False)  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, dict(zip(names, pixels.values(), strict=True)))
    for name, one, other in zip(pixels, found, module(*given), strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (OutputRequest(points=True), "cannot give points"),
        (OutputRequest(deviation=True), "--step"),
        (OutputRequest(depth=True), "ask for inverse"),
    ],
)
def test_what_a_file_cannot_give_is_refused(outputs: OutputRequest, message: str) -> None:
    relative = export_embedded(SETTINGS, invert=False)
    with pytest.raises(ExportError, match=message):
        FrameModule(relative, Kind("rgb8", (96, 128, 3), "uint8", outputs), SETTINGS)
