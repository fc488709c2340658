# SPDX-License-Identifier: Apache-2.0
"""What the node reports of itself: that it is ready, and that its clock stands still."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

from rclpy.node import Node

from dpt_ros.engine.inference.network import Networks
from dpt_ros.ros.diagnostics import device_words

_PATIENCE = 3.0  # seconds that a simulated clock may take to begin


class Topics(Protocol):
    """A camera's topics by name."""

    @property
    def subscribed(self) -> list[str]: ...

    @property
    def published(self) -> list[str]: ...


def ready(networks: Networks, cameras: Iterable[Topics]) -> str:
    """One line for the log: what runs where, and its topics."""
    cameras = list(cameras)
    runs = []
    if networks.depth_name:
        runs.append(f"depth {networks.depth_name}")
    if networks.label_name:
        runs.append(f"labels {networks.label_name}")
    inputs = [topic for camera in cameras for topic in camera.subscribed]
    outputs = [topic for camera in cameras for topic in camera.published]
    return (
        f"Ready on {device_words(networks.device)}, {networks.precision}: {', '.join(runs)}."
        f" Subscribed: {', '.join(inputs)}. Published: {', '.join(outputs)}."
    )


class ClockWatch:
    """Whether a simulated clock is waited for in vain.

    Args:
        node: whose clock it is.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._since: float | None = None

    def warning(self) -> str:
        """A warning after some seconds without a clock, else ""; call it again and again."""
        clock, now = self._node.get_clock(), time.monotonic()
        if not clock.ros_time_is_active or clock.now().nanoseconds:
            self._since = None
            return ""
        self._since = now if self._since is None else self._since
        if now - self._since < _PATIENCE:
            return ""
        nobody = not self._node.count_publishers("/clock")
        why = "nobody publishes it" if nobody else "its publisher has sent nothing"
        return (
            f"use_sim_time is true, but no message has arrived on /clock ({why}): the node's clock"
            " stands at 0. Start the simulator or 'ros2 bag play --clock', or set use_sim_time to"
            " false."
        )
