# SPDX-License-Identifier: Apache-2.0
"""Laser scans, point clouds and depth images as anchors: pixels of known depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sensor_msgs.msg import Image, LaserScan, PointCloud2

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.input.sensor_depth import registered_depth
from dpt_ros.engine.scale.anchors import Anchors, project_depth, project_points, project_scan
from dpt_ros.engine.scale.plan import MAX_ANCHOR_AGE
from dpt_ros.engine.settings import Settings
from dpt_ros.engine.text import one_line
from dpt_ros.ros.camera.calibration import Calibration
from dpt_ros.ros.camera.geometry import pose_matrix
from dpt_ros.ros.camera.inputs import InputRecord
from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.messages.image import image_pixels
from dpt_ros.ros.messages.point_cloud import cloud_points
from dpt_ros.ros.messages.types import nanoseconds
from dpt_ros.ros.plausibility import same_frame, scan_fault

ANCHOR_TYPES: dict[str, type] = {
    "anchors/scan": LaserScan,
    "anchors/points": PointCloud2,
    "anchors/depth": Image,
}

_IMAGES_KEPT = 4  # of the depth camera, of which the one nearest to a frame is fused


class AnchorProjector:
    """Keeps the last measurement of each depth sensor and projects the newest into an image.

    Args:
        settings: the pose of the sensor, if ``sensor_in_camera`` is set.
        sensor_pose: looks up the (4, 4) pose of a sensor's frame in the camera's frame, given
            both ids (camera, sensor); raises a MessageError where it is not known, whose text is
            empty where it may be known soon.
        warn: takes a message when a measurement cannot be used, each time.

    Attributes:
        calibration: of the depth camera behind anchors/depth.
        newest: the topic of the last measurement, "" before the first.
        records: what became of each sensor's messages, by topic.
    """

    def __init__(
        self,
        settings: Settings,
        sensor_pose: Callable[[str, str], np.ndarray],
        warn: Callable[[str], None],
    ) -> None:
        self._sensor_in_camera = pose_matrix(settings.sensor_in_camera)
        self._sensor_pose = sensor_pose
        self._warn = warn
        self._last: dict[str, Any] = {}
        # Depth images are rectified, whatever lens the camera has.
        self.calibration = Calibration(lambda: "image_rect", lambda text: warn(f"anchors/{text}"))
        self.newest = ""
        self._images: tuple[Image, ...] = ()
        self.records = {topic: InputRecord(topic) for topic in ANCHOR_TYPES}

    def take(self, topic: str, msg: Any) -> None:
        """Receive a measurement of a topic of ``ANCHOR_TYPES``."""
        self.records[topic].received()
        self._last[topic], self.newest = msg, topic
        if topic == "anchors/depth":
            self._images = (*self._images[1 - _IMAGES_KEPT :], msg)

    def anchors(self, camera: CameraModel | None, frame_id: str) -> Anchors | None:
        """The newest measurement in an image as pixels of known depth; None if there is none."""
        msg = self._last.get(self.newest)
        if msg is None:
            return None
        for topic, record in self.records.items():
            if topic != self.newest and record.connected:
                record.idle(f"{self.newest} has newer ones")
        record = self.records[self.newest]
        if camera is None:
            record.unused("the image has no camera_info that fits")
            return None
        try:
            anchors = self._project(msg, self._pose(frame_id, msg.header.frame_id), camera)
        except ValueError as error:  # also a MessageError
            text = str(error)
            why = error.reason if isinstance(error, MessageError) and not text else text
            record.unused(one_line(why.rstrip(".")))
            if text:
                self._warn(f"{self.newest}: {text}")
            return None
        if not len(anchors):
            record.unused("none of its points is in the image")
        return anchors

    def sense(
        self, frame_id: str, stamp_ns: int, later: bool
    ) -> Callable[[CameraModel], np.ndarray | None]:
        """What gives the depth camera's image of about a stamp in the view of a camera.

        Args:
            frame_id: optical frame of that camera.
            stamp_ns: nanoseconds.
            later: whether images that are received until it is called count, too.
        """
        return partial(self._sensed, None if later else self._images, frame_id, stamp_ns)

    def _sensed(
        self, images: tuple[Image, ...] | None, frame_id: str, stamp_ns: int, camera: CameraModel
    ) -> np.ndarray | None:
        images = self._images if images is None else images
        record = self.records["anchors/depth"]
        if not images:
            record.unused("no image has arrived")
            return None
        msg = min(images, key=lambda one: abs(nanoseconds(one.header.stamp) - stamp_ns))
        apart = abs(nanoseconds(msg.header.stamp) - stamp_ns) * 1e-9
        if apart > MAX_ANCHOR_AGE:
            record.unused(f"{apart:.2f} s from the frame")
            return None
        try:
            pose = self._pose(frame_id, msg.header.frame_id)
            found = registered_depth(*self._depth_image(msg), pose, camera)
        except ValueError as error:  # also a MessageError
            if text := str(error):
                self._warn(f"anchors/depth: {text}")
            return None
        if self.newest != "anchors/depth":  # else ``report`` says what became of it
            record.used("used for fused depth")
        return found

    def report(self, topic: str, scale: dict[str, str]) -> None:
        """Record what became of the anchors that a topic gave for a frame, by the frame's
        ``Prediction.scale``; may be called from any thread."""
        state = scale.get("scale state", "")
        if scale.get("scale source") == "anchors" and state and not state.startswith("held"):
            self.records[topic].used()
        else:
            self.records[topic].unused(state or "no scale is estimated")

    def _pose(self, camera_frame: str, sensor_frame: str) -> np.ndarray:
        """(4, 4) pose of the sensor in the optical frame; an empty frame id names no frame."""
        if self._sensor_in_camera is not None:
            return self._sensor_in_camera
        if not camera_frame or not sensor_frame:
            owner = "its" if camera_frame else "the image's"
            raise MessageError(
                "empty frame_id",
                f"{owner} frame_id is empty, which names no frame, so the pose of the sensor is"
                " not known: set sensor_in_camera, or have the driver set frame_id.",
            )
        if same_frame(camera_frame, sensor_frame):
            return np.eye(4)
        return self._sensor_pose(camera_frame, sensor_frame)

    def _project(self, msg: Any, pose: np.ndarray, camera: CameraModel) -> Anchors:
        stamp = nanoseconds(msg.header.stamp)
        if isinstance(msg, LaserScan):
            if fault := scan_fault(msg):
                raise ValueError(f"{fault}.")
            numbers = msg.angle_min, msg.angle_increment, msg.range_min, msg.range_max
            return project_scan(np.asarray(msg.ranges), *numbers, pose, camera, stamp)
        if isinstance(msg, PointCloud2):
            return project_points(cloud_points(msg), pose, camera, stamp)
        return project_depth(*self._depth_image(msg), pose, camera, stamp)

    def _depth_image(self, msg: Image) -> tuple[np.ndarray, CameraModel]:
        if self.calibration.camera is None:
            faults = self.calibration.warnings or ["anchors/depth needs intrinsics."]
            text = f"no usable intrinsics on anchors/camera_info: {faults[0]}"
            raise MessageError("no intrinsics", text)
        if msg.encoding not in ("32FC1", "16UC1", "mono16"):  # drivers call millimetres either
            raise MessageError(
                "unknown encoding",
                f"the depth image has the encoding '{msg.encoding}', but must be 32FC1 or 16UC1.",
            )
        return image_pixels(msg), self.calibration.camera
