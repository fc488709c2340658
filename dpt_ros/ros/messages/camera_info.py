# SPDX-License-Identifier: Apache-2.0
"""The calibration of a camera: which one holds, whether it fits, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from dpt_ros.engine.frame import CameraModel
from dpt_ros.ros.camera.inputs import InputRecord
from dpt_ros.ros.camera.rectified import unrectified
from dpt_ros.ros.messages.image import camera_model

PATIENCE = 3.0  # seconds that a calibration may take to come


class CameraInfoInput:
    """A subscription to sensor_msgs/CameraInfo that also gets one that was published once.

    It is volatile and best effort, which every publisher serves. Where every publisher keeps its
    last message for late subscribers (transient local), it asks for that one.

    Args:
        node: subscribes there.
        topic: relative name.
        image_topic: gives the full name of the image's topic, "" where it is not known.
        warn: takes a message for the log when a calibration that is new has a fault.

    Attributes:
        camera: intrinsics; None while there are none that can be used.
        info: the message that they are from, with an empty header.
        warning: what is wrong with it, "" if nothing is.
        record: what became of the messages.
    """

    def __init__(
        self,
        node: Node,
        topic: str,
        image_topic: Callable[[], str],
        warn: Callable[[str], None],
    ) -> None:
        self._node = node
        self._topic = topic
        self._image_topic = image_topic
        self._warn = warn
        self._latched = False
        self._opened = time.monotonic()
        self._words = "used"
        self.camera: CameraModel | None = None
        self.info: CameraInfo | None = None
        self.warning = ""
        self._misfit = ""
        self.record = InputRecord(topic.rpartition("/")[2], lasting=True)
        self._subscription = self._subscribe()

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)

    @property
    def topic(self) -> str:
        """The full name of the topic, after remapping."""
        return str(self._subscription.topic_name)

    def _subscribe(self) -> Any:
        profile = QoSProfile(depth=1, reliability=qos_profile_sensor_data.reliability)
        overriding = QoSOverridingOptions.with_default_policies()
        if self._latched:
            profile.reliability = ReliabilityPolicy.RELIABLE
            profile.durability = DurabilityPolicy.TRANSIENT_LOCAL
            overriding = None
        return self._node.create_subscription(
            CameraInfo, self._topic, self._take, profile, qos_overriding_options=overriding
        )

    def review(self) -> None:
        """Look at the publishers, whether all of them keep their last message."""
        offers = [
            publisher.qos_profile.durability
            for publisher in self._node.get_publishers_info_by_topic(self.topic)
        ]
        latched = set(offers) == {DurabilityPolicy.TRANSIENT_LOCAL}
        if not offers or latched == self._latched or self._overridden():
            return
        self._node.destroy_subscription(self._subscription)
        self._latched = latched
        self._subscription = self._subscribe()

    def _overridden(self) -> bool:
        """Whether the user chose the reliability by qos_overrides."""
        name = f"qos_overrides.{self.topic}.subscription.reliability"
        return name in self._node._parameter_overrides

    def _take(self, info: CameraInfo) -> None:
        self.record.received()
        # The header is the image's. Without it, those of one calibration are equal, and what was
        # worked out for the first holds for all.
        info.header = Header()
        if info == self.info:
            return
        topic = self._image_topic()
        before = self.warning
        self.camera, self.warning = camera_model(info, topic)
        self.info = info
        self._misfit = ""
        self._words = "used, but unlikely" if self.warning else "used"
        if unrectified(info, topic):
            self._words = "used, but the image is not rectified"
        if self.camera is None:
            self.record.unused("no calibration, or an impossible one")
        if self.warning and self.warning != before:
            self._warn(self.warning)

    def of(self, width: int, height: int) -> tuple[CameraModel | None, CameraInfo | None]:
        """Intrinsics and message for an image of this size; None for both where they do not fit.

        Call it for each image: what it finds is what /diagnostics reports.
        """
        camera, before, self._misfit = self.camera, self._misfit, ""
        if camera is None:
            if self.info is not None:
                self.record.unused("no calibration, or an impossible one")
            return None, None
        if (camera.width, camera.height) != (width, height):
            self._misfit = (
                f"camera_info speaks of {camera.width}x{camera.height} pixels, but the image has"
                f" {width}x{height}, so it is not used; publish that of this image."
            )
            if self._misfit != before:
                self._warn(self._misfit)
            self.record.unused(f"{camera.width}x{camera.height}, but the image {width}x{height}")
            return None, None
        self.record.used(self._words)
        return camera, self.info

    def warnings(self, wanted: str) -> list[str]:
        """What /diagnostics should warn of.

        Args:
            wanted: what needs the calibration, such as "depth/points"; "" if nothing does.
        """
        found = [text for text in (self.warning, self._misfit) if text]
        late = time.monotonic() - self._opened > PATIENCE
        if wanted and self.info is None and late:
            others = self._node.get_publishers_info_by_topic(self.topic)
            types = sorted({str(publisher.topic_type) for publisher in others})
            why = f"its publisher sends {', '.join(types)}" if types else "nobody publishes it"
            if types == ["sensor_msgs/msg/CameraInfo"]:
                why = "its publisher has sent none"
            found.append(
                f"{wanted} is asked for, but no camera_info has arrived on {self.topic} ({why}):"
                " set the remapping of camera_info, or have the driver publish its calibration."
            )
        return found
