# SPDX-License-Identifier: Apache-2.0
"""dpt_bag: depth and labels for recorded bags, every frame, in order."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from dpt_ros.engine.network import NetworkError
from dpt_ros.engine.stream_runner import DeviceLostError
from dpt_ros.ros.bag_files import is_bag, other_kind
from dpt_ros.ros.bag_job import Job, Result
from dpt_ros.ros.bag_node import ALL_OUTPUTS, MAPS
from dpt_ros.ros.bag_reader import BagError
from dpt_ros.ros.bag_run import convert
from dpt_ros.ros.bag_settings import read_settings
from dpt_ros.ros.bag_topics import Asked
from dpt_ros.ros.bag_writer import STORAGES

EXAMPLES = """examples:
  one bag:
    dpt_bag my_bag my_depth
  a metric network on the first GPU, with the input's topics in the output:
    dpt_bag my_bag my_depth -p depth_network:=dpt_hybrid_nyu -p depth_weights:=download \\
      -p device:=cuda --with-input
  two cameras, odometry of the robot:
    dpt_bag my_bag my_depth --image /front/image_raw --image /rear/image_raw --odom /odometry \\
      --params dpt.yaml
  all bags of a folder, on the processes of a Ray cluster with 4 CPU cores each:
    dpt_bag recordings --out-dir depth --ray --cpus 4
After an interruption the same command goes on where it was.

exit codes: 0 done; 1 not done; 2 a mistake in the arguments; 3 done, but parts of the input could
not be read; 130 interrupted.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dpt_bag",
        usage="dpt_bag IN OUT [options]\n       dpt_bag IN [IN ...] --out-dir FOLDER [options]",
        description="Run depth and labels over recorded bags (rosbag2: mcap, sqlite3) and write"
        " what the node would publish, with the stamps of the images, into new bags.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH",
        help="bags, folders of bags or patterns; the last one is the bag to write, unless there is"
        " --out-dir")  # fmt: skip
    add("--out-dir", type=Path, help="folder for the new bags, each named as its input")
    add("--image", action="append", default=[], metavar="TOPIC",
        help="topic of images; again for each further camera (default: the only one)")  # fmt: skip
    add("--camera-info", action="append", default=[], metavar="TOPIC",
        help="its camera_info; one for each image (default: the one beside it)")  # fmt: skip
    add("--odom", default="", metavar="TOPIC",
        help="odometry (default: /odom, or the only one)")  # fmt: skip
    add("--anchors", action="append", default=[], metavar="TOPIC",
        help="LaserScan, PointCloud2 or depth Image that gives metres (default: /anchors/scan,"
        " /anchors/points, /anchors/depth)")  # fmt: skip
    add("--params", type=Path, metavar="FILE", help="the node's parameter file")
    add("-p", dest="given", action="append", default=[], metavar="NAME:=VALUE",
        help="one parameter of the node, see docs/topics.md")  # fmt: skip
    add("--outputs", type=lambda text: text.split(","), default=list(MAPS), metavar="TOPIC,...",
        help=f"what to write: all, or some of {', '.join(ALL_OUTPUTS)}, with commas between"
        " (default: all but the colours and points)")  # fmt: skip
    add("--with-input", action="store_true", help="copy the topics of the input, too")
    add("--storage", choices=tuple(STORAGES), default="mcap", help="default: mcap")
    add("--compress", action="store_true", help="with zstd: smaller, slower")
    add("--file-frames", type=int, default=0, metavar="N",
        help="frames in each file of the new bag; an interruption costs at most so many (default:"
        " 64, on a GPU 512, of a long bag more)")  # fmt: skip
    add("--overwrite", action="store_true", help="begin anew, whatever dpt_bag wrote before")
    add("--ray", action="store_true", help="many bags on the processes of a Ray cluster")
    add("--cpus", type=int, metavar="N",
        help="CPU cores of each process; without, one GPU each if there is one")  # fmt: skip
    add("--ray-address", metavar="ADDRESS", help="of a running cluster (default: a local one)")
    return parser


def _inputs(paths: Sequence[str]) -> list[Path]:
    """The bags that paths, folders and patterns stand for.

    Raises:
        ValueError: there is none for one of them.
    """
    found: dict[Path, None] = {}
    for text in paths:
        bags = []
        for path in [Path(text)] if Path(text).exists() else map(Path, sorted(glob.glob(text))):
            inside = sorted(path.iterdir()) if path.is_dir() and not is_bag(path) else [path]
            bags += [bag for bag in inside if is_bag(bag)]
        if not bags:
            raise ValueError(
                other_kind(Path(text))
                or f"There is no bag at {text}: expected a folder with metadata.yaml, a file"
                " *.mcap or *.db3, or a folder or pattern of such."
            )
        found |= dict.fromkeys(bags)
    return list(found)


