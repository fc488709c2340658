# SPDX-License-Identifier: Apache-2.0
"""Poses of a camera from odometry."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.ros_processes import ros_domain
from hypothesis import given
from hypothesis import strategies as st
from nav_msgs.msg import Odometry
from std_msgs.msg import Header

from dpt_ros.ros.camera.poses import OdometryPoses, TfPoses, Trajectory
from dpt_ros.ros.camera.tf import TfTree

MS = 1_000_000
HALF = np.sqrt(0.5)


def turned(angle: float) -> tuple[float, float, float, float]:
    """Quaternion of a turn about z."""
    return (0.0, 0.0, float(np.sin(angle / 2)), float(np.cos(angle / 2)))


def moving(times: list[int], speed: float = 1.0, rate: float = 0.5) -> Trajectory:
    """Along x at ``speed`` m/s while turning about z at ``rate`` rad/s."""
    trajectory = Trajectory()
    for t in times:
        assert not trajectory.add(t * MS, (speed * t / 1e3, 2.0, 0.0, *turned(rate * t / 1e3)))
    return trajectory


@given(st.floats(0.0, 280.0), st.floats(-2.0, 2.0), st.floats(-3.0, 3.0))
def test_between_and_a_little_after_its_poses_the_motion_goes_on(time, speed, rate):
    pose = moving([0, 50, 100, 150], speed, rate).find(round(time * MS))[0]
    angle = rate * time / 1e3
    expected = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    np.testing.assert_allclose(pose[:2, :2], expected, atol=1e-6)
    np.testing.assert_allclose(pose[:3, 3], [speed * time / 1e3, 2.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("time", [-1, 301, 5000])
def test_far_from_its_poses_nothing_is_known(time):
    assert moving([0, 50, 100, 150]).find(time * MS)[0] is None


def test_a_gap_is_not_bridged():
    trajectory = moving([0, 50, 900, 950])
    assert trajectory.find(500 * MS)[0] is None
    assert trajectory.find(925 * MS)[0] is not None


def test_one_pose_is_known_at_its_moment_only():
    trajectory = moving([100])
    assert trajectory.find(100 * MS)[0] is not None
    assert trajectory.find(101 * MS)[0] is None


def test_time_that_goes_back_starts_anew():
    trajectory = moving([3000, 3050])
    assert trajectory.add(0, (7.0, 0.0, 0.0, *turned(0.0))).startswith("left out")
    assert (
        trajectory.add(50 * MS, (7.0, 0.0, 0.0, *turned(0.0)))
        == "time jumped, trajectory restarted"
    )
    assert trajectory.find(3020 * MS)[0] is None
    assert trajectory.find(0)[0][0, 3] == 7.0


def test_the_shorter_way_round_is_taken():
    trajectory = Trajectory()
    trajectory.add(0, (0, 0, 0, *turned(0.1)))
    trajectory.add(50 * MS, (0, 0, 0, *(-v for v in turned(0.3))))
    pose = trajectory.find(25 * MS)[0]
    assert np.arctan2(pose[1, 0], pose[0, 0]) == pytest.approx(0.2)


@given(st.lists(st.floats(), min_size=7, max_size=7))
def test_what_is_no_pose_is_refused(values):
    trajectory = Trajectory()
    taken = not trajectory.add(0, values)
    assert taken == (trajectory.find(0)[0] is not None)
    if taken:
        rotation = trajectory.find(0)[0][:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)


def odometry(t: int, child: str) -> Odometry:
    msg = Odometry(header=Header(frame_id="odom"), child_frame_id=child)
    msg.header.stamp.nanosec = t * MS
    msg.pose.pose.position.x = t / 1e3
    msg.pose.pose.orientation.w = 1.0
    return msg


def test_odometry_of_the_robot_needs_to_know_where_the_camera_sits() -> None:
    said: list[str] = []
    own = OdometryPoses((), said.append)
    # Optical frame of a camera half a metre up that looks ahead (REP 103).
    mounted = OdometryPoses((0, 0, 0.5, -0.5, 0.5, -0.5, 0.5), said.append)
    for t in (0, 50, 100):
        own.take(odometry(t, "base_link"))
        mounted.take(odometry(t, "base_link"))
    pose = mounted.pose("eye", 75 * MS)
    np.testing.assert_allclose(pose[:3, 3], [0.075, 0.0, 0.5], atol=1e-6)
    np.testing.assert_allclose(pose[:3, 2], [1.0, 0.0, 0.0], atol=1e-6)
    assert own.pose("base_link", 100 * MS) is not None
    assert own.pose("eye", 75 * MS) is None
    assert "set camera_in_base, or pose_source to tf" in said[-1]


def test_without_transforms_tf_has_no_pose() -> None:
    with ros_domain() as domain:
        tree = TfTree(domain.node)
        assert TfPoses(tree, "odom", [].append).pose("eye", 0) is None
        tree.close()


def test_tf_that_cannot_be_started_stays_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("the context has ended")

    tf2 = SimpleNamespace(Buffer=lambda **_: object(), TransformListener=refuse)
    monkeypatch.setitem(sys.modules, "tf2_ros", tf2)
    tree = TfTree(SimpleNamespace())
    with pytest.raises(RuntimeError, match="the context has ended"):
        tree.start()
    assert not tree.young
    tree.close()  # as the node does at its end
