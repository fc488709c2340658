# SPDX-License-Identifier: Apache-2.0
"""The cameras of the node's benchmark: pictures made beforehand, published on a schedule."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Sequence
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from dpt_ros.apps.bench.node.processes import camera_names, case_arguments, image_topic, serve
from dpt_ros.ros.messages.image import image_message, jpeg_message
from dpt_ros.ros.process import keep_large_buffers
from dpt_ros.world import World

_PICTURES = 8
_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)


class Cameras:
    """Cameras that are triggered together, and publish one after the other.

    Args:
        node: publishes.
        namespaces: of the arms; each has its own topics.
        cameras: how many.
        width, height: of the images.
        transport: "raw" or "jpeg".
    """

    def __init__(
        self,
        node: Node,
        namespaces: Sequence[str],
        cameras: int,
        width: int,
        height: int,
        transport: str,
    ) -> None:
        kind = Image if transport == "raw" else CompressedImage
        self._publishers = {
            namespace: [
                node.create_publisher(kind, image_topic(namespace, name, transport), _QOS)
                for name in camera_names(cameras)
            ]
            for namespace in namespaces
        }
        world = World("room", 0, width, height, 10.0)
        make = jpeg_message if transport == "jpeg" else _raw
        self._messages = [
            make(world.frame(number).rgb, Header(frame_id="camera_optical_frame"))
            for number in range(_PICTURES)
        ]

    def matched(self, namespace: str) -> bool:
        """Whether every topic of an arm has a subscriber."""
        return all(pub.get_subscription_count() for pub in self._publishers[namespace])

    def run(self, namespace: str, rate: float, frames: int) -> dict[str, Any]:
        """Publish on schedule, whatever comes back.

        A frame that is overdue, because the one before took long to publish, goes out at once;
        none is left out.

        Args:
            namespace: of the arm.
            rate: frames per second of each camera.
            frames: how many of each.

        Returns:
            ``sent``: the stamps per camera, monotonic nanoseconds, read just before publishing;
            ``lag``: how far behind the schedule each trigger was, nanoseconds.
        """
        publishers = self._publishers[namespace]
        sent: list[list[int]] = [[] for _ in publishers]
        lag = []
        start = time.monotonic_ns() + 10_000_000
        for number in range(frames):
            due = start + round(number * 1e9 / rate)
            if (left := due - time.monotonic_ns()) > 0:
                time.sleep(left * 1e-9)
            lag.append(time.monotonic_ns() - due)
            msg = self._messages[number % _PICTURES]
            stamp = msg.header.stamp
            for publisher, stamps in zip(publishers, sent, strict=True):
                now = time.monotonic_ns()
                stamp.sec, stamp.nanosec = divmod(now, 1_000_000_000)
                publisher.publish(msg)
                stamps.append(now)
        return {"sent": sent, "lag": lag}


def _raw(rgb: Any, header: Header) -> Image:
    return image_message(rgb, "rgb8", header)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the benchmark until its end of the pipe closes."""
    keep_large_buffers()
    args = case_arguments("camera", __doc__ or "").parse_args(argv)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.init()
        cameras = Cameras(
            Node("bench_camera"),
            args.namespace,
            args.cameras,
            args.width,
            args.height,
            args.transport,
        )
        gc.freeze()
        serve({"matched": cameras.matched, "run": cameras.run}, lambda: time.sleep(0.005))
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
