# SPDX-License-Identifier: Apache-2.0
"""The tf of a node: one buffer for the poses and anchors of all cameras."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import numpy as np
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

from dpt_ros.ros.camera.geometry import LONGEST_GUESS, between, pose_to_matrix
from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.messages.types import nanoseconds
from dpt_ros.ros.plausibility import pose_values, stamps_apart

_KEPT = 5.0  # seconds
_BASE = 50_000_000  # between the two poses that give the speed beyond the last one, nanoseconds
_YOUNG = 3.0  # seconds after the start in which transforms may still be missing
_NOT_INSTALLED = "tf2_ros is not installed (apt install ros-$ROS_DISTRO-tf2-ros-py)"


class TfTree:
    """A tf2_ros buffer and its listener, from the first ``start`` to ``close``.

    It may be started and closed again and again. Look-ups may come from any thread.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tf2: ModuleType | None = None
        self._buffer: Any = None
        self._listener: Any = None
        self._jumps: Any = None
        self._why = "tf is closed"
        self._since = 0.0
        self._behind = 0

    @property
    def young(self) -> bool:
        """Whether it has just started, so that missing transforms may still arrive."""
        return self._buffer is not None and time.monotonic() - self._since < _YOUNG

    def start(self) -> None:
        """Listen, unless it does already."""
        if self._buffer is not None:
            return
        try:
            import tf2_ros
        except ImportError:
            self._why = _NOT_INSTALLED
            return
        self._tf2 = tf2_ros
        self._since = time.monotonic()
        self._behind = 0
        # Without the node the buffer offers no service tf2_frames, which would stay; it then does
        # not follow a simulated clock, so that jumps are passed on here.
        buffer = tf2_ros.Buffer(cache_time=Duration(seconds=_KEPT))
        self._listener = tf2_ros.TransformListener(buffer, self._node)
        back = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True
        )
        self._jumps = self._node.get_clock().create_jump_callback(
            back, post_callback=lambda _: buffer.clear()
        )
        self._buffer = buffer  # last: what fails or is interrupted above leaves the tree closed

    def close(self) -> None:
        """Stop listening and forget everything."""
        opened, self._buffer = self._buffer, None
        self._why = "tf is closed"
        if opened is not None:
            self._jumps.unregister()
            self._listener.unregister()
            self._jumps = self._listener = None

    def sensor_pose(self, camera_frame: str, sensor_frame: str) -> np.ndarray:
        """The newest (4, 4) pose of a sensor in a camera's frame.

        Raises:
            MessageError: it is not known; without a text while it may still arrive.
        """
        self.start()
        pose, why = self.find(camera_frame, sensor_frame, 0)
        if pose is not None:
            return pose
        if self.young:
            raise MessageError(f"waiting for tf ({why})", "")
        raise MessageError(
            "unknown pose",
            "the pose of the sensor is not known; set sensor_in_camera, or publish it on tf"
            f" (tf: {why}).",
        )

    def find(self, target: str, source: str, stamp_ns: int) -> tuple[np.ndarray | None, str]:
        """The pose of ``source`` in ``target`` at a time, and why that is not known.

        A little beyond the newest transform the motion is extrapolated.

        Args:
            target, source: names of frames.
            stamp_ns: the time; 0 asks for the newest transform.

        Returns:
            (4, 4), or None and a few words.
        """
        buffer = self._buffer
        if buffer is None or self._tf2 is None:
            return None, self._why
        if not source:
            return None, "the frame_id of the image or measurement is empty, which names no frame"
        if not 0 <= stamp_ns < 2**63:  # which rclpy refuses
            return None, f"the stamp {stamp_ns} ns is not a valid time"
        frames = target.lstrip("/"), source.lstrip("/")
        try:
            found, _ = _look_up(buffer, frames, stamp_ns)
            self._behind = 0
            why = "" if found is not None else f"the pose of '{frames[1]}' is invalid"
        except self._tf2.ExtrapolationException as error:
            found, why = self._extrapolated(buffer, frames, stamp_ns, str(error))
        except self._tf2.TransformException as error:
            found, why = None, str(error)
        return (None if found is None else pose_to_matrix(found)), why

    def _extrapolated(
        self, buffer: Any, frames: tuple[str, str], stamp_ns: int, why: str
    ) -> tuple[np.ndarray | None, str]:
        """(7,) x y z qx qy qz qw, or None and why."""
        assert self._tf2 is not None
        try:
            last, newest = _look_up(buffer, frames, 0)
            early = stamp_ns - newest
            if apart := stamps_apart(stamp_ns, newest, "transforms"):
                why = apart
            if early < 0:
                # A bag restarted without a clock: tf refuses what is older than its buffer.
                self._behind = self._behind + 1 if -early > _KEPT * 1e9 else 0
                if self._behind >= 3:
                    buffer.clear()  # static transforms stay
                    self._behind = 0
                return None, why
            if early > LONGEST_GUESS:
                late = f"the newest transform is {early * 1e-6:.0f} ms older than the image"
                return None, apart or late
            before, _ = _look_up(buffer, frames, newest - _BASE)
        except self._tf2.TransformException:
            return None, why
        if before is None or last is None:
            return None, why
        return between(before, last, 1 + early / _BASE), ""


def _look_up(buffer: Any, frames: tuple[str, str], stamp_ns: int) -> tuple[np.ndarray | None, int]:
    """(7,) pose of the second frame in the first, None if it is invalid; its stamp."""
    found = buffer.lookup_transform(*frames, Time(nanoseconds=stamp_ns))
    t, q, stamp = found.transform.translation, found.transform.rotation, found.header.stamp
    values = pose_values((t.x, t.y, t.z, q.x, q.y, q.z, q.w))
    return values, nanoseconds(stamp)
