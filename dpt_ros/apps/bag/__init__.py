# SPDX-License-Identifier: Apache-2.0
"""dpt_bag: depth and labels for recorded bags, every frame, in order."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from dpt_ros.apps.command_line import add_parameters, fail, new_parser, unknown
from dpt_ros.bag import ALL_OUTPUTS, MAPS, STORAGES

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
After an interruption the same command resumes after the last complete file of the output
(--file-frames).

exit codes: 0 done; 1 failed; 2 wrong arguments; 3 done, but parts of the input could not be read;
130 interrupted.
"""


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "dpt_bag",
        "Run depth and labels over recorded bags (rosbag2: mcap, sqlite3) and write"
        " what the node would publish, with the stamps of the images, into new bags.",
        EXAMPLES,
        "dpt_bag IN OUT [options]\n       dpt_bag IN [IN ...] --out-dir FOLDER [options]",
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH",
        help="bags, folders of bags or patterns; the last one is the bag to write, unless there is"
        " --out-dir")  # fmt: skip
    add("--out-dir", type=Path, help="folder for the new bags, each named as its input")
    add("--image", action="append", default=[], metavar="TOPIC",
        help="topic of images; again for each further camera (default: the only one)")  # fmt: skip
    add("--camera-info", action="append", default=[], metavar="TOPIC",
        help="its camera_info, once per image (default: the one in its namespace)")  # fmt: skip
    add("--odom", default="", metavar="TOPIC",
        help="odometry (default: /odom, or the only one)")  # fmt: skip
    add("--anchors", action="append", default=[], metavar="TOPIC",
        help="LaserScan, PointCloud2 or depth Image that gives metres (default: /anchors/scan,"
        " /anchors/points, /anchors/depth)")  # fmt: skip
    add_parameters(parser)
    add("--outputs", type=lambda text: text.split(","), default=list(MAPS), metavar="TOPIC,...",
        help=f"what to write: all, or some of {', '.join(ALL_OUTPUTS)}, with commas between"
        " (default: all but the colours and points)")  # fmt: skip
    add("--with-input", action="store_true", help="copy the topics of the input, too")
    add("--storage", choices=STORAGES, default="mcap", help="default: mcap")
    add("--compress", action="store_true", help="with zstd: smaller, slower")
    add("--file-frames", type=int, default=0, metavar="N",
        help="frames in each file of the new bag; an interruption loses at most as many (default:"
        " 64, on a GPU 512, of a long bag more)")  # fmt: skip
    add(
        "--overwrite", action="store_true", help="start again, replacing what dpt_bag wrote before"
    )
    add("--ray", action="store_true", help="many bags on the processes of a Ray cluster")
    add("--cpus", type=int, metavar="N",
        help="CPU cores of each process; without, one GPU each if there is one")  # fmt: skip
    add("--ray-address", metavar="ADDRESS", help="of a running cluster (default: a local one)")
    return parser


def _mistakes(args: argparse.Namespace) -> Iterator[str]:
    """The error messages on wrong arguments."""
    if args.out_dir is None and len(args.paths) != 2:
        yield "Give one bag to read and one to write, or several bags and --out-dir."
    for name in ("cpus", "file_frames"):
        if (value := getattr(args, name)) is not None and value < (name == "cpus"):
            yield f"--{name.replace('_', '-')} is {value}, but must be positive."
    if (args.cpus or args.ray_address) and not args.ray:
        yield "--cpus and --ray-address need --ray."
    yield from unknown("--outputs: unknown output", args.outputs, (*ALL_OUTPUTS, "all"))
    if args.ray and find_spec("ray") is None:
        yield "--ray: Ray is not installed: pip install ray."


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_bag``. Returns the exit code."""
    args = _parser().parse_args(argv)
    if mistake := next(_mistakes(args), ""):
        return fail("dpt_bag", mistake, 2)
    from dpt_ros.apps.bag.command import run

    return run(args)
