# SPDX-License-Identifier: Apache-2.0
"""``dpt_bench engine``: networks and whole frames on a GPU, beside other ways to run them."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from dpt_ros.apps.bench.arguments import ENGINE_METHOD as METHOD
from dpt_ros.apps.bench.arguments import engine_parser
from dpt_ros.apps.bench.network.apart import Failed, rows
from dpt_ros.apps.bench.network.arms import OURS, REFERENCE, Case
from dpt_ros.apps.bench.network.roofline import network_work
from dpt_ros.apps.bench.report import (
    GpuWatch,
    environment,
    environment_lines,
    json_line,
    table,
)
from dpt_ros.model import create_model
from dpt_ros.model.zoo import EMBEDDED_NAME

# The arms that make no sense without a GPU, or that take minutes on a CPU.
_GPU_ONLY = {"transformers fp16", "compile max-autotune fp16", "ours, compiled"}
_WORK = "dpt_ros.apps.bench.network.engine_row:measure"
Row = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Measure; exit code 1 if one of our own rows failed, or failed parity."""
    args = arguments(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("dpt_bench engine: torch finds no usable GPU; to measure a CPU use dpt_bench cpu.")
        return 2
    machine = environment()
    print(METHOD, environment_lines(machine), sep="\n\n", end="\n\n", flush=True)
    found: list[Row] = []
    with GpuWatch() as watch, tempfile.TemporaryDirectory() as folder:
        _keep(args.json, {"method": METHOD, "environment": machine}, new=True)
        for row in measured(args, Path(folder)):
            found.append(row)
            _keep(args.json, row)
            print(_line(row), flush=True)
    _keep(args.json, {"gpu": watch.means})
    print("", _table(found), sep="\n")
    return int(any(_is_ours(row) and (row["error"] or not row["agrees"]) for row in found))


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for."""
    args = engine_parser().parse_args(argv)
    if args.rehearse:
        args.sizes, args.pictures, args.weights = ["64x64"], ["48x64"], ""
        args.depth_network = args.label_network = EMBEDDED_NAME
        args.cameras = args.cameras[:1] + args.cameras[-1:]
        args.rounds, args.warm_up, args.paced_rounds = 3, 1, 2
    if not args.device.startswith("cuda"):
        args.arms = [arm for arm in args.arms if arm not in _GPU_ONLY]
    return args


def measured(args: argparse.Namespace, folder: Path, start: str = "forkserver") -> Iterator[Row]:
    """All rows, as they come.

    Args:
        args: from ``arguments``.
        folder: for logs and what is compared with.
        start: how the rows' processes are started, see ``apart.rows``.
    """
    args.logs, args.start = folder, start
    peaks = _measured(args, "peaks", {"kind": "peaks"})
    yield peaks
    for task, size, batch in product(args.tasks, args.sizes, args.batches):
        height, width = (int(side) for side in size.split("x"))
        yield from _network_rows(args, Case(task, (height, width), batch), peaks)
    for networks, size, cameras in product(args.networks, args.pictures, args.cameras):
        request = _live(args, networks, size, cameras)
        name = f"{networks} network{'s' if networks == 'two' else ''}"
        yield _measured(args, f"frames {size} x{cameras}", request, name)
    if args.profile and args.cameras:
        request = _live(args, args.networks[0], args.pictures[0], args.cameras[0])
        request |= {"kind": "trace", "path": str(args.profile)}
        yield _measured(args, f"trace {args.pictures[0]} x{args.cameras[0]}", request)


def _network_rows(args: argparse.Namespace, case: Case, peaks: Row) -> Iterator[Row]:
    floor = _floor(args, case, peaks)
    before: Row = {}
    reference = str(args.logs / f"{case.name}.pt")
    for arm in args.arms:
        request = {
            "kind": "network",
            "case": [case.task, *case.size, case.batch],
            "arm": arm,
            "reference": reference,
        }
        names = ("depth_network", "label_network", "weights", "rounds", "warm_up", "rate")
        request |= {name: getattr(args, name) for name in (*names, "paced_rounds")}
        row = _measured(args, case.name, request, arm)
        if not row["error"]:
            spent = _median(row)
            row["agrees"] = _agrees(row["parity"], args.parity)
            row["of the floor"] = floor / spent if floor else None
            before = before or (row if arm == REFERENCE else {})
            row["speed-up"] = _median(before) / spent if before else None
        yield row


def _floor(args: argparse.Namespace, case: Case, peaks: Row) -> float:
    """Milliseconds that the networks need at least; 0 where the rates are not known."""
    if peaks["error"]:
        return 0.0
    rates = peaks["matmul (FLOP/s)"], peaks["copy (B/s)"]
    bench = {"depth": args.depth_network, "labels": args.label_network}
    tasks = ["depth", "labels"] if case.task == "both" else [case.task]
    with torch.device("meta"):
        works = [
            network_work(create_model(bench[task], "random"), case.batch, case.size)
            for task in tasks
        ]
    return 1e3 * sum(work.floor(*rates) for work in works)


def _live(args: argparse.Namespace, networks: str, size: str, cameras: int) -> Row:
    settings: Row = {"device": args.device}
    if networks == "one":
        settings |= {"depth_network": EMBEDDED_NAME, "label_network": EMBEDDED_NAME}
    else:
        settings |= {"depth_network": args.depth_network, "label_network": args.label_network}
        settings |= {"depth_weights": args.weights, "label_weights": args.weights}
    if args.rehearse:
        settings |= {"input_width": 64, "input_height": 48}
        # Two networks of one file would be one.
        settings |= {"label_weights": "random"} if networks == "two" else {}
    height, width = (int(side) for side in size.split("x"))
    return {
        "kind": "frames",
        "settings": settings,
        "cameras": cameras,
        "picture": [height, width],
        "rounds": args.rounds,
    }


def _measured(args: argparse.Namespace, case: str, request: Row, arm: str = "") -> Row:
    """A row from a process of its own; "error" says why there is none."""
    about: Row = {"case": case, "arm": arm, "error": None, "agrees": True}
    request = {"device": args.device, "threads": int(args.rehearse), **request}
    log = args.logs / "engine.log"
    try:
        (row,) = rows(_WORK, {"request": request}, args.timeout, log, start=args.start)
    except Failed as failed:
        return about | {"error": str(failed), "log": failed.log}
    return about | row


def _agrees(parity: Row, largest: float) -> bool:
    # null is an error that no number can say.
    error, equal = parity.get("AbsRel", 0.0), parity.get("labels equal", 1.0)
    return error is not None and error <= largest and equal >= 1.0 - largest


def _is_ours(row: Row) -> bool:
    return row["arm"].startswith(OURS) or row["case"].startswith(("frames", "trace"))


def _median(row: Row) -> float:
    """Milliseconds of a network's row, back to back."""
    times = row["paces"]["back to back"]
    return float(times.get("events", times["wall"])["p50"])


def _keep(path: Path | None, row: Row, new: bool = False) -> None:
    if path is not None:
        with path.open("w" if new else "a") as file:
            file.write(json_line(row) + "\n")


def _line(row: Row) -> str:
    """A row for people who wait."""
    name = " ".join(word for word in (row["case"], row["arm"]) if word)
    if row["error"]:
        return f"{name}: {row['error']}"
    if "paces" in row:
        seconds = f"first result after {row['first (s)']:.1f} s"
        parity = ", ".join(_parity(row)) or "parity unknown"
        parity += "" if row["agrees"] else " (too far from the reference)"
        return f"{name}: {_median(row):.3f} ms, {parity}, {seconds}"
    if "rate" in row:
        first = ", ".join(f"{ms:.0f}" for ms in row["first"])
        return f"{name}: {row['wall']['p50']:.3f} ms, {row['rate']:.1f}/s; first {first} ms"
    if "launches" in row:
        return f"{name}: {sum(row['launches'].values()):.0f} launches per batch of frames"
    return (
        f"{name}: matmul {row['matmul (FLOP/s)'] / 1e12:.2f} TFLOP/s in half precision, copy"
        f" {row['copy (B/s)'] / 1e12:.3f} TB/s"
    )


def _parity(row: Row) -> list[str]:
    """What is known of it, in words; an error of null is an infinite one."""
    parity, words = row["parity"], []
    if "AbsRel" in parity:
        words.append(
            "AbsRel inf" if parity["AbsRel"] is None else f"AbsRel {parity['AbsRel']:.1e}"
        )
    if "labels equal" in parity:
        words.append(f"labels {100 * parity['labels equal']:.2f} %")
    return words


def _table(found: list[Row]) -> str:
    header = ["case", "arm", "pace", "events p50 (ms)", "wall p50 (ms)", "wall p99 (ms)"]
    header += ["per second", "speed-up", "of the floor", "kernels", "memory (MiB)", "parity"]
    lines: list[list[Any]] = []
    for row in found:
        if row["error"]:
            lines.append([row["case"], row["arm"], "failed", *[None] * 8, ""])
        for pace, times in row.get("paces", {}).items():
            wall, events = times["wall"], times.get("events", {})
            lines.append(
                [
                    *(row["case"], row["arm"], pace, events.get("p50")),
                    *(wall["p50"], wall["p99"], row["pictures per second"], row["speed-up"]),
                    *(row["of the floor"], row["kernels"], row.get("memory (MiB)")),
                    ", ".join(_parity(row)) or "unknown",
                ]
            )
        if "rate" in row:
            wall = row["wall"]
            lines.append(
                [
                    *(row["case"], row["arm"], "", row["device"]["p50"], wall["p50"]),
                    *(wall["p99"], row["rate"], None, None, None, row.get("memory (MiB)"), None),
                ]
            )
    return table(header, lines)
