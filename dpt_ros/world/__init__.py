# SPDX-License-Identifier: Apache-2.0
"""A small synthetic world with exact depth, labels, flow and poses. It needs numpy and OpenCV, no
GPU and no ROS."""

from dpt_ros.world.classes import CLASSES
from dpt_ros.world.scan import Scan, Scanner
from dpt_ros.world.scenes import KINDS
from dpt_ros.world.world import Noise, View, World

__all__ = ["CLASSES", "KINDS", "Noise", "Scan", "Scanner", "View", "World"]
