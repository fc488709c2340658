# SPDX-License-Identifier: Apache-2.0
"""A network exported once computes at any batch and size what PyTorch computes."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.places import ROOT

from dpt_ros.data import class_names, palette
from dpt_ros.engine.export.compare import TOLERANCES, Difference, _difference, compare_network
from dpt_ros.engine.export.file import ExportError, read_metadata
from dpt_ros.engine.export.network import export_network, network_metadata, outputs_of, spec_of
from dpt_ros.model import create_model
from dpt_ros.model.zoo import ZOO

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

NAME = "dpt_hybrid_embedded"
# What TensorRT cannot compile, or can only with data-dependent sizes.
UNWANTED = {"If", "Loop", "Scan", "NonZero", "Where", "Unique", "Compress", "SequenceConstruct"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded network, exported once with open batch and size."""
    path = tmp_path_factory.mktemp("export") / "embedded.onnx"
    export_network(create_model(NAME), path, source={"sha256": "0" * 64})
    return path


def test_one_file_gives_pytorch_s_depth_and_labels_at_ten_other_shapes(path: Path) -> None:
    tolerance = TOLERANCES["fp32"]
    found = list(compare_network(path, create_model(NAME), tolerance))
    assert len({one.shape for one in found}) > 10
    assert {one.shape[0] for one in found} >= {1, 2, 3, 4, 5}
    assert max(one.inverse_depth for one in found) < tolerance
    assert max(one.depth for one in found) < tolerance
    assert max(one.logits for one in found) < tolerance
    assert {one.clear_labels for one in found} == {1.0}
    assert all(one.within(tolerance) for one in found)


def test_the_comparison_sees_another_network(path: Path) -> None:
    model = create_model(NAME)
    with torch.no_grad():
        model.label_head.classify.bias[3] += 1
        model.depth_head.conv3.bias += 0.01
    one = next(compare_network(path, model, 1e-4))
    assert min(one.inverse_depth, one.logits) > 1e-3
    assert not one.within(1e-4)


def test_labels_may_differ_only_where_two_logits_tie() -> None:
    logits = torch.tensor([[1.0, 0.5], [0.9, 0.49995]])[None, :, None]
    other = logits.flip(1)
    both = _difference((1, 1, 2), {"labels": (other, logits)}, False, 1e-4)
    assert (both.labels, both.clear_labels) == (0.0, 0.0)
    tied = other.clone()
    tied[..., 0] = logits[..., 0]
    one = _difference((1, 1, 2), {"labels": (tied, logits)}, False, 1e-4)
    assert (one.labels, one.clear_labels) == (0.5, 1.0)
    assert one.within(1e-4)


def test_not_a_number_is_within_no_tolerance() -> None:
    depth = torch.ones(1, 2, 2)
    nan = _difference((1, 2, 2), {"depth": (depth * float("nan"), depth)}, True, 1e-4)
    assert not nan.within(1e-4)
    assert Difference((1, 2, 2), inverse_depth=1e-5, depth=2.9e-4).within(1e-4)
    assert not Difference((1, 2, 2), inverse_depth=1e-5, depth=3.1e-4).within(1e-4)


def test_the_graph_has_no_branch_no_loop_and_no_double(path: Path) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    kinds = Counter(node.op_type for node in graph.node)
    assert not UNWANTED & kinds.keys()
    assert kinds["Conv"] > 50
    assert {node.domain for node in graph.node} == {""}
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.type.tensor_type.elem_type for value in values}
    types |= {tensor.data_type for tensor in graph.initializer}
    assert types == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    (images,) = graph.input
    sides = [side.dim_param or side.dim_value for side in images.type.tensor_type.shape.dim]
    assert sides == ["batch", 3, "16*height", "16*width"]


def test_a_file_describes_its_network(path: Path) -> None:
    spec, row = spec_of(path), ZOO[NAME]
    assert replace(spec, class_names=row.class_names) == row
    assert class_names(spec.class_names) == class_names(row.class_names)
    assert (palette(spec.class_names) == palette(row.class_names)).all()
    metadata = {key: json.loads(value) for key, value in read_metadata(path).items()}
    assert metadata["dpt_ros.kind"] == "network"
    assert metadata["dpt_ros.network"] == NAME
    assert metadata["dpt_ros.source"] == {"sha256": "0" * 64}
    described = metadata["dpt_ros.spec"]
    assert described["mean"] == described["std"] == [0.5, 0.5, 0.5]
    assert described["metric"]
    assert described["multiple_of"] == 16
    assert len(described["classes"]) == 10


def test_the_example_of_the_docs_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(path.parent)
    exec(code, {})
    shape, name = capsys.readouterr().out.rsplit(maxsplit=1)
    assert shape == "(240, 320)"
    assert name in class_names("labels_world.json")


def test_half_precision_has_half_weights_float_in_and_outputs_and_close_results(
    tmp_path: Path,
) -> None:
    path = tmp_path / "half.onnx"
    export_network(create_model(NAME), path, precision="fp16", batch=2, size=(96, 128))
    graph = onnx.load(path).graph
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    single = [one for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
    # The last convolution of the depth head, and scale and shift behind it.
    assert sum(len(one.raw_data) // 4 for one in single) < 40
    (found,) = compare_network(path, create_model(NAME), TOLERANCES["fp16"])
    assert found.shape == (2, 96, 128)
    assert found.within(TOLERANCES["fp16"])
    assert 1e-5 < found.inverse_depth < 2e-3


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "a.onnx", create_model(NAME)
    with pytest.raises(ExportError, match=r"100x320, but .* multiples of 16; .* is 96x320"):
        export_network(model, path, size=(100, 320))
    with pytest.raises(ExportError, match="batch is 0"):
        export_network(model, path, batch=0)
    with pytest.raises(ExportError, match="precision is 'fp8', but must be fp32 or fp16"):
        export_network(model, path, precision="fp8")
    with pytest.raises(ExportError, match="must be float32, on the CPU, in eval mode"):
        outputs_of(model.half(), "fp32")
    assert not path.exists()


def test_a_file_of_something_else_is_refused_as_a_network(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model = onnx.helper.make_model(onnx.helper.make_graph([], "nothing", [], []))

    def refusal(metadata: dict[str, str]) -> str:
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, path)
        with pytest.raises(ExportError, match="cannot be used as a network") as caught:
            spec_of(path)
        return str(caught.value)

    assert "not written by dpt_export" in refusal({})
    assert "it is a step" in refusal({"dpt_ros.kind": '"step"'})
    metadata = network_metadata(ZOO[NAME], None)
    described = json.loads(metadata["dpt_ros.spec"])
    wrong = json.dumps(described | {"multiple_of": -3})
    assert "multiple_of is -3" in refusal(metadata | {"dpt_ros.spec": wrong})
    assert "mean" in refusal(metadata | {"dpt_ros.spec": json.dumps(described | {"mean": []})})
