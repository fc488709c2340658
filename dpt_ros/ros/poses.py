# SPDX-License-Identifier: Apache-2.0
"""Where a camera was when it took an image: from nav_msgs/Odometry, or from tf where installed."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.time import Time

from dpt_ros.engine.settings import Settings
from dpt_ros.ros.messages import one_line

# Odometry is followed over gaps of this length, and this far beyond its last word; nanoseconds.
_LONGEST_GAP = 300_000_000
_LONGEST_GUESS = 150_000_000
_KEPT = 400  # poses: two seconds at 200 Hz
_FARTHEST = 1e9  # metres from the origin; no robot is there, and beyond 1e154 squares overflow


class PoseSource(Protocol):
    """Something that knows poses of cameras."""

    def pose(self, frame_id: str, stamp_ns: int) -> np.ndarray | None:
        """(4, 4) of the optical frame at a moment, in a frame that does not jump; metres."""

    def close(self) -> None:
        """Unsubscribe."""


def make_pose_source(
    node: Node, prefix: str, settings: Settings, say: Callable[[str], None]
) -> PoseSource:
    """The source that ``pose_source`` names.

    Args:
        node: subscribes there.
        prefix: of the camera's topics.
        settings: decide which.
        say: takes a sentence when poses cannot be used; the same one again and again.
    """
    if settings.pose_source == "odom":
        return OdometryPoses(node, f"{prefix}odom", settings.camera_in_base, say)
    if settings.pose_source == "tf":
        return TfPoses(node, settings.odom_frame, say)
    return NoPoses()


class NoPoses:
    """Nobody knows."""

    def pose(self, frame_id: str, stamp_ns: int) -> None:
        return None

    def close(self) -> None:
        pass


class Trajectory:
    """Poses over time; between them positions are linear and rotations slerped.

    A pose is (x, y, z, qx, qy, qz, qw). Time that goes back starts a new trajectory.
    """

    def __init__(self) -> None:
        self._stamps: deque[int] = deque(maxlen=_KEPT)
        self._poses: deque[np.ndarray] = deque(maxlen=_KEPT)

    def add(self, stamp_ns: int, pose: Sequence[float]) -> bool:
        """Take the next pose; False if it is none: not finite, or a quaternion of length 0."""
        values = np.array(pose, np.float64)
        if not (np.abs(values) <= _FARTHEST).all():  # nor NaN
            return False
        length = np.linalg.norm(values[3:])
        if not 0.5 < length < 2.0:
            return False
        values[3:] /= length
        if self._stamps and stamp_ns <= self._stamps[-1]:
            self._stamps.clear()
            self._poses.clear()
        self._stamps.append(stamp_ns)
        self._poses.append(values)
        return True

    def at(self, stamp_ns: int) -> np.ndarray | None:
        """(4, 4) at a moment; None before the first pose, in a gap, or too long after the last.

        A little beyond the last pose the motion is taken to go on as it was: an image is often
        there before the odometry of its moment.
        """
        stamps = self._stamps
        index = bisect_right(stamps, stamp_ns)
        if not index:
            return None
        if stamps[index - 1] == stamp_ns:
            return _matrix(self._poses[index - 1])
        if index == len(stamps):
            if stamp_ns - stamps[-1] > _LONGEST_GUESS or len(stamps) < 2:
                return None
            index -= 1
        before, after = stamps[index - 1], stamps[index]
        if after - before > _LONGEST_GAP:
            return None
        share = (stamp_ns - before) / (after - before)
        return _matrix(_between(self._poses[index - 1], self._poses[index], share))


def _between(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Linear position and spherical linear rotation (Shoemake 1985); share may exceed 1."""
    p, q = one[3:], other[3:]
    cosine = float(p @ q)
    if cosine < 0:
        q, cosine = -q, -cosine
    angle = np.arccos(min(cosine, 1.0))
    if angle < 1e-6:
        rotation = p + share * (q - p)
    else:
        rotation = (np.sin((1 - share) * angle) * p + np.sin(share * angle) * q) / np.sin(angle)
    position = one[:3] + share * (other[:3] - one[:3])
    return np.concatenate([position, rotation / np.linalg.norm(rotation)])


