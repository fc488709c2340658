# SPDX-License-Identifier: Apache-2.0
"""Subscriptions of a viewer: the newest message of each topic, taken without holding anyone up."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message

from dpt_ros.ros.camera.image_subscription import (
    REVIEW_PERIOD,
    ImageInput,
    keep_large_buffers,
)

_LARGE = ("Image", "CompressedImage", "PointCloud2")
_SMALL_KEPT = 200  # odometry and the like: a second or so
_LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
_UNHURRIED = QoSProfile(depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)


class Wish(NamedTuple):
    """A topic to subscribe to.

    Args:
        name: under the node's namespace, before remapping.
        types: of its messages, "package/msg/Name"; that which is published is taken.
        latched: whether it is published once, for whoever comes later.
    """

    name: str
    types: tuple[str, ...]
    latched: bool = False


class LiveTopics:
    """Subscribes on a thread of its own, and keeps messages until they are asked for.

    A topic is subscribed to when somebody publishes it. Large messages (images, clouds) are kept
    as they came over the wire, and only the newest of each topic: who looks too slowly misses
    frames, and neither this process nor the node waits. As in the node, large ones are taken as
    reliable where every publisher offers that, because Fast DDS drops large best-effort messages
    by default; small ones as best effort.

    Args:
        node: subscribes.
        wishes: the topics.
    """

    def __init__(self, node: Node, wishes: Sequence[Wish]) -> None:
        keep_large_buffers()
        self._node = node
        self._come = threading.Condition()
        self._kept: dict[str, deque[bytes]] = {}
        self._types: dict[str, type] = {}
        self._inputs: list[ImageInput] = []
        self._full_names = {wish.name: node.resolve_topic_name(wish.name) for wish in wishes}
        self._wishes = list(wishes)
        self._heard: set[str] = set()
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
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass
        finally:
            with self._come:
                self._come.notify()

    def _review(self) -> None:
        for source in self._inputs:
            source.review()
        for wish in list(self._wishes):
            if (kind := self._published_type(wish)) is not None:
                self._wishes.remove(wish)
                self._subscribe(wish, kind)

    def _published_type(self, wish: Wish) -> type | None:
        publishers = self._node.get_publishers_info_by_topic(self._full_names[wish.name])
        published = {str(publisher.topic_type) for publisher in publishers}
        classes = (message_class(name) for name in wish.types if name in published)
        return next((known for known in classes if known is not None), None)

    def _subscribe(self, wish: Wish, kind: type) -> None:
        large = kind.__name__ in _LARGE
        kept: deque[bytes] = deque(maxlen=1 if large else _SMALL_KEPT)

        def keep(message: bytes, *_: Any) -> None:
            with self._come:
                kept.append(message)
                self._heard.add(wish.name)
                self._come.notify()

        with self._come:
            self._kept[wish.name], self._types[wish.name] = kept, kind
        if large:
            expanded = self._node.resolve_topic_name(wish.name, only_expand=True)
            self._inputs.append(ImageInput(self._node, expanded, kind, keep))
        else:
            profile = _LATCHED if wish.latched else _UNHURRIED
            self._node.create_subscription(kind, wish.name, keep, profile, raw=True)

    def wait(self, seconds: float) -> list[tuple[str, Any]]:
        """Name and message of what has come since the last call; empty after ``seconds``."""
        with self._come:
            if not any(self._kept.values()):
                self._come.wait(seconds)
            taken = [(name, [*kept]) for name, kept in self._kept.items() if kept]
            for kept in self._kept.values():
                kept.clear()
        return [
            (name, deserialize_message(data, self._types[name]))
            for name, messages in taken
            for data in messages
        ]

    def waiting_for(self) -> str:
        """A sentence on the topics that nothing has come from so far; "" if there are none."""
        silent = [full for name, full in self._full_names.items() if name not in self._heard]
        alone = [full for full in silent if not self._node.count_publishers(full)]
        others = [full for full in silent if full not in alone]
        parts = [f"no publisher on {', '.join(alone)}"] if alone else []
        if others:
            parts.append(f"{', '.join(others)} sent no message yet")
        return f"Waiting: {'; '.join(parts)}." if parts else ""


def message_class(name: str) -> type | None:
    """The class of "package/msg/Name"; None where the package is not installed."""
    package, _, message = name.partition("/msg/")
    try:
        return getattr(import_module(f"{package}.msg"), message)
    except ImportError:
        return None


def start_node(namespace: str, remaps: Mapping[str, str], ros_args: Sequence[str]) -> Node:
    """A node for a viewer, under the names that the node it looks at was started with.

    Args:
        namespace: of the topics, "" for none.
        remaps: full names by relative ones.
        ros_args: more arguments, as after --ros-args.

    Raises:
        RuntimeError: an argument is no ROS argument, or a name is none.
    """
    args = ["--ros-args", *(part for pair in remaps.items() for part in ("-r", ":=".join(pair)))]
    rclpy.init(args=[*args, *ros_args])
    return Node("dpt_view", namespace=namespace or None)
