# SPDX-License-Identifier: Apache-2.0
"""The demo's bags: the synthetic camera with its ground truth, and the node's predictions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tqdm import tqdm

from dpt_ros.bag.reader import BagReader
from dpt_ros.bag.salvage import Message
from dpt_ros.bag.types import TYPES
from dpt_ros.ros.camera_sim import odometry_message
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.cdr import read_image
from dpt_ros.ros.messages.image import image_message, image_pixels
from dpt_ros.ros.messages.types import type_name
from dpt_ros.world import World

IMAGE, DEPTH, LABELS = "image", "depth/image", "semantic/labels"
TRUE_DEPTH, TRUE_LABELS = "truth/depth", "truth/labels"
CAMERA_TOPICS = (IMAGE, TRUE_DEPTH, TRUE_LABELS)
_RECORDED = {DEPTH: Image, "depth/camera_info": CameraInfo, LABELS: Image}
# Any plausible date does; a bag that begins at zero looks like an unset clock.
_FIRST_STAMP_NS = 1_700_000_000 * 10**9
_GAP_NS = 2 * 10**9


def write_camera_bag(
    path: Path, scenes: Sequence[tuple[str, int]], count: int, rate: float
) -> None:
    """Render ``count`` frames of each scene, a kind of world and its seed, into a bag (mcap): a
    robot's topics and the truth."""
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics: dict[str, Any] = dict.fromkeys(CAMERA_TOPICS, Image)
        topics |= {"camera_info": CameraInfo, "odom": Odometry}
        connections = _connections(writer, topics)
        start = _FIRST_STAMP_NS
        bar = tqdm(total=len(scenes) * count, unit="frame", leave=False, disable=None)
        for kind, seed in scenes:
            for view in World(kind, seed, fps=rate).frames(count):
                stamp = start + view.stamp_ns
                header = Header(frame_id="camera_optical_frame")
                header.stamp.sec, header.stamp.nanosec = divmod(stamp, 10**9)
                messages = {
                    "odom": odometry_message(view.odom_from_camera, header),
                    "camera_info": camera_info_message(view.camera, header),
                    IMAGE: image_message(view.rgb, "rgb8", header),
                    TRUE_DEPTH: image_message(view.depth, "32FC1", header),
                    TRUE_LABELS: image_message(view.labels, "mono8", header),
                }
                for topic, message in messages.items():
                    writer.write(connections[topic], stamp, serialize_message(message))
                bar.update()
            start = stamp + _GAP_NS
        bar.close()


def record(
    path: Path, namespace: str, expected: int, playing: Callable[[], bool]
) -> dict[int, int]:
    """Record the node's outputs until all ``expected`` frames have arrived, or 2 s after the end
    of playing: time.monotonic_ns() of each depth image's arrival, by its stamp in nanoseconds."""
    arrived: dict[int, int] = {}
    counts: dict[str, int] = dict.fromkeys(_RECORDED, 0)
    rclpy.init()
    node = Node("demo_recorder", namespace=namespace)
    bar = tqdm(total=expected, unit="frame", leave=False, disable=None)
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = _connections(writer, _RECORDED)

        def write(topic: str, data: bytes) -> None:
            now = time.monotonic_ns()
            stamp = Message(topic, now, data).stamp
            writer.write(connections[topic], stamp, data)
            counts[topic] += 1
            if topic == DEPTH:
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


def read_frames(camera: Path, recorded: Path) -> Iterator[dict[str, np.ndarray]]:
    """The images of each frame with all predictions, by topic: input, truth and predictions."""
    frames: dict[int, dict[str, np.ndarray]] = {}
    for bag, topics in ((camera, CAMERA_TOPICS), (recorded, (DEPTH, LABELS))):
        for message in BagReader(bag).messages([f"/{topic}" for topic in topics]):
            pixels = image_pixels(read_image(message.data))
            frames.setdefault(message.time, {})[message.topic[1:]] = pixels
    yield from (frame for frame in frames.values() if frame.keys() >= {IMAGE, DEPTH, LABELS})


def _connections(writer: Writer, topics: dict[str, Any]) -> dict[str, Any]:
    return {
        topic: writer.add_connection(f"/{topic}", type_name(kind), typestore=TYPES)
        for topic, kind in topics.items()
    }
