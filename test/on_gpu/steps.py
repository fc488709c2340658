# SPDX-License-Identifier: Apache-2.0
"""The steps of scripts/gpu after the first: each in its own process, a row for each check.

``small`` is the rehearsal on a CPU: the same checks with tiny sizes and the host's streams.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.places import TEST
from on_gpu.checks import (
    EVERYTHING,
    attempt,
    difference,
    networks_of,
    predictions,
    require,
    run_tests,
    runner_of,
    settings_of,
    without,
    worst,
)

from dpt_ros.apps.bench import parse
from dpt_ros.apps.bench.network import engine, engine_row
from dpt_ros.apps.bench.network.frames import PERIOD_NS, Cameras, run_through, take, times_of
from dpt_ros.apps.child_process import emit
from dpt_ros.apps.report import GpuWatch
from dpt_ros.engine.frame import OutputRequest
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.host import HostRunner
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.scale.anchors import Anchors

_RAW = {"smoothing_strength": 0.0, "scale_source": "none"}
_INVERSE = OutputRequest(depth=False, inverse=True, labels=True)


# 2 and 3


def kernel_tests(small: bool, out: str) -> None:
    """The tests that need a GPU: kernels, fused networks, preprocessing."""
    files = (
        "engine/inference/test_kernels.py",
        "engine/inference/test_gpu_modules.py",
        "engine/input/test_device_preprocess.py",
        "engine/smoothing/test_triton_steps.py",
    )
    words = ["-m", "gpu"]
    if small:
        without("hypothesis", "rclpy")
        files, words = files[::2], ["-k", "refused"]
    attempt("tests", partial(run_tests, *words, *(str(TEST / name) for name in files)))


def runner_tests(small: bool, out: str) -> None:
    """The tests of the runner that need a GPU; and which modes never wait for the device."""
    files = [f"engine/runner/test_{name}.py" for name in ("host", "host_faults", "host_metric")]
    words = ["-m", "gpu", "-k", "not ten_thousand"]  # a shorter one is in ``course``
    if small:
        files, words = files[:1], ["-k", "one_over_its_metres"]
    for mode, (changes, outputs, count) in _MODES.items():
        attempt(f"no wait: {mode}", partial(_no_wait, small, changes, outputs, count))
    attempt("tests", partial(run_tests, *words, *(str(TEST / name) for name in files)))


_MODES: dict[str, tuple[dict[str, Any], OutputRequest, int]] = {
    "as predicted": (_RAW, _INVERSE, 1),
    "default": ({}, OutputRequest(), 1),
    "default, batch of 2": ({}, OutputRequest(), 2),
    "no graphs": ({"cuda_graphs": False}, OutputRequest(), 1),
    "everything": ({}, replace(EVERYTHING, deviation=True, points=True), 1),
    "two networks": ({"label_weights": "random"}, OutputRequest(), 1),
}


def _no_wait(
    small: bool, changes: dict[str, Any], outputs: OutputRequest, count: int
) -> dict[str, Any]:
    settings = settings_of(small, **changes)
    notes: list[str] = []
    runner = runner_of(networks_of(settings), settings, notes)
    cameras = Cameras(count, 48, 64)
    for number in range(6):
        take(runner.start(cameras.frames(number), outputs, settings))
    for number in range(6, 9):
        with _waits_are_errors(small):
            ticket = runner.start(cameras.frames(number), outputs, settings)
        take(ticket)
    require(not notes, " ".join(notes))
    return {}


@contextmanager
def _waits_are_errors(small: bool) -> Iterator[None]:
    if small:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# 4


def default_frame(small: bool, out: str) -> None:
    """What a node with default settings does: its first frames, latency, throughput."""
    two = {"depth_network": "dpt_hybrid_midas", "label_network": "dpt_hybrid_ade20k"}
    two |= {"depth_weights": "random", "label_weights": "random"}
    sizes: list[tuple[int, int]] = [(480, 640), (1080, 1920)]
    cases: list[tuple[str, dict[str, Any], int, tuple[int, int], int]]
    if small:
        two = {"label_weights": "random"}
        cases = [("one network", {}, 1, (48, 64), 3), ("two networks", two, 2, (48, 64), 3)]
    else:
        cases = [("one network", {}, n, size, 200) for size in sizes for n in (1, 2, 4)]
        cases += [("one network, as predicted", dict(_RAW), 1, sizes[0], 200)]
        cases += [("one network, no graphs", {"cuda_graphs": False}, 1, sizes[0], 100)]
        cases += [("two networks", two, n, sizes[0], 100) for n in (1, 4)]
    loaded: dict[str, Any] = {}
    for name, changes, count, size, frames in cases:
        about = {"cameras": count, "height": size[0], "width": size[1]}
        work = partial(_times, small, loaded, changes, Cameras(count, *size), frames)
        attempt(name, work, **about)


def _times(
    small: bool, loaded: dict[str, Any], changes: dict[str, Any], cameras: Cameras, frames: int
) -> dict[str, Any]:
    settings = settings_of(small, **changes)
    begin = time.perf_counter()
    key = str(
        {name: value for name, value in changes.items() if "network" in name or "we" in name}
    )
    if key not in loaded:
        loaded.clear()
        gc.collect()
        loaded[key] = networks_of(settings)
    networks = loaded[key]
    load = time.perf_counter() - begin
    notes: list[str] = []
    runner = runner_of(networks, settings, notes)
    metric = networks.metric and settings.scale_source != "none"
    outputs = OutputRequest(depth=metric, inverse=not metric, labels=True)
    with GpuWatch() as watch:
        times = times_of(runner, cameras, outputs, settings, frames)
    memory = {} if small else {"memory (MiB)": torch.cuda.memory_reserved() >> 20}
    return {"load (s)": load, **times, **memory, "gpu": watch.means, "notes": notes}


# 5


def precision(small: bool, out: str) -> None:
    """The embedded network's own weights: half precision beside single, a GPU beside the CPU."""
    settings = settings_of(small, precision="fp32", smoothing_strength=0.0)
    cameras = Cameras(1, *((48, 64) if small else (480, 640)))
    numbers = range(0, 4 if small else 24, 3)
    runner = runner_of(networks_of(settings), settings)
    exact = [predictions(runner, cameras.frames(n), EVERYTHING, settings)[0] for n in numbers]

    def beside(make: Callable[[], Any]) -> dict[str, Any]:
        other, own = make()
        found = [predictions(other, cameras.frames(n), EVERYTHING, own)[0] for n in numbers]
        apart = worst([difference(one, two) for one, two in zip(found, exact, strict=True)])
        require(apart["AbsRel"] < 0.02, f"too far apart: {apart}")
        require(apart["labels equal"] > 0.98, f"labels too far apart: {apart}")
        return apart

    def on_device(word: str) -> tuple[StreamRunner, Any]:
        own = replace(settings, precision=word)
        return runner_of(networks_of(own), own), own

    def on_host() -> tuple[HostRunner, Any]:
        own = replace(settings, device="cpu")
        return HostRunner(networks_of(own), own), own

    for word in ("bf16",) if small else ("fp16", "bf16"):
        attempt(f"{word} beside fp32", partial(beside, partial(on_device, word)))
    attempt("fp32 on the CPU beside the device", partial(beside, on_host))


