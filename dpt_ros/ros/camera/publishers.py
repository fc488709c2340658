# SPDX-License-Identifier: Apache-2.0
"""The publishers of one camera's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from dpt_ros.engine.frame import OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.messages.prediction import LABEL_INFO, PredictionMessages
from dpt_ros.ros.share import shared_memory_size


class CameraPublishers:
    """Publishers of one camera, from construction to ``destroy``.

    Args:
        node: owns them.
        prefix: of the topics.
        networks: decide which outputs exist.
        settings: gives the settings in force.

    Attributes:
        warning: what ``review`` found, "" if nothing is wrong.
    """

    def __init__(
        self,
        node: LifecycleNode,
        prefix: str,
        networks: Networks,
        settings: Callable[[], Settings],
    ) -> None:
        self._node = node
        self._prefix = prefix
        self._log = node.get_logger()
        self._converter = PredictionMessages(networks, settings)
        self._sizes: dict[str, int] = {}  # of the last message of a topic, bytes
        self.warning = ""
        if self._converter.depth_note:
            self._log.info(self._of_camera(self._converter.depth_note))
        self._publishers: dict[str, LifecyclePublisher[Any]] = {
            topic: node.create_lifecycle_publisher(
                kind,
                prefix + topic,
                _profile(latched=topic == LABEL_INFO),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for topic, kind in self._converter.topics.items()
        }

    def destroy(self) -> None:
        """Remove all topics."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()

    def request(self, calibrated: bool) -> OutputRequest:
        """What has to be computed: only what is subscribed to.

        Args:
            calibrated: whether there is a camera_info, without which there are no points.
        """
        return self._converter.request(self._subscribed, calibrated)

    def publish(self, prediction: Prediction, header: Header, info: CameraInfo | None) -> None:
        """Publish a prediction.

        Args:
            prediction: of a frame.
            header: of its image, which every output gets.
            info: the camera_info of the image, if there is one.
        """
        messages = self._converter.messages(prediction, header, info, self._subscribed)
        for topic, message in messages:
            if not isinstance(message, CameraInfo):
                self._sizes[topic] = message._data.nbytes
            self._publishers[topic].publish(message)

    def publish_label_info(self) -> None:
        """Publish the class map, which is latched."""
        if LABEL_INFO in self._publishers:
            if self._converter.label_note:
                self._log.warning(self._of_camera(self._converter.label_note))
            self._publishers[LABEL_INFO].publish(self._converter.label_info())

    def _of_camera(self, text: str) -> str:
        return f"{self._prefix.rstrip('/')}: {text}" if self._prefix else text

    def _subscribed(self, topic: str) -> bool:
        publisher = self._publishers.get(topic)
        return publisher is not None and bool(publisher.get_subscription_count())

    @property
    def topics(self) -> list[str]:
        """Full names of what is published."""
        return [str(publisher.topic_name) for publisher in self._publishers.values()]

    @property
    def needs_calibration(self) -> str:
        """The outputs that are subscribed to and need a camera_info, or ""."""
        topics = ("depth/points", "depth/camera_info", "depth/fused")
        needing = [topic for topic in topics if self._subscribed(topic)]
        return " and ".join(self._prefix + topic for topic in needing)

    def review(self) -> None:
        """Look for best-effort subscribers of outputs that are too large for them."""
        room = shared_memory_size()
        starved = []
        for topic, size in list(self._sizes.items()):
            publisher = self._publishers.get(topic)
            if publisher is None or size <= room or not publisher.get_subscription_count():
                continue
            readers = self._node.get_subscriptions_info_by_topic(publisher.topic_name)
            if any(r.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for r in readers):
                starved.append(f"{publisher.topic_name} ({size / 2**20:.1f} MB)")
        self.warning = (
            f"Best-effort subscribers of {', '.join(starved)} will miss most messages: this node"
            f" has {room / 2**20:.1f} MB of shared memory in Fast DDS. Set"
            " FASTDDS_DEFAULT_PROFILES_FILE (FASTRTPS_DEFAULT_PROFILES_FILE up to Jazzy) to"
            " share/dpt_ros/config/fastdds.xml, or unset it and FASTDDS_BUILTIN_TRANSPORTS."
            if starved
            else ""
        )


def _profile(latched: bool) -> QoSProfile:
    if latched:
        return QoSProfile(
            depth=1,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL,
        )
    return QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
