# SPDX-License-Identifier: Apache-2.0
"""What other sensors know of depth: a laser scan, a point cloud or a depth image as anchors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2

from dpt_ros.engine.anchors import Anchors, project_depth, project_points, project_scan
from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.clouds import cloud_points
from dpt_ros.ros.messages import MessageError, camera_model, image_pixels
from dpt_ros.ros.poses import TfPoses, pose_matrix

_TOPICS = {
    "anchors/scan": LaserScan,
    "anchors/points": PointCloud2,
    "anchors/depth": Image,
    "anchors/camera_info": CameraInfo,
}


class AnchorTopics:
    """Keeps the last measurement of each sensor and projects the newest into an image.

    Args:
        node: subscribes there.
        prefix: of the camera's topics.
        settings: where the sensor sits.
        say: takes a sentence when a measurement cannot be used; the same one again and again.
    """

    def __init__(
        self, node: Node, prefix: str, settings: Settings, say: Callable[[str], None]
    ) -> None:
        self._node = node
        self._say = say
        self._last: dict[str, Any] = {}
        self._newest = ""
        self._depth_camera: CameraModel | None = None
        self._sensor_in_camera = pose_matrix(settings.sensor_in_camera)
        self._tf: TfPoses | None = None
        self._subscriptions = [
            node.create_subscription(
                kind,
                prefix + topic,
                lambda msg, topic=topic: self._take(topic, msg),
                qos_profile_sensor_data,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for topic, kind in _TOPICS.items()
        ]

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        if self._tf is not None:
            self._tf.close()

    def _take(self, topic: str, msg: Any) -> None:
        if topic == "anchors/camera_info":
            self._depth_camera, _ = camera_model(msg)
        else:
            self._last[topic], self._newest = msg, topic

    def anchors(self, camera: CameraModel | None, frame_id: str) -> Anchors | None:
        """The newest measurement as pixels of known depth; None if there is none to use.

        Args:
            camera: rectified intrinsics of the image.
            frame_id: its optical frame.
        """
        msg = self._last.get(self._newest)
        if msg is None or camera is None:
            return None
        stamp = msg.header.stamp.sec * 1_000_000_000 + msg.header.stamp.nanosec
        where = self._camera_from_sensor(frame_id, msg.header.frame_id)
        if where is None:
            return None
        try:
            return self._project(msg, where, camera, stamp)
        except (MessageError, ValueError) as error:
            self._say(f"{self._newest}: {error}")
            return None

    def _project(
        self, msg: Any, where: np.ndarray, camera: CameraModel, stamp: int
    ) -> Anchors | None:
        if isinstance(msg, LaserScan):
            return project_scan(
                np.asarray(msg.ranges),
                msg.angle_min,
                msg.angle_increment,
                msg.range_min,
                msg.range_max,
                where,
                camera,
                stamp,
            )
        if isinstance(msg, PointCloud2):
            return project_points(cloud_points(msg), where, camera, stamp)
        if self._depth_camera is None:
            self._say("anchors/depth needs its intrinsics on anchors/camera_info.")
            return None
        if msg.encoding not in ("32FC1", "16UC1", "mono16"):  # drivers call millimetres either
            raise MessageError(
                "unknown encoding",
                f"the depth image has the encoding '{msg.encoding}', but must be 32FC1 or 16UC1.",
            )
        return project_depth(image_pixels(msg), self._depth_camera, where, camera, stamp)

    def _camera_from_sensor(self, camera_frame: str, sensor_frame: str) -> np.ndarray | None:
        if self._sensor_in_camera is not None:
            return self._sensor_in_camera
        if camera_frame == sensor_frame:
            return np.eye(4)
        if self._tf is None:
            self._tf = TfPoses(
                self._node,
                camera_frame,
                lambda sentence: self._say(
                    f"{self._newest}: where the sensor sits is not known; set sensor_in_camera, or"
                    f" give it by tf ({sentence})"
                ),
            )
        return self._tf.pose(sensor_frame, 0)
