# SPDX-License-Identifier: Apache-2.0
"""``dpt_bench node``: from the camera's stamp to the depth in another process."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import asdict
from typing import Any

import numpy as np
from tqdm import tqdm

from dpt_ros.apps.bench import NODE_METHOD
from dpt_ros.apps.bench.node import arrivals
from dpt_ros.apps.bench.node.session import ARMS, BenchError, Case, Run, Session, profile_text
from dpt_ros.apps.command_line import fail
from dpt_ros.apps.report import introduce, table, write_json

_RATES = (30.0, 20.0, 15.0, 10.0, 5.0, 2.0, 1.0, 0.5)
_PEAK_SECONDS = 4.0
_PEAK_FRAMES = 40  # of each camera at least: in fewer, one frame is 5 % or nearly
_HEADER = (
    *("run", "arm", "sent", "back", "lost", "dropped", "late", "order"),
    *("p50", "p90", "p99", "max", "jitter"),
    *("cpu cam", "cpu arm", "cpu mon", "other", "gpu %"),
)


def run(args: argparse.Namespace) -> int:
    """Measure the requested cases; print tables and, if requested, write JSON."""
    values = (args.profile, args.outputs, args.transport, args.size, args.cameras)
    cases = [
        Case(cameras, width, height, transport, outputs, profile)
        for profile, outputs, transport, (width, height), cameras in itertools.product(*values)
    ]
    about = introduce(NODE_METHOD)
    profiles = [profile_text(profile) for profile in args.profile]
    print(*(f"profile   {text}" for text in profiles), "", sep="\n", flush=True)
    results: list[dict[str, Any]] = []
    try:
        for case in cases:
            results.append(_measure(case, args))
    except BenchError as error:
        return fail("dpt_bench node", error, 1)
    except KeyboardInterrupt:
        return fail("dpt_bench node", "interrupted; the cases above are complete.", 130)
    finally:
        if args.json and results:
            given = {"profiles": profiles, "parameters": _parameters(args), "results": results}
            write_json(args.json, about | given)
    return 0


def _parameters(args: argparse.Namespace, labels: bool = True) -> dict[str, str]:
    """The node's parameters, but for those that the case decides."""
    same = args.label_network == args.network
    label_weights = args.label_weights or (args.weights if same else None)
    weights = {"depth_weights": args.weights, "label_weights": label_weights}
    return {
        "depth_network": args.network,
        "label_network": args.label_network if labels else "none",
        "device": args.device,
        "precision": args.precision,
        **{name: value for name, value in weights.items() if value},
        **dict(args.parameters),
    }


def _measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Start a case's processes, find its rate, make its runs, print them; all numbers for JSON."""
    gpu = int(args.device.partition(":")[2] or 0)
    with (
        Session(case, _parameters(args, case.labels), args.load, gpu) as session,
        tqdm(total=2 * args.runs, desc=case.title(), leave=False, disable=None) as bar,
    ):
        session.wait_for_depth()
        rate, words = args.rate, "as requested"
        if rate is None:
            answer = session.answer_seconds("node")
            rate = arrivals.choose_rate(answer, _RATES)
            spent = f"{answer * 1e3:.0f} ms (p90) for a frame at 10 Hz"
            words = f"chosen, because the node needs {spent}; set another with --rate"
        runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
        for _, arm in itertools.product(range(args.runs), ARMS):
            runs[arm].append(session.run(arm, rate, args.seconds, args.warm_up))
            bar.update()
        peaks = {arm: _peak(session, arm, rate) for arm in ARMS} if args.peak else {}
    total = {}
    for arm, own in runs.items():
        traces = [trace for run in own for trace in run.traces]
        total[arm] = arrivals.together([run.account for run in own], traces)
    node, echo = ([vars(run.account.latency) for run in runs[arm]] for arm in ("node", "echo"))
    pairs = list(zip(node, echo, strict=True))
    added = {name: [a[name] - b[name] for a, b in pairs] for name in ("p50", "p90", "p99")}
    in_order = [run for pair in zip(*runs.values(), strict=True) for run in pair]
    rows = [_row(str(k // 2 + 1), run.arm, run.account, run) for k, run in enumerate(in_order)]
    rows += [_row("all", arm, total[arm]) for arm in ARMS]
    spread = "; ".join(
        f"{name} {np.median(ms):.2f} ms ({min(ms):.2f} to {max(ms):.2f})"
        for name, ms in added.items()
        if name != "p90"
    )
    warm_up = in_order[0].warm_up
    print(
        f"{case.title()}; {rate:g} Hz, {words}.\n"
        f"Runs per arm: {args.runs}, of {args.seconds:g} s each, after a warm-up of"
        f" {warm_up / rate:.2g} s ({warm_up} frames a camera) that does not count. First"
        f" depth {session.start_seconds:.1f} s after the node's process was started.\n\n"
        f"{table(_HEADER, rows)}\n\n"
        f"node - echo, median of the pairs of runs (lowest to highest): {spread}"
    )
    if (lag := max(run.lag.p99 for run in in_order)) > 100 / rate:
        print(
            f"The camera itself was up to {lag:.1f} ms behind its schedule (p99): this machine is"
            " too busy to send at this rate, so read the times with care."
        )
    if peaks:
        least = {arm: "at least " * (peak >= arrivals.PEAK_LIMIT) for arm, peak in peaks.items()}
        found = ", ".join(f"{arm} {least[arm]}{peak:.4g} Hz" for arm, peak in peaks.items())
        print(
            f"Highest rate with less than 5 % missing, runs of {_PEAK_SECONDS:g} s or more, found"
            f" within 5 %: {found} per camera."
        )
    print(flush=True)
    return {
        "case": asdict(case),
        "rate": rate,
        "rate_words": words,
        "start_seconds": session.start_seconds,
        "runs": [run.as_json() for run in in_order],
        "total": {arm: asdict(one) for arm, one in total.items()},
        "node_minus_echo_ms": added,
        "peak_rate": peaks,
    }


def _peak(session: Session, arm: str, start: float) -> float:
    def holds(rate: float) -> bool:
        """Under 5 % missing, and sent as fast as asked."""
        trial = session.run(arm, rate, max(_PEAK_SECONDS, _PEAK_FRAMES / rate), warm_up=1.0)
        gone = (trial.account.sent - trial.account.returned) / trial.account.sent
        return gone < 0.05 and trial.achieved >= 0.98 * rate

    return arrivals.peak_rate(holds, start)


def _row(number: str, arm: str, account: arrivals.Account, run: Run | None = None) -> list[Any]:
    *counts, spent, jitter = vars(account).values()
    percent: list[float | None] = [None] * 5
    if run is not None:
        names = ("camera", f"arm ({arm})", "monitor", "other")
        percent = [*(run.cpu[name] for name in names), run.gpu.get("utilization (%)")]
    shown = [None if p is None or p != p else round(p) for p in percent]
    return [number, arm, *counts, spent.p50, spent.p90, spent.p99, spent.max, jitter.mean, *shown]
