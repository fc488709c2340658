# SPDX-License-Identifier: Apache-2.0
"""``dpt_bench engine``: networks and whole frames on a GPU, beside other ways to run them."""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from dpt_ros.apps.bench import ENGINE_METHOD
from dpt_ros.apps.bench.network.engine_row import OURS, REFERENCE, Case, Row
from dpt_ros.apps.bench.network.roofline import count_work
from dpt_ros.apps.child_process import Failed, rows
from dpt_ros.apps.report import GpuWatch, introduce, json_line, table
from dpt_ros.model import create_model
from dpt_ros.model.zoo import EMBEDDED_NAME

# The arms that make no sense without a GPU, or that take minutes on a CPU.
_GPU_ONLY = {"transformers fp16", "compile max-autotune fp16", "ours, compiled"}
_WHOLE = ("frames", "trace")  # the cases of whole frames
_WORK = "dpt_ros.apps.bench.network.engine_row:measure"
_HEADER = (
    *("case", "arm", "pace", "events p50 (ms)", "wall p50 (ms)", "wall p99 (ms)", "per second"),
    *("speed-up", "of the floor", "kernels", "memory (MiB)", "parity"),
)


def run(args: argparse.Namespace) -> int:
    """Measure; exit code 1 if one of our own rows failed, or failed parity."""
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("dpt_bench engine: torch finds no usable GPU; to measure a CPU use dpt_bench cpu.")
        return 2
    about = introduce(ENGINE_METHOD)
    found: list[Row] = []
    if args.json:
        args.json.write_text("")
    with GpuWatch() as watch, tempfile.TemporaryDirectory() as folder:
        _append(args.json, about)
        for row in measured(args, Path(folder)):
            found.append(row)
            _append(args.json, row)
            print(_line(row), flush=True)
    _append(args.json, {"gpu": watch.means})
    cells = [[line.get(title) for title in _HEADER] for row in found for line in _cells(row)]
    print("", table(_HEADER, cells), sep="\n")
    ours = [r for r in found if r["arm"].startswith(OURS) or r["case"].startswith(_WHOLE)]
    return int(any(row["error"] or not row["agrees"] for row in ours))


def _fit(args: argparse.Namespace) -> None:
    """Small sizes for a rehearsal, and only arms that the device can run."""
    if args.rehearse:
        args.sizes, args.pictures, args.weights = [(64, 64)], [(48, 64)], ""
        args.depth_network = args.label_network = EMBEDDED_NAME
        args.cameras = args.cameras[:1] + args.cameras[-1:]
        args.rounds, args.warm_up, args.paced_rounds = 3, 1, 2
    if not args.device.startswith("cuda"):
        args.arms = [arm for arm in args.arms if arm not in _GPU_ONLY]


def measured(args: argparse.Namespace, folder: Path, start: str = "forkserver") -> Iterator[Row]:
    """All rows, as they come; logs and the reference's outputs are in ``folder``; ``start``: of
    ``child_process.rows``."""
    _fit(args)
    multiprocessing.set_forkserver_preload([_WORK.partition(":")[0]])
    names = {"depth": args.depth_network, "labels": args.label_network}

    def row(kind: str, title: str, label: str = "", **given: Any) -> Row:
        """A row from a process of its own; "error" is why it has no values."""
        result: Row = {"case": title, "arm": label, "error": None, "agrees": True}
        given |= {"kind": kind, "threads": int(args.rehearse)}
        try:
            (values,) = rows(_WORK, given, args.timeout, folder / "engine.log", start=start)
        except Failed as failed:
            return result | {"error": str(failed), "log": failed.log}
        return result | values

    peaks = row("peaks", "peaks", device=args.device)
    yield peaks
    given = {name: getattr(args, name) for name in ("rounds", "warm_up", "rate", "paced_rounds")}
    for task, size, batch in product(args.tasks, args.sizes, args.batches):
        case = Case(task, size, batch, names, args.weights, args.device)
        floor, before = _floor(case, peaks), None
        given |= {"case": case, "expected": folder / f"{case.name}.pt"}
        for arm in args.arms:
            found = row("network", case.name, arm, arm=arm, **given)
            if not found["error"]:
                spent, parity = _median(found), found["parity"]
                before = spent if arm == REFERENCE else before
                found["agrees"] = parity.get("AbsRel", 0.0) <= args.parity
                found["agrees"] &= parity.get("labels equal", 1.0) >= 1.0 - args.parity
                found["of the floor"] = floor / spent if floor else None
                found["speed-up"] = before / spent if before else None
            yield found

    def frames(kind: str, networks: str, size: tuple[int, int], cameras: int, **more: Any) -> Row:
        title, label = f"{kind} {size[0]}x{size[1]} x{cameras}", more.pop("label", "")
        given = {"settings": _settings(args, networks), "cameras": cameras, "picture": size}
        return row(kind, title, label, **given, **more)

    labels = {"one": "one network", "two": "two networks"}
    whole = list(product(args.networks, args.pictures, args.cameras))
    for one in whole:
        yield frames("frames", *one, label=labels[one[0]], rounds=args.rounds)
    if args.profile and whole:
        yield frames("trace", *whole[0], path=args.profile)


