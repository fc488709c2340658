# SPDX-License-Identifier: Apache-2.0
"""The command line of dpt_bag_player; its help does not import rclpy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dpt_ros.version import add_version


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_bag_player``. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="dpt_bag_player",
        description="Play a bag at the rate it was recorded, where ros2 bag is not installed.",
        epilog="Example: dpt_bag_player my_bag --topics image camera_info --also odom. Exit codes:"
        " 0 done; 1 not done; 2 wrong arguments; 3 done, but parts of the bag could not be read.",
    )
    add_version(parser)
    add = parser.add_argument
    add("bag", type=Path, help="rosbag2 folder or storage file")
    add("--topics", nargs="+", default=["image", "camera_info"], metavar="NAME",
        help="topics to play, by the node's names (default: image camera_info)")  # fmt: skip
    add("--also", nargs="+", default=[], metavar="NAME", help="topics to play if the bag has them")
    add("--rate", type=float, default=1.0, help="speed, 1 as recorded")
    add("--wait", type=float, default=30.0, help="seconds to wait for a subscriber")
    add("--times", type=Path, help="write when each image was published, as CSV")
    args, ros_args = parser.parse_known_args(argv)
    if not args.rate > 0:
        parser.error(f"--rate is {args.rate:g}, but must be positive.")
    from dpt_ros.bag.player import run

    return run(args, ros_args)


if __name__ == "__main__":
    raise SystemExit(main())