# 6


def graphs(small: bool, out: str) -> None:
    """Replayed graphs beside kernels launched one by one; many kinds; full memory."""
    for name, changes in (("as predicted", {"smoothing_strength": 0.0}), ("default", {})):
        attempt(f"replay beside eager: {name}", partial(_replayed, small, changes))
    attempt("ten kinds in turn", partial(_ten_kinds, small))
    attempt("full memory", partial(_full_on_host if small else _full, small))


def _replayed(small: bool, changes: dict[str, Any]) -> dict[str, Any]:
    settings = settings_of(small, **changes)
    networks, notes = networks_of(settings), list[str]()
    replaying = runner_of(networks, settings, notes)
    eager = runner_of(networks, replace(settings, cuda_graphs=False), notes)
    cameras = Cameras(1, *((48, 64) if small else (480, 640)))
    apart = []
    for number in range(8):
        pair = [
            predictions(runner, cameras.frames(number), EVERYTHING, settings)[0]
            for runner in (replaying, eager)
        ]
        apart.append(difference(*pair))
    require(not notes, " ".join(notes))
    require(worst(apart)["p99"] < 1e-3, f"too far apart: {worst(apart)}")
    return worst(apart)


def _ten_kinds(small: bool) -> dict[str, Any]:
    settings = settings_of(small, smoothing_strength=0.0)
    networks, notes = networks_of(settings), list[str]()
    runner = runner_of(networks, settings, notes)
    eager = runner_of(networks, replace(settings, cuda_graphs=False), notes)
    side = 48 if small else 240
    kinds = [Cameras(1, side, side + 16 + 8 * k) for k in range(10)]
    apart = []
    for turn in range(2):
        for kind in kinds:
            for number in range(3):  # the third is of a graph
                frame = kind.frames(3 * turn + number)
                found = predictions(runner, frame, EVERYTHING, settings)[0]
            apart.append(difference(found, predictions(eager, frame, EVERYTHING, settings)[0]))
    require(not notes, " ".join(notes))
    require(worst(apart)["p99"] < 1e-3, f"too far apart: {worst(apart)}")
    return worst(apart)


