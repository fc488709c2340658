# SPDX-License-Identifier: Apache-2.0
"""Poses and anchors by tf that comes late; real tf2_ros over DDS, where it is installed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("tf2_ros")

from geometry_msgs.msg import TransformStamped
from helpers.ros_processes import Domain, ros_domain
from sensor_msgs.msg import Image, LaserScan
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.anchor_projector import AnchorProjector
from dpt_ros.ros.camera.poses import TfPoses
from dpt_ros.ros.camera.tf import TfTree
from dpt_ros.ros.messages.image import image_message

MS = 1_000_000
CAMERA = CameraModel(96, 64, 83.0, 83.0, 47.5, 31.5)


@pytest.fixture
def domain() -> Iterator[Domain]:
    with ros_domain() as domain:
        yield domain


def transform(stamp_ns: int, x: float, parent: str = "odom", child: str = "eye") -> TFMessage:
    msg = TransformStamped(header=Header(frame_id=parent), child_frame_id=child)
    msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    msg.transform.translation.x, msg.transform.rotation.w = x, 1.0
    return TFMessage(transforms=[msg])


def listening(domain: Domain) -> tuple[TfTree, object]:
    tree = TfTree(domain.node)
    tree.start()
    return tree, domain.publisher(TFMessage, "/tf")


def test_a_pose_a_little_beyond_the_newest_transform_follows_the_motion(domain: Domain) -> None:
    tree, tf = listening(domain)
    start = 1000 * 10**9
    for k in range(20):
        tf.publish(transform(start + k * 20 * MS, 0.02 * k))
        domain.spin_for(0.01)
    domain.spin_until(lambda: tree.find("odom", "eye", start + 380 * MS)[0] is not None, 10)
    for t, x in ((290, 0.29), (410, 0.41), (500, 0.5)):
        pose, _ = tree.find("odom", "/eye", start + t * MS)
        assert pose is not None
        assert pose[0, 3] == pytest.approx(x, abs=1e-6)
    assert "520 ms older" in tree.find("odom", "eye", start + 900 * MS)[1]
    assert "another clock" in tree.find("odom", "eye", start + 10**12)[1]
    assert "names no frame" in tree.find("odom", "", start)[1]
    assert "nowhere" in tree.find("odom", "nowhere", start)[1]
    tree.close()


def test_a_bag_that_starts_again_is_followed_again(domain: Domain) -> None:
    tree, tf = listening(domain)
    start = 1000 * 10**9
    for k in range(5):
        tf.publish(transform(start + 60 * 10**9 + k * 20 * MS, 1.0))
    domain.spin_until(lambda: tree.find("odom", "eye", start + 60 * 10**9)[0] is not None, 10)

    def found() -> bool:
        tf.publish(transform(time_ns := start + found.count * 20 * MS, 2.0))
        found.count += 1
        domain.spin_for(0.02)
        return tree.find("odom", "eye", time_ns)[0] is not None

    found.count = 0
    domain.spin_until(found, 10)
    tree.close()


def test_tf_that_is_30_ms_late_gives_nearly_every_frame_its_pose(domain: Domain) -> None:
    """A transform every 20 ms, each sent 30 ms after its stamp; images at once."""
    domain.start_dpt(pose_source="tf", diagnostics_period=0.2, label_network="none")
    domain.wait_for_state("active")
    tf, camera = domain.publisher(TFMessage, "/tf"), domain.publisher(Image, "image")
    depths = domain.listen(Image, "depth/image")
    domain.spin_for(1.0)
    picture = np.zeros((64, 96, 3), np.uint8)
    begin = time.time_ns()
    for k in range(500):
        now = begin + k * 20 * MS
        while time.time_ns() < now:
            domain.spin_for(0.001)
        tf.publish(transform(now - 30 * MS, 1e-9 * (now - begin)))
        if k % 5 == 0 and k > 10:
            header = Header(frame_id="eye")
            header.stamp.sec, header.stamp.nanosec = divmod(now, 10**9)
            camera.publish(image_message(picture, "rgb8", header))
    domain.spin_for(1.0)
    status = domain.diagnostics("dpt: image")
    print(len(depths), {k: v for k, v in status.items() if k.startswith("tf")})
    assert int(status["tf: frames with it"]) >= 0.95 * len(depths)
    assert status["tf"] == "used"


def test_four_activations_listen_to_tf_once_and_leave_nothing(domain: Domain) -> None:
    domain.start_dpt(pose_source="tf")
    domain.wait_for_state("active")

    def listeners() -> int:
        return domain.node.count_subscribers("/tf")

    for _ in range(3):
        assert domain.change("deactivate")
        domain.spin_until(lambda: listeners() == 0, 10)
        assert domain.change("activate")
        domain.spin_until(lambda: listeners() == 1, 10)
    domain.spin_for(0.5)
    assert listeners() == 1
    services = [name for name, _ in domain.node.get_service_names_and_types()]
    assert not [name for name in services if "tf2_frames" in name]


def test_anchors_wait_for_tf_before_they_complain(domain: Domain) -> None:
    said: list[str] = []
    tree = TfTree(domain.node)
    anchors = AnchorProjector(Settings(), tree.sensor_pose, said.append)
    anchors.take("anchors/scan", LaserScan(header=Header(frame_id="laser")))
    assert anchors.anchors(CAMERA, "eye") is None
    assert not said
    assert "waiting for tf" in anchors.records["anchors/scan"].state
    tf = domain.publisher(TFMessage, "/tf")
    tf.publish(transform(10**9, 0.3, "eye", "laser"))
    domain.spin_until(lambda: tree.find("eye", "laser", 0)[0] is not None, 10)
    assert tree.sensor_pose("eye", "laser")[0, 3] == pytest.approx(0.3)
    anchors.take("anchors/scan", LaserScan(header=Header(frame_id="elsewhere")))
    assert anchors.anchors(CAMERA, "eye") is None
    assert not said
    tree._since -= 10
    assert anchors.anchors(CAMERA, "eye") is None
    assert "the pose of the sensor is not known" in said[0]
    tree.close()


def test_two_users_of_one_tree_share_a_buffer(domain: Domain) -> None:
    tree = TfTree(domain.node)
    for _ in range(3):
        TfPoses(tree, "odom", [].append)
    assert domain.node.count_subscribers("/tf") == 1
    tree.close()
