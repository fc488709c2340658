# SPDX-License-Identifier: Apache-2.0
"""The calibration of a camera: the one in use, whether it fits the image, and its subscription."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from dpt_ros.engine.frame import CameraModel, Lens
from dpt_ros.ros.camera.inputs import InputRecord, TopicInput
from dpt_ros.ros.messages.camera_info import camera_model, unrectified
from dpt_ros.ros.messages.error import one_line
from dpt_ros.ros.messages.lens import lens_of, rectified_camera, rectified_info
from dpt_ros.ros.plausibility import calibration_doubt

_PATIENCE = 3.0  # seconds until a calibration that has not arrived is a warning
_UNUSABLE = "no calibration, or an impossible one"


class Calibration:
    """The last CameraInfo of a camera.

    Args:
        image_topic: gives the full name of the image's topic, "" where it is not known.
        warn: takes a message for the log when a new calibration has a fault.
        inform: takes a message for the log when images are rectified.
        rectify: whether images that are not rectified by their topic's name are to be.
        fov: see ``rectified_camera``.

    Attributes:
        camera: intrinsics, of the rectified image; None while there are none that can be used.
        lens: of an image that is to be rectified; None for others.
        info: of the rectified image, with an empty header: the message received, unless the
            image is to be rectified; None before the first.
        record: what became of the messages.
    """

    def __init__(
        self,
        image_topic: Callable[[], str],
        warn: Callable[[str], None],
        inform: Callable[[str], None] = lambda text: None,
        rectify: bool = False,
        fov: float = 0.0,
    ) -> None:
        self._image_topic = image_topic
        self._warn, self._inform = warn, inform
        self._rectify, self._fov = rectify, fov
        self._received: CameraInfo | None = None
        self._told = False
        self._use = "used"
        self._fault = self._mismatch = ""
        self.camera: CameraModel | None = None
        self.lens: Lens | None = None
        self.info: CameraInfo | None = None
        self.record = InputRecord("camera_info", lasting=True)

    @property
    def warnings(self) -> list[str]:
        """What is wrong with it, for /diagnostics."""
        return [text for text in (self._fault, self._mismatch) if text]

    def take(self, info: CameraInfo) -> None:
        """Receive a CameraInfo; its header is cleared."""
        self.record.received()
        # The header is the image's. Without it the messages of one calibration are equal, and the
        # results for the first hold for all.
        info.header = Header()
        if info == self._received:
            return
        before = self._fault
        self._received = self.info = info
        self._mismatch, self.lens = "", None
        topic = self._image_topic()
        self.camera, self._fault = camera_model(info, topic)
        self._use = "used, but unlikely" if self._fault else "used"
        if unrectified(info, topic):
            self._use = "used, but the image is not rectified"
            if self._rectify and self.camera is not None:
                self._take_lens(info, topic, self.camera)
        if self.camera is None:
            self.record.unused(_UNUSABLE)
        if self._fault and self._fault != before:
            self._warn(self._fault)

    def _take_lens(self, info: CameraInfo, topic: str, camera: CameraModel) -> None:
        """Have images rectified, or say why not."""
        doubt = calibration_doubt(camera)
        doubt = f"camera_info: {doubt}." if doubt else ""
        try:
            lens = lens_of(info)
            self.camera, warning = rectified_camera(lens, camera, self._fov)
        except ValueError as error:
            self._fault = one_line(f"{doubt} {unrectified(info, topic, str(error))}".strip())
            return
        self.lens, self.info = lens, rectified_info(info, self.camera)
        self._fault = f"{doubt} {warning}".strip()
        source = "rectify_fov" if self._fov else "P" if info.p[0] else "K, as P is empty"
        self._use = f"used, rectified in the node to {source}"
        if self._told:
            return
        self._told = True
        self._inform(
            f"The images of {topic or 'the camera'} are rectified in the node: camera_info has the"
            f" lens distortion '{info.distortion_model}', and by its name the topic is not"
            " rectified. If it is, set rectify to off."
        )

    def of(self, width: int, height: int) -> tuple[CameraModel | None, CameraInfo | None]:
        """Intrinsics and message for an image of this size; None for both where they do not fit.

        Call it for each image: its result is what /diagnostics reports.
        """
        camera, before, self._mismatch = self.camera, self._mismatch, ""
        if camera is None:
            if self.info is not None:
                self.record.unused(_UNUSABLE)
            return None, None
        if (camera.width, camera.height) != (width, height):
            self._mismatch = (
                f"camera_info is for {camera.width}x{camera.height} pixels, but the image has"
                f" {width}x{height}, so it is not used; publish the camera_info of this image."
            )
            if self._mismatch != before:
                self._warn(self._mismatch)
            self.record.unused(f"{camera.width}x{camera.height}, but the image {width}x{height}")
            return None, None
        self.record.used(self._use)
        return camera, self.info


class CalibrationSubscription(TopicInput):
    """Subscribes a Calibration to a topic, and also gets a CameraInfo that was published once.

    It is volatile and best effort, which every publisher serves. Where every publisher is
    transient local, it asks for their last message.
    """

    def __init__(self, node: Node, topic: str, calibration: Calibration) -> None:
        self._node = node
        self._topic = topic
        self._calibration = calibration
        self._latched = False
        self._opened = time.monotonic()
        super().__init__(node, self._subscribe())

    def _subscribe(self) -> Any:
        profile = QoSProfile(depth=1, reliability=qos_profile_sensor_data.reliability)
        overriding = QoSOverridingOptions.with_default_policies()
        if self._latched:
            profile.reliability = ReliabilityPolicy.RELIABLE
            profile.durability = DurabilityPolicy.TRANSIENT_LOCAL
            overriding = None
        return self._node.create_subscription(
            CameraInfo,
            self._topic,
            self._calibration.take,
            profile,
            qos_overriding_options=overriding,
        )

    def review(self) -> None:
        """Check whether all publishers are transient local, unless the user set the QoS."""
        offers = {
            publisher.qos_profile.durability
            for publisher in self._node.get_publishers_info_by_topic(self.topic_name)
        }
        latched = offers == {DurabilityPolicy.TRANSIENT_LOCAL}
        overridden = f"qos_overrides.{self.topic_name}.subscription.reliability"
        if not offers or latched == self._latched:
            return
        if overridden in self._node._parameter_overrides:
            return
        self.close()
        self._latched = latched
        self._subscription = self._subscribe()

    def missing(self, needed_by: str) -> str:
        """A warning where an output needs the calibration (by name, else "") and none is there."""
        late = time.monotonic() - self._opened > _PATIENCE
        if not (needed_by and late and self._calibration.info is None):
            return ""
        publishers = self._node.get_publishers_info_by_topic(self.topic_name)
        types = sorted({str(publisher.topic_type) for publisher in publishers})
        why = f"its publisher sends {', '.join(types)}" if types else "it has no publisher"
        if types == ["sensor_msgs/msg/CameraInfo"]:
            why = "its publisher has sent none"
        return (
            f"{needed_by} is subscribed to, but no camera_info has arrived on {self.topic_name}"
            f" ({why}): set the remapping of camera_info, or have the driver publish its"
            " calibration."
        )
