# SPDX-License-Identifier: Apache-2.0
"""OpenVINO computes what PyTorch computes."""

import subprocess
import sys

import pytest
import torch

from dpt_ros.engine.inference import openvino
from dpt_ros.engine.inference.backend import BackendError
from dpt_ros.engine.inference.openvino import OpenVinoModel
from dpt_ros.model import create_model

NAME = "dpt_hybrid_embedded"


def expected(model, images):
    with torch.inference_mode():
        features = model.features(images)
        depth, logits = model.depth_head(features), model.label_head(features)
        return {"inverse_depth": depth.reciprocal(), "logits": logits}


@pytest.fixture(scope="module")
def model():
    return create_model(NAME).requires_grad_(False)


@pytest.mark.parametrize(
    ("precision", "close", "agree", "sizes"),
    [("fp32", 1e-4, 1.0, ((240, 320), (64, 96), (240, 320))), ("bf16", 0.03, 0.97, ((96, 128),))],
)
def test_openvino_gives_the_same_depth_and_labels_at_every_shape(
    model, precision, close, agree, sizes
):
    pytest.importorskip("openvino")
    compiled = OpenVinoModel(model, precision, 1)
    kept = []
    # Maps of 15x20 pixels made OpenVINO 2026.4 crash in float32.
    for height, width in sizes:
        torch.manual_seed(1)
        images = torch.rand(1, 3, height, width) * 2 - 1
        actual, want = compiled(images), expected(model, images)
        assert actual["inverse_depth"].dtype == torch.float32
        error = (actual["inverse_depth"] - want["inverse_depth"]).abs() / want["inverse_depth"]
        assert error.mean() < close
        assert actual["logits"].shape == want["logits"].shape
        same = actual["logits"].argmax(1) == want["logits"].argmax(1)
        assert same.float().mean() >= agree - 1e-3
        kept.append((actual["logits"], actual["logits"].clone()))
    assert len(compiled._compiled) == len(set(sizes))
    compiled(torch.zeros_like(images))
    assert all(torch.equal(result, copy) for result, copy in kept), "overwritten later"


def test_signals_are_handled_after_networks_of_several_shapes_are_gone():
    pytest.importorskip("openvino")
    program = f"""
import signal, torch
from dpt_ros.engine.inference.openvino import OpenVinoModel
from dpt_ros.model import create_model
compiled = OpenVinoModel(create_model({NAME!r}).requires_grad_(False), "fp32", 1)
for width in 64, 96:
    compiled(torch.zeros(1, 3, 64, width))
del compiled
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr


def test_mistakes_are_refused(model):
    pytest.importorskip("openvino")
    with pytest.raises(BackendError, match="precision is fp16, but OpenVINO on this CPU"):
        OpenVinoModel(model, "fp16", 1)
    with pytest.raises(ValueError, match="threads"):
        OpenVinoModel(model, "fp32", -1)


def test_without_openvino_the_error_tells_how_to_install_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(openvino, "_core", openvino._core.__wrapped__)  # it knows one already
    with pytest.raises(ImportError, match="pip install openvino"):
        OpenVinoModel(model, "fp32", 1)
