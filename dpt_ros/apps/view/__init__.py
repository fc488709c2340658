# SPDX-License-Identifier: Apache-2.0
"""dpt_view: look at what the node sees and predicts, live or in a bag."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from dpt_ros.apps.view.topics import KINDS

CLASSES = ("world", "ade20k", "navigation")

DESCRIPTION = """Look at what the node sees and predicts, with rerun (pip install rerun-sdk):
image, depth and its standard deviation, labels and their confidence, points, the path driven, rate
and latency. Without a bag it subscribes to the running node's topics, under the node's names."""
EXAMPLES = """examples:
  the running node, in a window:
    dpt_view
  in the browser, on a robot without a screen (ssh -L 9090:localhost:9090 -L 9876:localhost:9876):
    dpt_view --web
  names as the node was started with, and only what is asked for:
    dpt_view --namespace /dpt --remap image:=/camera/image_raw --only image,depth
  bags, together on one timeline; a recording that rerun opens:
    dpt_view demo_out/camera demo_out/predictions --save demo.rrd
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dpt_view",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bag", nargs="*", type=Path, help="rosbag2 folders or mcap files; without, live topics")
    names = parser.add_argument_group("names")
    names.add_argument(
        "--camera", action="append", default=[], metavar="NAME",
        help="prefix of a camera's topics; may be given more than once (default: live none, in a"
        " bag every camera)",
    )  # fmt: skip
    names.add_argument("--namespace", default="", help="of the node and its topics")
    names.add_argument(
        "-r", "--remap", action="append", default=[], metavar="NAME:=TOPIC",
        help="a topic by another name, as for the node: image:=/camera/image_raw",
    )  # fmt: skip
    what = parser.add_argument_group("what is shown")
    what.add_argument(
        "--only", type=_kinds, default=KINDS, metavar="KIND,...",
        help=f"of {', '.join(KINDS)} (default: all); the rest is not even subscribed to",
    )  # fmt: skip
    what.add_argument(
        "--classes", choices=CLASSES,
        help="class names and colours if there is no semantic/label_info",
    )  # fmt: skip
    what.add_argument(
        "--range", type=float, default=10.0, metavar="M",
        help="depth at the far end of the colours, metres (default: %(default)g)",
    )  # fmt: skip
    what.add_argument(
        "--rate", type=float, default=0.0, metavar="HZ",
        help="show at most this many frames per second (default: all)",
    )  # fmt: skip
    what.add_argument(
        "--max-points", type=int, default=40_000, metavar="N",
        help="of one cloud; a larger one is thinned out (default: %(default)d)",
    )  # fmt: skip
    what.add_argument(
        "--jpeg", type=int, default=0, metavar="QUALITY",
        help="compress raw pictures, 1 to 100: less memory (default: as they are)",
    )  # fmt: skip
    what.add_argument(
        "--camera-in-base", nargs=7, type=float, metavar=("X", "Y", "Z", "QX", "QY", "QZ", "QW"),
        help="the node's parameter camera_in_base, where odom is the robot's",
    )  # fmt: skip
    what.add_argument(
        "--compressed", action="store_true",
        help="with live topics, use image/compressed instead of image: less network load",
    )  # fmt: skip
    what.add_argument(
        "--seconds", type=float, help="quit after this time with live topics (default: on Ctrl-C)"
    )
    where = parser.add_argument_group("where (default: a window of rerun's viewer)")
    place = where.add_mutually_exclusive_group()
    place.add_argument("--web", action="store_true", help="serve the viewer to browsers")
    place.add_argument("--save", type=Path, metavar="FILE.rrd", help="write a recording")
    place.add_argument(
        "--connect", metavar="HOST[:PORT]", help="a viewer that runs already (default port: 9876)"
    )
    where.add_argument(
        "--web-port", type=int, default=9090, metavar="PORT",
        help="with --web, where the page is (default: %(default)d)",
    )  # fmt: skip
    where.add_argument(
        "--grpc-port", type=int, default=9876, metavar="PORT",
        help="with --web, where the data comes from (default: %(default)d)",
    )  # fmt: skip
    where.add_argument(
        "--memory", default="2GB", metavar="SIZE",
        help="memory limit of viewer and server; beyond it the oldest data is dropped (default:"
        " %(default)s)",
    )  # fmt: skip
    return parser


def _kinds(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _complaint(args: argparse.Namespace, ros_args: Sequence[str]) -> str | None:
    """What is wrong with the arguments, None if nothing is."""
    unknown = set(args.only) - set(KINDS)
    if unknown:
        names = ", ".join(map(repr, sorted(unknown)))
        return f"--only: unknown kind {names}. Available: {', '.join(KINDS)}."
    for bag in args.bag:
        if not bag.exists():
            return f"The bag {bag} does not exist."
    if args.save is not None and args.save.is_dir():
        return f"--save is {args.save}, which is a folder: give a file, *.rrd."
    if any(not all(pair.partition(":=")[::2]) for pair in args.remap):
        return f"--remap is {args.remap[-1]!r}, but must be NAME:=TOPIC."
    if args.bag and (ros_args or args.seconds):
        return "--ros-args and --seconds apply to live topics: leave them out with a bag."
    if args.bag and args.namespace and args.camera:
        return "In a bag, --camera is the whole prefix of the topics: leave --namespace out."
    if not re.fullmatch(r"[0-9.]+ ?([kMGT]i?)?B|[0-9.]+%", args.memory):
        return f"--memory is {args.memory!r}, but must be a size like 2GB or 50%."
    for name in ("range", "max_points", "seconds"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            return f"--{name.replace('_', '-')} is {value}, but must be positive."
    if not 0 <= args.jpeg <= 100:
        return f"--jpeg is {args.jpeg}, but must be 1 to 100, or 0 for no compression."
    if args.rate < 0:
        return f"--rate is {args.rate}, but must not be negative."
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_view``. Returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    at = given.index("--ros-args") if "--ros-args" in given else len(given)
    args, ros_args = _parser().parse_args(given[:at]), given[at + 1 :]
    complaint = _complaint(args, ros_args)
    if complaint is None and find_spec("rerun") is None:
        complaint = "rerun is not installed: pip install rerun-sdk."
    if complaint is not None:
        print(f"dpt_view: {complaint}", file=sys.stderr)
        return 2
    from dpt_ros.apps.view.show import show_bags, show_live

    try:
        return show_bags(args) if args.bag else show_live(args, ros_args)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"dpt_view: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
