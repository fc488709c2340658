# SPDX-License-Identifier: Apache-2.0
"""The publishers of one camera's outputs, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.runner.chain import depth_limit
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.messages.prediction import LABEL_INFO
from dpt_ros.ros.share import shared_memory_size

Publishers = dict[str, "LifecyclePublisher[Any]"]  # by the relative names of their topics


def create_publishers(node: LifecycleNode, prefix: str, topics: Mapping[str, type]) -> Publishers:
    """A publisher of each topic, given by its name behind the prefix and its type."""
    reliable, latched = ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL
    usual = QoSProfile(depth=10, reliability=reliable)
    profiles = {LABEL_INFO: QoSProfile(depth=1, reliability=reliable, durability=latched)}
    return {
        topic: node.create_lifecycle_publisher(
            kind,
            prefix + topic,
            profiles.get(topic, usual),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        for topic, kind in topics.items()
    }


def starved_warning(node: Node, publishers: Publishers, sizes: Mapping[str, int]) -> str:
    """A warning on best-effort subscribers of outputs that are too large for them, else "".

    ``sizes`` are those of the last messages, bytes.
    """
    room = shared_memory_size()
    starved = []
    for topic, size in list(sizes.items()):
        publisher = publishers.get(topic)
        if publisher is None or size <= room or not publisher.get_subscription_count():
            continue
        readers = node.get_subscriptions_info_by_topic(publisher.topic_name)
        if any(r.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for r in readers):
            starved.append(f"{publisher.topic_name} ({size / 2**20:.1f} MB)")
    if not starved:
        return ""
    return (
        f"Best-effort subscribers of {', '.join(starved)} will miss most messages: this node"
        f" has {room / 2**20:.1f} MB of shared memory in Fast DDS. Set"
        " FASTDDS_DEFAULT_PROFILES_FILE (FASTRTPS_DEFAULT_PROFILES_FILE up to Jazzy) to"
        " share/dpt_ros/config/fastdds.xml, or unset it and FASTDDS_BUILTIN_TRANSPORTS."
    )


def far_warning(networks: Networks, settings: Settings) -> str:
    """A warning on points beyond the range of depth, else "": they clear space in a costmap that
    was not measured."""
    limit = depth_limit(networks, settings)
    if settings.points_far <= limit:
        return ""
    return (
        f"points.far is {settings.points_far:g} m, but depth ends at {limit:.3g} m (max_range"
        " or the network): obstacles between them are cleared from a costmap. Set points.far"
        " lower or max_range higher."
    )
