# SPDX-License-Identifier: Apache-2.0
"""``dpt_bench temporal``: what the temporal filter gains and costs, beside the usual cures."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields, replace

from tqdm import tqdm

from dpt_ros.apps.bench.arguments import TEMPORAL_METHOD as METHOD
from dpt_ros.apps.bench.arguments import temporal_parser
from dpt_ros.apps.bench.report import environment, environment_lines, write_json
from dpt_ros.apps.bench.temporal import targets as targets
from dpt_ros.apps.bench.temporal.run import CONDITIONS, FILTER, SOURCES, Job, Measured, measure
from dpt_ros.engine.smoothing.filter import TemporalSettings

_QUICK = ("moving", "standing", "cut", "step", "no odometry")


def main(argv: Sequence[str]) -> int:
    """Measure, print the tables; 0 even where a target is missed, unless --check asks for 1."""
    parser = temporal_parser()
    args = parser.parse_args(argv)
    try:
        settings = _settings(args.set)
        jobs = _jobs(args, settings)
    except ValueError as error:
        parser.error(str(error))
    start = time.perf_counter()
    measured = _measure(jobs, args.workers)
    results = targets.means(measured)
    found = targets.verdicts(results)
    against = targets.rivals(results)
    machine = environment()
    print(METHOD, environment_lines(machine), targets.LEGEND, sep="\n\n")
    for (source, condition), methods in results.items():
        print(f"\n{source}: {condition}\n{targets.condition_table(methods)}")
    print('\nTargets ("!" missed)\n' + targets.verdict_table(found))
    missed = [reset_code for reset_code in found if not reset_code.holds]
    print(f"\n{len(found) - len(missed)} of {len(found)} targets hold.")
    print("\nLower TEPE at equal or lower ghost and miss\n" + targets.rival_table(against))
    print(f"\n{time.perf_counter() - start:.0f} s")
    if args.json:
        content = {"method": METHOD, "settings": {f.name: getattr(settings, f.name)
                                                  for f in fields(settings)}}  # fmt: skip
        write_json(
            args.json, {"environment": machine, **content, **targets.as_json(measured, results)}
        )
    if args.picture or args.gif:
        from dpt_ros.apps.bench.temporal import picture as temporal_picture

        source = "network" if "network" in jobs[0].sources else jobs[0].sources[0]
        shown = temporal_picture.film(replace(jobs[0], settings=settings), source)
        if args.picture:
            temporal_picture.strip(shown, args.picture)
        if args.gif:
            temporal_picture.animation(shown, args.gif)
    return 1 if args.check and missed else 0


def _jobs(args: argparse.Namespace, settings: TemporalSettings) -> list[Job]:
    sources = args.source or (["anchored", "noise"] if args.quick else SOURCES)
    if "both" in sources:
        sources = SOURCES
    conditions = args.conditions or (_QUICK if args.quick else CONDITIONS)
    frames = args.frames or (30 if args.quick else 60)
    seeds = args.seeds or (1 if args.quick else 2)
    if frames < 20:
        raise ValueError(f"--frames is {frames}, but must be at least 20 for clips and steps.")
    width, height = args.size
    shots: dict[str, list[str]] = {}
    for name in CONDITIONS:
        if name in conditions:
            shots.setdefault(CONDITIONS[name][0], []).append(name)
    jobs = []
    for shot, names in shots.items():
        for seed in range(1 if shot == "minute" else seeds):
            count, size, chosen = (
                frames,
                (width, height),
                tuple(s for s in SOURCES if s in sources),
            )
            if shot == "step":
                count = max(frames, 42)
            if shot == "minute":
                count, size = 600, (width // 32 * 16, height // 32 * 16)
                chosen = tuple(s for s in chosen if s != "network") or chosen
            jobs.append(
                Job(shot, seed, count, *size, chosen, tuple(names), args.cache, settings,
                    args.device)
            )  # fmt: skip
    return jobs


def _measure(jobs: list[Job], workers: int) -> list[Measured]:
    found: list[list[Measured]] = [[] for _ in jobs]
    bar = tqdm(total=len(jobs), unit="video", disable=None)
    if workers <= 1 or len(jobs) == 1:
        for k, job in enumerate(jobs):
            found[k] = measure(job)
            bar.update()
    else:
        # the longest first, so that no process waits for another at the end
        order = sorted(range(len(jobs)), key=lambda k: -jobs[k].frames * len(jobs[k].conditions))
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            running = {pool.submit(measure, jobs[k]): k for k in order}
            for done in as_completed(running):
                found[running[done]] = done.result()
                bar.update()
    bar.close()
    names = list(CONDITIONS)
    methods = list(dict.fromkeys(m.method for part in found for m in part if m.method != FILTER))
    methods.append(FILTER)
    return sorted(
        (m for part in found for m in part),
        key=lambda m: (
            SOURCES.index(m.source), names.index(m.condition), m.seed, methods.index(m.method)
        ),
    )  # fmt: skip


def _settings(pairs: list[str]) -> TemporalSettings:
    values: dict[str, float | bool] = {}
    known = {f.name: getattr(TemporalSettings(), f.name) for f in fields(TemporalSettings)}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in known:
            raise ValueError(
                f"Unknown setting {name!r} of the filter. Available: {', '.join(known)}."
            )
        values[name] = value == "true" if isinstance(known[name], bool) else float(value)
    return TemporalSettings(**values)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
