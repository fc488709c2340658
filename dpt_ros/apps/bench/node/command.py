# SPDX-License-Identifier: Apache-2.0
"""``dpt_bench node``: from the camera's stamp to the depth in another process."""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from dpt_ros.apps.bench.arguments import NODE_METHOD, node_parser
from dpt_ros.apps.bench.node.arrivals import (
    PEAK_LIMIT,
    Account,
    choose_rate,
    peak_rate,
    sustains,
    together,
)
from dpt_ros.apps.bench.node.processes import BenchError, Case
from dpt_ros.apps.bench.node.session import ARMS, Run, Session, profile_text
from dpt_ros.apps.bench.report import environment, environment_lines, table, write_json

_RATES = (30.0, 20.0, 15.0, 10.0, 5.0, 2.0, 1.0, 0.5)
_PEAK_SECONDS = 4.0
_PEAK_FRAMES = 40  # of each camera at least: in fewer, one frame is 5 % or nearly
_WARM_UP = 1.0
_HEADER = (
    *("run", "arm", "sent", "back", "lost", "dropped", "late", "order"),
    *("p50", "p90", "p99", "max", "jitter"),
    *("cpu cam", "cpu arm", "cpu mon", "other", "gpu %"),
)


@dataclass(frozen=True)
class Result:
    """All runs of a case.

    Args:
        case: what went through.
        rate: frames per second of each camera.
        rate_words: how the rate was chosen.
        start_seconds: from the start of the node's process to its first depth.
        runs: in the order in which they were made.
        peaks: highest rate with less than 5 % missing, by arm; empty if not requested.
    """

    case: Case
    rate: float
    rate_words: str
    start_seconds: float
    runs: tuple[Run, ...]
    peaks: dict[str, float]

    def of(self, arm: str) -> list[Run]:
        """The runs of one arm."""
        return [run for run in self.runs if run.arm == arm]

    def total(self, arm: str) -> Account:
        """All runs of an arm as one."""
        runs = self.of(arm)
        return together([run.account for run in runs], [t for run in runs for t in run.traces])

    def added(self, percentile: str) -> list[float]:
        """Node minus echo per pair of runs, milliseconds."""
        node, echo = (
            [getattr(run.account.latency, percentile) for run in self.of(arm)]
            for arm in ("node", "echo")
        )
        return [a - b for a, b in zip(node, echo, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """All numbers but the arrivals of the frames."""
        runs = [{**vars(r), "account": asdict(r.account), "lag": asdict(r.lag)} for r in self.runs]
        for run in runs:
            del run["traces"]
        return {
            "case": asdict(self.case),
            "rate": self.rate,
            "rate_words": self.rate_words,
            "start_seconds": self.start_seconds,
            "runs": runs,
            "total": {arm: asdict(self.total(arm)) for arm in ARMS},
            "node_minus_echo_ms": {name: self.added(name) for name in ("p50", "p90", "p99")},
            "peak_rate": self.peaks,
        }


def main(argv: Sequence[str]) -> int:
    """Measure the requested cases; print tables and, if requested, write JSON."""
    args = node_parser().parse_args(argv)
    cases = [
        Case(cameras, *size, transport, outputs, profile)
        for profile, outputs, transport, size, cameras in itertools.product(
            args.profile, args.outputs, args.transport, args.size, args.cameras
        )
    ]
    machine = environment()
    profiles = [profile_text(profile) for profile in args.profile]
    print(NODE_METHOD, environment_lines(machine), sep="\n\n")
    print(*(f"profile   {text}" for text in profiles), "", sep="\n", flush=True)
    results = []
    try:
        for case in cases:
            results.append(measure(case, args))
            print(report(results[-1], args), end="\n\n", flush=True)
    except BenchError as error:
        print(f"dpt_bench node: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dpt_bench node: interrupted; the cases above are complete.", file=sys.stderr)
        return 130
    finally:
        if args.json and results:
            content = {"environment": machine, "method": NODE_METHOD, "profiles": profiles}
            content["parameters"] = _parameters(args)
            content["results"] = [result.as_json() for result in results]
            write_json(args.json, content)
    return 0


def _parameters(args: argparse.Namespace, labels: bool = True) -> dict[str, str]:
    """The node's parameters, but for those that the case decides."""
    same = args.label_network == args.network
    weights = {
        "depth_weights": args.weights,
        "label_weights": args.label_weights or (args.weights if same else None),
    }
    return {
        "depth_network": args.network,
        "label_network": args.label_network if labels else "none",
        "device": args.device,
        "precision": args.precision,
        **{name: value for name, value in weights.items() if value},
        **dict(args.parameters),
    }


def measure(case: Case, args: argparse.Namespace) -> Result:
    """Start a case's processes, find its rate, and make its runs.

    Raises:
        BenchError: the node does not start, or a process ends.
    """
    gpu = int(args.device.partition(":")[2] or 0)
    with Session(case, _parameters(args, case.labels), args.load, gpu) as session:
        bar = tqdm(total=2 * args.runs, desc=case.title(), unit="run", leave=False, disable=None)
        with bar:
            session.wait_for_depth()
            rate, words = args.rate, "as requested"
            if rate is None:
                answer = session.answer_seconds("node")
                rate = choose_rate(answer, _RATES)
                words = (
                    f"chosen, because the node needs {answer * 1e3:.0f} ms (p90) for a frame;"
                    " set another with --rate"
                )
            runs = []
            for _, arm in itertools.product(range(args.runs), ARMS):
                runs.append(session.run(arm, rate, args.seconds, args.warm_up))
                bar.update()
            peaks = {arm: _peak(session, arm, rate) for arm in ARMS} if args.peak else {}
        return Result(case, rate, words, session.start_seconds, tuple(runs), peaks)


def _peak(session: Session, arm: str, start: float) -> float:
    def holds(rate: float) -> bool:
        seconds = max(_PEAK_SECONDS, _PEAK_FRAMES / rate)
        trial = session.run(arm, rate, seconds, _WARM_UP)
        return sustains(trial.account, trial.achieved, rate)

    return peak_rate(holds, start)


def report(result: Result, args: argparse.Namespace) -> str:
    """The tables and remarks on one case."""
    rows = [_row(str(k // 2 + 1), run.arm, run.account, run) for k, run in enumerate(result.runs)]
    rows += [_row("all", arm, result.total(arm)) for arm in ARMS]
    warm_up = result.runs[0].warm_up
    lag = max(run.lag.p99 for run in result.runs)
    lines = [
        f"{result.case.title()}; {result.rate:g} Hz, {result.rate_words}.",
        f"Runs per arm: {args.runs}, of {args.seconds:g} s each, after a warm-up of"
        f" {warm_up / result.rate:.2g} s ({warm_up} frames a camera) that does not count. First"
        f" depth {result.start_seconds:.1f} s after the node's process was started.",
        "",
        table(_HEADER, rows),
        "",
        "node - echo, median of the pairs of runs (lowest to highest): "
        + "; ".join(f"{name} {_spread(result.added(name))}" for name in ("p50", "p99")),
    ]
    if lag > 100 / result.rate:
        lines.append(
            f"The camera itself was up to {lag:.1f} ms behind its schedule (p99): this machine is"
            " too busy to send at this rate, so read the times with care."
        )
    if result.peaks:
        peaks = ", ".join(
            f"{arm} {'at least ' if rate >= PEAK_LIMIT else ''}{rate:.4g} Hz"
            for arm, rate in result.peaks.items()
        )
        lines.append(
            f"Highest rate with less than 5 % missing, runs of {_PEAK_SECONDS:g} s or more, found"
            f" within 5 %: {peaks} per camera."
        )
    return "\n".join(lines)


def _row(number: str, arm: str, account: Account, run: Run | None = None) -> list[Any]:
    spent = account.latency
    row = [number, arm, account.sent, account.returned, account.lost, account.dropped]
    row += [account.late, account.out_of_order, spent.p50, spent.p90, spent.p99, spent.max]
    row.append(account.jitter.mean)
    percent = [None] * 5
    if run is not None:
        names = ("camera", f"arm ({arm})", "monitor", "other")
        percent = [*(run.cpu[name] for name in names), run.gpu.get("utilization (%)")]
    return row + [None if p is None or p != p else round(p) for p in percent]


def _spread(values: Sequence[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.2f} ms ({min(values):.2f} to {max(values):.2f})"
