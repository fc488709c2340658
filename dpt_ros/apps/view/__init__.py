# SPDX-License-Identifier: Apache-2.0
"""dpt_view: show images, depth, labels and points, live or from bags, with rerun."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from dpt_ros.apps.command_line import fail, new_parser, unknown
from dpt_ros.apps.view.topics import KINDS
from dpt_ros.ros.command_line import split_ros_args

CLASSES = ("world", "ade20k", "navigation")

DESCRIPTION = """Show images and predictions with rerun (pip install rerun-sdk): image, depth and
its standard deviation, labels and their confidence, points, the path driven, rate and latency.
Without a bag it subscribes to the topics of the running node."""
EXAMPLES = """examples:
  the running node, in a window:
    dpt_view
  in the browser, on a robot without a screen (ssh -L 9090:localhost:9090 -L 9876:localhost:9876):
    dpt_view --web
  names as the node was started with, and only some of the outputs:
    dpt_view --namespace /dpt --remap image:=/camera/image_raw --only image,depth
  two bags on one timeline, as a recording that rerun opens:
    dpt_view demo_out/camera demo_out/predictions --save demo.rrd
"""


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("dpt_view", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "bag", nargs="*", type=Path, help="rosbag2 folders or mcap files; live topics if omitted"
    )
    names = parser.add_argument_group("names").add_argument
    names("--camera", action="append", default=[], metavar="NAME", help="prefix of a camera's"
          " topics; may be repeated (default: live none, in a bag every camera)")  # fmt: skip
    names("--namespace", default="", help="of the node and its topics")
    names("-r", "--remap", action="append", default=[], metavar="NAME:=TOPIC",
          help="rename a topic, as for the node: image:=/camera/image_raw")  # fmt: skip
    what = parser.add_argument_group("what is shown").add_argument
    what("--only", type=_kinds, default=KINDS, metavar="KIND,...", help=f"of {', '.join(KINDS)}"
         " (default: all); topics of the others are not subscribed to")  # fmt: skip
    what("--classes", choices=CLASSES,
         help="class names and colours if there is no semantic/label_info")  # fmt: skip
    what("--range", type=float, default=10.0, metavar="M",
         help="depth at the far end of the colour map, metres (default: %(default)g)")  # fmt: skip
    what("--rate", type=float, default=0.0, metavar="HZ",
         help="maximum number of frames per second (default: all)")  # fmt: skip
    what("--max-points", type=int, default=40_000, metavar="N", help="maximum number of points"
         " of one cloud; larger ones are subsampled (default: %(default)d)")  # fmt: skip
    what("--jpeg", type=int, default=0, metavar="QUALITY",
         help="compress raw images, 1 to 100: less memory (default: uncompressed)")  # fmt: skip
    what("--camera-in-base", nargs=7, type=float, metavar=("X", "Y", "Z", "QX", "QY", "QZ", "QW"),
         help="the node's parameter camera_in_base, if odom is the robot's")  # fmt: skip
    what("--compressed", action="store_true",
         help="with live topics, use image/compressed instead of image")  # fmt: skip
    what("--seconds", type=float,
         help="with live topics, quit this long after the first message")  # fmt: skip
    group = parser.add_argument_group("where (default: a window of rerun's viewer)")
    where, place = group.add_argument, group.add_mutually_exclusive_group().add_argument
    place("--web", action="store_true", help="serve the viewer to browsers")
    place("--save", type=Path, metavar="FILE.rrd", help="write a recording")
    place("--connect", metavar="HOST[:PORT]",
          help="connect to a running viewer (default port: 9876)")  # fmt: skip
    where("--web-port", type=int, default=9090, metavar="PORT",
          help="with --web, port of the page (default: %(default)d)")  # fmt: skip
    where("--grpc-port", type=int, default=9876, metavar="PORT",
          help="with --web, port of the data (default: %(default)d)")  # fmt: skip
    where("--memory", default="2GB", metavar="SIZE", help="memory limit of viewer and server,"
          " beyond which the oldest data is dropped (default: %(default)s)")  # fmt: skip
    return parser


def _kinds(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _mistakes(args: argparse.Namespace, ros_args: Sequence[str]) -> Iterator[str]:
    """The error messages on wrong arguments."""
    yield from unknown("--only: unknown kind", sorted(set(args.only)), KINDS)
    for bag in args.bag:
        if not bag.exists():
            yield f"The bag {bag} does not exist."
    if args.save is not None and args.save.is_dir():
        yield f"--save is {args.save}, but must be a file, not a folder."
    if any(not all(pair.partition(":=")[::2]) for pair in args.remap):
        yield f"--remap is {args.remap[-1]!r}, but must be NAME:=TOPIC."
    if args.bag and (ros_args or args.seconds):
        yield "--ros-args and --seconds apply to live topics: leave them out with a bag."
    if args.bag and args.namespace and args.camera:
        yield "In a bag, --camera is the whole prefix of the topics: leave --namespace out."
    if not re.fullmatch(r"[0-9.]+ ?([kMGT]i?)?B|[0-9.]+%", args.memory):
        yield f"--memory is {args.memory!r}, but must be a size like 2GB or 50%."
    for name in ("range", "max_points", "seconds"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            yield f"--{name.replace('_', '-')} is {value}, but must be positive."
    if not 0 <= args.jpeg <= 100:
        yield f"--jpeg is {args.jpeg}, but must be 1 to 100, or 0 for no compression."
    if args.rate < 0:
        yield f"--rate is {args.rate}, but must not be negative."
    if find_spec("rerun") is None:
        yield "rerun is not installed: pip install rerun-sdk."


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_view``. Returns the exit code."""
    own, ros_args = split_ros_args(argv)
    args = _parser().parse_args(own)
    if mistake := next(_mistakes(args, ros_args), ""):
        return fail("dpt_view", mistake, 2)
    from dpt_ros.apps.view.show import show_bags, show_live

    try:
        return show_bags(args) if args.bag else show_live(args, ros_args[1:])
    except (OSError, ValueError, RuntimeError) as error:
        return fail("dpt_view", error, 1)
    except KeyboardInterrupt:
        return 130
