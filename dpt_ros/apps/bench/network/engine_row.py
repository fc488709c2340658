# SPDX-License-Identifier: Apache-2.0
"""One row of ``dpt_bench engine``, measured by a process that does nothing else.

So the arms do not share memory, choices of libraries or a profiler, and an arm that fails does not
affect the others.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dpt_ros.apps.bench.network.arms import ARMS, REFERENCE, TRANSFORMERS, Bench, Call, Case
from dpt_ros.apps.bench.network.child_process import emit
from dpt_ros.apps.bench.network.frames import Cameras, take, times_of
from dpt_ros.apps.bench.network.roofline import copy_bandwidth, matmul_peak
from dpt_ros.apps.report import summarize
from dpt_ros.engine.frame import OutputRequest
from dpt_ros.engine.loading import load_networks
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.streams import CudaStreams, Streams
from dpt_ros.engine.settings import Settings

Row = dict[str, Any]
_LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
_WAITS = ("Synchronize", "StreamWaitEvent", "Memcpy")


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
    on_gpu, rounds = device.type == "cuda", request["rounds"]
    case = Case(request["task"], request["size"], request["batch"])
    bench = Bench(case, request["networks"], request["weights"], device)
    arm, reference = request["arm"], Path(request["reference"])
    start = time.perf_counter()
    call = ARMS[arm](bench)
    found = {name: value.clone().cpu() for name, value in call().items()}
    row: Row = {"first (s)": time.perf_counter() - start, "parity": {}}
    if arm == REFERENCE:
        torch.save(found, reference)
    if arm != TRANSFORMERS and reference.exists():  # theirs has other random weights
        row["parity"] = compare(found, torch.load(reference, weights_only=True))
    warm_up = min(request["warm_up"], rounds)
    row["paces"] = {"back to back": _times(call, on_gpu, rounds, warm_up)}
    if paced := request["paced_rounds"]:
        rate = request["rate"]
        row["paces"][f"{rate:g} Hz"] = _times(call, on_gpu, paced, min(10, paced), rate)
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    if on_gpu:
        torch.cuda.synchronize()
    row["pictures per second"] = case.batch * rounds / (time.perf_counter() - start)
    if on_gpu:
        row["memory (MiB)"] = torch.cuda.max_memory_allocated() / 2**20
    row["kernels"] = sum(_counts(call, 1)["kernels"].values()) if on_gpu else 0
    return row


def frames(request: Row) -> Row:
    """Whole frames with the node's default settings, smoothing included."""
    runner, cameras, outputs, settings, notes = _runner(request)
    row = times_of(runner, cameras, outputs, settings, request["rounds"])
    if settings.device.startswith("cuda"):
        row["memory (MiB)"] = torch.cuda.max_memory_allocated() / 2**20
    return row | {"notes": notes}


def trace(request: Row) -> Row:
    """Three default frames under the profiler."""
    runner, cameras, outputs, settings, _ = _runner(request)
    numbers = itertools.count()

    def call() -> None:
        take(runner.start(cameras.frames(next(numbers)), outputs, settings))

    for _ in range(6):
        call()
    return _counts(call, 3, Path(request["path"]) if request["path"] else None)


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


def _runner(request: Row) -> tuple[StreamRunner, Cameras, OutputRequest, Settings, list[str]]:
    settings = Settings(**request["settings"])
    networks = load_networks(settings)
    notes: list[str] = []
    streams = CudaStreams(networks.device) if networks.device.type == "cuda" else Streams()
    runner = StreamRunner(networks, settings, streams, notes.append)
    outputs = OutputRequest(depth=networks.metric, inverse=not networks.metric, labels=True)
    return runner, Cameras(request["cameras"], *request["picture"]), outputs, settings, notes


def _times(call: Call, on_gpu: bool, rounds: int, warm_up: int, rate: float = 0.0) -> Row:
    """Milliseconds of calls one by one: by wall clock, and by events around them on a GPU.

    Args:
        call: what to measure.
        on_gpu: whether there are events.
        rounds, warm_up: calls that count, and calls before them.
        rate: calls per second, 0 for back to back. A device that idles between frames clocks
            down, as it does behind a camera.
    """
    wall: list[float] = []
    events: list[float] = []
    if on_gpu:
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in tqdm(range(warm_up + rounds), leave=False, disable=None):
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        if on_gpu:
            begun.record()
        call()
        if on_gpu:
            ended.record()
            ended.synchronize()
        end = time.perf_counter()
        wall.append(1e3 * (end - start))
        if on_gpu:
            events.append(begun.elapsed_time(ended))
        if rate:
            time.sleep(max(start + 1.0 / rate - end, 0.0))
    times = {"wall": asdict(summarize(wall[warm_up:]))}
    return times | ({"events": asdict(summarize(events[warm_up:]))} if on_gpu else {})


def _counts(call: Callable[[], Any], repeats: int, path: Path | None = None) -> dict[str, Any]:
    """Profile some calls, which need not wait for the device; with ``path``, write a trace.

    The profiler attaches CUPTI to the process for good, so nothing may be timed after it.

    Returns:
        all per call: "kernels" by name, "copies", "launches" and "waits" by the CUDA function
        that was called, "kernel ms" by name (the 20 that took most), "operations" (ATen, from
        Python or from inside of others).
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(repeats):
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    if path is not None:
        profile.export_chrome_trace(str(path))
    found: dict[str, Any] = {
        name: Counter() for name in ("kernels", "kernel ms", "copies", "launches", "waits")
    }
    operations = 0
    for event in profile.events():
        name = event.name
        if event.device_type == torch.autograd.DeviceType.CUDA:
            if name.startswith(("Memcpy", "Memset")):
                found["copies"][name] += 1
            elif not getattr(event, "is_user_annotation", False):
                found["kernels"][name] += 1
                found["kernel ms"][name[:100]] += event.time_range.elapsed_us() * 1e-3
        elif not name.startswith(("cuda", "cu")):
            operations += name.startswith("aten::")
        elif any(part in name for part in _LAUNCHES):
            found["launches"][name] += 1
        elif any(part in name for part in _WAITS):
            found["waits"][name] += 1
    row: Row = {
        name: {key: value / repeats for key, value in counter.most_common(20)}
        for name, counter in found.items()
    }
    row["kernels"] = {key: value / repeats for key, value in found["kernels"].items()}
    return row | {"copies": found["copies"].total() / repeats, "operations": operations / repeats}


_KINDS = {"peaks": peaks, "network": network, "frames": frames, "trace": trace}
