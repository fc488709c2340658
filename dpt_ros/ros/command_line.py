# SPDX-License-Identifier: Apache-2.0
"""The programs dpt_node and dpt_camera_sim: help, ROS arguments, spinning, exit codes.

Help must not wait for rclpy and torch: a node is imported after its arguments were read.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dpt_ros.ros import process
from dpt_ros.version import add_version
from dpt_ros.world.classes import KINDS

if TYPE_CHECKING:
    from rclpy.node import Node

# Name, default and description of the parameters of camera_sim.
CAMERA_PARAMETERS: dict[str, tuple[Any, str]] = {
    "kind": ("room", f"kind of world: {', '.join(KINDS)}"),
    "seed": (0, "seed of its layout, textures, paths and noise"),
    "width": (320, "width of the image, pixels"),
    "height": (240, "height of the image, pixels"),
    "rate": (30.0, "frames per second"),
    "reliability": ("reliable", "QoS reliability of the images: reliable or best_effort"),
    "frames": (0, "number of frames after which the node exits; 0 for no limit"),
    "frame_id": ("camera_optical_frame", "frame of the camera, x right, y down, z forward"),
    "tf": (True, "broadcast tf from odom to base_link, camera and laser; needs tf2_msgs"),
}
_PARAMETER_LIST = "".join(
    f"\n  {name}: {text} (default {default})"
    for name, (default, text) in CAMERA_PARAMETERS.items()
)
# Module, description and epilog of --help.
_PROGRAMS = {
    "dpt_node": (
        "dpt_ros.ros.dpt_node",
        "The lifecycle node dpt: subscribes to camera images, publishes metric depth and semantic"
        " labels.\nIt is configured by ROS parameters, listed in config/dpt.yaml. dpt_status shows"
        " its state.",
        """examples:
  dpt_node --ros-args -r image:=/camera/image_raw -r camera_info:=/camera/camera_info
  dpt_node --ros-args --params-file dpt.yaml -p device:=cuda
  dpt_node --ros-args -p depth_network:=dpt_hybrid_nyu -p depth_weights:=download
""",
    ),
    "dpt_camera_sim": (
        "dpt_ros.ros.camera_sim",
        "A ROS node that simulates a camera in a synthetic world and publishes the ground truth"
        " with its images.",
        f"""examples:
  dpt_camera_sim --ros-args -p kind:=yard -p seed:=3
  dpt_camera_sim --ros-args -p width:=640 -p height:=480 -p rate:=15.0 -r __ns:=/front

parameters:{_PARAMETER_LIST}
""",
    ),
}


def _run(prog: str, argv: Sequence[str] | None = None) -> int:
    """Run a program. Returns the exit code."""
    process.exit_on_signal()
    own, _ = split_ros_args(argv)
    if {"-h", "--help", "--version"} & set(own):
        _parser(prog).parse_args(own)
    return int(import_module(_PROGRAMS[prog][0]).main(argv))


# The entry points.
dpt_node = partial(_run, "dpt_node")
dpt_camera_sim = partial(_run, "dpt_camera_sim")


def split_ros_args(argv: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """A program's own arguments and those from --ros-args on; None takes those of the process."""
    given = list(sys.argv[1:] if argv is None else argv)
    at = given.index("--ros-args") if "--ros-args" in given else len(given)
    return given[:at], given[at:]


def rclpy_message(error: RuntimeError) -> str:
    """The text of an error of rclpy on one line, without the places in rcl's sources."""
    return re.sub(r", at [^ ,]+:[0-9]+", "", str(error)).replace("\n", " ")


def run_node(prog: str, argv: Sequence[str] | None, make: Callable[[], Node]) -> int:
    """Spin a node until Ctrl-C, SIGTERM or the end of the ROS context, and destroy it.

    Args:
        prog: name of the program, dpt_node or dpt_camera_sim.
        argv: None takes those of the process, which then ends here.
        make: creates the node; a ValueError is a parameter that cannot be used.

    Returns:
        The exit code: 0; 1 where the middleware refuses the node; 2 for a wrong parameter.
    """
    import rclpy
    from rclpy.utilities import remove_ros_args

    from dpt_ros.ros.share import transport_environment

    process.exit_on_signal()
    args = [prog, *(sys.argv[1:] if argv is None else argv)]
    parser = _parser(prog)
    try:
        parser.parse_args(remove_ros_args(args)[1:])
        # Fast DDS reads it when the first node is created.
        os.environ.update(transport_environment())
        rclpy.init(args=args)
    except RuntimeError as error:  # for a missing parameter file or a malformed remapping
        parser.exit(2, f"{prog}: {rclpy_message(error)}\n")
    if argv is None:
        gc.freeze()  # the collector need not walk over torch's modules again and again
        process.exit_after_signal(prog)
    code = _spin(prog, make)
    if argv is None:
        gc.collect()  # the middleware's shared memory goes with the node's last objects
        process.exit_now(code)
    return code


def _spin(prog: str, make: Callable[[], Node]) -> int:
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    executor = SingleThreadedExecutor()
    try:
        # rclpy wakes up the executor at a signal; this also interrupts the loading of a network.
        process.raise_on_signal()
        try:
            node = make()
        except (ValueError, RuntimeError) as error:
            if process.received:
                return 0
            text = rclpy_message(error) if isinstance(error, RuntimeError) else str(error)
            print(f"{prog}: {text.rstrip('.')}.", file=sys.stderr)
            return 2 if isinstance(error, ValueError) else 1
        executor.add_node(node)
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:
        # What rclpy makes of a signal in one of its calls, or of a context that has ended.
        if rclpy.ok() and not process.received:
            raise
    finally:
        process.ignore_signals()
        for node in executor.get_nodes():
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    _, description, epilog = _PROGRAMS[prog]
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_version(parser)
    return parser


if __name__ == "__main__":
    # python -m dpt_ros.ros.command_line dpt_node ...
    sys.exit(_run(sys.argv.pop(1)))
