# SPDX-License-Identifier: Apache-2.0
"""Live topics as input of dpt_view: the newest messages of each, without back pressure."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message

from dpt_ros.ros.camera.image_subscription import ImageInput
from dpt_ros.ros.camera.inputs import REVIEW_PERIOD
from dpt_ros.ros.messages.types import message_class
from dpt_ros.ros.process import keep_large_buffers

_LARGE = ("Image", "CompressedImage", "PointCloud2")
_QUEUE = 200  # small messages, a second or so of odometry
_LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
_BEST_EFFORT = QoSProfile(depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)


class LiveTopics:
    """Subscribes on a thread of its own, and queues messages until ``wait`` is called.

    A topic is subscribed to as soon as it has a publisher, with the published type. Of large
    messages (images, clouds) only the newest of each topic is kept, serialised: a slow viewer
    misses frames and delays neither this process nor the node. As in the node, large messages are
    reliable if every publisher offers that, because Fast DDS drops large best-effort messages by
    default; small ones are best effort.

    Args:
        node: subscribes.
        types: accepted types, "package/msg/Name", by topic under the node's namespace, before
            remapping.
        latched: those of the topics that are published once, transient local.
    """

    def __init__(
        self, node: Node, types: Mapping[str, tuple[str, ...]], latched: Collection[str] = ()
    ) -> None:
        keep_large_buffers()
        self._node = node
        self._latched = latched
        self._pending = dict(types)  # topics without a publisher so far
        self._full_names = {name: node.resolve_topic_name(name) for name in types}
        self._arrived = threading.Condition()
        self._queues: dict[str, tuple[type, deque[bytes]]] = {}
        self._inputs: list[ImageInput] = []
        self._received: set[str] = set()
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self._review()
        node.create_timer(REVIEW_PERIOD, self._review)
        self._thread = threading.Thread(target=self._spin, name="ros", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(timeout_sec=0.5)
        self._thread.join(0.5)

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()
        with self._arrived:
            self._arrived.notify()

    def _review(self) -> None:
        for source in self._inputs:
            source.review()
        for name, types in list(self._pending.items()):
            publishers = self._node.get_publishers_info_by_topic(self._full_names[name])
            published = {str(publisher.topic_type) for publisher in publishers}
            classes = (message_class(known) for known in types if known in published)
            if (msg_type := next(filter(None, classes), None)) is not None:
                del self._pending[name]
                self._subscribe(name, msg_type)

    def _subscribe(self, name: str, msg_type: type) -> None:
        large = msg_type.__name__ in _LARGE
        queue: deque[bytes] = deque(maxlen=1 if large else _QUEUE)

        def keep(message: bytes, *_: Any) -> None:
            with self._arrived:
                queue.append(message)
                self._received.add(name)
                self._arrived.notify()

        with self._arrived:
            self._queues[name] = msg_type, queue
        if large:
            expanded = self._node.resolve_topic_name(name, only_expand=True)
            self._inputs.append(ImageInput(self._node, expanded, msg_type, keep))
        else:
            profile = _LATCHED if name in self._latched else _BEST_EFFORT
            self._node.create_subscription(msg_type, name, keep, profile, raw=True)

    def wait(self, seconds: float) -> list[tuple[str, Any]]:
        """Topic and message of what arrived since the last call; empty after ``seconds``."""
        with self._arrived:
            if not any(queue for _, queue in self._queues.values()):
                self._arrived.wait(seconds)
            taken = []
            for name, (msg_type, queue) in self._queues.items():
                taken += [(name, msg_type, data) for data in queue]
                queue.clear()
        return [(name, deserialize_message(data, msg_type)) for name, msg_type, data in taken]

    def missing(self) -> str:
        """A message on the topics from which nothing has arrived; "" if there are none."""
        silent = [full for name, full in self._full_names.items() if name not in self._received]
        unpublished = [full for full in silent if not self._node.count_publishers(full)]
        published = [full for full in silent if full not in unpublished]
        parts = [f"no publisher on {', '.join(unpublished)}"] if unpublished else []
        parts += [f"no message yet on {', '.join(published)}"] if published else []
        return f"Waiting: {'; '.join(parts)}." if parts else ""
