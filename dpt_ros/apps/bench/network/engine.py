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

from dpt_ros.apps.bench.arguments import ENGINE_METHOD, engine_parser
from dpt_ros.apps.bench.network.arms import OURS, REFERENCE, Case
from dpt_ros.apps.bench.network.child_process import Failed, rows
from dpt_ros.apps.bench.network.roofline import network_work
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
Row = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Measure; exit code 1 if one of our own rows failed, or failed parity."""
    args = arguments(argv)
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


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; small sizes for a rehearsal, and only arms that the device can run."""
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
        folder: for logs and the reference's outputs.
        start: how the rows' processes are started, see ``child_process.rows``.
    """

    def row(kind: str, case: str, arm: str = "", **request: Any) -> Row:
        """A row from a process of its own; "error" is why it has no values."""
        result: Row = {"case": case, "arm": arm, "error": None, "agrees": True}
        request |= {"kind": kind, "arm": arm, "device": args.device}
        request |= {"threads": int(args.rehearse)}
        log = folder / "engine.log"
        try:
            (values,) = rows(_WORK, {"request": request}, args.timeout, log, start=start)
        except Failed as failed:
            return result | {"error": str(failed), "log": failed.log}
        return result | values

    peaks = row("peaks", "peaks")
    yield peaks
    for task, size, batch in product(args.tasks, args.sizes, args.batches):
        case = Case(task, _sides(size), batch)
        floor, before = _floor(args, case, peaks), None
        request: Row = {"task": task, "size": case.size, "batch": batch}
        request["reference"] = str(folder / f"{case.name}.pt")
        request |= {"networks": {"depth": args.depth_network, "labels": args.label_network}}
        names = ("weights", "rounds", "warm_up", "rate", "paced_rounds")
        request |= {name: getattr(args, name) for name in names}
        for arm in args.arms:
            found = row("network", case.name, arm, **request)
            if not found["error"]:
                spent = _median(found)
                before = spent if arm == REFERENCE else before
                found["agrees"] = _agrees(found["parity"], args.parity)
                found["of the floor"] = floor / spent if floor else None
                found["speed-up"] = before / spent if before else None
            yield found
    whole = list(product(args.networks, args.pictures, args.cameras))
    for networks, size, cameras in whole:
        request = _frames_request(args, networks, size, cameras)
        arm = "one network" if networks == "one" else "two networks"
        yield row("frames", f"frames {size} x{cameras}", arm, rounds=args.rounds, **request)
    if args.profile and whole:
        networks, size, cameras = whole[0]
        request = _frames_request(args, networks, size, cameras)
        yield row("trace", f"trace {size} x{cameras}", path=str(args.profile), **request)


def _sides(size: str) -> tuple[int, int]:
    height, width = map(int, size.split("x"))
    return height, width


def _floor(args: argparse.Namespace, case: Case, peaks: Row) -> float:
    """Milliseconds that the networks need at least; 0 where the rates are not known."""
    if peaks["error"]:
        return 0.0
    names = {"depth": args.depth_network, "labels": args.label_network}
    with torch.device("meta"):
        works = [
            network_work(create_model(names[task], "random"), case.batch, case.size)
            for task in case.tasks
        ]
    rates = peaks["matmul (FLOP/s)"], peaks["copy (B/s)"]
    return 1e3 * sum(work.floor(*rates) for work in works)


def _frames_request(args: argparse.Namespace, networks: str, size: str, cameras: int) -> Row:
    settings: Row = {"device": args.device}
    if networks == "one":
        settings |= {"depth_network": EMBEDDED_NAME, "label_network": EMBEDDED_NAME}
    else:
        settings |= {"depth_network": args.depth_network, "label_network": args.label_network}
        # In a rehearsal both names are the same, and two networks of one file would be one.
        label_weights = "random" if args.rehearse else args.weights
        settings |= {"depth_weights": args.weights, "label_weights": label_weights}
    if args.rehearse:
        settings |= {"input_width": 64, "input_height": 48}
    return {"settings": settings, "cameras": cameras, "picture": _sides(size)}


def _agrees(parity: Row, largest: float) -> bool:
    error, equal = parity.get("AbsRel", 0.0), parity.get("labels equal", 1.0)
    return error is not None and error <= largest and equal >= 1.0 - largest  # None: infinite


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
    parity, words = row["parity"], []
    if "AbsRel" in parity:
        error = parity["AbsRel"]
        words.append("AbsRel inf" if error is None else f"AbsRel {error:.1e}")
    if "labels equal" in parity:
        words.append(f"labels {100 * parity['labels equal']:.2f} %")
    return ", ".join(words) or "unknown"


def _cells(row: Row) -> Iterator[Row]:
    """Its lines of the table, by title."""
    if row["error"]:
        yield row | {"pace": "failed", "parity": ""}
    for pace, times in row.get("paces", {}).items():
        rest = {"per second": row["pictures per second"], "parity": _parity(row)}
        yield row | rest | _time_cells(pace, times.get("events", {}), times["wall"])
    if "rate" in row:
        rest = {"per second": row["rate"]}
        yield row | rest | _time_cells("", row["device"], row["wall"])


def _time_cells(pace: str, events: Row, wall: Row) -> Row:
    cells = {"events p50 (ms)": events.get("p50"), "wall p50 (ms)": wall["p50"]}
    return {"pace": pace, **cells, "wall p99 (ms)": wall["p99"]}
