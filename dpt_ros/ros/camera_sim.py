# SPDX-License-Identifier: Apache-2.0
"""The node ``camera_sim``: a camera in a synthetic world, with ground truth for its images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import Quaternion, TransformStamped, Vector3
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan
from std_msgs.msg import Header

from dpt_ros.ros.command_line import CAMERA_PARAMETERS, run_node
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.image import image_message, jpeg_message
from dpt_ros.ros.messages.types import VIDEOS, video_classes
from dpt_ros.ros.qos import qos_problems
from dpt_ros.ros.video.sender import KEYFRAMES, VideoSender
from dpt_ros.world import KINDS, Scan, Scanner, View, World
from dpt_ros.world.motion import CAMERA_HEIGHT, look
from dpt_ros.world.scan import CAMERA_PITCH

try:
    from tf2_msgs.msg import TFMessage
except ImportError:  # not on PyPI
    TFMessage = None

# The robot's base: on the floor below the camera, which is pitched down a little.
BASE_FROM_CAMERA = look(np.array([0.0, 0.0, CAMERA_HEIGHT]), 0.0, CAMERA_PITCH).matrix()


class CameraSim(Node):
    """Publishes image, image/compressed, camera_info, odom, scan, truth/depth and truth/labels.

    Where PyAV and the types of their messages are installed, it publishes video on image/ffmpeg
    and image/foxglove as well, each picture encoded once and only while somebody subscribes.

    Where tf2_msgs is installed it broadcasts tf as well: from odom to base_link (on the floor
    below the camera), from there to the camera's frame and "laser".

    Raises:
        ValueError: a parameter has a wrong type or value.
    """

    def __init__(self) -> None:
        super().__init__("camera_sim")
        values = {name: self._declare(name, *row) for name, row in CAMERA_PARAMETERS.items()}
        if values["kind"] not in KINDS:
            raise ValueError(f"kind is '{values['kind']}', but must be one of {', '.join(KINDS)}.")
        if values["reliability"] not in ("reliable", "best_effort"):
            raise ValueError(
                f"reliability is '{values['reliability']}', but must be reliable or best_effort."
            )
        for problem in qos_problems(self):
            raise ValueError(problem)
        self._world = World(
            values["kind"], values["seed"], values["width"], values["height"], values["rate"]
        )
        self._scanner = Scanner(self._world)
        self._frame_id = values["frame_id"]
        self._frames = values["frames"]
        self._number = 0
        reliability = ReliabilityPolicy[values["reliability"].upper()]
        self._by_topic = {
            topic: self.create_publisher(
                kind,
                topic,
                QoSProfile(depth=2, reliability=reliability),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for topic, kind in (
                ("image", Image),
                ("image/compressed", CompressedImage),
                ("camera_info", CameraInfo),
                ("odom", Odometry),
                ("scan", LaserScan),
                ("truth/depth", Image),
                ("truth/labels", Image),
            )
        }
        self._video = self._create_video(reliability, values)
        if values["tf"]:
            self._create_tf()
        self.create_timer(1.0 / values["rate"], self._tick)

    def _create_video(
        self, reliability: ReliabilityPolicy, values: dict[str, Any]
    ) -> VideoSender | None:
        """H.264 as ffmpeg_image_transport and Foxglove send it, with what is installed of that."""
        size, made = (values["width"], values["height"]), {}
        profile = QoSProfile(depth=2 * KEYFRAMES, reliability=reliability)
        for name, kind in video_classes().items():
            topic = f"image{VIDEOS[name]}"
            self._by_topic[topic] = publisher = self.create_publisher(kind, topic, profile)
            made[publisher] = kind
        try:
            return VideoSender(made, size, values["rate"]) if made else None
        except (ImportError, ValueError) as error:
            self.get_logger().info(f"No video is sent: {error}")
            return None

    def _create_tf(self) -> None:
        if TFMessage is None:
            self.get_logger().info("tf2_msgs is not installed: tf is not broadcast.")
            return
        # As tf2_ros broadcasts: absolute names, the fixed frames latched.
        self._by_topic["tf"] = self.create_publisher(TFMessage, "/tf", 10)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._fixed = self.create_publisher(TFMessage, "/tf_static", latched)
        mount = self._scanner.camera_from_sensor
        stamp = self.get_clock().now().to_msg()
        fixed = fixed_transforms(mount, Header(stamp=stamp, frame_id=self._frame_id))
        self._fixed.publish(TFMessage(transforms=fixed))

    def _declare(self, name: str, default: Any, text: str) -> Any:
        # Dynamic, so that a value of the wrong type gets this error message, and 15 becomes 15.0.
        descriptor = ParameterDescriptor(description=text, read_only=True, dynamic_typing=True)
        value = self.declare_parameter(name, default, descriptor).value
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default):
            raise ValueError(f"{name} is {value!r}, but must be of type {type(default).__name__}.")
        return value

    def _tick(self) -> None:
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._frame_id)
        if any(one.get_subscription_count() for one in self._by_topic.values()):
            self._publish(self._world.frame(self._number), header)
        self._number += 1
        if self._number == self._frames:
            self.context.try_shutdown()

    def _publish(self, view: View, header: Header) -> None:
        makers = {
            # In this order, so that an image comes after the data that belongs to it.
            "tf": lambda: TFMessage(transforms=[base_transform(view.odom_from_camera, header)]),
            "odom": lambda: odometry_message(view.odom_from_camera, header),
            "scan": lambda: _laser_scan(self._scanner.scan(self._number), header),
            "camera_info": lambda: camera_info_message(view.camera, header),
            "image": lambda: image_message(view.rgb, "rgb8", header),
            "image/compressed": lambda: jpeg_message(view.rgb, header),
            "truth/depth": lambda: image_message(view.depth, "32FC1", header),
            "truth/labels": lambda: image_message(view.labels, "mono8", header),
        }
        for topic, make in makers.items():
            if topic in self._by_topic and self._by_topic[topic].get_subscription_count():
                self._by_topic[topic].publish(make())
        if self._video is not None:
            self._video.publish(view.rgb, header)


def _laser_scan(scan: Scan, header: Header) -> LaserScan:
    """A scan in the frame "laser", level and 0.3 m below the camera."""
    return LaserScan(
        header=Header(stamp=header.stamp, frame_id="laser"),
        angle_min=scan.angle_min,
        angle_max=scan.angle_min + scan.angle_increment * (len(scan.ranges) - 1),
        angle_increment=scan.angle_increment,
        range_min=scan.range_min,
        range_max=scan.range_max,
        ranges=scan.ranges.tolist(),
    )


def odometry_message(odom_from_camera: np.ndarray, header: Header) -> Odometry:
    """The pose of the camera's optical frame in ``odom``; (4, 4) float64. No twist is given."""
    msg = Odometry(child_frame_id=header.frame_id)
    msg.header.stamp, msg.header.frame_id = header.stamp, "odom"
    position, orientation = msg.pose.pose.position, msg.pose.pose.orientation
    position.x, position.y, position.z = odom_from_camera[:3, 3].tolist()
    orientation.x, orientation.y, orientation.z, orientation.w = _quaternion(odom_from_camera)
    return msg


