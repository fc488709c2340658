# SPDX-License-Identifier: Apache-2.0
"""The command dpt_ros: its version, and what the other commands are for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dpt_ros.version import add_version

COMMANDS = {
    "dpt_node": "the ROS 2 node: images in, metric depth, points and labels out",
    "dpt_camera_sim": "a synthetic camera for the node, with ground truth",
    "dpt_status": "what running nodes report on /diagnostics",
    "dpt_doctor": "what this machine has, what would fail, and each cure; proof of real weights",
    "dpt_run": "pictures, videos and webcams without ROS",
    "dpt_bag": "depth and labels of recorded bags",
    "dpt_bag_player": "play a bag where ros2 bag is not installed",
    "dpt_view": "topics or bags in 3-D",
    "dpt_demo": "the demo: synthetic camera, node, scores and pictures",
    "dpt_evaluate": "scores on datasets",
    "dpt_train": "training and fine-tuning",
    "dpt_export": "ONNX files of a network, a frame or the whole step",
    "dpt_bench": "measurements on this machine",
}
"""The other commands, with one line each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_ros``: lists the commands. Returns the exit code."""
    lines = "\n".join(f"  {name:15} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="dpt_ros",
        description=f"Depth and labels from one RGB camera, over ROS 2. The commands:\n\n{lines}",
        epilog="Each command has --help. When something is wrong: dpt_doctor.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_version(parser)
    parser.parse_args(argv)
    parser.print_help()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
