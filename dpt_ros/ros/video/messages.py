# SPDX-License-Identifier: Apache-2.0
"""The two kinds of messages with video, their topics, and what they need to be received."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpt_ros.ros.messages.cdr import VideoPacket, read_compressed_video, read_ffmpeg_packet
from dpt_ros.ros.messages.types import FFMPEG, FOXGLOVE, TRANSPORTS, message_class
from dpt_ros.ros.video.decoder import check_decoders

READERS: dict[str, Callable[[bytes], VideoPacket]] = {
    FFMPEG: read_ffmpeg_packet,
    FOXGLOVE: read_compressed_video,
}
SUFFIXES = {kind: TRANSPORTS[kind] for kind in READERS}


def message_classes() -> dict[str, Any]:
    """The classes of rclpy that are installed, by type."""
    found = {name: message_class(name) for name in READERS}
    return {name: kind for name, kind in found.items() if kind is not None}


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