def _name(bag: Path) -> str:
    """A bag's name without the suffixes of a file."""
    if bag.is_dir():
        return bag.resolve().name
    return bag.name.removesuffix(".zstd").removesuffix(".mcap").removesuffix(".db3")


def _jobs(args: argparse.Namespace) -> list[Job]:
    """What is to be done.

    Raises:
        ValueError: a sentence about what is wrong with the arguments.
    """
    if args.out_dir is None and len(args.paths) != 2:
        raise ValueError("Give one bag to read and one to write, or several bags and --out-dir.")
    bags = _inputs(args.paths if args.out_dir else args.paths[:1])
    if args.out_dir is None:
        if len(bags) > 1:
            raise ValueError(
                f"There are {len(bags)} bags at {args.paths[0]}; give the folder to write to with"
                " --out-dir."
            )
        outs = [Path(args.paths[1])]
    else:
        outs = [args.out_dir / _name(bag) for bag in bags]
    for out in outs:
        if outs.count(out) > 1:
            raise ValueError(f"Two of the bags are named {out.name}: run them one by one.")
    for name in ("cpus", "file_frames"):
        if (value := getattr(args, name)) is not None and value < (name == "cpus"):
            raise ValueError(f"--{name.replace('_', '-')} is {value}, but must be positive.")
    if (args.cpus or args.ray_address) and not args.ray:
        raise ValueError("--cpus and --ray-address are for --ray; give that, too.")
    unknown = [name for name in args.outputs if name not in (*ALL_OUTPUTS, "all")]
    if unknown:
        raise ValueError(
            f"--outputs {','.join(unknown)}: there are {', '.join(ALL_OUTPUTS)}, and all."
        )
    settings, own = read_settings(args.params, args.given)
    job = Job(
        bags[0],
        outs[0],
        settings,
        own,
        Asked(tuple(args.image), tuple(args.camera_info), args.odom, tuple(args.anchors)),
        ALL_OUTPUTS if "all" in args.outputs else tuple(dict.fromkeys(args.outputs)),
        args.with_input,
        args.storage,
        args.compress,
        args.overwrite,
        args.file_frames,
    )
    return [replace(job, source=bag, out=out) for bag, out in zip(bags, outs, strict=True)]


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar that what was done by an earlier run does not make faster."""
    bar: tqdm | None = None

    def show(done: int, total: int | None) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, initial=done, desc=name, unit="frame", disable=None)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


def _run_here(jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | str]]:
    """Jobs one after another; a sentence for one that failed."""
    for job in jobs:
        try:
            with _bar(job.source.name) as show:
                yield job, convert(job, _say, show)
        except (BagError, OSError, DeviceLostError, torch.OutOfMemoryError) as error:
            yield job, str(error)


def _say(sentence: str) -> None:
    tqdm.write(sentence, file=sys.stderr)


def _table(rows: Sequence[tuple[Job, Result | str]]) -> str:
    """Bag, frames, seconds, rate and result of each job."""
    cells = [("bag", "frames", "seconds", "frames/s", "result")]
    for job, result in rows:
        name = job.source.name
        if isinstance(result, str):
            cells.append((name, "", "", "", "failed"))
            continue
        rate = f"{result.computed / result.seconds:.1f}" if result.computed else ""
        outcome = result.outcome
        if result.failed:
            outcome += f", {result.failed} images left out"
        seconds = f"{result.seconds:.1f}"
        cells.append((name, str(result.frames), seconds, rate, outcome))
    widths = [max(len(row[k]) for row in cells) for k in range(5)]
    lines = []
    for row in cells:
        parts = [row[0].ljust(widths[0]), *(row[k].rjust(widths[k]) for k in (1, 2, 3)), row[4]]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_bag``. Returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        jobs = _jobs(args)
        if args.ray:
            from dpt_ros.apps.bag_ray import run_on_ray

            results = run_on_ray(jobs, args.cpus, args.ray_address, _say)
        else:
            results = _run_here(jobs)
    except (ValueError, ImportError) as error:
        print(f"dpt_bag: {error}", file=sys.stderr)
        return 2
    rows: list[tuple[Job, Result | str]] = []
    try:
        for job, result in results:
            rows.append((job, result))
            _report(job, result)
    except NetworkError as error:
        print(f"dpt_bag: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from here.", file=sys.stderr)
        return 130
    print(_table(rows))
    if any(isinstance(result, str) for _, result in rows):
        return 1
    return 3 if any(isinstance(result, Result) and result.notes for _, result in rows) else 0


def _report(job: Job, result: Result | str) -> None:
    """What of a bag was not as it should be."""
    if isinstance(result, str):
        _say(f"{job.source}: {result}")
        return
    if result.outcome == "done before":
        _say(f"{job.out} is complete already and is left as it is; --overwrite begins anew.")
    for note in result.notes:
        _say(f"{job.source}: {note}")


if __name__ == "__main__":
    sys.exit(main())
