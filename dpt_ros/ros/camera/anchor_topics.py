# SPDX-License-Identifier: Apache-2.0
"""What other sensors know of depth: a laser scan, a point cloud or a depth image as anchors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image, LaserScan, PointCloud2

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.scale.anchors import Anchors, project_depth, project_points, project_scan
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.geometry import pose_matrix
from dpt_ros.ros.camera.inputs import InputRecord
from dpt_ros.ros.camera.tf import TfTree
from dpt_ros.ros.messages.camera_info import CameraInfoInput
from dpt_ros.ros.messages.error import MessageError, one_line
from dpt_ros.ros.messages.image import image_pixels
from dpt_ros.ros.messages.point_cloud import cloud_points
from dpt_ros.ros.plausibility import same_frame, scan_fault

_TOPICS = {"anchors/scan": LaserScan, "anchors/points": PointCloud2, "anchors/depth": Image}


class AnchorTopics:
    """Keeps the last measurement of each sensor and projects the newest into an image.

    Args:
        node: subscribes there.
        prefix: of the camera's topics.
        settings: where the sensor sits.
        say: takes a message when a measurement cannot be used; the same one again and again.
        tree: the node's tf, which tells where the sensor sits; without, one of its own.

    Attributes:
        records: what became of each sensor's messages, by topic.
    """

    def __init__(
        self,
        node: Node,
        prefix: str,
        settings: Settings,
        say: Callable[[str], None],
        tree: TfTree | None = None,
    ) -> None:
        self._node = node
        self._say = say
        self._last: dict[str, Any] = {}
        self._sensor_in_camera = pose_matrix(settings.sensor_in_camera)
        self._own_tree = None if tree else TfTree(node)
        self._tree = tree or self._own_tree
        self._newest = ""
        self.records = {topic: InputRecord(topic) for topic in _TOPICS}
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
        self._depth_info = CameraInfoInput(
            node,
            f"{prefix}anchors/camera_info",
            lambda: "image_rect",  # depth images are, whatever lens the camera has
            lambda text: say(f"anchors/{text}"),
        )

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._depth_info.close()
        if self._own_tree is not None:
            self._own_tree.close()

    @property
    def newest(self) -> str:
        """The topic of the last measurement, "" before the first."""
        return self._newest

    @property
    def topics(self) -> list[str]:
        """The full names of the topics."""
        return [str(subscription.topic_name) for subscription in self._subscriptions]

    def review(self) -> None:
        """Look at the publishers of the depth camera's calibration."""
        self._depth_info.review()

    def _take(self, topic: str, msg: Any) -> None:
        self.records[topic].received()
        self._last[topic], self._newest = msg, topic

    def anchors(self, camera: CameraModel | None, frame_id: str) -> Anchors | None:
        """The newest measurement as pixels of known depth; None if there is none to use.

        Args:
            camera: rectified intrinsics of the image.
            frame_id: its optical frame.
        """
        msg = self._last.get(self._newest)
        if msg is None:
            return None
        for topic, record in self.records.items():
            if topic != self._newest and record.connected:
                record.idle(f"{self._newest} has newer ones")
        if camera is None:
            self._leave_out("the image has no camera_info that fits")
            return None
        stamp = msg.header.stamp.sec * 1_000_000_000 + msg.header.stamp.nanosec
        where = self._where(frame_id, msg.header.frame_id)
        if where is None:
            return None
        try:
            anchors = self._project(msg, where, camera, stamp)
        except (MessageError, ValueError) as error:
            self._leave_out(str(error).rstrip("."))
            self._say(f"{self._newest}: {error}")
            return None
        if anchors is not None and not len(anchors):
            self._leave_out("no point of it is in the picture")
        return anchors

    def _leave_out(self, why: str) -> None:
        self.records[self._newest].unused(one_line(why))

    def report(self, topic: str, scale: dict[str, str]) -> None:
        """Note what became of the anchors of a frame; may be called from any thread.

        Args:
            topic: that they came from.
            scale: what the estimator says of the frame, see `Scaled.diagnostics`.
        """
        state = scale.get("scale state", "")
        if scale.get("scale source") == "anchors" and state and not state.startswith("held"):
            self.records[topic].used()
        else:
            self.records[topic].unused(state or "no scale is estimated")

    def _project(
        self, msg: Any, where: np.ndarray, camera: CameraModel, stamp: int
    ) -> Anchors | None:
        if isinstance(msg, LaserScan):
            if fault := scan_fault(msg):
                raise ValueError(f"{fault}.")
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
        if self._depth_info.camera is None:
            why = self._depth_info.warning or "anchors/depth needs its intrinsics"
            self._leave_out("no usable intrinsics on anchors/camera_info")
            self._say(f"{why.rstrip('.')}: none on anchors/camera_info.")
            return None
        if msg.encoding not in ("32FC1", "16UC1", "mono16"):  # drivers call millimetres either
            raise MessageError(
                "unknown encoding",
                f"the depth image has the encoding '{msg.encoding}', but must be 32FC1 or 16UC1.",
            )
        return project_depth(image_pixels(msg), self._depth_info.camera, where, camera, stamp)

    def _where(self, camera_frame: str, sensor_frame: str) -> np.ndarray | None:
        """The sensor's pose in the optical frame; an empty frame id names no frame."""
        if self._sensor_in_camera is not None:
            return self._sensor_in_camera
        if not camera_frame or not sensor_frame:
            empty = "the image's" if not camera_frame else "its"
            self._leave_out(f"{empty} frame_id is empty, which names no frame")
            self._say(
                f"{self._newest}: {empty} frame_id is empty, so where the sensor sits is not"
                " known: set sensor_in_camera, or have the driver set its frame_id. Until then"
                " these anchors are not used."
            )
            return None
        if same_frame(camera_frame, sensor_frame):
            return np.eye(4)
        return self._camera_from_sensor(camera_frame, sensor_frame)

    def _camera_from_sensor(self, camera_frame: str, sensor_frame: str) -> np.ndarray | None:
        """Where another frame than the camera's is, by tf."""
        assert self._tree is not None
        self._tree.start()
        pose, why = self._tree.find(camera_frame, sensor_frame, 0)
        if pose is None and self._tree.young:
            self._leave_out(f"waiting for tf ({why})")
        elif pose is None:
            self._leave_out(f"where the sensor sits is not known; tf: {why}")
            self._say(
                f"{self._newest}: where the sensor sits is not known; set sensor_in_camera, or"
                f" give it by tf (tf: {why})."
            )
        return pose
