# SPDX-License-Identifier: Apache-2.0
"""``dpt_bench node``: from the camera's stamp to the depth in another process."""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpt_ros.apps.bench.arrivals import (
    PEAK_LIMIT,
    Account,
    choose_rate,
    peak_rate,
    sustains,
    together,
)
from dpt_ros.apps.bench.processes import BenchError
from dpt_ros.apps.bench.report import environment, environment_lines, table, write_json
from dpt_ros.apps.bench.session import ARMS, Case, Run, Session, profile_words

METHOD = """\
Processes on one host, over DDS: a camera, dpt_node, a monitor. All stamps are of one monotonic
clock. The camera reads the stamp just before it publishes a picture made beforehand, on a schedule
that does not wait for answers (open loop); several cameras are triggered together. The monitor
takes the time when it holds the serialised message. A frame has returned when all outputs asked
for are there. The echo has the node's topics, message sizes, QoS and profile and computes nothing:
the floor of transport. Echo and node take turns, run by run, with all processes up all the time.

sent = back + lost + dropped. dropped: the arm says on /diagnostics that the frame gave way to a
newer one, or failed. lost: nobody says anything of it. late: took longer than a period. order:
came after a newer frame. jitter: mean of the absolute second difference of arrival times, as
ros2_benchmark has it. Times are in milliseconds. cpu: percent of one core, per process; other:
what everything else on the machine used, percent of the whole machine."""

_SIZES = {"vga": (640, 480), "720p": (1280, 720), "1080p": (1920, 1080)}
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
        peaks: highest rate with less than 5 % missing, by arm; empty if not asked for.
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
        pairs = zip(self.of("node"), self.of("echo"), strict=True)
        return [
            getattr(node.account.latency, percentile) - getattr(echo.account.latency, percentile)
            for node, echo in pairs
        ]


def main(argv: Sequence[str]) -> int:
    """Measure every case asked for; print tables and, if asked, write JSON."""
    args = _parser().parse_args(argv)
    cases = [
        Case(cameras, size[0], size[1], transport, outputs, profile)
        for profile, outputs, transport, size, cameras in itertools.product(
            args.profile, args.outputs, args.transport, args.size, args.cameras
        )
    ]
    machine = environment()
    print(METHOD, environment_lines(machine), sep="\n\n")
    for profile in args.profile:
        print(f"profile   {profile_words(profile)}")
    print(flush=True)
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
            profiles = [profile_words(profile) for profile in args.profile]
            content = {"method": METHOD, "profiles": profiles, "parameters": _parameters(args)}
            found = [_as_json(result) for result in results]
            write_json(args.json, {"environment": machine, **content, "results": found})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dpt_bench node",
        description=METHOD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The full measurement: dpt_bench node --runs 5 --seconds 60 --rate 30 --cameras 1"
        " 2 4\n--size vga 720p --transport raw jpeg --outputs depth depth+labels --peak",
    )
    add = parser.add_argument
    add("--runs", type=_count, default=3, help="of each arm (default 3)")
    add("--seconds", type=_positive, default=5.0, help="of a run, after warm-up (default 5)")
    add("--warm-up", type=_positive, default=_WARM_UP, help="seconds before each run (default 1)")
    add("--rate", type=_rate, default=None, help="frames/s, or auto: what the machine sustains")
    add("--cameras", type=_count, nargs="+", default=[1], help="how many (default 1)")
    add("--size", type=_size, nargs="+", default=[_SIZES["vga"]], help="vga, 720p, 1080p or WxH")
    add("--transport", choices=("raw", "jpeg"), nargs="+", default=["raw"])
    add("--outputs", choices=("depth", "depth+labels"), nargs="+", default=["depth"])
    add("--profile", choices=("shipped", "default"), nargs="+", default=["shipped"])
    add("--network", default="dpt_hybrid_embedded", help="depth network")
    add("--label-network", default="dpt_hybrid_embedded", help="used with depth+labels")
    add("--weights", help="of the depth network: a file, download or random")
    add("--label-weights", help="of the label network; --weights, if both networks are the same")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    add("-p", dest="parameters", action="append", default=[], metavar="NAME:=VALUE", type=_given)
    add("--load", type=int, default=0, help="busy processes beside the node (default none)")
    add("--peak", action="store_true", help="search the highest rate with < 5 %% missing, too")
    add("--json", type=Path, help="write the results here too")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 1000")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e5:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _rate(text: str) -> float | None:
    return None if text == "auto" else _positive(text)


