# SPDX-License-Identifier: Apache-2.0
"""Which image topics exist, for the message on a missing remapping."""

from __future__ import annotations

from rclpy.node import Node

from dpt_ros.ros.messages.types import TRANSPORTS

_MOST = 8  # names in one message


def image_topics(node: Node) -> list[tuple[str, str]]:
    """Names and types of the image topics that other nodes publish, sorted."""
    own = node.get_publisher_names_and_types_by_node(node.get_name(), node.get_namespace())
    ours = {name for name, _ in own}
    return sorted(
        (name, kind)
        for name, kinds in node.get_topic_names_and_types()
        for kind in kinds
        if kind in TRANSPORTS and name not in ours and node.count_publishers(name)
    )


def no_publisher(node: Node, topic: str, kind: str) -> str:
    """The warning on an image topic that has no publisher.

    Args:
        node: queries the topics.
        topic: full name.
        kind: type that is expected, such as "sensor_msgs/msg/Image".
    """
    start = f"{topic} has no publisher; waiting."
    there = image_topics(node)
    if not there:
        return f"{start} No image topic exists: start the camera, or check ROS_DOMAIN_ID."
    names = ", ".join(f"{name} ({found.rpartition('/')[2]})" for name, found in there[:_MOST])
    more = f" and {len(there) - _MOST} more" if len(there) > _MOST else ""
    fits = [name for name, found in there if found == kind]
    if not fits:
        return (
            f"{start} Image topics that exist: {names}{more}; none has the type {kind}: set"
            " image_transport."
        )
    base = topic.rpartition("/")[2]
    like = next((name for name in fits if "image_rect" in name), fits[0])
    if (suffix := TRANSPORTS.get(kind)) and like.endswith(suffix):
        base, like = "image", like.removesuffix(suffix)
    return (
        f"{start} Image topics that exist: {names}{more}. Set the remapping, for instance"
        f" -r {base}:={like}."
    )