def _full(small: bool) -> dict[str, Any]:
    """Too little memory for a large frame, then enough again."""
    settings = settings_of(small, smoothing_strength=0.0)
    notes: list[str] = []
    runner = runner_of(networks_of(settings), settings, notes)
    cameras, large = Cameras(1, 480, 640), Cameras(1, 3000, 4000)
    expected = predictions(runner, cameras.frames(0), EVERYTHING, settings)[0]
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / total)
    refused = ""
    try:
        predictions(runner, large.frames(0), EVERYTHING, settings)
    except torch.OutOfMemoryError as error:
        refused = str(error).splitlines()[0]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    require(bool(refused), "a frame of 12 megapixels fitted into 64 MiB")
    for number in range(4):
        predictions(runner, large.frames(number), EVERYTHING, settings)
        found = predictions(runner, cameras.frames(0), EVERYTHING, settings)[0]
    apart = difference(found, expected)
    require(apart["p99"] < 1e-3, f"different afterwards: {apart}")
    return {"refused": refused, "notes": notes, **apart}


class _Full(Streams):
    """The host's streams, on which memory runs out when the first graph is captured."""

    full = True

    def capture(self, work: Any) -> Any:
        if self.full:
            self.full = False
            raise torch.OutOfMemoryError("full")
        return super().capture(work)


def _full_on_host(small: bool) -> dict[str, Any]:
    settings = settings_of(small, smoothing_strength=0.0)
    notes: list[str] = []
    runner = runner_of(networks_of(settings), settings, notes, _Full())
    cameras = Cameras(1, 48, 64)
    found = [predictions(runner, cameras.frames(0), EVERYTHING, settings)[0] for _ in range(5)]
    apart = difference(found[-1], found[0])
    require(apart["p99"] < 1e-3, f"different afterwards: {apart}")
    require(len(notes) == 1, f"not one note of it: {notes}")
    return {"notes": notes, **apart}


# 7


def course(small: bool, out: str) -> None:
    """What happens on the way: anchors, another size, a reset, and many frames."""
    for name, work in (
        ("anchors", _anchors),
        ("another size, then a reset", _size_and_reset),
        ("many frames", _many),
    ):
        attempt(name, partial(work, small))


