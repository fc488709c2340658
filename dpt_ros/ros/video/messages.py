# SPDX-License-Identifier: Apache-2.0
"""The two kinds of messages with video, their topics, and what they need to be received."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from dpt_ros.ros.messages.cdr import VideoPacket, read_compressed_video, read_ffmpeg_packet
from dpt_ros.ros.video.decoder import check_decoders

FFMPEG = "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
FOXGLOVE = "foxglove_msgs/msg/CompressedVideo"
# What image_transport appends to the name of the image topic, by type; the first is preferred.
SUFFIXES = {FFMPEG: "/ffmpeg", FOXGLOVE: "/foxglove"}
READERS: dict[str, Callable[[bytes], VideoPacket]] = {
    FFMPEG: read_ffmpeg_packet,
    FOXGLOVE: read_compressed_video,
}


def message_classes() -> dict[str, Any]:
    """The classes of rclpy that are installed, by type."""
    found = {}
    for name in SUFFIXES:
        package, _, kind = name.split("/")
        try:
            found[name] = getattr(import_module(f"{package}.msg"), kind)
        except ImportError:
            continue
    return found


def video_problem() -> str:
    """Why videos cannot be received, else ""."""
    try:
        check_decoders()
    except ImportError as error:
        return str(error)
    if message_classes():
        return ""
    return (
        "image_transport is video, but neither ffmpeg_image_transport_msgs nor foxglove_msgs is"
        " installed: apt install ros-$ROS_DISTRO-ffmpeg-image-transport-msgs (or"
        " ros-$ROS_DISTRO-foxglove-msgs), or set image_transport to raw or compressed."
    )
