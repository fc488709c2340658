# SPDX-License-Identifier: Apache-2.0
"""What the node's parts need of a node, with a bag in the place of the middleware."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.publishers import CameraPublishers

# The message types that bags are written with: those of rosbags, and vision_msgs.
TYPES = get_typestore(Stores.ROS2_KILTED)
_CLASS = "uint16 class_id\nstring class_name\n"
_LABELS = "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n"
TYPES.register(get_types_from_msg(_CLASS, "vision_msgs/msg/VisionClass"))
TYPES.register(get_types_from_msg(_LABELS, "vision_msgs/msg/LabelInfo"))


class _Logger:
    """A node's logger that hands sentences on."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.info = self.warning = self.error = say


class BagPublisher:
    """A publisher whose messages go into a bag.

    Args:
        topic: relative name.
        kind: class of its messages.
        latched: whether late subscribers get the last message.
        watched: whether the topic is wanted.
        write: takes topic and serialised message.
    """

    def __init__(
        self,
        topic: str,
        kind: type,
        latched: bool,
        watched: bool,
        write: Callable[[str, bytes | memoryview], None],
    ) -> None:
        self.topic, self.latched, self.watched = topic, latched, watched
        self.msgtype = _type_name(kind)
        self._write = write

    def get_subscription_count(self) -> int:
        return int(self.watched)

    def publish(self, message: Any) -> None:
        if self.watched:
            self._write(self.topic, serialised(message))


def serialised(message: Any) -> memoryview:
    """A message of the middleware as CDR.

    The middleware's own serialiser leaves the bytes between fields as it finds them in memory.
    Written by rosbags they are 0, so that the same message is the same bytes.
    """
    return TYPES.serialize_cdr(_of_rosbags(message), _type_name(type(message)))


def _type_name(kind: type) -> str:
    return f"{kind.__module__.partition('.')[0]}/msg/{kind.__name__}"


def _of_rosbags(value: Any) -> Any:
    """A message, or the value of a field, as rosbags has it; arrays are not copied."""
    if hasattr(value, "get_fields_and_field_types"):
        # The public attribute of a byte array makes a copy of it.
        names = value.get_fields_and_field_types()
        kind = TYPES.types[_type_name(type(value))]
        return kind(*(_of_rosbags(getattr(value, f"_{name}")) for name in names))
    if isinstance(value, array):
        return np.asarray(value)
    if isinstance(value, list):
        return [_of_rosbags(item) for item in value]
    return value


class BagNode:
    """Makes publishers that write into a bag, and subscriptions that are fed from one.

    Args:
        say: takes what would be logged.
        wanted: endings of the topics to write.
        write: takes topic and serialised message.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        wanted: Collection[str] = (),
        write: Callable[[str, bytes | memoryview], None] = lambda topic, data: None,
    ) -> None:
        self.publishers: list[BagPublisher] = []
        self._logger = _Logger(say)
        self._wanted = wanted
        self._write = write
        self._callbacks: dict[str, Callable[[Any], None]] = {}

    def get_logger(self) -> _Logger:
        return self._logger

    def create_lifecycle_publisher(
        self, kind: type, topic: str, qos: QoSProfile, **_: Any
    ) -> BagPublisher:
        latched = qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
        wanted = any(topic == name or topic.endswith(f"/{name}") for name in self._wanted)
        publisher = BagPublisher(topic, kind, latched, wanted, self._write)
        self.publishers.append(publisher)
        return publisher

    def destroy_lifecycle_publisher(self, publisher: BagPublisher) -> None:
        self.publishers.remove(publisher)

    def create_subscription(
        self, kind: type, topic: str, callback: Callable[[Any], None], *_: Any, **__: Any
    ) -> str:
        self._callbacks[topic] = callback
        return topic

    def destroy_subscription(self, topic: str) -> None:
        del self._callbacks[topic]

    def deliver(self, topic: str, message: Any) -> None:
        """Hand a message to the subscription of a topic."""
        self._callbacks[topic](message)


class BagOutputs(CameraPublishers):
    """The outputs of one camera, with what they remember from frame to frame."""

    def __init__(
        self,
        node: BagNode,
        prefix: str,
        networks: Networks,
        settings: Settings,
    ) -> None:
        super().__init__(node, prefix, networks, lambda: settings)

    def state_dict(self) -> dict[str, float]:
        """For ``load_state_dict`` in another process."""
        return {"inverse_near": self._inverse_near}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on as the one with this state would."""
        self._inverse_near = state["inverse_near"]