def _floor(case: Case, peaks: Row) -> float:
    """Milliseconds that the networks need at least; 0 where the rates are not known."""
    if peaks["error"]:
        return 0.0
    rates, seconds = (peaks["matmul (FLOP/s)"], peaks["copy (B/s)"]), 0.0
    with torch.device("meta"):
        images = torch.empty(case.batch, 3, *case.size)
        for task in case.tasks:
            model = create_model(case.names[task], "random")
            seconds += count_work(partial(model, images)).floor(*rates)
    return 1e3 * seconds


def _settings(args: argparse.Namespace, networks: str) -> Row:
    settings: Row = {"device": args.device}
    settings |= {"depth_network": EMBEDDED_NAME, "label_network": EMBEDDED_NAME}
    if networks == "two":
        settings |= {"depth_network": args.depth_network, "label_network": args.label_network}
        # In a rehearsal both names are the same, and two networks of one file would be one.
        label_weights = "random" if args.rehearse else args.weights
        settings |= {"depth_weights": args.weights, "label_weights": label_weights}
    if args.rehearse:
        settings |= {"input_width": 64, "input_height": 48}
    return settings


def _median(row: Row) -> float:
    """Milliseconds of a network's row, back to back."""
    times = row["paces"]["back to back"]
    return float(times.get("events", times["wall"])["p50"])


def _append(path: Path | None, row: Row) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json_line(row) + "\n")


def _line(row: Row) -> str:
    """A row as a line of progress."""
    numbers = {name: value for name, value in row.items() if isinstance(value, float)}
    if "paces" in row:
        numbers = {"median (ms)": _median(row), **numbers}
    elif "wall" in row:
        numbers = {"median (ms)": row["wall"]["p50"], **numbers}
    text = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    note = "" if row["agrees"] else ", too far from the reference: " + _parity(row)
    return f"{row['case']} {row['arm']}".strip() + f": {row['error'] or text + note}"


def _parity(row: Row) -> str:
    parity = row["parity"]
    words = [f"AbsRel {parity['AbsRel']:.1e}"] if "AbsRel" in parity else []
    if "labels equal" in parity:
        words.append(f"labels {100 * parity['labels equal']:.2f} %")
    return ", ".join(words) or "unknown"


def _cells(row: Row) -> Iterator[Row]:
    """Its lines of the table, by title."""

    def line(pace: str, events: Row, wall: Row, rate: float, parity: str | None = None) -> Row:
        times = {"events p50 (ms)": events.get("p50"), "wall p50 (ms)": wall["p50"]}
        times |= {"wall p99 (ms)": wall["p99"]}
        return row | times | {"pace": pace, "per second": rate, "parity": parity}

    if row["error"]:
        yield row | {"pace": "failed", "parity": ""}
    for pace, times in row.get("paces", {}).items():
        rate = row["pictures per second"]
        yield line(pace, times.get("events", {}), times["wall"], rate, _parity(row))
    if "rate" in row:
        yield line("", row["device"], row["wall"], row["rate"])
