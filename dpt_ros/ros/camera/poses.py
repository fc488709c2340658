# SPDX-License-Identifier: Apache-2.0
"""Where a camera was when it took an image: from nav_msgs/Odometry, or from tf where installed."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions

from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.geometry import LONGEST_GUESS, between, pose_matrix, pose_to_matrix
from dpt_ros.ros.camera.inputs import InputRecord
from dpt_ros.ros.camera.tf import TfTree
from dpt_ros.ros.messages.error import one_line
from dpt_ros.ros.plausibility import pose_values, same_frame, stamps_apart

# Poses are followed over gaps of this length; nanoseconds.
_LONGEST_GAP = 300_000_000
_KEPT = 2_000_000_000
# Messages overtake each other by less than this; beyond, time itself has jumped.
_JUMP = 1_000_000_000
_BASE = 10_000_000  # between the two poses, at least, that give the speed beyond the last one


class PoseSource(Protocol):
    """Something that knows poses of cameras.

    Attributes:
        record: what became of its messages; None where there is no such input.
    """

    record: InputRecord | None

    def pose(self, frame_id: str, stamp_ns: int) -> np.ndarray | None:
        """(4, 4) of the optical frame at a moment, in a frame that does not jump; metres."""

    def close(self) -> None:
        """Unsubscribe."""


def make_pose_source(
    node: Node,
    prefix: str,
    settings: Settings,
    say: Callable[[str], None],
    tree: TfTree | None = None,
) -> PoseSource:
    """The source that ``pose_source`` names.

    Args:
        node: subscribes there.
        prefix: of the camera's topics.
        settings: decide which.
        say: takes a message when poses cannot be used; the same one again and again.
        tree: the node's tf, for ``pose_source: tf``; without, one of its own.
    """
    if settings.pose_source == "odom":
        return OdometryPoses(node, f"{prefix}odom", settings.camera_in_base, say)
    if settings.pose_source == "tf":
        return TfPoses(tree or TfTree(node), settings.odom_frame, say)
    return NoPoses()


class NoPoses:
    """Nobody knows."""

    record: InputRecord | None = None

    def pose(self, frame_id: str, stamp_ns: int) -> None:
        return None

    def close(self) -> None:
        pass


class Trajectory:
    """Poses over time; between them positions are linear and rotations slerped.

    A pose is (x, y, z, qx, qy, qz, qw). Poses may come in any order within a second, and again.
    One that is farther away from the others is set aside; when the next one follows it and not
    the others, time has jumped and a new trajectory starts. May be used by several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stamps: list[int] = []
        self._poses: list[np.ndarray] = []
        self._aside: tuple[int, np.ndarray] | None = None

    def add(self, stamp_ns: int, pose: Sequence[float]) -> str:
        """Take a pose.

        Returns:
            what was out of the ordinary, a few words that begin with "left out" where the pose is
            not used; "" for the next pose of a stream in order.
        """
        values = pose_values(pose)
        if values is None:
            return "left out, no pose"
        with self._lock:
            stamps = self._stamps
            if stamps and abs(stamp_ns - stamps[-1]) > _JUMP:
                return self._set_aside(stamp_ns, values)
            self._aside = None
            return self._insert(stamp_ns, values)

    def _insert(self, stamp_ns: int, values: np.ndarray) -> str:
        stamps, poses = self._stamps, self._poses
        index = bisect_left(stamps, stamp_ns)
        if index < len(stamps) and stamps[index] == stamp_ns:
            poses[index] = values
            return "repeated stamps"
        late = index < len(stamps)
        stamps.insert(index, stamp_ns)
        poses.insert(index, values)
        old = bisect_left(stamps, stamps[-1] - _KEPT)
        del stamps[:old], poses[:old]
        return "out of order, sorted in" if late else ""

    def _set_aside(self, stamp_ns: int, values: np.ndarray) -> str:
        newest, aside = self._stamps[-1], self._aside
        follows = aside is not None and (
            abs(stamp_ns - aside[0]) <= _JUMP or newest < aside[0] < stamp_ns
        )
        if aside is None or not follows or stamp_ns == aside[0]:
            self._aside = (stamp_ns, values)
            return "left out, stamp far from the others"
        self._stamps[:], self._poses[:], self._aside = [], [], None
        self._insert(*aside)
        self._insert(stamp_ns, values)
        return "time jumped, started anew"

    def at(self, stamp_ns: int) -> np.ndarray | None:
        """(4, 4) at a moment; None before the first pose, in a gap, or too long after the last.

        A little beyond the last pose the motion is taken to continue as it was: an image is often
        there before the odometry of its moment.
        """
        return self.find(stamp_ns)[0]

    def find(self, stamp_ns: int) -> tuple[np.ndarray | None, str]:
        """The pose as ``at`` gives it, and why there is none: a few words."""
        with self._lock:
            stamps, poses = self._stamps, self._poses
            if not stamps:
                return None, "no pose has arrived"
            index = bisect_right(stamps, stamp_ns)
            nearest = stamps[max(index - 1, 0)]
            if apart := stamps_apart(stamp_ns, nearest, "poses"):
                return None, apart
            if not index:
                late = (stamps[0] - stamp_ns) * 1e-6
                return None, f"the image is {late:.0f} ms older than the oldest pose"
            if nearest == stamp_ns:
                return pose_to_matrix(poses[index - 1]), ""
            if index == len(stamps):
                early = stamp_ns - nearest
                if early > LONGEST_GUESS:
                    return None, f"the newest pose is {early * 1e-6:.0f} ms older than the image"
                index -= 1
                first = bisect_right(stamps, stamps[index] - _BASE) - 1
                first = first if first >= 0 else 0
            else:
                first = index - 1
            if first == index:
                return None, "one pose only, and none at the image's stamp"
            before, after = stamps[first], stamps[index]
            if after - before > _LONGEST_GAP:
                gap = (after - before) * 1e-6
                return None, f"a gap of {gap:.0f} ms between poses, where 300 ms are followed"
            share = (stamp_ns - before) / (after - before)
            return pose_to_matrix(between(poses[first], poses[index], share)), ""


