# SPDX-License-Identifier: Apache-2.0
"""Small bags for the tests, as a robot would record them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nav_msgs.msg import Odometry
from rclpy.serialization import deserialize_message
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan
from std_msgs.msg import Header

from dpt_ros.bag.job import Job, Result
from dpt_ros.bag.run import convert
from dpt_ros.bag.types import serialised
from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.parameter_file import read_settings
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.image import image_message, jpeg_message

TYPES = get_typestore(Stores.ROS2_KILTED)
WIDTH, HEIGHT = 64, 48
CAMERA = CameraModel(WIDTH, HEIGHT, 55.0, 55.0, 31.5, 23.5)
FIRST = 1_700_000_000 * 10**9
STEP = 10**8
KINDS = {
    "image": Image,
    "image/compressed": CompressedImage,
    "camera_info": CameraInfo,
    "odom": Odometry,
    "anchors/scan": LaserScan,
}


def header(stamp: int, frame_id: str = "camera") -> Header:
    made = Header(frame_id=frame_id)
    made.stamp.sec, made.stamp.nanosec = divmod(stamp, 10**9)
    return made


def picture(k: int, seed: int = 0) -> np.ndarray:
    """A random wallpaper that moves to the left, and a box that moves to the right."""
    wall = np.random.default_rng(seed).integers(0, 255, (HEIGHT // 4, 64, 3), np.uint8)
    rgb = np.roll(np.kron(wall, np.ones((4, 4, 1), np.uint8)), -2 * k, 1)[:, :WIDTH].copy()
    rgb[20:40, (3 * k) % 40 : (3 * k) % 40 + 12] = (200, 30, 30)
    return rgb


def scan(stamp: int, distance: float) -> LaserScan:
    """Metres to a wall, seen from where the camera is."""
    angles = np.linspace(-0.5, 0.5, 41)
    message = LaserScan(header=header(stamp, "laser"), range_min=0.1, range_max=20.0)
    message.angle_min, message.angle_increment = -0.5, float(angles[1] - angles[0])
    # Two distances, so that scale and shift can be told apart, and waves, which they cannot be.
    depth = distance * (1 + 0.5 * (angles > 0)) * (1 + 0.1 * np.sin(20 * angles))
    message.ranges = (depth / np.cos(angles)).tolist()
    return message


LASER = "[0.0, 0.0, 0.0, 0.5, -0.5, 0.5, 0.5]"  # x forward, y left, in an optical frame


def records(
    frames: int, cameras: tuple[str, ...] = ("",), jpeg: bool = False, scans: bool = False
) -> Iterator[tuple[int, str, Any]]:
    """Time of recording, topic and message, in order."""
    for k in range(frames):
        stamp = FIRST + k * STEP
        odom = Odometry(header=header(stamp, "odom"), child_frame_id="camera")
        odom.pose.pose.position.x = 0.02 * k
        odom.pose.pose.orientation.w = 1.0
        yield stamp + STEP // 4, "/odom", odom
        if scans:
            yield stamp + STEP // 3, "/anchors/scan", scan(stamp, 2.0 + 0.01 * k)
        for number, name in enumerate(cameras):
            prefix = f"/{name}/" if name else "/"
            seen = stamp + STEP // 2
            yield seen, f"{prefix}camera_info", camera_info_message(CAMERA, header(stamp))
            rgb = picture(k, number)
            if jpeg:
                yield seen, f"{prefix}image/compressed", jpeg_message(rgb, header(stamp))
            else:
                yield seen, f"{prefix}image", image_message(rgb, "rgb8", header(stamp))


def write(
    path: Path,
    messages: Iterator[tuple[int, str, Any]],
    plugin: StoragePlugin = StoragePlugin.MCAP,
    packed: CompressionMode | None = None,
) -> Path:
    """Write a bag of messages of ROS or of rosbags, and return its path."""
    writer = Writer(path, version=9, storage_plugin=plugin)
    if packed is not None:
        writer.set_compression(packed, CompressionFormat.ZSTD)
    connections: dict[str, Any] = {}
    with writer:
        for time, topic, message in messages:
            kind = type(message)
            of_rosbags = getattr(message, "__msgtype__", "")
            name = of_rosbags or f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, name, typestore=TYPES)
            data = TYPES.serialize_cdr(message, name) if of_rosbags else serialised(message)
            writer.write(connections[topic], time, data)
    return path


def messages(path: Path, topic: str, kind: type) -> list[tuple[int, Any]]:
    """Time of recording and message, of all of a topic."""
    with AnyReader([path]) as reader:
        wanted = [c for c in reader.connections if c.topic == topic]
        return [
            (time, deserialize_message(bytes(data), kind))
            for _, time, data in (reader.messages(wanted) if wanted else ())
        ]


def stamps(path: Path, topic: str, kind: type) -> list[int]:
    """The stamps of all messages of a topic, nanoseconds."""
    found = [message.header.stamp for _, message in messages(path, topic, kind)]
    return [stamp.sec * 10**9 + stamp.nanosec for stamp in found]


def contents(path: Path) -> dict[str, str]:
    """The names of all files of a bag, with checksums of their bytes."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


SMALL = ("input_width:=32", "input_height:=32", f"sensor_in_camera:={LASER}")


def job(source: Path, out: Path, *given: str, **more: object) -> Job:
    """A job with the smallest networks and some parameters."""
    settings, own = read_settings(None, (*SMALL, *given))
    return replace(Job(source, out, settings, own), **more)


def arguments(*given: str) -> list[str]:
    """The same parameters on the command line."""
    return [part for one in (*SMALL, *given) for part in ("-p", one)]


def expected(frames: int) -> list[int]:
    """The stamps of so many frames."""
    return [FIRST + k * STEP for k in range(frames)]


class Interrupted(Exception):
    """Stands for whatever ends a run."""


def interrupt(at: int) -> Callable[[int, int | None], None]:
    """A progress that ends the run when so many frames are done."""

    def progress(done: int, total: int | None) -> None:
        if done == at:
            raise Interrupted

    return progress


def goes_on_to_the_same(made: Job, out: Path, at: int) -> Result:
    """Run once more to ``out``, interrupted at a frame; what the run that goes on with it says."""
    again = replace(made, out=out)
    with pytest.raises(Interrupted):
        convert(again, progress=interrupt(at))
    result = convert(again)
    assert contents(out) == contents(made.out)
    return result
