# SPDX-License-Identifier: Apache-2.0
"""``dpt_bench temporal``: effect and cost of the temporal filter, beside the usual methods."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from dpt_ros.apps.bench.arguments import TEMPORAL_CONDITIONS as CONDITIONS
from dpt_ros.apps.bench.arguments import TEMPORAL_METHOD, TEMPORAL_SOURCES
from dpt_ros.apps.bench.temporal import picture, targets
from dpt_ros.apps.bench.temporal.run import FILTER, Job, Measured, measure
from dpt_ros.apps.report import introduce, write_json
from dpt_ros.engine.smoothing.filter import TemporalSettings

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
    results = targets.means(measured)
    found = targets.check_targets(results)
    print(targets.LEGEND)
    for (source, condition), methods in results.items():
        print(f"\n{source}: {condition}\n{targets.condition_table(methods)}")
    print('\nTargets ("!" missed)\n' + targets.target_table(found))
    missed = [target for target in found if not target.holds]
    print(f"\n{len(found) - len(missed)} of {len(found)} targets hold.")
    print(f"\n{time.perf_counter() - start:.0f} s")
    if args.json:
        about |= {"settings": asdict(jobs[0].settings)}
        write_json(args.json, about | targets.as_json(measured, results))
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
            raise ValueError(
                f"Unknown setting {name!r} of the filter. Available: {', '.join(known)}."
            )
        values[name] = value == "true" if isinstance(known[name], bool) else float(value)
    return TemporalSettings(**values)
