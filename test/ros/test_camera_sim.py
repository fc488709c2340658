# SPDX-License-Identifier: Apache-2.0
"""The synthetic camera as a process: what it publishes is what the world says."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy")

from helpers.ros_processes import ros_domain
from nav_msgs.msg import Odometry
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan
from std_msgs.msg import Header

from dpt_ros.ros.camera.poses import pose_matrix
from dpt_ros.ros.camera_sim import _quaternion, base_transform, fixed_transforms
from dpt_ros.ros.messages.camera_info import camera_model
from dpt_ros.ros.messages.image import compressed_file, image_pixels
from dpt_ros.world import Scanner, World

TOPICS = {
    "image": Image,
    "image/compressed": CompressedImage,
    "camera_info": CameraInfo,
    "odom": Odometry,
    "scan": LaserScan,
    "truth/depth": Image,
    "truth/labels": Image,
}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("kind:=moon", "kind is 'moon', but must be one of "),
        (
            "qos_overrides./image.publisher.reliability:=often",
            "publisher.reliability is 'often', but must be one of ",
        ),
    ],
)
def test_a_wrong_parameter_is_a_message_and_exit_code_2(given: str, message: str) -> None:
    with ros_domain() as domain:
        camera = domain.start("-m", "dpt_ros.ros.camera_sim", "--ros-args", "-p", given)
        assert camera.wait() == 2
        assert message in camera.output
        assert "Traceback" not in camera.output


def test_everything_of_a_frame_is_published_with_one_stamp_as_the_world_says() -> None:
    with ros_domain() as domain:
        for topic, kind in TOPICS.items():
            domain.listen(kind, topic)
        given = {"kind": "room", "seed": 3, "width": 64, "height": 48, "rate": 10.0}
        words = [word for k, v in given.items() for word in ("-p", f"{k}:={v}")]
        domain.start("-m", "dpt_ros.ros.camera_sim", "--ros-args", *words)

        def complete() -> list[tuple[int, int]]:
            stamps = [
                {(m.header.stamp.sec, m.header.stamp.nanosec) for m in domain.received[topic]}
                for topic in TOPICS
            ]
            return sorted(set.intersection(*stamps))

        domain.spin_until(complete, 30)
        stamp = complete()[0]
        seen = {
            topic: next(
                m
                for m in domain.received[topic]
                if (m.header.stamp.sec, m.header.stamp.nanosec) == stamp
            )
            for topic in TOPICS
        }
        rgb = image_pixels(seen["image"])
        world = World(given["kind"], given["seed"], given["width"], given["height"], given["rate"])
        frames = enumerate(world.frames(100))
        number, view = next((k, v) for k, v in frames if np.array_equal(v.rgb, rgb))
        np.testing.assert_array_equal(image_pixels(seen["truth/depth"]), view.depth)
        np.testing.assert_array_equal(image_pixels(seen["truth/labels"]), view.labels)
        assert camera_model(seen["camera_info"]) == (view.camera, "")
        jpeg, _ = compressed_file(seen["image/compressed"]).decode()
        assert np.abs(jpeg[..., ::-1].astype(int) - rgb).mean() < 12
        assert seen["scan"].ranges.tolist() == Scanner(world).scan(number).ranges.tolist()
        position = seen["odom"].pose.pose.position
        assert [position.x, position.y, position.z] == view.odom_from_camera[:3, 3].tolist()
        assert seen["odom"].header.frame_id == "odom"
        assert seen["odom"].child_frame_id == seen["image"].header.frame_id


def test_it_ends_after_its_last_frame_and_refuses_what_it_does_not_know() -> None:
    with ros_domain() as domain:
        short = domain.start(
            "-m", "dpt_ros.ros.camera_sim", "--ros-args", "-p", "frames:=2", "-p", "rate:=50"
        )
        wrong = domain.start("-m", "dpt_ros.ros.camera_sim", "--ros-args", "-p", "kind:=moon")
        wrong_type = domain.start("-m", "dpt_ros.ros.camera_sim", "--ros-args", "-p", "seed:=a")
        assert short.wait() == 0, short.output
        assert wrong.wait() == 2
        assert "kind is 'moon', but must be one of" in wrong.output
        assert wrong_type.wait() == 2
        assert "seed is 'a', but must be of type int." in wrong_type.output
        assert "Traceback" not in wrong_type.output + short.output + wrong.output


def matrix(msg) -> np.ndarray:
    t, q = msg.transform.translation, msg.transform.rotation
    return pose_matrix((t.x, t.y, t.z, q.x, q.y, q.z, q.w))


def test_tf_leads_from_odom_over_the_base_to_the_camera_and_the_laser() -> None:
    world = World("corridor", 3)
    pose = world.frame(40).odom_from_camera
    header = Header(frame_id="eye")
    header.stamp.sec = 7
    mount = Scanner(world).camera_from_sensor
    base = base_transform(pose, header)
    camera, laser = fixed_transforms(mount, header)
    names = [(msg.header.frame_id, msg.child_frame_id) for msg in (base, camera, laser)]
    assert names == [("odom", "base_link"), ("base_link", "eye"), ("base_link", "laser")]
    assert [msg.header.stamp.sec for msg in (base, camera, laser)] == [7, 7, 7]
    np.testing.assert_allclose(matrix(base) @ matrix(camera), pose, atol=1e-6)
    np.testing.assert_allclose(matrix(base) @ matrix(laser), pose @ mount, atol=1e-6)
    # The base is on the floor and upright, but for the shaking; the laser is level.
    assert abs(matrix(base)[2, 3]) < 0.05
    assert matrix(base)[2, 2] > 0.998
    np.testing.assert_allclose(matrix(laser)[:3, :3], np.eye(3), atol=1e-6)


def test_tf_is_broadcast_with_the_images() -> None:
    tf2_msgs = pytest.importorskip("tf2_msgs.msg")
    with ros_domain() as domain:
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        moving = domain.listen(tf2_msgs.TFMessage, "/tf")
        fixed = domain.listen(tf2_msgs.TFMessage, "/tf_static", latched)
        images = domain.listen(Image, "image")
        domain.start("-m", "dpt_ros.ros.camera_sim", "--ros-args", "-p", "width:=64")
        domain.spin_until(lambda: fixed and len(moving) > 2 and len(images) > 2, 30)
        assert [t.child_frame_id for t in fixed[0].transforms] == ["camera_optical_frame", "laser"]
        stamps = [msg.transforms[0].header.stamp for msg in moving]
        assert images[-1].header.stamp in stamps


@pytest.mark.parametrize("axis", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0, 0.8]])
@pytest.mark.parametrize("degrees", [0, 30, 90, 180, 270])
def test_a_rotation_becomes_its_quaternion(axis: list[float], degrees: int) -> None:
    x, y, z = axis
    half = np.radians(degrees) / 2
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    pose = np.eye(4)
    pose[:3, :3] += np.sin(2 * half) * cross + (1 - np.cos(2 * half)) * cross @ cross
    expected = np.array([*(np.sin(half) * np.array(axis)), np.cos(half)])
    found = np.array(_quaternion(pose))
    assert min(np.abs(found - expected).max(), np.abs(found + expected).max()) < 1e-6
