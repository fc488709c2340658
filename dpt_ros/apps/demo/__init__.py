# SPDX-License-Identifier: Apache-2.0
"""Replay a bag of a synthetic camera into the node over ROS 2, and compare its output with the
ground truth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dpt_ros.version import add_version


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_demo``. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="dpt_demo", description=__doc__, epilog="Example: dpt_demo --seconds 5"
    )
    add_version(parser)
    add = parser.add_argument
    add("--out", type=Path, default=Path("demo_out"), help="folder for the results")
    add("--seconds", type=float, default=8.0, help="length of each of the three scenes")
    add("--rate", type=float, default=10.0, help="frames per second of the camera")
    args = parser.parse_args(argv)
    for name in ("seconds", "rate"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} is {getattr(args, name):g}, but must be positive.")
    from dpt_ros.apps.demo.run import run

    return run(args.out, args.seconds, args.rate)
