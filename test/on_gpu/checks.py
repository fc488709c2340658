# SPDX-License-Identifier: Apache-2.0
"""What the steps of scripts/gpu are made of: checks that fail alone, runners, tests."""

from __future__ import annotations

import os
import sys
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from dpt_ros.apps.bench.network.frames import take
from dpt_ros.apps.child_process import emit
from dpt_ros.engine.frame import Frame, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.loading import load_networks
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.host import Runner
from dpt_ros.engine.runner.streams import CudaStreams, Streams
from dpt_ros.engine.settings import Settings

ARRAYS = ("depth", "inverse", "labels", "confidence", "deviation", "points")
EVERYTHING = OutputRequest(depth=True, inverse=True, labels=True, confidence=True)


def attempt(name: str, work: Callable[[], dict[str, Any] | None], **about: Any) -> None:
    """Run a check and emit what it found, or how it failed; the next one runs in any case."""
    row: dict[str, Any] = {"check": name, **about, "error": None}
    begin = time.perf_counter()
    try:
        row |= work() or {}
    except Exception as error:  # it is reported, and counted as a failure
        row["error"] = f"{type(error).__name__}: {str(error)[:500]}"
        row["log"] = traceback.format_exc().splitlines()[-12:]
    emit(row | {"seconds": time.perf_counter() - begin})


def settings_of(small: bool, **changes: Any) -> Settings:
    """The node's defaults on this machine's GPU, or tiny on the CPU."""
    sizes = {"device": "cpu", "input_width": 64, "input_height": 48} if small else {}
    return Settings(**{"device": "cuda", **sizes, **changes})


def networks_of(settings: Settings) -> Networks:
    """The networks, in one thread on a CPU."""
    if settings.device == "cpu":
        torch.set_num_threads(1)
    return load_networks(settings)


def runner_of(
    networks: Networks,
    settings: Settings,
    notes: list[str] | None = None,
    streams: Streams | None = None,
) -> StreamRunner:
    """The runner of a GPU; on a CPU with the host's streams."""
    if streams is None:
        on_gpu = networks.device.type == "cuda"
        streams = CudaStreams(networks.device) if on_gpu else Streams()
    return StreamRunner(networks, settings, streams, (notes if notes is not None else []).append)


def predictions(
    runner: Runner, frames: list[Frame], outputs: OutputRequest, settings: Settings
) -> list[Prediction]:
    """What comes of frames, with arrays of their own."""
    return [
        replace(
            one,
            **{
                name: np.array(array)
                for name in ARRAYS
                if (array := getattr(one, name)) is not None
            },
        )
        for one in take(runner.start(frames, outputs, settings))
    ]


def difference(found: Prediction, expected: Prediction) -> dict[str, float]:
    """How far two predictions of a frame are apart: relative, of the depth; share of labels."""
    depth, truth = found.depth.astype(np.float64), expected.depth.astype(np.float64)
    same = np.isfinite(truth) == np.isfinite(depth)
    both = np.isfinite(truth) & np.isfinite(depth)
    error = np.abs(depth[both] - truth[both]) / truth[both]
    return {
        "AbsRel": float(error.mean()),
        "p99": float(np.quantile(error, 0.99)),
        "largest": float(error.max()),
        "finite alike": float(same.mean()),
        "labels equal": float((found.labels == expected.labels).mean()),
    }


def worst(found: list[dict[str, float]]) -> dict[str, float]:
    """The worst of each over some frames."""
    least = ("finite alike", "labels equal")
    return {k: (min if k in least else max)(one[k] for one in found) for k in found[0]}


def require(condition: bool, message: str) -> None:
    """Fail the check that calls this."""
    if not condition:
        raise AssertionError(message)


class _Tell:
    """Tells of each test when it is over."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.slowest: list[tuple[float, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
            self.slowest.append((report.duration, report.nodeid))
        if report.failed:
            self._failed(report)
        elif report.when == "call":
            emit({"check": report.nodeid, "error": None, "seconds": report.duration})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.counts["failed"] += 1
            self._failed(report)

    def _failed(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        lines = report.longreprtext.splitlines()
        told = [line for line in lines if line.startswith("E ")] or lines
        emit({"check": report.nodeid, "error": told[0][:500], "log": lines[-25:]})


def run_tests(*words: str) -> dict[str, Any]:
    """Run tests of this project; their failures are emitted one by one."""
    _stand_in_for_hypothesis()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # ROS and hypothesis bring some
    tell = _Tell()
    code = pytest.main([*words, "-p", "no:cacheprovider", "-q", "--tb=short"], plugins=[tell])
    require(code in (0, 1), f"pytest ended with {code!r}")
    tell.slowest.sort(reverse=True)
    slowest = {name: round(seconds, 2) for seconds, name in tell.slowest[:5]}
    require(tell.counts["passed"] > 0, f"no test passed: {dict(tell.counts)}")
    return {**tell.counts, "slowest": slowest}


def _stand_in_for_hypothesis() -> None:
    """Let test files be read where hypothesis is not installed; its tests are not on a GPU."""
    if find_spec("hypothesis") is not None and "hypothesis" not in _ABSENT:
        return
    module: Any = types.ModuleType("hypothesis")
    module.given = module.settings = lambda *_, **__: lambda test: test
    module.strategies = MagicMock()
    module.assume = module.example = module.note = MagicMock()
    sys.modules |= {"hypothesis": module, "hypothesis.strategies": module.strategies}


_ABSENT: set[str] = set()


def without(*names: str) -> None:
    """Hide packages from this process, as if they were not installed."""
    _ABSENT.update(names)
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]
