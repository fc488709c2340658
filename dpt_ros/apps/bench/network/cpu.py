# SPDX-License-Identifier: Apache-2.0
"""``dpt_bench cpu``: the networks on a CPU, beside other ways to run them, and plain counts."""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dpt_ros.apps.bench import CPU_ARMS, CPU_METHOD
from dpt_ros.apps.bench.network.engine_row import compare
from dpt_ros.apps.bench.network.roofline import count_work
from dpt_ros.apps.report import CpuWatch, introduce, summarize, table, write_json
from dpt_ros.engine.export.network import export_network
from dpt_ros.engine.inference.fold import fold
from dpt_ros.engine.inference.gpu_modules import fuse
from dpt_ros.engine.inference.network import Network
from dpt_ros.engine.loading import make_backend
from dpt_ros.engine.settings import Settings
from dpt_ros.metrics.depth import finite_mean
from dpt_ros.model import DPT, ModelSpec, create_model

REFERENCE = CPU_ARMS[0]


def run(args: argparse.Namespace) -> int:
    """Measure, count, print."""
    args.threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(args.threads)
    about = introduce(CPU_METHOD)
    rows, conditions = _measure(args)
    title = f"{args.network} {args.size[0]}x{args.size[1]}, {args.threads} threads"
    print(f"{title}: {conditions}\n")
    header = ("arm", "p50 (ms)", "max (ms)", "speed-up", "AbsRel to the first")
    cells = []
    for row in rows:
        milliseconds = [f"{row['time'][name]:.1f}" for name in ("p50", "max")]
        cells.append([row["arm"], *milliseconds, row["speedup"], f"{row['error']:.1e}"])
    print(table(header, cells), end="\n\n")
    counts = network_counts(args.network)
    print(table(("without a clock", "count"), list(counts.items())))
    if args.json:
        content = {"case": title, "conditions": conditions, "counts": counts, "results": rows}
        write_json(args.json, about | content)
    return 0


def _measure(args: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """A row per arm, in milliseconds, and under which conditions."""
    images = torch.randn(1, 3, *args.size, generator=torch.Generator().manual_seed(1))
    calls: dict[str, Callable[[], Tensor]] = {}
    errors: dict[str, float] = {}
    expected: dict[str, Tensor] = {}
    for name in args.arms:
        needed = next((package for word, package in _NEEDED.items() if word in name), None)
        if needed and not find_spec(needed):
            print(f"{name}: not installed (pip install {needed})")
            continue
        start = time.perf_counter()
        calls[name] = call = _ARMS[name](args, images)
        call()
        found = {"depth": call()}
        print(f"{name}: ready after {time.perf_counter() - start:.1f} s", flush=True)
        expected = expected or found
        errors[name] = compare(found, expected).get("AbsRel", float("nan"))
    times, discarded, load = quiet_rounds(calls, args.rounds, args.load, args.seconds)
    kept = len(next(iter(times.values())))
    rows = []
    for name, values in times.items():
        speedup = ratio(times, REFERENCE, name) if kept and REFERENCE in times else float("nan")
        summary = asdict(summarize(values * 1e3))
        rows.append({"arm": name, "time": summary, "speedup": speedup, "error": errors[name]})
    said = f"{kept} rounds kept, {discarded} discarded, load of others {load:.0%} in those kept"
    return rows, said


def quiet_rounds(
    arms: Mapping[str, Callable[[], object]], rounds: int, most_load: float, seconds: float
) -> tuple[dict[str, np.ndarray], int, float]:
    """Run every arm once per round, in random order, on a machine that others may use too.

    Rounds in which others used a larger share of the machine than ``most_load`` are discarded;
    after ``seconds`` fewer ``rounds`` must do.

    Returns:
        (rounds,) float64 seconds per arm of the quiet rounds, how many rounds were discarded, and
        the mean load of others in those that count.
    """
    order, end = random.Random(0), time.monotonic() + seconds
    kept: list[dict[str, float]] = []
    loads: list[float] = []
    discarded = 0
    with tqdm(total=rounds, desc="quiet rounds", leave=False, disable=None) as bar:
        while len(kept) < rounds and time.monotonic() < end:
            watch, times = CpuWatch({"own": os.getpid()}), {}
            for name in order.sample(list(arms), len(arms)):
                start = time.perf_counter()
                arms[name]()
                times[name] = time.perf_counter() - start
            load = watch.percent()["other"] / 100
            if load > most_load:
                discarded += 1
                continue
            kept.append(times)
            loads.append(load)
            bar.update()
    result = {name: np.array([times[name] for times in kept]) for name in arms}
    return result, discarded, finite_mean(loads)


def ratio(times: Mapping[str, np.ndarray], slow: str, fast: str) -> float:
    """How many times as fast: the median of the ratios inside the rounds."""
    return float(np.median(times[slow] / times[fast]))


def _model(args: argparse.Namespace) -> DPT:
    torch.manual_seed(0)
    model = create_model(args.network, args.weights or None, fold=False)
    return model.requires_grad_(False)


def _eager(dtype: torch.dtype, args: argparse.Namespace, images: Tensor) -> Callable[[], Tensor]:
    model = _model(args)
    if dtype != torch.float32:
        fold(model)
        model = model.to(dtype).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def call() -> Tensor:
        return model(images.to(dtype))["depth"]

    return call


def _ours(
    backend: str, precision: str, args: argparse.Namespace, images: Tensor
) -> Callable[[], Tensor]:
    model, device = _model(args), torch.device("cpu")
    settings = Settings(backend=backend, threads=args.threads)
    network = Network(model.spec, device, make_backend(model, device, precision, settings))
    return lambda: _depth(network(images)["inverse_depth"], network.spec)


def _depth(inverse_depth: Tensor, spec: ModelSpec) -> Tensor:
    return inverse_depth.reciprocal() if spec.invert else inverse_depth


def _plain_onnxruntime(args: argparse.Namespace, images: Tensor) -> Callable[[], Tensor]:
    import onnxruntime

    model = _model(args)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/network.onnx"
        export_network(model, path, batch=1, size=(images.shape[2], images.shape[3]))
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {"images": images.numpy()}
    return lambda: _depth(torch.from_numpy(session.run(None, given)[0]), model.spec)


_MAKERS: tuple[Callable[[argparse.Namespace, Tensor], Callable[[], Tensor]], ...] = (
    partial(_eager, torch.float32),
    partial(_eager, torch.bfloat16),
    _plain_onnxruntime,
    partial(_ours, "torch", "fp32"),
    partial(_ours, "torch", "bf16"),
    partial(_ours, "onnxruntime", "fp32"),
    partial(_ours, "openvino", "fp32"),
    partial(_ours, "openvino", "bf16"),
)
_ARMS = dict(zip(CPU_ARMS, _MAKERS, strict=True))
_NEEDED = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}


def network_counts(name: str, size: tuple[int, int] = (384, 384)) -> dict[str, int]:
    """Operations of one forward at ``size``, plain, folded and fused; views left out."""
    counts: dict[str, int] = {}
    with torch.device("meta"):
        model = create_model(name, "random", fold=False)
        images = torch.empty(1, 3, *size)
    for step, change in (("plain", None), ("folded", fold), ("fused", fuse)):
        if change is not None:
            change(model)
        work = count_work(partial(model, images))
        counts[f"ATen operations, {step}"] = work.by_name.total()
        counts[f"GFLOP, {step}"] = round(sum(flops for flops, _ in work.heavy) / 1e9)
    return counts
