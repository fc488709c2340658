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
from dpt_ros.apps.bench.network.roofline import peaks
from dpt_ros.apps.report import summarize
from dpt_ros.engine.frame import OutputRequest
from dpt_ros.engine.loading import load_networks
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.streams import CudaStreams, HostStreams
from dpt_ros.engine.settings import Settings

Row = dict[str, Any]
_LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
_WAITS = ("Synchronize", "StreamWaitEvent", "Memcpy")


def measure(kind: str, threads: int, **given: Any) -> None:
    """Emit a row of a kind, measured by ``threads`` threads, 0 for torch's choice."""
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    emit(_KINDS[kind](**given))


def network(
    request: Case,
    method: str,
    names: dict[str, str],
    weights: str,
    device: str,
    reference: Path,
    rounds: int,
    warm_up: int,
    rate: float,
    paced_rounds: int,
) -> Row:
    """One arm (``method``): its parity with the reference, its times, last its kernels."""
    bench = Bench(request, names, weights, torch.device(device))
    on_gpu = bench.device.type == "cuda"
    start = time.perf_counter()
    call = ARMS[method](bench)
    found = {name: value.clone().cpu() for name, value in call().items()}
    row: Row = {"first (s)": time.perf_counter() - start, "parity": {}}
    if method == REFERENCE:
        torch.save(found, reference)
    if method != TRANSFORMERS and reference.exists():  # theirs has other random weights
        row["parity"] = compare(found, torch.load(reference, weights_only=True))
    row["paces"] = {"back to back": _times(call, on_gpu, rounds, min(warm_up, rounds))}
    if paced_rounds:
        paced = _times(call, on_gpu, paced_rounds, min(10, paced_rounds), rate)
        row["paces"][f"{rate:g} Hz"] = paced
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    if on_gpu:
        torch.cuda.synchronize()
    row["pictures per second"] = request.batch * rounds / (time.perf_counter() - start)
    if on_gpu:
        row["memory (MiB)"] = torch.cuda.max_memory_allocated() / 2**20
    row["kernels"] = sum(_counts(call, 1)["kernels"].values()) if on_gpu else 0
    return row


def frames(settings: Row, cameras: int, picture: tuple[int, int], rounds: int) -> Row:
    """Whole frames with the node's default settings, smoothing included."""
    own, notes = Settings(**settings), list[str]()
    runner, outputs = _runner(own, notes)
    row = times_of(runner, Cameras(cameras, *picture), outputs, own, rounds)
    if own.device.startswith("cuda"):
        row["memory (MiB)"] = torch.cuda.max_memory_allocated() / 2**20
    return row | {"notes": notes}


def trace(settings: Row, cameras: int, picture: tuple[int, int], path: Path) -> Row:
    """Three default frames under the profiler, written to a file."""
    own, shown, numbers = Settings(**settings), Cameras(cameras, *picture), itertools.count()
    runner, outputs = _runner(own, [])

    def call() -> None:
        take(runner.start(shown.frames(next(numbers)), outputs, own))

    for _ in range(6):
        call()
    return _counts(call, 3, path)


def _runner(settings: Settings, notes: list[str]) -> tuple[StreamRunner, OutputRequest]:
    networks = load_networks(settings)
    streams = CudaStreams(networks.device) if networks.device.type == "cuda" else HostStreams()
    runner = StreamRunner(networks, settings, streams, notes.append)
    return runner, OutputRequest(depth=networks.metric, inverse=not networks.metric, labels=True)


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


def _times(call: Call, on_gpu: bool, rounds: int, warm_up: int, rate: float = 0.0) -> Row:
    """Milliseconds of ``rounds`` calls one by one, by wall clock, and by events around them on a
    GPU; ``rate`` per second, 0 for back to back. A device that idles between frames clocks down,
    as it does behind a camera."""
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
    times = {"wall": wall, "events": events} if on_gpu else {"wall": wall}
    return {name: asdict(summarize(values[warm_up:])) for name, values in times.items()}


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
    names = ("kernels", "kernel ms", "copies", "launches", "waits", "operations")
    found: dict[str, Counter[str]] = {name: Counter() for name in names}
    for event in profile.events():
        name = event.name
        if event.device_type == torch.autograd.DeviceType.CUDA:
            if name.startswith(("Memcpy", "Memset")):
                found["copies"][name] += 1
            elif not getattr(event, "is_user_annotation", False):
                found["kernels"][name] += 1
                found["kernel ms"][name[:100]] += event.time_range.elapsed_us() * 1e-3
        elif not name.startswith(("cuda", "cu")):
            found["operations"][""] += name.startswith("aten::")
        elif any(part in name for part in _LAUNCHES):
            found["launches"][name] += 1
        elif any(part in name for part in _WAITS):
            found["waits"][name] += 1
    row: Row = {
        name: {key: value / repeats for key, value in counter.most_common(20)}
        for name, counter in found.items()
    }
    row["kernels"] = {key: value / repeats for key, value in found["kernels"].items()}
    return row | {name: found[name].total() / repeats for name in ("copies", "operations")}


_KINDS: dict[str, Callable[..., Row]] = {
    "peaks": peaks,
    "network": network,
    "frames": frames,
    "trace": trace,
}
