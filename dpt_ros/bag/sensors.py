# SPDX-License-Identifier: Apache-2.0
"""What was recorded beside the images of a camera: calibration, odometry, anchors, frames.

On a robot a frame meets what has arrived before it. In a bag it meets what belongs to its stamp,
whenever that arrived within half a second, so that the result does not hang on any timing.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2
from std_msgs.msg import Header

from dpt_ros.bag.node import TYPES, BagNode
from dpt_ros.bag.reader import Message
from dpt_ros.bag.topics import Camera
from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.scale.anchors import Anchors
from dpt_ros.engine.scale.ground import down_direction
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.anchor_topics import AnchorTopics
from dpt_ros.ros.camera.poses import OdometryPoses, pose_matrix
from dpt_ros.ros.messages.image import MessageError, camera_model

LOOKAHEAD = 500_000_000  # nanoseconds that messages may be recorded after the image they belong to
_KEPT = 1_000_000_000
_FARTHEST = 1e9  # metres; beyond 1e154 squares overflow
_KINDS = {
    "anchors/scan": LaserScan,
    "anchors/points": PointCloud2,
    "anchors/depth": Image,
    "anchors/camera_info": CameraInfo,
}


class _Seen(NamedTuple):
    """A message with a header: time of recording, stamp, bytes."""

    time: int
    stamp: int
    data: bytes


def stamp_of(data: bytes) -> int:
    """The stamp of a serialised message that begins with a Header, nanoseconds.

    Raises:
        MessageError: there are too few bytes.
    """
    if len(data) < 12:
        raise MessageError("malformed message", f"A message of {len(data)} bytes has no header.")
    sec, nanosec = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(sec) * 1_000_000_000 + int(nanosec)


class StaticFrames:
    """Where frames sit that do not move: /tf_static."""

    def __init__(self) -> None:
        self._poses: dict[str, tuple[str, np.ndarray]] = {}  # by child: parent, pose in it

    def see(self, data: bytes) -> None:
        """Take a serialised tf2_msgs/TFMessage.

        Raises:
            MessageError: it is none.
        """
        try:
            message: Any = TYPES.deserialize_cdr(data, "tf2_msgs/msg/TFMessage")
        except Exception as error:  # rosbags' reader raises anything for bytes that are no message
            raise MessageError("malformed message", f"no TFMessage: {error}.") from error
        wrong = []
        for one in message.transforms:
            t, q = one.transform.translation, one.transform.rotation
            values = np.array((t.x, t.y, t.z, q.x, q.y, q.z, q.w), np.float64)
            length = np.linalg.norm(values[3:])
            if not ((np.abs(values) <= _FARTHEST).all() and 0.5 < length < 2.0):  # nor NaN
                wrong.append(one.child_frame_id)
                continue
            values[3:] /= length
            pose = pose_matrix(values.tolist())
            assert pose is not None
            self._poses[_name(one.child_frame_id)] = (_name(one.header.frame_id), pose)
        if wrong:
            raise MessageError("bad pose", f"The poses of {wrong} are none and are left out.")

    def pose(self, frame: str, target: str) -> np.ndarray | None:
        """(4, 4) of ``frame`` in ``target``; None if nothing fixed connects them."""
        up, down = self._to_root(_name(frame)), self._to_root(_name(target))
        for common in up:
            if common in down:
                return np.asarray(np.linalg.inv(down[common]) @ up[common])
        return None

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


def _name(frame: str) -> str:
    """A frame id as tf has it; some drivers write that of ROS 1, with a slash in front."""
    return frame.lstrip("/")


class _Anchors(AnchorTopics):
    """Anchors whose sensor sits where a parameter or /tf_static says."""

    def __init__(
        self, node: BagNode, settings: Settings, frames: StaticFrames, say: Callable[[str], None]
    ) -> None:
        super().__init__(node, "", settings, say)
        self._frames = frames

    def _camera_from_sensor(self, camera_frame: str, sensor_frame: str) -> np.ndarray | None:
        if self._sensor_in_camera is not None:
            return self._sensor_in_camera
        pose = self._frames.pose(sensor_frame, camera_frame)
        if pose is None:
            self._say(
                f"{self._newest}: /tf_static does not say where '{sensor_frame}' sits in"
                f" '{camera_frame}'; set sensor_in_camera. Until then these anchors are not used."
            )
        return pose


class Beside:
    """What is known beside the images of one camera.

    Args:
        camera: its topics.
        settings: those of this camera.
        frames: shared by all cameras.
        say: takes a sentence when something cannot be used; the same one again and again.
    """

    def __init__(
        self,
        camera: Camera,
        settings: Settings,
        frames: StaticFrames,
        say: Callable[[str], None],
    ) -> None:
        self._camera = camera
        self._say = say
        self._node = BagNode(say)
        self._infos: deque[_Seen] = deque()
        self._odom: deque[_Seen] = deque()
        self._odom_stamp = 0
        self._measured: dict[str, deque[_Seen]] = {own: deque() for own in camera.anchors}
        self._own = {topic: own for own, topic in camera.anchors.items()}
        self._info: CameraInfo | None = None
        self._model: CameraModel | None = None
        self._poses: OdometryPoses | None = None
        if camera.odom:
            self._poses = OdometryPoses(self._node, "odom", settings.camera_in_base, say)
        self._anchors = _Anchors(self._node, settings, frames, say) if camera.anchors else None
        self._delivered: _Seen | None = None
        base_from_camera = pose_matrix(settings.camera_in_base)
        self._down = None if base_from_camera is None else down_direction(base_from_camera)

    def see(self, message: Message) -> None:
        """Take a message of any topic as it is read, ``LOOKAHEAD`` before it is used.

        Raises:
            MessageError: it cannot be read.
        """
        camera, topic = self._camera, message.topic
        if topic not in (camera.info, camera.odom) and topic not in self._own:
            return
        seen = _Seen(message.time, stamp_of(message.data), message.data)
        if topic == camera.info:
            _keep(self._infos, seen)
        if topic == camera.odom:
            self._odom.append(seen)
        own = self._own.get(topic)
        if own == "anchors/camera_info":
            self._node.deliver(own, _read(message.data, CameraInfo))
        elif own is not None:
            _keep(self._measured[own], seen)

    def advance(self, time: int, stamp: int) -> None:
        """Take the odometry up to an image; every image must be told, in order.

        Args:
            time: of the image's recording.
            stamp: of the image.
        """
        while self._odom and (self._odom[0].time <= time or self._odom_stamp < stamp):
            seen = self._odom.popleft()
            self._odom_stamp = max(self._odom_stamp, seen.stamp)
            try:
                self._node.deliver("odom", _read(seen.data, Odometry))
            except MessageError as error:
                self._say(f"{self._camera.odom}: {error}")

    def calibrated(self, time: int, stamp: int) -> bool:
        """Whether there is a camera_info for an image."""
        self._choose_info(time, stamp)
        return self._model is not None

    def about(
        self, time: int, header: Header, stamp: int, size: tuple[int, int]
    ) -> tuple[dict[str, Any], CameraInfo | None]:
        """What a frame says of itself beside its pixels, and its camera_info.

        Args:
            time: of the image's recording.
            header: of the image.
            stamp: the same in nanoseconds.
            size: width and height of the image.
        """
        self._choose_info(time, stamp)
        model = self._model
        if model is not None and (model.width, model.height) != size:
            self._say(
                f"{self._camera.info} speaks of {model.width}x{model.height} pixels, but the image"
                f" has {size[0]}x{size[1]}, so it is not used."
            )
            model = None
        about = {
            "stamp_ns": stamp,
            "frame_id": header.frame_id,
            "source": self._camera.name,
            "camera": model,
            "odom_from_camera": self._poses.pose(header.frame_id, stamp) if self._poses else None,
            "anchors": self._nearest(stamp, model, header.frame_id),
            "down": self._down,
        }
        return about, self._info if model is not None else None

    def _choose_info(self, time: int, stamp: int) -> None:
        """The camera_info of the image's stamp, else the last before it, else the first after."""
        if not self._infos:
            return
        before = [seen for seen in self._infos if seen.time <= time]
        exact = [seen for seen in self._infos if seen.stamp == stamp]
        chosen = (exact or before[-1:] or [self._infos[0]])[-1]
        try:
            info = _read(chosen.data, CameraInfo)
        except MessageError as error:
            self._say(f"{self._camera.info}: {error}")
            return
        info.header = Header()
        if info != self._info:
            self._info = info
            self._model, warning = camera_model(info, self._camera.image)
            if warning:
                self._say(f"{self._camera.prefix}{warning}")

    def _nearest(self, stamp: int, model: CameraModel | None, frame_id: str) -> Anchors | None:
        """The anchors measured nearest to a stamp."""
        choice = [(abs(s.stamp - stamp), own, s) for own, q in self._measured.items() for s in q]
        if self._anchors is None or not choice or model is None:
            return None
        _, own, seen = min(choice, key=lambda one: one[:2])
        if seen is not self._delivered:
            self._delivered = seen
            try:
                self._node.deliver(own, _read(seen.data, _KINDS[own]))
            except MessageError as error:
                self._say(f"{own}: {error}")
        return self._anchors.anchors(model, frame_id)


def _keep(queue: deque[_Seen], seen: _Seen) -> None:
    """Add a message; those go that no image can ask for any more, but for the last of these."""
    queue.append(seen)
    while len(queue) > 1 and queue[1].time < seen.time - LOOKAHEAD - _KEPT:
        queue.popleft()


def _read(data: bytes, kind: type) -> Any:
    try:
        return deserialize_message(data, kind)
    except Exception as error:  # rclpy's C code raises what it likes for bytes of another type
        raise MessageError("malformed message", f"no {kind.__name__}: {error}.") from error
