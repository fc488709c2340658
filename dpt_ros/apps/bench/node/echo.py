# SPDX-License-Identifier: Apache-2.0
"""The floor of the node's benchmark: images in, depth of their size out, nothing computed.

It has the node's topics, message types, sizes and QoS. It reads the header from the serialised
image and sends an array that is there already, so it costs what rclpy and DDS cost and no more.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from dpt_ros.apps.bench.node.processes import camera_names, case_arguments, image_topic, topic
from dpt_ros.ros.compatibility import subscribe, subscription_events
from dpt_ros.ros.messages.image import image_message
from dpt_ros.ros.process import keep_large_buffers

# A header and the four bytes before it that name the byte order; our frame ids are short.
_HEADER_BYTES = 64
_INPUT_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
_OUTPUT_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
_PERIOD = 1.0


class Echo:
    """Answers every image of one camera, and counts those that gave way to newer ones.

    Args:
        node: subscribes and publishes.
        image: (name, type) of the topic to take.
        outputs: topics to answer on, each with what is sent there: (pixels, encoding).
    """

    def __init__(
        self,
        node: Node,
        image: tuple[str, type],
        outputs: dict[str, tuple[np.ndarray, str]],
    ) -> None:
        self._answers = [
            (node.create_publisher(Image, name, _OUTPUT_QOS), image_message(*content, Header()))
            for name, content in outputs.items()
        ]
        self._last_number = 0
        self._missed = 0
        self._lost = 0
        subscribe(
            node,
            image[1],
            image[0],
            self._take,
            _INPUT_QOS,
            raw=True,
            event_callbacks=subscription_events(message_lost=self._take_loss),
        )

    def _take(self, data: bytes, about: Mapping[str, Any]) -> None:
        header = deserialize_message(data[:_HEADER_BYTES], Header)
        for publisher, msg in self._answers:
            msg.header = header
            publisher.publish(msg)
        number = about.get("publication_sequence_number") or 0
        self._missed += max(number - (self._last_number or number - 1) - 1, 0)
        self._last_number = number

    def _take_loss(self, event: Any) -> None:
        self._lost += event.total_count_change

    def counts(self) -> dict[str, int]:
        """In the node's words."""
        return {
            "missed: not taken in time": max(self._missed - self._lost, 0),
            "missed: lost on the way": self._lost,
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Answer until Ctrl-C."""
    keep_large_buffers()
    parser = case_arguments("echo", __doc__ or "")
    parser.add_argument("--name", default="echo", help="of the node, as diagnostics say it")
    args = parser.parse_args(argv)
    size, kind = (args.height, args.width), Image if args.transport == "raw" else CompressedImage
    contents = {"depth/image": (np.full(size, 2.0, np.float32), "32FC1")}
    if args.labels:
        contents["semantic/labels"] = (np.ones(size, np.uint8), "mono8")
    (namespace,) = args.namespace
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.init()
        node = Node(args.name)
        echoes = {
            name: Echo(
                node,
                (image_topic(namespace, name, args.transport), kind),
                {topic(namespace, name, output): sent for output, sent in contents.items()},
            )
            for name in camera_names(args.cameras)
        }
        publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 1)
        node.create_timer(_PERIOD, lambda: publisher.publish(_diagnostics(args.name, echoes)))
        gc.freeze()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.spin()
    rclpy.try_shutdown()
    return 0


def _diagnostics(name: str, echoes: dict[str, Echo]) -> DiagnosticArray:
    return DiagnosticArray(
        status=[
            DiagnosticStatus(
                name=f"{name}: {camera or 'image'}",
                values=[KeyValue(key=key, value=str(n)) for key, n in echo.counts().items()],
            )
            for camera, echo in echoes.items()
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
