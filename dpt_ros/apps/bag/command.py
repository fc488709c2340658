# SPDX-License-Identifier: Apache-2.0
"""What dpt_bag does once its arguments are parsed: which bags, one after another or on Ray."""

from __future__ import annotations

import argparse
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from dpt_ros.apps.command_line import fail
from dpt_ros.apps.progress import print_above, progress_bar
from dpt_ros.bag import ALL_OUTPUTS
from dpt_ros.bag.files import is_bag, other_kind
from dpt_ros.bag.job import Job, Result
from dpt_ros.bag.reader import BagError
from dpt_ros.bag.run import convert
from dpt_ros.bag.topics import ChosenTopics
from dpt_ros.bag.writer import saved_frames
from dpt_ros.engine.faults import DeviceLostError
from dpt_ros.engine.loading import NetworkError
from dpt_ros.engine.parameter_file import read_settings


def run(args: argparse.Namespace) -> int:
    """Convert bags. Returns the exit code of ``dpt_bag``."""
    try:
        jobs = _jobs(args)
        if args.ray:
            from dpt_ros.apps.bag.ray import run_on_ray

            results = run_on_ray(jobs, args.cpus, args.ray_address, print_above)
        else:
            results = _run_here(jobs)
    except ValueError as error:
        return fail("dpt_bag", error, 2)
    rows: list[tuple[Job, Result | str]] = []
    try:
        for job, result in results:
            rows.append((job, result))
            _report(job, result)
    except NetworkError as error:
        return fail("dpt_bag", error, 1)
    except KeyboardInterrupt:
        return fail("dpt_bag", _resumption(jobs[len(rows) :], args.ray), 130)
    print(_table(rows))
    if any(isinstance(result, str) for _, result in rows):
        return 1
    return 3 if any(isinstance(result, Result) and result.problems for _, result in rows) else 0


def _resumption(left: Sequence[Job], ray: bool) -> str:
    """Where the same command continues after an interruption."""
    if ray or not left:
        return "Interrupted. The same command resumes each bag after its last complete file."
    if frames := saved_frames(left[0].out):
        return f"Interrupted. The same command resumes {left[0].out} after frame {frames}."
    before = "Interrupted before the first file of the output was complete"
    return f"{before}: the same command starts {left[0].out} again."


def _inputs(paths: Sequence[str]) -> list[Path]:
    """The bags that paths, folders and patterns stand for."""
    found: dict[Path, None] = {}
    for text in paths:
        bags = []
        for path in [Path(text)] if Path(text).exists() else map(Path, sorted(glob.glob(text))):
            inside = sorted(path.iterdir()) if path.is_dir() and not is_bag(path) else [path]
            bags += [bag for bag in inside if is_bag(bag)]
        if not bags:
            raise ValueError(
                other_kind(Path(text))
                or f"No bag found at {text}: expected a folder with metadata.yaml, a file *.mcap"
                " or *.db3, or a folder or pattern of such."
            )
        found |= dict.fromkeys(bags)
    return list(found)


def _name(bag: Path) -> str:
    """A bag's name without the suffixes of a file."""
    if bag.is_dir():
        return bag.resolve().name
    return bag.name.removesuffix(".zstd").removesuffix(".mcap").removesuffix(".db3")


def _jobs(args: argparse.Namespace) -> list[Job]:
    """The bags to convert and how."""
    bags = _inputs(args.paths if args.out_dir else args.paths[:1])
    if args.out_dir is None:
        if len(bags) > 1:
            what = f"{args.paths[0]} holds {len(bags)} bags"
            raise ValueError(f"{what}: give the folder to write to with --out-dir.")
        outs = [Path(args.paths[1])]
    else:
        outs = [args.out_dir / _name(bag) for bag in bags]
    for out in outs:
        if outs.count(out) > 1:
            raise ValueError(f"Several bags are named {out.name}: convert them one by one.")
    settings, own = read_settings(args.params, args.given)
    topics = tuple(args.image), tuple(args.camera_info), args.odom, tuple(args.anchors)
    outputs = ALL_OUTPUTS if "all" in args.outputs else tuple(dict.fromkeys(args.outputs))
    how = args.with_input, args.storage, args.compress, args.overwrite, args.file_frames
    return [
        Job(bag, out, settings, own, ChosenTopics(*topics), outputs, *how)
        for bag, out in zip(bags, outs, strict=True)
    ]


def _run_here(jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | str]]:
    """Jobs one after another; for one that failed, the error message."""
    for job in jobs:
        try:
            with progress_bar(job.source.name, "frame") as show:
                yield job, convert(job, print_above, show)
        except (BagError, OSError, DeviceLostError, torch.OutOfMemoryError) as error:
            yield job, str(error)


def _table(rows: Sequence[tuple[Job, Result | str]]) -> str:
    """Bag, frames, seconds, rate and result of each job."""
    cells = [("bag", "frames", "seconds", "frames/s", "result")]
    for job, result in rows:
        name = job.source.name
        if isinstance(result, str):
            cells.append((name, "", "", "", "failed"))
            continue
        rate = f"{result.computed / result.seconds:.1f}" if result.computed else ""
        left_out = f", {result.failed} images left out" if result.failed else ""
        numbers = str(result.frames), f"{result.seconds:.1f}", rate
        cells.append((name, *numbers, result.outcome + left_out))
    a, b, c, d, _ = (max(map(len, column)) for column in zip(*cells, strict=True))
    return "\n".join(
        f"{name:<{a}}  {frames:>{b}}  {seconds:>{c}}  {rate:>{d}}  {outcome}"
        for name, frames, seconds, rate, outcome in cells
    )


def _report(job: Job, result: Result | str) -> None:
    """Report what went wrong with a bag, or that it was complete already."""
    if isinstance(result, str):
        print_above(f"{job.source}: {result}")
        return
    if result.outcome == "done before":
        print_above(f"{job.out} is already complete and was not changed; --overwrite replaces it.")
    for problem in result.problems:
        print_above(f"{job.source}: {problem}")
