# SPDX-License-Identifier: Apache-2.0
"""The camera, the echo and the monitor of the node's benchmark, each a process of its own."""

from __future__ import annotations

import contextlib
import gc
import struct
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from multiprocessing.connection import Connection
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

from dpt_ros.apps.bench.node.session import Case, topic
from dpt_ros.ros.compatibility import subscribe, subscription_events
from dpt_ros.ros.messages.image import image_message, jpeg_message
from dpt_ros.ros.process import keep_large_buffers
from dpt_ros.world import World

_IMAGES = 8
# A header and the four bytes before it that name the byte order; our frame ids are short.
_HEADER_BYTES = 64
# A relative network publishes depth/inverse and a metric one depth/image, so both are one output.
_OUTPUTS = {"depth/image": "depth", "depth/inverse": "depth", "semantic/labels": "labels"}


def _qos(depth: int) -> QoSProfile:
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE)


class Camera:
    """Cameras that are triggered together, and publish one after the other."""

    def __init__(self, node: Node, case: Case, namespaces: Sequence[str]) -> None:
        raw = case.transport == "raw"
        kind = Image if raw else CompressedImage
        self._publishers: dict[str, list[Any]] = {namespace: [] for namespace in namespaces}
        for namespace, name in product(namespaces, case.names):
            place = case.image_topic(namespace, name)
            self._publishers[namespace].append(node.create_publisher(kind, place, _qos(5)))
        world = World("room", 0, case.width, case.height, 10.0)
        self._messages = []
        for number in range(_IMAGES):
            rgb, header = world.frame(number).rgb, Header(frame_id="camera_optical_frame")
            made = image_message(rgb, "rgb8", header) if raw else jpeg_message(rgb, header)
            self._messages.append(made)

    def run(self, namespace: str, rate: float, frames: int) -> dict[str, Any]:
        """Publish at ``rate``, Hz, whatever comes back; what is overdue is sent at once.

        Returns:
            ``sent``: the stamps per camera, monotonic nanoseconds, read just before publishing;
            ``lag``: how far behind the schedule each trigger was, nanoseconds.
        """
        publishers, lag = self._publishers[namespace], []
        sent: list[list[int]] = [[] for _ in publishers]
        start = time.monotonic_ns() + 10_000_000
        for number in range(frames):
            due = start + round(number * 1e9 / rate)
            if (left := due - time.monotonic_ns()) > 0:
                time.sleep(left * 1e-9)
            lag.append(time.monotonic_ns() - due)
            msg = self._messages[number % _IMAGES]
            stamp = msg.header.stamp
            for publisher, stamps in zip(publishers, sent, strict=True):
                now = time.monotonic_ns()
                stamp.sec, stamp.nanosec = divmod(now, 1_000_000_000)
                publisher.publish(msg)
                stamps.append(now)
        return {"sent": sent, "lag": lag}


class Echo:
    """Images of one camera in, outputs of their size out, nothing computed.

    It has the node's topics, message types, sizes and QoS. It reads the header from the serialised
    image and sends arrays that exist already, so it costs what rclpy and DDS cost and no more.
    """

    def __init__(self, node: Node, case: Case, namespace: str, camera: str) -> None:
        size = (case.height, case.width)
        outputs = {"depth/image": (np.full(size, 2.0, np.float32), "32FC1")}
        if case.labels:
            outputs["semantic/labels"] = (np.ones(size, np.uint8), "mono8")
        self._outputs = []
        for name, content in outputs.items():
            publisher = node.create_publisher(Image, topic(namespace, camera, name), _qos(10))
            self._outputs.append((publisher, image_message(*content, Header())))
        self._title = f"{node.get_name()}: {camera or 'image'}"
        self._last_number = self._missed = self._lost = 0
        subscribe(
            node,
            Image if case.transport == "raw" else CompressedImage,
            case.image_topic(namespace, camera),
            self._answer,
            _qos(1),
            raw=True,
            event_callbacks=subscription_events(message_lost=self._count_lost),
        )

    def _answer(self, data: bytes, info: Mapping[str, Any]) -> None:
        header = deserialize_message(data[:_HEADER_BYTES], Header)
        for publisher, msg in self._outputs:
            msg.header = header
            publisher.publish(msg)
        number = info.get("publication_sequence_number") or 0
        self._missed += max(number - (self._last_number or number - 1) - 1, 0)
        self._last_number = number

    def _count_lost(self, event: Any) -> None:
        self._lost += event.total_count_change

    def status(self) -> DiagnosticStatus:
        """The counts, as the node publishes them."""
        missed = max(self._missed - self._lost, 0)
        counts = {"missed: not taken in time": missed, "missed: lost on the way": self._lost}
        values = [KeyValue(key=key, value=str(count)) for key, count in counts.items()]
        return DiagnosticStatus(name=self._title, values=values)


