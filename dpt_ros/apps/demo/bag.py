# SPDX-License-Identifier: Apache-2.0
"""The demo's bags: the synthetic camera with its ground truth, and the node's predictions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rclpy
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tqdm import tqdm

from dpt_ros.bag.reader import BagReader
from dpt_ros.bag.types import TYPES
from dpt_ros.ros.camera_sim import odometry_message
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.cdr import read_image
from dpt_ros.ros.messages.image import image_message, image_pixels
from dpt_ros.world import World

TRUTH_TOPICS = ("truth/depth", "truth/labels")
_RECORDED = {"depth/image": Image, "depth/camera_info": CameraInfo, "semantic/labels": Image}
# Any plausible date does; a bag that begins at zero looks like an unset clock.
_FIRST_STAMP_NS = 1_700_000_000 * 10**9
_GAP_NS = 2 * 10**9


class Scene(NamedTuple):
    """A world by its kind and seed."""

    kind: str
    seed: int


def write_camera_bag(path: Path, scenes: Sequence[Scene], count: int, rate: float) -> None:
    """Render ``count`` frames of each scene into a bag (mcap): a robot's topics and the truth."""
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics: dict[str, Any] = dict.fromkeys(("image", *TRUTH_TOPICS), Image)
        topics |= {"camera_info": CameraInfo, "odom": Odometry}
        connections = _connections(writer, topics)
        start = _FIRST_STAMP_NS
        bar = tqdm(total=len(scenes) * count, unit="frame", leave=False, disable=None)
        for scene in scenes:
            world = World(scene.kind, scene.seed, fps=rate)
            for view in world.frames(count):
                stamp = start + view.stamp_ns
                header = Header(frame_id="camera_optical_frame")
                header.stamp.sec, header.stamp.nanosec = divmod(stamp, 10**9)
                messages = {
                    "odom": odometry_message(view.odom_from_camera, header),
                    "camera_info": camera_info_message(view.camera, header),
                    "image": image_message(view.rgb, "rgb8", header),
                    "truth/depth": image_message(view.depth, "32FC1", header),
                    "truth/labels": image_message(view.labels, "mono8", header),
                }
                for topic, message in messages.items():
                    writer.write(connections[topic], stamp, serialize_message(message))
                bar.update()
            start = stamp + _GAP_NS
        bar.close()


def record(
    path: Path, namespace: str, expected: int, playing: Callable[[], bool]
) -> dict[int, int]:
    """Record the node's outputs until all frames have arrived, or 2 s after the end of playing.

    Args:
        path: of the bag to write.
        namespace: of the node.
        expected: number of frames played.
        playing: whether the player is running.

    Returns:
        time.monotonic_ns() of the arrival of each depth image, by its stamp in nanoseconds.
    """
    arrived: dict[int, int] = {}
    counts: dict[str, int] = dict.fromkeys(_RECORDED, 0)
    rclpy.init()
    node = Node("demo_recorder", namespace=namespace)
    bar = tqdm(total=expected, unit="frame", leave=False, disable=None)
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = _connections(writer, _RECORDED)

        def write(topic: str, data: bytes) -> None:
            now = time.monotonic_ns()
            message = deserialize_message(data, _RECORDED[topic])
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            writer.write(connections[topic], stamp, data)
            counts[topic] += 1
            if topic == "depth/image":
                arrived[stamp] = now
                bar.update()

        for topic, kind in _RECORDED.items():
            node.create_subscription(
                kind, topic, lambda data, topic=topic: write(topic, data), 10, raw=True
            )
        last_change = time.monotonic()
        while min(counts.values()) < expected and time.monotonic() - last_change < 2.0:
            rclpy.spin_once(node, timeout_sec=0.1)
            if playing():
                last_change = time.monotonic()
    bar.close()
    node.destroy_node()
    rclpy.try_shutdown()
    return arrived


def read_images(path: Path, topics: Sequence[str]) -> Iterator[tuple[int, str, np.ndarray]]:
    """Stamp in nanoseconds, topic and pixels of every image of ``topics`` in a bag."""
    for message in BagReader(path).messages([f"/{topic}" for topic in topics]):
        yield message.time, message.topic[1:], image_pixels(read_image(message.data))


def _connections(writer: Writer, topics: dict[str, Any]) -> dict[str, Any]:
    return {
        topic: writer.add_connection(
            f"/{topic}", f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}", typestore=TYPES
        )
        for topic, kind in topics.items()
    }
