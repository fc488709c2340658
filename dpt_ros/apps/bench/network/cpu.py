# SPDX-License-Identifier: Apache-2.0
"""``dpt_bench cpu``: the networks on a CPU, beside other ways to run them, and plain counts."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from dpt_ros.apps.bench.arguments import CPU_METHOD as METHOD
from dpt_ros.apps.bench.arguments import cpu_parser
from dpt_ros.apps.bench.network.roofline import count_work
from dpt_ros.apps.bench.network.rounds import quiet_rounds, ratio
from dpt_ros.apps.bench.report import (
    Summary,
    environment,
    environment_lines,
    summarize,
    table,
    write_json,
)
from dpt_ros.engine.inference.fold import fold
from dpt_ros.engine.inference.gpu_modules import fuse
from dpt_ros.engine.inference.network import Network
from dpt_ros.model import DPT, create_model

REFERENCE = "torch eager fp32"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One way to run the network; milliseconds."""

    arm: str
    time: Summary
    speedup: float
    error: float


def main(argv: Sequence[str]) -> int:
    """Measure, count, print."""
    args = cpu_parser().parse_args(argv)
    args.threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(args.threads)
    machine = environment()
    print(METHOD, environment_lines(machine), sep="\n\n", end="\n\n", flush=True)
    rows, conditions = _measure(args)
    title = f"{args.network} {args.size}, {args.threads} threads"
    print(f"{title}: {conditions}\n")
    print(_table(rows), end="\n\n")
    counts = network_counts(args.network) | kernel_counts()
    print(table(("without a clock", "count"), list(counts.items())))
    if args.json:
        content = {"method": METHOD, "environment": machine, "case": title}
        content |= {"conditions": conditions, "counts": counts}
        write_json(args.json, content | {"results": [asdict(row) for row in rows]})
    return 0


def _measure(args: argparse.Namespace) -> tuple[list[Row], str]:
    height, width = (int(side) for side in args.size.split("x"))
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    calls: dict[str, Callable[[], Tensor]] = {}
    errors: dict[str, float] = {}
    expected: Tensor | None = None
    for name in args.arms:
        module = _NEEDS.get(name)
        if module and not find_spec(module):
            print(f"{name}: not installed (pip install {module})")
            continue
        start = time.perf_counter()
        run = _ARMS[name](args, images)
        calls[name] = run
        run()
        depth = run().double()
        print(f"{name}: ready after {time.perf_counter() - start:.1f} s", flush=True)
        expected = depth if expected is None else expected
        scale = expected.abs().clamp(min=1e-3 * float(expected.abs().max()))
        errors[name] = float(((depth - expected).abs() / scale).mean())
    timed = {name: _timed(call) for name, call in calls.items()}
    times, thrown, load = quiet_rounds(timed, args.rounds, args.load, args.seconds)
    kept = len(next(iter(times.values())))
    rows = []
    for name, values in times.items():
        known = kept and REFERENCE in times
        speedup = ratio(times, REFERENCE, name) if known else float("nan")
        rows.append(Row(name, summarize(values * 1e3), speedup, errors[name]))
    return (
        rows,
        f"{kept} rounds kept, {thrown} thrown out, load of others {load:.0%} in those kept",
    )


def _timed(call: Callable[[], Any]) -> Callable[[], float]:
    def timed() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return timed


def _model(args: argparse.Namespace, folded: bool = False) -> DPT:
    torch.manual_seed(0)
    model = create_model(args.network, args.weights or None, fold=folded)
    return model.requires_grad_(False)


def _eager(args: argparse.Namespace, images: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    model = _model(args)
    if dtype != torch.float32:
        fold(model)
        model = model.to(dtype).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def call() -> Tensor:
        return model(images.to(dtype))["depth"]

    return call


def _ours(
    args: argparse.Namespace, images: Tensor, dtype: torch.dtype, backend: str = "torch"
) -> Callable[[], Tensor]:
    network = Network(_model(args), _CPU, dtype, backend, args.threads)
    return lambda: network(images)["depth"]


def _onnxruntime(args: argparse.Namespace, images: Tensor) -> Callable[[], Tensor]:
    import onnxruntime

    model = _model(args, folded=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = f"{folder}/network.onnx"
        torch.onnx.export(model, (images,), path, opset_version=20, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


_ARMS: dict[str, Callable[[argparse.Namespace, Tensor], Callable[[], Tensor]]] = {
    REFERENCE: lambda a, x: _eager(a, x, torch.float32),
    "torch eager bf16, folded, channels_last": lambda a, x: _eager(a, x, torch.bfloat16),
    "ONNX Runtime fp32": _onnxruntime,
    "ours fp32": lambda a, x: _ours(a, x, torch.float32),
    "ours bf16": lambda a, x: _ours(a, x, torch.bfloat16),
    "ours, OpenVINO fp32": lambda a, x: _ours(a, x, torch.float32, "openvino"),
    "ours, OpenVINO bf16": lambda a, x: _ours(a, x, torch.bfloat16, "openvino"),
}
_NEEDS = {"ONNX Runtime fp32": "onnxruntime"} | {
    f"ours, OpenVINO {precision}": "openvino" for precision in ("fp32", "bf16")
}


def network_counts(name: str, size: tuple[int, int] = (384, 384)) -> dict[str, int]:
    """What one forward at ``size`` does, plain, folded and fused; views left out."""
    counts: dict[str, int] = {}
    with torch.device("meta"):
        model = create_model(name, "random", fold=False)
        images = torch.empty(1, 3, *size)
    for step, change in (("plain", None), ("folded", fold), ("fused", fuse)):
        if change is not None:
            change(model)
        work = count_work(partial(model, images))
        counts[f"ATen operations, {step}"] = work.operations
        counts[f"GFLOP, {step}"] = round(work.flops / 1e9)
    return counts


def kernel_counts() -> dict[str, int]:
    """How many of our GPU kernels compile for each generation; needs triton, but no GPU."""
    if not find_spec("triton"):
        return {}
    from dpt_ros.engine.inference import triton_kernels
    from dpt_ros.engine.input import triton_preprocess

    return {
        f"kernels compiled for sm_{arch}": len(
            triton_kernels.compile_all(arch) | triton_preprocess.compile_all(arch, ["rgb8"])
        )
        for arch in triton_kernels.ARCHS
    }


def _table(rows: list[Row]) -> str:
    header = ("arm", "p50 (ms)", "max (ms)", "speed-up", "AbsRel to the first")
    return table(
        header,
        [
            (r.arm, f"{r.time.p50:.1f}", f"{r.time.max:.1f}", r.speedup, f"{r.error:.1e}")
            for r in rows
        ],
    )
