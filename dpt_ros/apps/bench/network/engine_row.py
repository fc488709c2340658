# SPDX-License-Identifier: Apache-2.0
"""One row of ``dpt_bench engine``, measured by a process that does nothing else.

So no arm has the memory, the libraries' choices or the profiler of another beside it, and one
that fails takes no other with it.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpt_ros.apps.bench.network.apart import emit
from dpt_ros.apps.bench.network.arms import ARMS, REFERENCE, TRANSFORMERS, Bench, Call, Case
from dpt_ros.apps.bench.network.frames import Cameras, take, times_of
from dpt_ros.apps.bench.network.roofline import copy_bandwidth, matmul_peak
from dpt_ros.apps.bench.network.rounds import interleave
from dpt_ros.apps.bench.network.trace import count_kernels, counts
from dpt_ros.apps.bench.report import summarize
from dpt_ros.engine.frame import OutputRequest
from dpt_ros.engine.inference.loading import load_networks
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.streams import CudaStreams, HostStreams
from dpt_ros.engine.settings import Settings

Row = dict[str, Any]


def measure(request: Row) -> None:
    """Measure what the request asks for and emit the row."""
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    emit(_KINDS[request["kind"]](request))


def peaks(request: Row) -> Row:
    """What this device reaches: one large matrix product in half precision, one large copy."""
    device = torch.device(request["device"])
    on_gpu = device.type == "cuda"
    half = torch.float16 if on_gpu else torch.float32
    side, size = (8192, 1 << 30) if on_gpu else (512, 1 << 22)
    return {
        "matmul (FLOP/s)": matmul_peak(device, half, side),
        "copy (B/s)": copy_bandwidth(device, size),
    }


def network(request: Row) -> Row:
    """One arm: its parity with the reference, its times, last its kernels."""
    device = torch.device(request["device"])
    task, height, width, batch = request["case"]
    case = Case(task, (height, width), batch)
    names = request["depth_network"], request["label_network"]
    bench = Bench(case, *names, request["weights"], device)
    arm, reference = request["arm"], Path(request["reference"])
    start = time.perf_counter()
    call = ARMS[arm](bench)
    found = {name: value.clone().cpu() for name, value in call().items()}
    row: Row = {"first (s)": time.perf_counter() - start, "parity": {}}
    if arm == REFERENCE:
        torch.save(found, reference)
    if arm != TRANSFORMERS and reference.exists():  # theirs has other random weights
        row["parity"] = compare(found, torch.load(reference, weights_only=True))
    row["paces"] = {}
    for rate, rounds in ((0.0, request["rounds"]), (request["rate"], request["paced_rounds"])):
        if rounds:
            name = f"{rate:g} Hz" if rate else "back to back"
            warm_up = 10 if rate else request["warm_up"]
            row["paces"][name] = _times(call, device, rounds, min(warm_up, rounds), rate)
    row["pictures per second"] = batch * _rate(call, device, request["rounds"])
    if device.type == "cuda":
        row["memory (MiB)"] = torch.cuda.max_memory_allocated() / 2**20
    row["kernels"] = count_kernels(call)
    return row


def frames(request: Row) -> Row:
    """The whole way of a frame with the node's default settings, smoothing included."""
    runner, cameras, outputs, settings, notes = _live(request)
    row: Row = asdict(times_of(runner, cameras, outputs, settings, request["rounds"]))
    if settings.device.startswith("cuda"):
        row["memory (MiB)"] = torch.cuda.max_memory_allocated() / 2**20
    row["notes"] = notes
    return row


def trace(request: Row) -> Row:
    """Three default frames under the profiler."""
    runner, cameras, outputs, settings, _ = _live(request)
    numbers = iter(range(100))

    def call() -> None:
        take(runner.start(cameras.frames(next(numbers)), outputs, settings))

    for _ in range(6):
        call()
    path = request["path"]
    return counts(call, 3, Path(path) if path else None)


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Mean relative depth error and the share of equal labels, for what both have.

    The error is infinite where a depth is not finite though the expected one is. Random weights
    can give a depth of 0 everywhere, which nothing can be compared with: then there is no error.
    """
    result = {}
    if "depth" in found and "depth" in expected:
        depth, truth = found["depth"].double(), expected["depth"].double().clamp(min=0)
        known = torch.isfinite(truth)
        largest = float(truth[known].max()) if known.any() else 0.0
        if largest > 0:
            error = (depth - truth).abs() / truth.clamp(min=1e-3 * largest)
            result["AbsRel"] = float(error[known].nan_to_num(nan=torch.inf).mean())
    if "labels" in found and "labels" in expected:
        result["labels equal"] = float((found["labels"] == expected["labels"]).double().mean())
    return result


def _live(request: Row) -> tuple[StreamRunner, Cameras, OutputRequest, Settings, list[str]]:
    settings = Settings(**request["settings"])
    networks = load_networks(settings)
    notes: list[str] = []
    streams = CudaStreams(networks.device) if networks.device.type == "cuda" else HostStreams()
    runner = StreamRunner(networks, settings, streams, notes.append)
    outputs = OutputRequest(depth=networks.metric, inverse=not networks.metric, labels=True)
    return runner, Cameras(request["cameras"], *request["picture"]), outputs, settings, notes


def _times(call: Call, device: torch.device, rounds: int, warm_up: int, rate: float) -> Row:
    """Milliseconds of calls one by one: by wall clock, and by events around them on a GPU."""
    on_gpu = device.type == "cuda"
    events: list[float] = []
    if on_gpu:
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def one() -> float:
        if not on_gpu:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        torch.cuda.synchronize()
        start = time.perf_counter()
        begun.record()
        call()
        ended.record()
        ended.synchronize()
        spent = time.perf_counter() - start
        events.append(begun.elapsed_time(ended))
        return spent

    wall = interleave({"": one}, rounds, warm_up, rate)[""]
    times = {"wall": asdict(summarize(wall * 1e3))}
    return times | ({"events": asdict(summarize(events[-rounds:]))} if on_gpu else {})


def _rate(call: Call, device: torch.device, rounds: int) -> float:
    """Calls per second when none waits for the one before."""
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return rounds / (time.perf_counter() - start)


_KINDS = {"peaks": peaks, "network": network, "frames": frames, "trace": trace}
