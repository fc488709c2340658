# SPDX-License-Identifier: Apache-2.0
"""Differences between the versions of rclpy, from Humble on, in one place.

Humble (rclpy 3.3) lacks what is looked for below; test/ros/test_humble.py compares the names that
the package uses with Humble's. It was not run on Humble itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.subscription import Subscription

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

__all__ = ["UnsupportedEventTypeError"]


def subscription_events(
    matched: Callable[[Any], None] | None = None, **callbacks: Callable[[Any], None]
) -> SubscriptionEventCallbacks:
    """Callbacks for the events of a subscription, by name.

    ``matched`` is called when a publisher comes or goes; never on Humble.
    """
    known = inspect.signature(SubscriptionEventCallbacks).parameters
    if matched is not None and "matched" in known:
        callbacks["matched"] = matched
    return SubscriptionEventCallbacks(**callbacks)


def subscribe(
    node: Node,
    msg_type: type,
    topic: str,
    callback: Callable[[Any, Mapping[str, Any]], None],
    *arguments: Any,
    **options: Any,
) -> Subscription:
    """``Node.create_subscription`` with a callback that takes the message and its info.

    On Humble that is empty.
    """
    has_info = hasattr(Subscription, "CallbackType")
    take: Any = callback if has_info else lambda msg: callback(msg, {})
    return node.create_subscription(msg_type, topic, take, *arguments, **options)


def add_parameter_callbacks(
    node: Node,
    pre_set: Callable[[list[Parameter[Any]]], list[Parameter[Any]]],
    on_set: Callable[[list[Parameter[Any]]], SetParametersResult],
    post_set: Callable[[list[Parameter[Any]]], None],
) -> None:
    """Add the three callbacks that newer versions call at a change of parameters.

    ``pre_set`` returns the changes to be made instead of those asked for, ``on_set`` accepts or
    refuses them, ``post_set`` gets accepted ones; on Humble just before they are stored.
    """
    if hasattr(node, "add_pre_set_parameters_callback"):
        node.add_pre_set_parameters_callback(pre_set)
        node.add_on_set_parameters_callback(on_set)
        node.add_post_set_parameters_callback(post_set)
        return

    def all_at_once(changes: list[Parameter[Any]]) -> SetParametersResult:
        changes[:] = pre_set(changes)  # rclpy stores what is in the list afterwards
        result = on_set(changes)
        if result.successful:
            post_set(changes)
        return result

    node.add_on_set_parameters_callback(all_at_once)
