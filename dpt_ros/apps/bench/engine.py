# SPDX-License-Identifier: Apache-2.0
"""``dpt_bench engine``: the networks on a GPU, beside other ways to run them."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpt_ros.apps.bench.arguments import ENGINE_METHOD as METHOD
from dpt_ros.apps.bench.arguments import engine_parser
from dpt_ros.apps.bench.arms import ARMS, OURS, REFERENCE, TRANSFORMERS, Bench, Call, Case
from dpt_ros.apps.bench.report import (
    GpuWatch,
    Summary,
    environment,
    environment_lines,
    summarize,
    table,
    write_json,
)
from dpt_ros.apps.bench.roofline import copy_bandwidth, matmul_peak, network_work
from dpt_ros.apps.bench.rounds import interleave, ratio
from dpt_ros.model import create_model


@dataclass(frozen=True)
class Row:
    """One arm in one case; times in milliseconds, NaN without parity."""

    case: str
    arm: str
    pace: str
    time: Summary
    parity: dict[str, float]
    speedup: float
    share_of_floor: float
    kernels: int
    memory: float


def main(argv: Sequence[str]) -> int:
    """Measure; exit code 1 if our own arm fails parity."""
    args = engine_parser().parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("dpt_bench engine: torch finds no usable GPU; to measure a CPU use dpt_bench cpu.")
        return 2
    device = torch.device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    machine = environment()
    half = torch.float16 if device.type == "cuda" else torch.float32
    side, size = (8192, 1 << 30) if device.type == "cuda" else (1024, 1 << 24)
    peaks = matmul_peak(device, half, side), copy_bandwidth(device, size)
    print(METHOD, environment_lines(machine), sep="\n\n")
    print(f"measured  matmul {peaks[0] / 1e12:.0f} TFLOP/s in half precision, copy"
          f" {peaks[1] / 1e12:.2f} TB/s\n")  # fmt: skip
    rows: list[Row] = []
    failed = False
    with GpuWatch() as watch:
        for task in args.tasks:
            for name in args.sizes:
                for batch in args.batches:
                    height, width = (int(side) for side in name.split("x"))
                    case = Case(task, (height, width), batch)
                    found = _measure(case, args, device, peaks)
                    rows += found
                    failed |= any(r.arm.startswith(OURS) and np.isnan(r.time.p50) for r in found)
                    print(_table(found), end="\n\n", flush=True)
    if args.json:
        content = {
            "method": METHOD,
            "environment": machine,
            "gpu": watch.means,
            "matmul (FLOP/s)": peaks[0],
            "copy (B/s)": peaks[1],
            "results": [asdict(row) for row in rows],
        }
        write_json(args.json, content)
    return int(failed)


def _measure(
    case: Case, args: argparse.Namespace, device: torch.device, peaks: tuple[float, float]
) -> list[Row]:
    bench = Bench(case, args.depth_network, args.label_network, args.weights, device)
    calls: dict[str, Call] = {}
    parity: dict[str, dict[str, float]] = {}
    kernels: dict[str, int] = {}
    memory: dict[str, float] = {}
    expected: dict[str, Tensor] = {}
    for name in args.arms:
        gc.collect()
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        start = time.perf_counter()
        try:
            calls[name] = ARMS[name](bench)
            found = {k: v.clone().cpu() for k, v in calls[name]().items()}
        except (ImportError, RuntimeError) as error:
            print(f"{case.name}: {name} cannot run: {str(error).splitlines()[0]}", file=sys.stderr)
            calls.pop(name, None)
            continue
        print(f"{case.name}: {name}: first result after {time.perf_counter() - start:.1f} s")
        if name == REFERENCE:
            expected = found
        parity[name] = {} if name == TRANSFORMERS else compare(found, expected)
        kernels[name] = _kernels(calls[name], device)
        if device.type == "cuda":
            memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
            torch.cuda.reset_peak_memory_stats()
    good = {name: call for name, call in calls.items() if _agrees(parity[name], args.parity)}
    with torch.device("meta"):
        works = [
            network_work(create_model(bench.names[task], "random"), case.batch, case.size)
            for task in bench.tasks()
        ]
    floor = sum(work.floor(*peaks) for work in works)
    if args.profile and OURS in good:
        _trace(good[OURS], args.profile)
    rows = []
    timed = {name: _timed(name, call, device) for name, call in good.items()}
    paces = [("back to back", args.rounds, 0.0)]
    if args.paced_rounds:
        paces.append((f"{args.rate:g} Hz", args.paced_rounds, args.rate))
    for pace, rounds, rate in paces:
        # Paced arms are run one by one: each sees a device that idles in between.
        groups = [timed] if not rate else [{name: arm} for name, arm in timed.items()]
        times: dict[str, np.ndarray] = {}
        for group in groups:
            times |= interleave(group, rounds, args.warm_up if not rate else 10, rate, case.name)
        for name in calls:
            spent = times.get(name, np.array([]))
            rows.append(
                Row(
                    case=case.name,
                    arm=name,
                    pace=pace,
                    time=summarize(spent * 1e3),
                    parity=parity[name],
                    speedup=(
                        ratio(times, REFERENCE, name)
                        if name in times and REFERENCE in times
                        else float("nan")
                    ),
                    share_of_floor=floor / float(np.median(spent)) if len(spent) else float("nan"),
                    kernels=kernels[name],
                    memory=memory.get(name, float("nan")),
                )
            )
    return rows


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Mean relative depth error and the share of equal labels, for what both have."""
    result = {}
    if "depth" in found and "depth" in expected:
        depth, truth = found["depth"].double(), expected["depth"].double().clamp(min=0)
        scale = truth.abs().clamp(min=1e-3 * float(truth.abs().max()))
        result["AbsRel"] = float(((depth - truth).abs() / scale).mean())
    if "labels" in found and "labels" in expected:
        result["labels equal"] = float((found["labels"] == expected["labels"]).double().mean())
    return result


def _agrees(parity: dict[str, float], largest: float) -> bool:
    return (
        parity.get("AbsRel", 0.0) <= largest and parity.get("labels equal", 1.0) >= 1.0 - largest
    )


def _timed(name: str, call: Call, device: torch.device) -> Callable[[], float]:
    if device.type != "cuda" or name.endswith("from host"):

        def by_wall() -> float:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start

        return by_wall
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def by_events() -> float:
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    return by_events


def _kernels(call: Call, device: torch.device) -> int:
    """Kernels of one call, as the profiler counts them on a GPU."""
    if device.type != "cuda":
        return 0
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    return sum(
        event.device_type == torch.autograd.DeviceType.CUDA and "Mem" not in event.name
        for event in profile.events()
    )


def _trace(call: Call, path: Path) -> None:
    with torch.profiler.profile() as profile:
        for _ in range(3):
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    profile.export_chrome_trace(str(path))


def _table(rows: list[Row]) -> str:
    header = ["case", "arm", "pace", "p50 (ms)", "p99 (ms)", "speed-up", "of the floor"]
    header += ["kernels", "memory (MiB)", "AbsRel", "labels equal"]
    return table(
        header,
        [
            (
                row.case,
                row.arm,
                row.pace,
                f"{row.time.p50:.3f}",
                f"{row.time.p99:.3f}",
                row.speedup,
                row.share_of_floor,
                row.kernels,
                row.memory,
                f"{row.parity.get('AbsRel', float('nan')):.1e}",
                f"{row.parity.get('labels equal', float('nan')):.4f}",
            )
            for row in rows
        ],
    )