def _size(text: str) -> tuple[int, int]:
    if text in _SIZES:
        return _SIZES[text]
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) >= 32 and int(height) >= 32):
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither one of {', '.join(_SIZES)} nor of the form 640x480, at least"
            " 32x32"
        )
    return int(width), int(height)


def _given(text: str) -> tuple[str, str]:
    name, found, value = text.partition(":=")
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form NAME:=VALUE")
    return name, value


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
        bar = tqdm(total=2 * args.runs, desc=case.words(), unit="run", leave=False, disable=None)
        with bar:
            session.wait_for_depth()
            rate, words = args.rate, "as asked for"
            if rate is None:
                answer = session.answer_seconds("node")
                rate = choose_rate(answer, _RATES)
                words = (
                    f"chosen, because the node answers in {answer * 1e3:.0f} ms (p90) at 10 Hz;"
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
    """The tables and sentences on one case."""
    rows = [
        _row(str(number // len(ARMS) + 1), run.arm, run.account, run)
        for number, run in enumerate(result.runs)
    ]
    rows += [_row("all", arm, result.total(arm)) for arm in ARMS]
    warm_up = result.runs[0].warm_up
    lag = max(run.lag.p99 for run in result.runs)
    lines = [
        f"{result.case.words()}; {result.rate:g} Hz, {result.rate_words}.",
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
        peaks = ", ".join(f"{arm} {_peak_words(rate)}" for arm, rate in result.peaks.items())
        lines.append(
            f"Highest rate with less than 5 % missing, runs of {_PEAK_SECONDS:g} s or more, found"
            f" within 5 %: {peaks} per camera."
        )
    return "\n".join(lines)


def _peak_words(rate: float) -> str:
    return f"at least {rate:.4g} Hz" if rate >= PEAK_LIMIT else f"{rate:.4g} Hz"


def _row(number: str, arm: str, account: Account, run: Run | None = None) -> list[Any]:
    spent = account.latency
    counts = [account.sent, account.returned, account.lost, account.dropped]
    order = [account.late, account.out_of_order]
    row = [number, arm, *counts, *order, spent.p50, spent.p90, spent.p99, spent.max]
    row.append(account.jitter.mean)
    if run is None:
        return row + [None] * (len(_HEADER) - len(row))
    cpu = [run.cpu[name] for name in ("camera", f"arm ({arm})", "monitor", "other")]
    return row + [round(value) if value == value else None for value in cpu] + [_gpu(run)]


def _gpu(run: Run) -> int | None:
    used = run.gpu.get("utilization (%)")
    return None if used is None else round(used)


def _spread(values: Sequence[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.2f} ms ({min(values):.2f} to {max(values):.2f})"


def _as_json(result: Result) -> dict[str, Any]:
    runs = []
    for run in result.runs:
        content = {name: value for name, value in vars(run).items() if name != "traces"}
        runs.append({**content, "account": asdict(run.account), "lag": asdict(run.lag)})
    return {
        "case": asdict(result.case),
        "rate": result.rate,
        "rate_words": result.rate_words,
        "start_seconds": result.start_seconds,
        "runs": runs,
        "total": {arm: asdict(result.total(arm)) for arm in ARMS},
        "node_minus_echo_ms": {name: result.added(name) for name in ("p50", "p90", "p99")},
        "peak_rate": result.peaks,
    }
