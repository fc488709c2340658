# SPDX-License-Identifier: Apache-2.0
"""Networks are exported once, for whoever asks first."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dpt_ros.engine.export import network
from dpt_ros.engine.export.network import exported
from dpt_ros.model import DPT
from dpt_ros.model.zoo import SMALL, ZOO

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
SPEC = replace(ZOO["Intel/dpt-large"], geometry=replace(SMALL, depth=6))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What is asked of the exporter, which takes its time here and writes a word."""
    asked: list[dict[str, Any]] = []

    def export(model: DPT, path: Path, **options: Any) -> None:
        asked.append(options)
        time.sleep(0.2)
        path.write_text("network")

    monkeypatch.setattr(network, "export_network", export)
    monkeypatch.setenv("DPT_ROS_CACHE", str(tmp_path / "cache"))
    return asked


def small(seed: int = 0, **fields: Any) -> DPT:
    torch.manual_seed(seed)
    return DPT(replace(SPEC, **fields)).eval()


def test_two_that_want_a_network_at_once_get_one_file(written) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda model: exported(model, "fp32"), [small(), small()])
    assert first == second
    assert first.read_text() == "network"
    assert first.name.startswith("Intel_dpt-large-fp32-")
    assert len(written) == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda: exported(small(1), "fp32"),
        lambda: exported(small(), "fp16"),
        lambda: exported(small(scale=2.0), "fp32"),
    ],
    ids=["weights", "precision", "scale"],
)
def test_what_makes_another_network_makes_another_file(written, other: Callable[[], Path]) -> None:
    assert exported(small(), "fp32") != other()
    assert len(written) == 2


def test_a_new_version_exports_anew(written, monkeypatch) -> None:
    first = exported(small(), "fp32")
    monkeypatch.setattr(network, "__version__", "99")
    assert exported(small(), "fp32") != first
    assert written[0]["source"]["sha256"] == written[1]["source"]["sha256"]


def test_random_weights_leave_one_file_however_often(written) -> None:
    first = exported(small(0), "fp32", random=True)
    assert exported(small(1), "fp32", random=True) == first
    assert len(written) == 2
