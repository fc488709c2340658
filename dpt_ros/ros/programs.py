# SPDX-License-Identifier: Apache-2.0
"""Where our nodes start: Ctrl-C ends them quietly also while torch and rclpy are imported."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib import import_module

from dpt_ros.ros import process as signals


def dpt_node(argv: Sequence[str] | None = None) -> int:
    """The program dpt_node."""
    return _run("dpt_node", argv)


def dpt_camera_sim(argv: Sequence[str] | None = None) -> int:
    """The program dpt_camera_sim."""
    return _run("dpt_camera_sim", argv)


def _run(program: str, argv: Sequence[str] | None) -> int:
    signals.end_quietly()
    code = int(getattr(import_module("dpt_ros.ros.command_line"), program)(argv))
    # What was imported is not taken down object by object, which takes a second and more.
    gc.collect()  # but the middleware's shared memory goes with the node's last objects
    signals.end_process(code)


if __name__ == "__main__":
    # python -m dpt_ros.ros.programs dpt_node ...
    program = {"dpt_node": dpt_node, "dpt_camera_sim": dpt_camera_sim}[sys.argv.pop(1)]
    sys.exit(program())
