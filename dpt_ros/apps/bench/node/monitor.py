# SPDX-License-Identifier: Apache-2.0
"""The listener of the node's benchmark: when each output arrived, and what the arms counted."""

from __future__ import annotations

import contextlib
import gc
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from dpt_ros.apps.bench.node.processes import camera_names, case_arguments, serve, topic
from dpt_ros.ros.process import keep_large_buffers

# Deep, so that nothing is lost here: what is missing is missing on the way.
_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
# A relative network publishes depth/inverse and a metric one depth/image, so both are one output.
_OUTPUTS = {"depth/image": "depth", "depth/inverse": "depth", "semantic/labels": "labels"}


class Monitor:
    """Notes the arrivals of all arms.

    Args:
        node: subscribes.
        namespaces: of the arms.
        cameras: how many each has.
        labels: whether labels are asked for.
    """

    def __init__(self, node: Node, namespaces: Sequence[str], cameras: int, labels: bool) -> None:
        self._arrived: dict[str, dict[str, dict[str, list[tuple[int, int]]]]] = {}
        self._status: dict[str, dict[str, Any]] = defaultdict(dict)
        self._heard: dict[str, int] = {}
        node.create_subscription(DiagnosticArray, "/diagnostics", self._take_status, 10)
        for namespace in namespaces:
            for name in camera_names(cameras):
                for output, kind in _OUTPUTS.items():
                    if kind == "labels" and not labels:
                        continue
                    node.create_subscription(
                        Image,
                        topic(namespace, name, output),
                        self._recorder(namespace, name, kind),
                        _QOS,
                        raw=True,
                    )

    def _recorder(self, namespace: str, name: str, kind: str) -> Callable[[bytes], None]:
        cameras = self._arrived.setdefault(namespace, {})
        arrived = cameras.setdefault(name, {}).setdefault(kind, [])

        def record(data: bytes) -> None:
            now = time.monotonic_ns()
            arrived.append((message_stamp(data), now))

        return record

    def _take_status(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            name, _, part = status.name.partition(": ")
            name = name.rpartition("/")[2]  # unique already, without its namespace
            self._heard[name] = time.monotonic_ns()
            self._status[name][part] = {
                "level": status.level[0],
                "message": status.message,
                "values": {pair.key: pair.value for pair in status.values},
            }

    def clear(self) -> None:
        """Forget what arrived."""
        for cameras in self._arrived.values():
            for outputs in cameras.values():
                for arrived in outputs.values():
                    arrived.clear()

    def arrivals(self, namespace: str) -> dict[str, dict[str, list[tuple[int, int]]]]:
        """Per camera and output: stamp and time of arrival, nanoseconds, since ``clear``."""
        return self._arrived[namespace]

    def status(self, name: str) -> dict[str, Any]:
        """The newest diagnostics of the node of that name, and when they came (0: never)."""
        return {"heard": self._heard.get(name, 0), "status": self._status[name]}


def message_stamp(data: bytes) -> int:
    """The stamp of a serialised message that begins with a header, nanoseconds (CDR)."""
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the benchmark until its end of the pipe closes."""
    keep_large_buffers()
    args = case_arguments("monitor", __doc__ or "").parse_args(argv)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.init()
        node = Node("bench_monitor")
        monitor = Monitor(node, args.namespace, args.cameras, args.labels)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        gc.freeze()
        commands: dict[str, Callable[..., Any]] = {
            "clear": monitor.clear,
            "arrivals": monitor.arrivals,
            "status": monitor.status,
        }
        serve(commands, lambda: executor.spin_once(timeout_sec=0.05))
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
