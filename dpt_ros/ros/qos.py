# SPDX-License-Identifier: Apache-2.0
"""A node's parameters ``qos_overrides``: rclpy takes them when a topic is made; checked here."""

from __future__ import annotations

from collections.abc import Iterator

from rclpy.node import Node
from rclpy.qos import HistoryPolicy, ReliabilityPolicy

_PREFIX = "qos_overrides."
_POLICIES = {"history": HistoryPolicy, "reliability": ReliabilityPolicy}
_IMAGE_RELIABILITIES = ("auto", "reliable", "best_effort")


def qos_problems(node: Node, images: tuple[str, ...] = ()) -> Iterator[str]:
    """Error messages on values that cannot be used.

    Args:
        node: with the parameters.
        images: relative names of the topics whose reliability may be "auto".
    """
    auto = tuple(node.resolve_topic_name(image) for image in images)
    for name in _given(node):
        value, policy = node._parameter_overrides[name].value, name.rpartition(".")[2]
        if policy == "depth" and (type(value) is not int or value < 0):
            yield f"{name} is {value!r}, but must be an integer of at least 0."
        elif policy in _POLICIES:
            allowed = [key.lower() for key in _POLICIES[policy].__members__ if key != "UNKNOWN"]
            if policy == "reliability" and name.removeprefix(_PREFIX).startswith(auto):
                allowed = list(_IMAGE_RELIABILITIES)
            if value not in allowed:
                yield f"{name} is {value!r}, but must be one of {', '.join(allowed)}."


def unused_qos(node: Node) -> Iterator[str]:
    """Warnings on parameters that no topic has taken, once all topics are made."""
    for name in _given(node):
        if not node.has_parameter(name):
            yield (
                f"{name} is not used: with these settings the node has no topic of that name, or"
                " it is none of history, depth and reliability of a publisher or subscription."
            )


def _given(node: Node) -> list[str]:
    return [name for name in node._parameter_overrides if name.startswith(_PREFIX)]
