# SPDX-License-Identifier: Apache-2.0
"""A small synthetic world with exact depth, labels, flow and poses. It needs numpy and OpenCV, no
GPU and no ROS."""

from typing import TYPE_CHECKING

from dpt_ros.lazy import lazy_names
from dpt_ros.world.classes import CLASSES, KINDS

if TYPE_CHECKING:
    from dpt_ros.world.depth_camera import DepthCamera, DepthImage
    from dpt_ros.world.scan import Scan, Scanner
    from dpt_ros.world.world import Noise, View, World
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "depth_camera": "DepthCamera DepthImage",
            "scan": "Scan Scanner",
            "world": "Noise View World",
        },
    )

__all__ = [
    "CLASSES",
    "KINDS",
    "DepthCamera",
    "DepthImage",
    "Noise",
    "Scan",
    "Scanner",
    "View",
    "World",
]