def _anchors(small: bool) -> dict[str, Any]:
    settings = settings_of(small)
    networks = networks_of(settings)
    height, width = (48, 64) if small else (480, 640)
    (frame,) = Cameras(1, height, width).frames(0)
    raw = predictions(runner_of(networks, settings), [frame], EVERYTHING, settings)[0]
    v, u = (a.ravel() for a in np.mgrid[8 : height - 8 : 8, 4 : width - 4 : width // 16])
    metres = (1.5 * raw.depth[v, u]).astype("f4")
    runner, ratios = runner_of(networks, settings), []
    for number in range(6):
        stamp = frame.stamp_ns + number * PERIOD_NS
        scan = Anchors(u.astype("f4"), v.astype("f4"), metres, stamp, width, height)
        seen = replace(frame, stamp_ns=stamp, anchors=scan)
        found = predictions(runner, [seen], EVERYTHING, settings)[0]
        ratios.append(float(np.median(found.depth / raw.depth)))
    require(1.3 < ratios[-1] < 1.6, f"1.5 times the depth became {ratios}")
    return {"ratios": ratios, **found.scale}


def _size_and_reset(small: bool) -> dict[str, Any]:
    settings = settings_of(small)
    runner = runner_of(networks_of(settings), settings)
    sizes = [(48, 64), (60, 96)] if small else [(480, 640), (720, 1280)]
    resets = []
    for turn, size in enumerate((sizes[0], sizes[1], sizes[0])):
        cameras = Cameras(1, *size)
        for number in range(4):
            frame = cameras.frames(4 * turn + number)
            found = predictions(runner, frame, EVERYTHING, settings)[0]
            require(found.depth.shape == size, f"{found.depth.shape} instead of {size}")
            resets.append(found.reset)
    runner.reset()
    resets.append(predictions(runner, cameras.frames(99), EVERYTHING, settings)[0].reset)
    began = [bool(resets[k]) for k in (0, 4, 8, 12)]
    require(all(began), f"the past was kept over a change: {resets}")
    require(resets[12] == "first frame", f"a reset was {resets[12]!r}")
    return {"resets": resets}


def _many(small: bool) -> dict[str, Any]:
    """Memory before and after many default frames, three on their way at a time."""
    settings = settings_of(small)
    runner = runner_of(networks_of(settings), settings)
    cameras = Cameras(1, *((48, 64) if small else (480, 640)))
    count = 20 if small else 2000

    def run(first: int, last: int) -> None:
        batches = (cameras.frames(number) for number in range(first, last))
        run_through(runner, batches, OutputRequest(), settings)

    run(0, 20)
    before, begin = _memory(small), time.perf_counter()
    run(20, 20 + count)
    spent, after = time.perf_counter() - begin, _memory(small)
    grown = {name: after[name] - before[name] for name in before}
    require(grown.get("allocated", 0) == 0, f"memory grew by {grown} bytes")
    require(grown.get("reserved", 0) == 0, f"memory grew by {grown} bytes")
    require(grown["host"] < 64 << 20, f"memory of the host grew by {grown} bytes")
    return {"frames": count, "per second": count / spent, "grown": grown}


def _memory(small: bool) -> dict[str, int]:
    """Bytes; of the host the most that there were."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    if small:
        return {"host": host}
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    return {"host": host, "allocated": allocated, "reserved": reserved}


# 8


def bench(small: bool, out: str) -> None:
    """``dpt_bench engine``, whose rows have processes of their own; this one touches no GPU."""
    words = ["--tasks", "depth", "--sizes", "384x384", "--rounds", "100", "--warm-up", "20"]
    words += ["--paced-rounds", "0", "--cameras", "--timeout", "40", "--arms", "plain fp32"]
    words += ["plain fp16", "ours, no graph", "ours", "ours, from host"]
    words += ["--rehearse", "--device", "cpu"] if small else []
    for row in engine.measured(parse(["engine", *words]), Path(out), "fork"):
        emit(row)


# 9


def trace(small: bool, out: str) -> None:
    """Three default frames under the profiler; nothing may be timed after it."""
    picture = (48, 64) if small else (480, 640)
    settings = {"device": "cpu", "input_width": 64, "input_height": 48} if small else {}
    settings = {"device": "cuda", **settings}
    work = partial(engine_row.trace, settings, 1, picture, Path(out) / "trace.json")
    attempt("three default frames", work)
