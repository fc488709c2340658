# SPDX-License-Identifier: Apache-2.0
"""The command lines of the nodes: help, examples, ROS arguments.

The programs of the package start here, because their help must not wait for rclpy and torch: the
node itself is imported after its arguments were read.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from dpt_ros.ros.share import transport_environment
from dpt_ros.world.classes import KINDS

# Name, default and meaning of the parameters of camera_sim.
CAMERA_PARAMETERS: dict[str, tuple[Any, str]] = {
    "kind": ("room", f"which world: {', '.join(KINDS)}"),
    "seed": (0, "chooses its layout, looks, paths and noise"),
    "width": (320, "of the image, pixels"),
    "height": (240, "of the image, pixels"),
    "rate": (30.0, "frames per second"),
    "reliability": ("reliable", "of the images: reliable or best_effort"),
    "frames": (0, "how many frames to publish before the node ends; 0 for no end"),
    "frame_id": ("camera_optical_frame", "of the camera, x right, y down, z forward (REP 103)"),
    "tf": (True, "broadcast tf from odom to base_link, camera and laser; needs tf2_msgs"),
}
_NODE = (
    "The lifecycle node dpt: takes camera images, publishes metric depth and semantic labels.\n"
    "Everything is set by ROS parameters; config/dpt.yaml lists them. dpt_status shows its state.",
    """examples:
  dpt_node --ros-args -r image:=/camera/image_raw -r camera_info:=/camera/camera_info
  dpt_node --ros-args --params-file dpt.yaml -p device:=cuda
  dpt_node --ros-args -p depth_network:=dpt_hybrid_nyu -p depth_weights:=download
""",
)
_CAMERA = (
    "A camera in the synthetic world, as a ROS node, with the truth beside it.",
    """examples:
  dpt_camera_sim --ros-args -p kind:=yard -p seed:=3
  dpt_camera_sim --ros-args -p width:=640 -p height:=480 -p rate:=15.0 -r __ns:=/front

parameters:
"""
    + "\n".join(
        f"  {name}: {text} (default {default})"
        for name, (default, text) in CAMERA_PARAMETERS.items()
    ),
)
_TEXTS = {"dpt_node": _NODE, "dpt_camera_sim": _CAMERA}


def dpt_node(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_node``. Returns the exit code."""
    _answer_help("dpt_node", argv)
    from dpt_ros.ros.dpt_node import main

    return main(argv)


def dpt_camera_sim(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_camera_sim``. Returns the exit code."""
    _answer_help("dpt_camera_sim", argv)
    from dpt_ros.ros.camera_sim import main

    return main(argv)


def start_ros(prog: str, argv: Sequence[str] | None) -> None:
    """Answer --help, refuse what is not a ROS argument, and initialise rclpy.

    Args:
        prog: name of the program, dpt_node or dpt_camera_sim.
        argv: arguments without the program's name; None takes those of the process.

    Raises:
        SystemExit: 0 after --help, 2 with an error message for a mistake.
    """
    import rclpy
    from rclpy.utilities import remove_ros_args

    args = [prog, *_given(argv)]
    parser = _parser(prog)
    try:
        parser.parse_args(remove_ros_args(args)[1:])
        # Fast DDS reads it when the first node is made.
        os.environ.update(transport_environment())
        rclpy.init(args=args)
    except RuntimeError as error:  # what rclpy raises for a missing parameter file or a bad rule
        parser.exit(2, f"{prog}: {re.sub(r', at [^ ,]+:[0-9]+', '', str(error))}\n")


def _given(argv: Sequence[str] | None) -> list[str]:
    return list(sys.argv[1:] if argv is None else argv)


def _answer_help(prog: str, argv: Sequence[str] | None) -> None:
    """Print the help and exit if it is asked for before the ROS arguments."""
    given = _given(argv)
    own = given[: given.index("--ros-args")] if "--ros-args" in given else given
    if {"-h", "--help"} & set(own):
        _parser(prog).parse_args(["--help"])


def _parser(prog: str) -> argparse.ArgumentParser:
    description, epilog = _TEXTS[prog]
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
