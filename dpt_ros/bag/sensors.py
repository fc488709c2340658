# SPDX-License-Identifier: Apache-2.0
"""What was recorded with the images of a camera: calibration, odometry, anchors, static tf.

The node gives a frame what arrived before it. dpt_bag gives it what belongs to its stamp, recorded
up to half a second later, so that results do not depend on timing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo

from dpt_ros.bag.salvage import Message
from dpt_ros.bag.topics import Camera
from dpt_ros.bag.types import TYPES
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.anchor_projector import ANCHOR_TYPES, AnchorProjector
from dpt_ros.ros.camera.calibration import Calibration
from dpt_ros.ros.camera.frame_builder import FrameBuilder
from dpt_ros.ros.camera.geometry import pose_to_matrix
from dpt_ros.ros.camera.poses import OdometryPoses
from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.plausibility import pose_values

LOOKAHEAD = 500_000_000  # nanoseconds that messages may be recorded after the image they belong to
_KEPT = 1_000_000_000


class StaticFrames:
    """Poses of frames that do not move: /tf_static."""

    def __init__(self) -> None:
        self._poses: dict[str, tuple[str, np.ndarray]] = {}  # by child: parent, pose in it

    def take(self, data: bytes) -> None:
        """Receive a serialised tf2_msgs/TFMessage.

        Raises:
            MessageError: it is none, or has invalid poses, which are ignored.
        """
        try:
            message: Any = TYPES.deserialize_cdr(data, "tf2_msgs/msg/TFMessage")
        except Exception as error:  # rosbags raises anything for bytes that are no message
            raise MessageError("malformed message", f"no TFMessage: {error}.") from error
        invalid = []
        for one in message.transforms:
            t, q = one.transform.translation, one.transform.rotation
            values = pose_values((t.x, t.y, t.z, q.x, q.y, q.z, q.w))
            child, parent = one.child_frame_id.lstrip("/"), one.header.frame_id.lstrip("/")
            if values is None:
                invalid.append(child)
            else:
                self._poses[child] = (parent, pose_to_matrix(values))
        if invalid:
            raise MessageError("bad pose", f"The poses of {invalid} are invalid and are ignored.")

    def pose(self, frame: str, target: str) -> np.ndarray | None:
        """(4, 4) of ``frame`` in ``target``; None if no static transforms connect them."""
        up, down = self._to_root(frame.lstrip("/")), self._to_root(target.lstrip("/"))
        for common in up:
            if common in down:
                return np.asarray(np.linalg.inv(down[common]) @ up[common])
        return None

    def sensor_pose(self, camera_frame: str, sensor_frame: str) -> np.ndarray:
        """(4, 4) pose of a sensor in a camera's frame.

        Raises:
            MessageError: it is not known.
        """
        pose = self.pose(sensor_frame, camera_frame)
        if pose is None:
            raise MessageError(
                "unknown pose",
                f"/tf_static has no transform from '{sensor_frame}' to '{camera_frame}', so these"
                " anchors are not used; set sensor_in_camera.",
            )
        return pose

    def _to_root(self, frame: str) -> dict[str, np.ndarray]:
        """Poses of a frame in itself and in all frames above it."""
        poses = {frame: np.eye(4)}
        while frame in self._poses:
            parent, pose = self._poses[frame]
            if parent in poses:
                break
            poses[parent] = pose @ poses[frame]
            frame = parent
        return poses


class SensorBuffer:
    """Gives the frame builder of a camera, ``builder``, the messages that belong to each image.

    ``static`` is shared by all cameras; ``warn`` takes what cannot be used, each time.
    """

    def __init__(
        self, camera: Camera, settings: Settings, static: StaticFrames, warn: Callable[[str], None]
    ) -> None:
        self._camera = camera
        self._warn = warn
        self._anchor_names = {topic: name for name, topic in camera.anchors.items()}
        self._infos: deque[Message] = deque()
        self._odom: deque[Message] = deque()
        self._odom_stamp = 0
        self._measured: dict[str, deque[Message]] = {name: deque() for name in ANCHOR_TYPES}
        self._nearest: Message | None = None
        self._poses = OdometryPoses(settings.camera_in_base, warn) if camera.odom else None
        self._anchors: AnchorProjector | None = None
        if camera.anchors:
            self._anchors = AnchorProjector(settings, static.sensor_pose, warn)
        self.builder = FrameBuilder(
            camera.name,
            lambda: settings,
            camera.compressed,
            Calibration(
                lambda: camera.image,
                lambda text: warn(camera.prefix + text),
                rectify=settings.rectify == "auto",
                fov=settings.rectify_fov,
            ),
            self._poses,
            self._anchors,
            lambda text: warn(f"{camera.image}: {text}"),
        )

    def add(self, message: Message) -> None:
        """Take a message of any topic as it is read, ``LOOKAHEAD`` before it is used.

        Raises:
            MessageError: it cannot be read.
        """
        camera, topic = self._camera, message.topic
        if topic not in (camera.info, camera.odom) and topic not in self._anchor_names:
            return
        _ = message.stamp  # which all of these have
        if topic == camera.info:
            _append(self._infos, message)
        if topic == camera.odom:
            self._odom.append(message)
        name = self._anchor_names.get(topic)
        if name in ANCHOR_TYPES:
            _append(self._measured[name], message)
        elif name is not None and self._anchors is not None:
            self._anchors.calibration.take(_read(message.data, CameraInfo))

    def advance(self, time: int, stamp: int) -> None:
        """Receive the odometry up to an image, by the time of its recording and its stamp; call
        it for every image, in order."""
        while self._odom and (self._odom[0].time <= time or self._odom_stamp < stamp):
            odom = self._odom.popleft()
            self._odom_stamp = max(self._odom_stamp, odom.stamp)
            if self._poses is not None:
                self._receive(odom, Odometry, self._poses.take)

    def select(self, time: int, stamp: int) -> None:
        """Receive the camera_info and the anchors of an image, which the builder then uses.

        camera_info: the one of the image's stamp, else the last before it, else the first after
        it. Anchors: those measured nearest to the stamp.
        """
        if self._infos:
            before = [info for info in self._infos if info.time <= time]
            exact = [info for info in self._infos if info.stamp == stamp]
            chosen = (exact or before[-1:] or [self._infos[0]])[-1]
            self._receive(chosen, CameraInfo, self.builder.calibration.take)
        near = [(abs(m.stamp - stamp), name, m) for name, q in self._measured.items() for m in q]
        if self._anchors is None or not near:
            return
        _, name, measured = min(near, key=lambda one: one[:2])
        if measured is not self._nearest:
            self._nearest = measured
            self._receive(measured, ANCHOR_TYPES[name], partial(self._anchors.take, name), name)

    def _receive(
        self, message: Message, kind: type, take: Callable[[Any], None], name: str = ""
    ) -> None:
        try:
            take(_read(message.data, kind))
        except MessageError as error:
            self._warn(f"{name or message.topic}: {error}")


def _append(queue: deque[Message], message: Message) -> None:
    """Add a message; remove those too old for any further image, except the last of these."""
    queue.append(message)
    while len(queue) > 1 and queue[1].time < message.time - LOOKAHEAD - _KEPT:
        queue.popleft()


def _read(data: bytes, kind: type) -> Any:
    try:
        return deserialize_message(data, kind)
    except Exception as error:  # rclpy's C code raises anything for bytes of another type
        raise MessageError("malformed message", f"no {kind.__name__}: {error}.") from error