class Monitor:
    """Records the arrivals and the diagnostics of all arms."""

    def __init__(self, node: Node, case: Case, namespaces: Sequence[str]) -> None:
        # Stamps and times of arrival of each namespace, camera and output.
        keys = product(namespaces, case.names, ("depth", "labels") if case.labels else ("depth",))
        self._arrived: dict[tuple[str, str, str], list[tuple[int, int]]] = {k: [] for k in keys}
        self._status: dict[str, dict[str, Any]] = defaultdict(dict)
        self._received: dict[str, int] = defaultdict(int)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._take_status, 10)
        deep = _qos(100)  # so that nothing is lost here
        for (namespace, name, kind), arrived in self._arrived.items():
            record = _recorder(arrived)
            for output in (one for one in _OUTPUTS if _OUTPUTS[one] == kind):
                place = topic(namespace, name, output)
                node.create_subscription(Image, place, record, deep, raw=True)

    def _take_status(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            name, _, part = status.name.partition(": ")
            name = name.rpartition("/")[2]  # unique without its namespace
            self._received[name] = time.monotonic_ns()
            values = {pair.key: pair.value for pair in status.values}
            found = {"level": status.level[0], "message": status.message, "values": values}
            self._status[name][part] = found

    def clear(self) -> None:
        """Forget the arrivals."""
        for arrived in self._arrived.values():
            arrived.clear()

    def arrivals(self, namespace: str) -> dict[tuple[str, str], np.ndarray]:
        """Per camera and output (N, 2) int64: stamp and time of arrival, nanoseconds, since
        ``clear``."""
        return {
            (name, kind): np.array(rows, np.int64).reshape(-1, 2)
            for (place, name, kind), rows in self._arrived.items()
            if place == namespace
        }

    def status(self, name: str) -> tuple[int, dict[str, Any]]:
        """When the diagnostics of the node of that name came (0: never), and the newest ones."""
        return self._received[name], self._status[name]


def _recorder(arrived: list[tuple[int, int]]) -> Callable[[bytes], None]:
    def record(data: bytes) -> None:
        now = time.monotonic_ns()
        # The stamp of a serialised message that begins with a header (CDR).
        seconds, rest = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
        arrived.append((seconds * 1_000_000_000 + rest, now))

    return record


def _serve(pipe: Connection, role: object) -> None:
    """Run a `Worker`'s commands, methods of ``role``, until it closes the pipe."""
    with contextlib.suppress(EOFError):
        while True:
            command, given = pipe.recv()
            pipe.send(getattr(role, command)(**given))


def _spin(node: Node) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    gc.freeze()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        executor.spin()


def main() -> None:
    """Serve as the role that a `Worker` asks for until it closes the pipe, or Ctrl-C."""
    pipe: Connection = Connection(int(sys.argv[1]))
    keep_large_buffers()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        role, case, namespaces, name = pipe.recv()
        rclpy.init()
        node = Node(name)
        if role == "camera":
            camera = Camera(node, case, namespaces)
            gc.freeze()
            _serve(pipe, camera)
        elif role == "echo":
            echoes = [Echo(node, case, namespaces[0], camera) for camera in case.names]
            publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 1)

            def publish() -> None:
                publisher.publish(DiagnosticArray(status=[echo.status() for echo in echoes]))

            node.create_timer(1.0, publish)
            _spin(node)
        else:
            monitor = Monitor(node, case, namespaces)
            threading.Thread(target=_spin, args=(node,), daemon=True).start()
            _serve(pipe, monitor)
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
