# SPDX-License-Identifier: Apache-2.0
"""What our nodes' command lines share: --help, and a sentence for a mistake in ROS arguments."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

import rclpy
from rclpy.utilities import remove_ros_args

from dpt_ros.ros.share import transport_environment


def start_ros(prog: str, description: str, epilog: str, argv: Sequence[str] | None) -> None:
    """Answer --help, refuse what is not a ROS argument, and initialise rclpy.

    Args:
        prog: name of the program.
        description: what it does.
        epilog: examples, shown as written.
        argv: arguments without the program's name; None takes those of the process.

    Raises:
        SystemExit: 0 after --help, 2 with a sentence on stderr for a mistake.
    """
    args = [prog, *(sys.argv[1:] if argv is None else argv)]
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    try:
        parser.parse_args(remove_ros_args(args)[1:])
        # Fast DDS reads it when the first node is made.
        os.environ.update(transport_environment())
        rclpy.init(args=args)
    except RuntimeError as error:  # what rclpy raises for a missing parameter file or a bad rule
        parser.exit(2, f"{prog}: {re.sub(r', at [^ ,]+:[0-9]+', '', str(error))}\n")