class OdometryPoses:
    """Poses from a topic of nav_msgs/Odometry.

    Args:
        node: subscribes there.
        topic: its name.
        camera_in_base: pose of the optical frame in the odometry's child frame, 7 numbers; empty
            where the child frame is the optical frame itself.
        say: takes a message when poses cannot be used.

    Attributes:
        record: what became of the messages.
        topic: its full name, where the node knows it.
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
        self.record: InputRecord | None = InputRecord("odom")
        self._subscription = node.create_subscription(
            Odometry,
            topic,
            self._take,
            # Room for all that comes while the node is busy with an image.
            QoSProfile(depth=100, reliability=qos_profile_sensor_data.reliability),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    @property
    def topic(self) -> str:
        return str(self._subscription.topic_name)

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)

    def _take(self, msg: Odometry) -> None:
        stamp, position, q = msg.header.stamp, msg.pose.pose.position, msg.pose.pose.orientation
        self._child = msg.child_frame_id
        pose = (position.x, position.y, position.z, q.x, q.y, q.z, q.w)
        odd = self._trajectory.add(stamp.sec * 1_000_000_000 + stamp.nanosec, pose)
        assert self.record is not None
        self.record.received()
        if odd:
            self.record.count(odd)
        if odd == "left out, no pose":
            self._say(f"odom: the pose {pose} is none and is left out.")

    def pose(self, frame_id: str, stamp_ns: int) -> np.ndarray | None:
        """See :class:`PoseSource`."""
        assert self.record is not None
        base, why = self._trajectory.find(stamp_ns)
        if base is not None and self._camera_in_base is None:
            why = self._other_frame(frame_id)
        if base is None or why:
            self.record.unused(why)
            return None
        self.record.used()
        return base if self._camera_in_base is None else base @ self._camera_in_base

    def _other_frame(self, frame_id: str) -> str:
        if same_frame(frame_id, self._child):
            return ""
        why = (
            f"it tells the pose of '{self._child}', but images come from '{frame_id}'"
            + (", and an empty frame id names no frame" if not (frame_id and self._child) else "")
            + ": set camera_in_base, or pose_source to tf"
        )
        self._say(one_line(f"odom: {why}. Until then motion comes from optical flow."))
        return one_line(why)


class TfPoses:
    """Poses from tf2_ros, which is not on PyPI.

    Args:
        tree: listens; whoever made it closes it.
        odom_frame: a frame in which the robot moves smoothly (REP 105), or any other one that
            poses are wanted in.
        say: takes a message when poses cannot be used.

    Attributes:
        record: what became of the frames.
    """

    def __init__(self, tree: TfTree, odom_frame: str, say: Callable[[str], None]) -> None:
        self._tree = tree
        self._odom_frame = odom_frame
        self._say = say
        self.record: InputRecord | None = InputRecord("tf")
        tree.start()

    def close(self) -> None:
        """Let go of nothing: the tree is its owner's."""

    def pose(self, frame_id: str, stamp_ns: int) -> np.ndarray | None:
        """See :class:`PoseSource`."""
        assert self.record is not None
        self.record.asked()
        pose, why = self._tree.find(self._odom_frame, frame_id, stamp_ns)
        if pose is None:
            self.record.unused(why)
            if not self._tree.young:
                self._say(one_line(f"tf: {why}"))
            return None
        self.record.used()
        return pose
