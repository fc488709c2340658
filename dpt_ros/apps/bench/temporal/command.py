# SPDX-License-Identifier: Apache-2.0
"""``dpt_bench temporal``: effect and cost of the temporal filter, beside the usual methods; its
targets, and the tables of all methods."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from dpt_ros.apps.bench import TEMPORAL_CONDITIONS as CONDITIONS
from dpt_ros.apps.bench import TEMPORAL_METHOD, TEMPORAL_SOURCES
from dpt_ros.apps.bench.temporal import picture
from dpt_ros.apps.bench.temporal.run import FILTER, Job, Measured, measure
from dpt_ros.apps.report import introduce, table, write_json
from dpt_ros.engine.smoothing.filter import TemporalSettings
from dpt_ros.metrics.depth import finite_mean

_QUICK = ("moving", "standing", "cut", "step", "no odometry")


def run(args: argparse.Namespace) -> int:
    """Measure and print the tables; returns 1 if a target is missed and --check given, else 0."""
    try:
        jobs = _jobs(args, _settings(args.set))
    except ValueError as error:
        args.error(str(error))
    start = time.perf_counter()
    about = introduce(TEMPORAL_METHOD)
    measured = _measure(jobs, args.workers)
    results = means(measured)
    found = check_targets(results)
    print(LEGEND)
    for (source, condition), methods in results.items():
        print(f"\n{source}: {condition}\n{condition_table(methods)}")
    print('\nTargets ("!" missed)\n' + target_table(found))
    missed = [target for target in found if not target.holds]
    print(f"\n{len(found) - len(missed)} of {len(found)} targets hold.")
    print(f"\n{time.perf_counter() - start:.0f} s")
    if args.json:
        about |= {"settings": asdict(jobs[0].settings)}
        about |= {"runs": [asdict(m) for m in measured]}
        about["means"] = [
            {"source": source, "condition": condition, "methods": methods}
            for (source, condition), methods in results.items()
        ]
        write_json(args.json, about | {"targets": [target._asdict() for target in found]})
    if args.picture or args.gif:
        sources = jobs[0].sources
        source = "network" if "network" in sources else sources[0]
        picture.draw(jobs[0], source, args.picture, args.gif)
    return 1 if args.check and missed else 0


def _jobs(args: argparse.Namespace, settings: TemporalSettings) -> list[Job]:
    """A job for each video, in the order of ``CONDITIONS`` and of the seeds."""
    wanted = args.source or (["anchored", "noise"] if args.quick else TEMPORAL_SOURCES)
    sources = tuple(s for s in TEMPORAL_SOURCES if s in wanted or "both" in wanted)
    wanted = args.conditions or (_QUICK if args.quick else CONDITIONS)
    frames = args.frames or (30 if args.quick else 60)
    seeds = args.seeds or (1 if args.quick else 2)
    if frames < 20:
        raise ValueError(f"--frames is {frames}, but must be at least 20 for clips and steps.")
    shots: dict[str, tuple[str, ...]] = {}
    for name, (shot, _) in CONDITIONS.items():
        if name in wanted:
            shots[shot] = (*shots.get(shot, ()), name)
    jobs = []
    for shot, names in shots.items():
        count, size, chosen = frames, args.size, sources
        if shot == "step":
            count = max(frames, 42)
        if shot == "minute":
            count, size = 600, tuple(side // 32 * 16 for side in args.size)
            chosen = tuple(s for s in sources if s != "network") or sources
        given = (count, *size, chosen, names, args.cache, settings, args.device)
        jobs += [Job(shot, seed, *given) for seed in range(1 if shot == "minute" else seeds)]
    return jobs


def _measure(jobs: list[Job], workers: int) -> list[Measured]:
    """The jobs' results, sorted by source, condition, seed and method (the filter last)."""
    # The longest first, so that no process waits for another at the end.
    order = sorted(jobs, key=lambda job: -job.frames * len(job.conditions))
    with ProcessPoolExecutor(max(workers, 1), multiprocessing.get_context("spawn")) as pool:
        parts = tqdm(pool.map(measure, order), total=len(jobs), unit="video", disable=None)
        found = [one for part in parts for one in part]
    conditions = list(CONDITIONS)

    def place(m: Measured) -> tuple[int, int, int, bool]:
        source, condition = TEMPORAL_SOURCES.index(m.source), conditions.index(m.condition)
        return source, condition, m.seed, m.method == FILTER

    return sorted(found, key=place)


def _settings(pairs: list[str]) -> TemporalSettings:
    values: dict[str, Any] = {}
    known = asdict(TemporalSettings())
    for name, _, value in (pair.partition("=") for pair in pairs):
        if name not in known:
            names = ", ".join(known)
            raise ValueError(f"Unknown setting {name!r} of the filter. Available: {names}.")
        values[name] = value == "true" if isinstance(known[name], bool) else float(value)
    return TemporalSettings(**values)


