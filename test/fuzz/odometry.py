# SPDX-License-Identifier: Apache-2.0
"""nav_msgs/Odometry of any order and content: to poses, and to the motion between two frames."""

from __future__ import annotations

import numpy as np
from nav_msgs.msg import Odometry

from dpt_ros.engine.smoothing.motion import relative_pose
from dpt_ros.ros.camera.poses import OdometryPoses
from dpt_ros.ros.messages.image import MessageError
from fuzz.choices import Choices
from fuzz.properties import Broken, bounded, refusal, sentence

_SECOND = 1_000_000_000
_FRAMES = ("base_link", "camera")


def seeds() -> list[bytes]:
    """A few poses on the way, the same with the time going back, and one that is none."""
    pose = bytes([60, 50, 50, 50, 50, 50, 60])
    way = b"".join(bytes([0, 10, k, *pose]) for k in (1, 20, 40, 60))
    return [b"\0" + way, b"\1" + way + way, b"\0" + bytes([0, 1, 1]) + b"\x6e\x07" * 7]


def one_input(data: bytes) -> None:
    choices = Choices(data)
    place = () if choices.take(1)[0] % 2 else (0.1, 0.0, 0.3, -0.5, 0.5, -0.5, 0.5)
    poses = OdometryPoses(place, sentence)
    before = np.eye(4)
    with bounded(len(data)), refusal(MessageError), np.errstate(all="ignore"):
        while choices.any_left:
            msg = Odometry(child_frame_id=choices.pick(_FRAMES))
            msg.header.stamp.sec = choices.integer(0, 2**31 - 1)
            msg.header.stamp.nanosec = choices.integer(0, 10) * 10_000_000 % _SECOND
            position, turn = msg.pose.pose.position, msg.pose.pose.orientation
            position.x, position.y, position.z = (choices.real() for _ in range(3))
            turn.x, turn.y, turn.z, turn.w = (choices.real() for _ in range(4))
            poses.take(msg)
            stamp = msg.header.stamp.sec * _SECOND + msg.header.stamp.nanosec
            for later in (0, choices.integer(-_SECOND, _SECOND)):
                pose = poses.pose("camera", stamp + later)
                if pose is not None:
                    _see(before, pose)
                    before = pose


def _see(before: np.ndarray, pose: np.ndarray) -> None:
    turn = pose[:3, :3]
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise Broken(f"The pose is {pose.tolist()}.")
    if np.abs(turn @ turn.T - np.eye(3)).max() > 1e-6:
        raise Broken(f"The rotation is {turn.tolist()}.")
    rotation, _ = relative_pose(before, pose)
    if not np.isfinite(rotation).all():
        raise Broken(f"From {before.tolist()} to {pose.tolist()} there is no rotation.")
