# SPDX-License-Identifier: Apache-2.0
"""Types of messages by their names, the topics of images by their transport, stamps."""

from __future__ import annotations

from importlib import import_module
from typing import Any

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
FFMPEG = "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
FOXGLOVE = "foxglove_msgs/msg/CompressedVideo"
# What image_transport appends to the name of the image topic, by type; of videos the first is
# preferred.
TRANSPORTS = {IMAGE: "", COMPRESSED: "/compressed", FFMPEG: "/ffmpeg", FOXGLOVE: "/foxglove"}
VIDEOS = {kind: TRANSPORTS[kind] for kind in (FFMPEG, FOXGLOVE)}


def type_name(kind: type) -> str:
    """The name of a message class of rclpy, "sensor_msgs/msg/Image"."""
    return f"{kind.__module__.partition('.')[0]}/msg/{kind.__name__}"


def message_class(name: str) -> Any:
    """The class of rclpy of a type's name; None where it is not installed."""
    package, _, message = name.partition("/msg/")
    try:
        return getattr(import_module(f"{package}.msg"), message)
    except (ImportError, AttributeError):
        return None


def video_classes() -> dict[str, Any]:
    """The classes of rclpy of messages with video that are installed, by type."""
    found = {name: message_class(name) for name in VIDEOS}
    return {name: kind for name, kind in found.items() if kind is not None}


def base_topic(topic: str) -> str:
    """The image topic that a topic of one of image_transport's transports belongs to."""
    base, _, end = topic.rpartition("/")
    return base if base and f"/{end}" in TRANSPORTS.values() else topic


def nanoseconds(stamp: Any) -> int:
    """A builtin_interfaces/Time in nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