# measure: heading, how it is compared with raw ("%" relative change, "+" difference, "x" ratio,
# "=" as it is)
_COLUMNS = {
    "tepe": ("TEPE", "%"), "tae": ("TAE", "%"), "opw": ("OPW", "%"), "rtc": ("rTC", "+"),
    "abs_rel": ("AbsRel", "%"), "edge": ("edge", "%"), "ghost": ("ghost", "+"),
    "miss": ("miss", "+"), "std": ("std", "%"), "near": ("near", "="), "far": ("far", "="),
    "cut": ("cut", "x"), "drift": ("drift", "="), "miou": ("mIoU", "+"), "tc": ("TC", "+"),
    "vc8": ("VC8", "+"), "vc16": ("VC16", "+"), "mover_iou": ("mover", "+"),
    "ghost_label": ("ghost l.", "+"),
}  # fmt: skip
LEGEND = """\
First row absolute: TEPE, TAE, rTC, ghost, miss, std and labels in %, OPW in m, AbsRel and edge as
fractions. Below, against raw: TEPE, TAE, OPW, AbsRel, edge, std in % of raw's; rTC, ghost, miss
and labels in percentage points; cut: AbsRel of the frame after it, times raw's; near, far: frames
to 90 % of a step, drift: % per minute, both as they are. ms: per frame, one thread, median."""
_NAN = float("nan")
Values = dict[str, float]
Means = dict[tuple[str, str], dict[str, Values]]  # (source, condition): method: measure: mean


class Target(NamedTuple):
    """One target of one source and condition: its limit, the value measured, whether it holds."""

    source: str
    condition: str
    target: str
    limit: str
    value: float
    holds: bool


def means(measured: Sequence[Measured]) -> Means:
    """Means over the seeds, NaN left out; "ms" is one of the measures."""
    lists: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for m in measured:
        row = lists.setdefault((m.source, m.condition), {}).setdefault(m.method, {})
        for name, value in (m.values | {"ms": m.ms}).items():
            row.setdefault(name, []).append(value)
    return {
        key: {m: {name: finite_mean(v) for name, v in row.items()} for m, row in methods.items()}
        for key, methods in lists.items()
    }


def change(name: str, value: float, raw: float) -> float:
    """A measure compared with raw's, in the way of its column."""
    how = _COLUMNS[name][1]
    if how in "=+":
        return value if how == "=" else value - raw
    ratio = value / raw if raw else _NAN
    return ratio if how == "x" else 100 * (ratio - 1)


def condition_table(methods: dict[str, Values]) -> str:
    """The methods of one source and condition, raw first and absolute."""
    raw = methods["raw"]
    names = [name for name in _COLUMNS if np.isfinite(raw.get(name, _NAN))]
    formats = {"%": "{:+.0f}%", "+": "{:+.1f}", "=": "{:.1f}", "x": "{:.2f}"}

    def cell(method: str, name: str, value: float) -> str:
        if method == "raw":
            return f"{value:.3g}"
        changed = change(name, value, raw[name])
        return formats[_COLUMNS[name][1]].format(changed) if np.isfinite(value) else "-"

    rows = [
        [m, *(cell(m, name, values.get(name, _NAN)) for name in names), f"{values['ms']:.1f}"]
        for m, values in methods.items()
    ]
    return table(["method", *(_COLUMNS[name][0] for name in names), "ms"], rows)


def _limits(source: str, condition: str, raw: Values) -> Iterator[tuple[str, float, bool]]:
    """Measure, limit, and whether the limit is the least value instead of the largest."""
    odometry = CONDITIONS[condition][1]
    if condition == "minute":
        yield "drift", 2 if source == "anchored" else 5, False
        return
    hard = condition == "7.5 fps" or odometry in ("x5", "jumps")
    middle = source == "anchored" or odometry == "none"
    most: Values = {"tepe": -50 if hard else -60 if middle else -75, "tae": -50}
    most |= {"abs_rel": 3 if odometry == "none" else 1, "edge": 5, "ghost": 1, "miss": 1}
    most |= {"near": 1, "far": 2, "cut": 1.1} | ({"std": -66.6} if condition == "standing" else {})
    yield from ((name, limit, False) for name, limit in most.items())
    for name in ("tc", "vc16"):
        start = raw.get(name, _NAN)
        yield name, 8 if start <= 84 else (100 - start) / 2, True
    yield from (("miou", 0, True), ("mover_iou", 0, True), ("ghost_label", 1.5, False))


def check_targets(results: Means) -> list[Target]:
    """Every target for which there is a measurement."""
    found: list[Target] = []
    for (source, condition), methods in results.items():
        if FILTER not in methods:
            continue
        raw, ours = methods["raw"], methods[FILTER]
        for name, limit, least in _limits(source, condition, raw):
            if not np.isfinite(raw.get(name, _NAN)):
                continue
            value = change(name, ours.get(name, _NAN), raw[name])
            if name == "drift":
                value = abs(value - raw[name])
            holds = value >= limit if least else value <= limit
            words = f"{'>=' if least else '<='} {limit:.3g}"
            found.append(Target(source, condition, _COLUMNS[name][0], words, value, holds))
    return found


def target_table(found: Sequence[Target]) -> str:
    """A row per source and condition, a column per target; "!" where it does not hold."""
    targets = [head for head, _ in _COLUMNS.values() if any(t.target == head for t in found)]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for t in found:
        cell = f"{t.value:+.1f}{' ' if t.holds else '!'}"
        rows.setdefault((t.source, t.condition), {})[t.target] = cell
    lines = [[*place, *(row.get(name, "") for name in targets)] for place, row in rows.items()]
    return table(["source", "condition", *targets], lines)