def base_transform(odom_from_camera: np.ndarray, header: Header) -> TransformStamped:
    """Where ``base_link`` is in ``odom`` at the time of an image; it shakes with the camera."""
    base = odom_from_camera @ np.linalg.inv(BASE_FROM_CAMERA)
    return _transform(base, "base_link", Header(stamp=header.stamp, frame_id="odom"))


def fixed_transforms(camera_from_sensor: np.ndarray, header: Header) -> list[TransformStamped]:
    """Where the camera, whose header it is, and "laser" are in ``base_link``."""
    base = Header(stamp=header.stamp, frame_id="base_link")
    return [
        _transform(BASE_FROM_CAMERA, header.frame_id, base),
        _transform(BASE_FROM_CAMERA @ camera_from_sensor, "laser", base),
    ]


def _transform(pose: np.ndarray, child: str, header: Header) -> TransformStamped:
    msg = TransformStamped(header=header, child_frame_id=child)
    x, y, z = pose[:3, 3].tolist()
    msg.transform.translation = Vector3(x=x, y=y, z=z)
    x, y, z, w = _quaternion(pose)
    msg.transform.rotation = Quaternion(x=x, y=y, z=z, w=w)
    return msg


def _quaternion(pose: np.ndarray) -> list[float]:
    """x, y, z, w of the rotation of a pose, (4, 4)."""
    r = pose[:3, :3]
    # The eigenvector of the largest eigenvalue (Bar-Itzhack 2000): good for every rotation.
    k = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
            [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
            [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], 0],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], np.trace(r)],
        ]
    )
    _, vectors = np.linalg.eigh(k)
    q = vectors[:, -1]
    return (q if q[3] >= 0 else -q).tolist()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the camera until Ctrl-C, SIGTERM or its last frame."""
    return run_node("dpt_camera_sim", argv, CameraSim)


if __name__ == "__main__":
    sys.exit(main())