def pose_matrix(pose: Sequence[float]) -> np.ndarray | None:
    """(4, 4) of a pose given as x y z qx qy qz qw; None for an empty one."""
    return _matrix(np.array(pose, np.float64)) if pose else None


def _matrix(pose: np.ndarray) -> np.ndarray:
    x, y, z, qx, qy, qz, qw = pose
    return np.array(
        [
            [1 - 2 * (qy * qy + qz * qz), 2 * (qx * qy - qz * qw), 2 * (qx * qz + qy * qw), x],
            [2 * (qx * qy + qz * qw), 1 - 2 * (qx * qx + qz * qz), 2 * (qy * qz - qx * qw), y],
            [2 * (qx * qz - qy * qw), 2 * (qy * qz + qx * qw), 1 - 2 * (qx * qx + qy * qy), z],
            [0, 0, 0, 1],
        ]
    )


class OdometryPoses:
    """Poses from a topic of nav_msgs/Odometry.

    Args:
        node: subscribes there.
        topic: its name.
        camera_in_base: pose of the optical frame in the odometry's child frame, 7 numbers; empty
            where the child frame is the optical frame itself.
        say: takes a sentence when poses cannot be used.
    """

    def __init__(
        self,
        node: Node,
        topic: str,
        camera_in_base: Sequence[float],
        say: Callable[[str], None],
    ) -> None:
        self._node = node
        self._say = say
        self._camera_in_base = pose_matrix(camera_in_base)
        self._trajectory = Trajectory()
        self._child = ""
        self._subscription = node.create_subscription(
            Odometry,
            topic,
            self._take,
            qos_profile_sensor_data,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)

    def _take(self, msg: Odometry) -> None:
        stamp, position, q = msg.header.stamp, msg.pose.pose.position, msg.pose.pose.orientation
        self._child = msg.child_frame_id
        pose = (position.x, position.y, position.z, q.x, q.y, q.z, q.w)
        if not self._trajectory.add(stamp.sec * 1_000_000_000 + stamp.nanosec, pose):
            self._say(f"odom: the pose {pose} is none and is left out.")

    def pose(self, frame_id: str, stamp_ns: int) -> np.ndarray | None:
        """See :class:`PoseSource`."""
        base = self._trajectory.at(stamp_ns)
        if base is None:
            return None
        if self._camera_in_base is not None:
            return base @ self._camera_in_base
        if frame_id == self._child:
            return base
        self._say(
            one_line(
                f"odom tells the pose of '{self._child}', but images come from '{frame_id}': set"
                " camera_in_base, or pose_source to tf. Until then motion comes from optical flow."
            )
        )
        return None


class TfPoses:
    """Poses from tf2_ros, which is not on PyPI.

    Args:
        node: listens there.
        odom_frame: a frame in which the robot moves smoothly (REP 105), or any other one that
            poses are wanted in.
        say: takes a sentence when poses cannot be used.
    """

    def __init__(self, node: Node, odom_frame: str, say: Callable[[str], None]) -> None:
        self._odom_frame = odom_frame
        self._say = say
        self._buffer: Any = None
        try:
            import tf2_ros
        except ImportError:
            say("tf2_ros is not installed (apt install ros-$ROS_DISTRO-tf2-ros-py).")
            return
        self._missing = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer(cache_time=Duration(seconds=5), node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def close(self) -> None:
        """Unsubscribe."""
        if self._buffer is not None:
            self._listener.unregister()
            self._buffer = None

    def pose(self, frame_id: str, stamp_ns: int) -> np.ndarray | None:
        """See :class:`PoseSource`; a stamp of 0 asks for the newest there is."""
        if self._buffer is None or not 0 <= stamp_ns < 2**63:  # which rclpy refuses
            return None
        try:
            found = self._buffer.lookup_transform(
                self._odom_frame, frame_id, Time(nanoseconds=stamp_ns)
            )
        except self._missing as error:
            self._say(f"tf: {error}")
            return None
        t, q = found.transform.translation, found.transform.rotation
        return _matrix(np.array([t.x, t.y, t.z, q.x, q.y, q.z, q.w]))
