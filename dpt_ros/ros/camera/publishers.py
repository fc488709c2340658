# SPDX-License-Identifier: Apache-2.0
"""Everything that is published of one camera."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header, String

from dpt_ros.engine.frame import OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.output.color import (
    depth_to_color,
    inverse_to_color,
    labels_to_color,
    with_words,
)
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.messages.image import image_message, millimetres, scaled_camera_info
from dpt_ros.ros.messages.point_cloud import cloud_message
from dpt_ros.ros.share import shared_memory_size

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # not on PyPI; the class map then goes out as JSON
    LabelInfo = None

_OUTPUT_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
_LATCHED_QOS = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


class CameraPublishers:
    """Publishers of one camera, from construction to ``destroy``.

    Args:
        node: owns them.
        prefix: of the topics.
        networks: decide which outputs exist.
        settings: gives the settings of the moment.

    Attributes:
        warning: what ``review`` found, "" if all is well.
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
        self._networks = networks
        self._settings = settings
        self._log = node.get_logger()
        self._scaled: tuple[CameraInfo | None, CameraInfo] = (None, CameraInfo())
        self._inverse_near = 0.0
        self._sizes: dict[str, int] = {}  # of the last message of a topic, bytes
        self.warning = ""
        self._publishers: dict[str, LifecyclePublisher[Any]] = {}
        source = settings().scale_source
        self._metres = source not in ("none", "network") or (
            networks.metric and source == "network"
        )
        if networks.depth_name:
            self._create_depth_publishers()
        if networks.label_name:
            self._create_label_publishers()

    def destroy(self) -> None:
        """Take every topic away."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()

    def _create_depth_publishers(self) -> None:
        metric = self._networks.metric
        if not metric or not self._metres:
            why = "relative inverse depth, which has no unit" if not metric else "metres"
            until = "until anchors or the floor give metres" if self._metres else "by scale.source"
            self._log.info(
                f"{self._networks.depth_name} predicts {why}: {self._prefix}depth/inverse is"
                f" published and {self._prefix}depth/image is not, {until}."
            )
        if self._metres:
            self._advertise("depth/image", Image)
            self._advertise("depth/camera_info", CameraInfo)
            self._advertise("depth/confidence", Image)
            self._advertise("depth/points", PointCloud2)
        if not metric or not self._metres or self._settings().publish_inverse:
            self._advertise("depth/inverse", Image)
        self._advertise("depth/color", Image)

    def _create_label_publishers(self) -> None:
        self._advertise("semantic/labels", Image)
        self._advertise("semantic/confidence", Image)
        self._advertise("semantic/color", Image)
        self._advertise("semantic/label_info", LabelInfo or String, _LATCHED_QOS)

    def _advertise(self, topic: str, kind: type, qos: QoSProfile = _OUTPUT_QOS) -> None:
        self._publishers[topic] = self._node.create_lifecycle_publisher(
            kind,
            self._prefix + topic,
            # A copy, because qos_overrides are written into the profile.
            QoSProfile(depth=qos.depth, reliability=qos.reliability, durability=qos.durability),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def wanted(self, calibrated: bool) -> OutputRequest:
        """What is computed: only what somebody subscribes to.

        Args:
            calibrated: whether there is a camera_info, without which there are no points.
        """
        color = self._watched("depth/color")
        metres = self._metres
        return OutputRequest(
            depth=metres and (color or self._watched("depth/image", "depth/camera_info")),
            inverse=self._watched("depth/inverse")
            or (color and not (metres and self._networks.metric)),
            labels=self._watched("semantic/labels", "semantic/color"),
            confidence=self._watched("semantic/confidence"),
            deviation=self._watched("depth/confidence"),
            points=calibrated and self._watched("depth/points"),
        )

    @property
    def topics(self) -> list[str]:
        """Full names of what is published."""
        return [str(publisher.topic_name) for publisher in self._publishers.values()]

    @property
    def needs_calibration(self) -> str:
        """The output that somebody waits for in vain without a camera_info, or ""."""
        wanted = [t for t in ("depth/points", "depth/camera_info") if self._watched(t)]
        return " and ".join(self._prefix + topic for topic in wanted)

    def review(self) -> None:
        """Look for best-effort readers of outputs that are too large for them."""
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
            f"Best-effort readers of {', '.join(starved)} will miss most messages: as this node"
            f" was started, Fast DDS has room for {room / 2**20:.1f} MB in shared memory. Have"
            " FASTDDS_DEFAULT_PROFILES_FILE (FASTRTPS_DEFAULT_PROFILES_FILE up to Jazzy) name"
            " share/dpt_ros/config/fastdds.xml, or unset it and FASTDDS_BUILTIN_TRANSPORTS."
            if starved
            else ""
        )

    def _watched(self, *topics: str) -> bool:
        return any(
            topic in self._publishers and self._publishers[topic].get_subscription_count()
            for topic in topics
        )

    def publish(self, prediction: Prediction, header: Header, info: CameraInfo | None) -> None:
        """Send what was predicted.

        Args:
            prediction: of a frame.
            header: of its image, which every output gets.
            info: the camera_info that belongs to it, if there is one.
        """
        if prediction.depth is not None:
            self._publish_depth(prediction.depth, header, info)
        if prediction.deviation is not None:
            self._send_image("depth/confidence", prediction.deviation, "32FC1", header)
        if prediction.inverse is not None:
            self._publish_inverse(prediction, header)
        if prediction.labels is not None:
            self._send_image("semantic/labels", prediction.labels, "mono8", header)
            if self._watched("semantic/color"):
                color = labels_to_color(prediction.labels, self._networks.palette)
                self._send_picture("semantic/color", color, header)
        if prediction.confidence is not None:
            self._send_image("semantic/confidence", prediction.confidence, "mono8", header)
        if prediction.points is not None:
            self._sizes["depth/points"] = prediction.points.nbytes
            self._publishers["depth/points"].publish(cloud_message(prediction.points, header))

    def _publish_depth(self, depth: np.ndarray, header: Header, info: CameraInfo | None) -> None:
        encoding = self._settings().depth_encoding
        # First, so that whoever needs both has it when the image comes.
        if info is not None and self._watched("depth/camera_info"):
            self._publishers["depth/camera_info"].publish(self._info_of(depth, header, info))
        if self._watched("depth/image"):
            values = millimetres(depth) if encoding == "16UC1" else depth
            self._send_image("depth/image", values, encoding, header)
        if self._watched("depth/color"):
            color = depth_to_color(depth, self._settings().color_range)
            self._send_picture("depth/color", color, header)

    def _info_of(self, depth: np.ndarray, header: Header, info: CameraInfo) -> CameraInfo:
        """The camera_info of a depth image, worked out anew when the calibration or size changed.

        The message is filled anew for every frame: publish it at once.
        """
        height, width = depth.shape
        source, scaled = self._scaled
        if source is not info or (scaled.width, scaled.height) != (width, height):
            scaled = scaled_camera_info(info, width, height, header)
            self._scaled = info, scaled
        scaled.header = header
        return scaled

    def _publish_inverse(self, prediction: Prediction, header: Header) -> None:
        inverse = prediction.inverse
        assert inverse is not None
        self._send_image("depth/inverse", inverse, "32FC1", header)
        if prediction.depth is None and self._watched("depth/color"):
            # Relative depth has no unit to fix a range in, so the first frame fixes it for all.
            self._inverse_near = self._inverse_near or float(np.percentile(inverse, 99)) or 1.0
            color = inverse_to_color(inverse, self._inverse_near)
            self._send_picture("depth/color", color, header)

    def _send_picture(self, topic: str, picture: np.ndarray, header: Header) -> None:
        if self._networks.random:
            with_words(picture, "RANDOM WEIGHTS: this means nothing")
        self._send_image(topic, picture, "rgb8", header)

    def _send_image(self, topic: str, pixels: np.ndarray, encoding: str, header: Header) -> None:
        if self._watched(topic):
            self._sizes[topic] = pixels.nbytes
            self._publishers[topic].publish(image_message(pixels, encoding, header))

    def publish_label_info(self) -> None:
        """Publish the class map, which is latched."""
        if "semantic/label_info" in self._publishers:
            self._publishers["semantic/label_info"].publish(self._label_info())

    def _label_info(self) -> Any:
        names = dict(enumerate(self._networks.class_names, start=1))
        if LabelInfo is not None:
            classes = [VisionClass(class_id=k, class_name=name) for k, name in names.items()]
            return LabelInfo(class_map=classes)
        self._log.warning(
            f"vision_msgs is not installed: {self._prefix}semantic/label_info is a"
            " std_msgs/String with the class map as JSON."
        )
        rows = [{"class_id": k, "class_name": name} for k, name in names.items()]
        return String(data=json.dumps({"class_map": rows}))
