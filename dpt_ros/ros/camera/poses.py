# SPDX-License-Identifier: Apache-2.0
"""Where a camera was when it took an image: from nav_msgs/Odometry, or from tf where installed."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

import numpy as np
from nav_msgs.msg import Odometry

from dpt_ros.engine.text import one_line
from dpt_ros.ros.camera.geometry import LONGEST_GUESS, between, pose_matrix, pose_to_matrix
from dpt_ros.ros.camera.inputs import InputRecord
from dpt_ros.ros.camera.tf import TfTree
from dpt_ros.ros.messages.types import nanoseconds
from dpt_ros.ros.plausibility import pose_values, same_frame, stamps_apart

# Poses are followed over gaps of this length; nanoseconds.
_LONGEST_GAP = 300_000_000
_KEPT = 2_000_000_000
# Messages overtake each other by less than this; beyond, time itself has jumped.
_JUMP = 1_000_000_000
_BASE = 10_000_000  # between the two poses, at least, that give the speed beyond the last one
_INVALID = "left out, not a valid pose"


class Trajectory:
    """Poses over time, interpolated: linear positions, slerped rotations.

    A pose is (x, y, z, qx, qy, qz, qw). Poses may come in any order within a second, and again.
    One that is farther away from the others is set aside; if the next one follows it and not the
    others, time has jumped and a new trajectory starts. May be used by several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stamps: list[int] = []
        self._poses: list[np.ndarray] = []
        self._aside: tuple[int, np.ndarray] | None = None

    def add(self, stamp_ns: int, pose: Sequence[float]) -> str:
        """Add a pose.

        Returns:
            what is unusual about it, a few words that begin with "left out" where it is not used;
            "" for the next pose of a stream in order.
        """
        values = pose_values(pose)
        if values is None:
            return _INVALID
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
        return "time jumped, trajectory restarted"

    def find(self, stamp_ns: int) -> tuple[np.ndarray | None, str]:
        """(4, 4) pose at a time, and why there is none, a few words.

        There is none before the first pose, in a gap, and too long after the last. A little beyond
        the last pose its motion is extrapolated: an image often arrives before its odometry.
        """
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
                first = max(bisect_right(stamps, stamps[index] - _BASE) - 1, 0)
            else:
                first = index - 1
            if first == index:
                return None, "only one pose, and not at the image's stamp"
            before, after = stamps[first], stamps[index]
            if after - before > _LONGEST_GAP:
                gap = (after - before) * 1e-6
                return None, f"a gap of {gap:.0f} ms between poses, more than the 300 ms allowed"
            share = (stamp_ns - before) / (after - before)
            return pose_to_matrix(between(poses[first], poses[index], share)), ""


class OdometryPoses:
    """Poses from messages of nav_msgs/Odometry.

    Args:
        camera_in_base: pose of the optical frame in the odometry's child frame, 7 numbers; empty
            where the child frame is the optical frame itself.
        warn: takes a message when poses cannot be used, each time.
    """

    def __init__(self, camera_in_base: Sequence[float], warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._camera_in_base = pose_matrix(camera_in_base)
        self._trajectory = Trajectory()
        self._child = ""
        self.record = InputRecord("odom")

    def take(self, msg: Odometry) -> None:
        """Receive a message."""
        stamp, position, q = msg.header.stamp, msg.pose.pose.position, msg.pose.pose.orientation
        self._child = msg.child_frame_id
        pose = (position.x, position.y, position.z, q.x, q.y, q.z, q.w)
        odd = self._trajectory.add(nanoseconds(stamp), pose)
        self.record.received()
        if odd:
            self.record.count(odd)
        if odd == _INVALID:
            self._warn(f"odom: the pose {pose} is invalid and is ignored.")

    def pose(self, frame_id: str, stamp_ns: int) -> np.ndarray | None:
        """(4, 4) pose of the optical frame at a time, in a frame without jumps; metres."""
        base, why = self._trajectory.find(stamp_ns)
        if base is not None and self._camera_in_base is None:
            why = self._frame_mismatch(frame_id)
        if base is None or why:
            self.record.unused(why)
            return None
        self.record.used()
        return base if self._camera_in_base is None else base @ self._camera_in_base

    def _frame_mismatch(self, frame_id: str) -> str:
        if same_frame(frame_id, self._child):
            return ""
        why = (
            f"it has the pose of '{self._child}', but images come from '{frame_id}'"
            + (", and an empty frame id names no frame" if not (frame_id and self._child) else "")
            + ": set camera_in_base, or pose_source to tf"
        )
        self._warn(one_line(f"odom: {why}. Until then motion comes from optical flow."))
        return one_line(why)


class TfPoses:
    """Poses from tf2_ros.

    Args:
        tree: started here; its owner closes it.
        odom_frame: the frame that poses are wanted in, one without jumps (REP 105).
        warn: takes a message when poses cannot be used, each time.
    """

    def __init__(self, tree: TfTree, odom_frame: str, warn: Callable[[str], None]) -> None:
        self._tree = tree
        self._odom_frame = odom_frame
        self._warn = warn
        self.record = InputRecord("tf")
        tree.start()

    def pose(self, frame_id: str, stamp_ns: int) -> np.ndarray | None:
        """The same as of `OdometryPoses`."""
        self.record.asked()
        pose, why = self._tree.find(self._odom_frame, frame_id, stamp_ns)
        if pose is not None:
            self.record.used()
            return pose
        self.record.unused(why)
        if not self._tree.young:
            self._warn(one_line(f"tf: {why}"))
        return None
