# SPDX-License-Identifier: Apache-2.0
"""What rclpy's distributions do differently, from Humble on: the rest of the package asks here.

Humble (rclpy 3.3) lacks what is looked for below; test/ros/test_humble.py compares what the
package uses with the names that it has. It was not run on Humble itself.
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

__all__ = ["UnsupportedEventTypeError", "call_on_parameters", "subscribe", "subscription_events"]


def subscription_events(
    matched: Callable[[Any], None] | None = None, **callbacks: Callable[[Any], None]
) -> SubscriptionEventCallbacks:
    """Callbacks for the events of a subscription.

    Args:
        matched: called when a publisher comes or goes; never on Humble.
        callbacks: incompatible_qos, message_lost and others that every distribution has.
    """
    if (
        matched is not None
        and "matched" in inspect.signature(SubscriptionEventCallbacks).parameters
    ):
        callbacks["matched"] = matched
    return SubscriptionEventCallbacks(**callbacks)


def subscribe(
    node: Node,
    msg_type: type,
    topic: str,
    take: Callable[[Any, Mapping[str, Any]], None],
    *arguments: Any,
    **options: Any,
) -> Subscription:
    """A subscription whose callback takes the message and what rclpy tells about it.

    Args:
        node: subscribes.
        msg_type: of the messages.
        topic: its name.
        take: called with each message and its information, which is empty on Humble.
        arguments: more of ``Node.create_subscription``, beginning with the QoS.
        options: keyword arguments of it.
    """

    def take_alone(msg: Any) -> None:
        take(msg, {})

    informed = hasattr(Subscription, "CallbackType")
    return node.create_subscription(
        msg_type, topic, take if informed else take_alone, *arguments, **options
    )


def call_on_parameters(
    node: Node,
    before: Callable[[list[Parameter[Any]]], list[Parameter[Any]]],
    judge: Callable[[list[Parameter[Any]]], SetParametersResult],
    after: Callable[[list[Parameter[Any]]], None],
) -> None:
    """Have a node's changes of parameters looked at.

    Args:
        node: whose parameters.
        before: gives the changes that are made instead of those asked for.
        judge: refuses changes, or not.
        after: takes what was accepted; on Humble just before it is stored.
    """
    if hasattr(node, "add_pre_set_parameters_callback"):
        node.add_pre_set_parameters_callback(before)
        node.add_on_set_parameters_callback(judge)
        node.add_post_set_parameters_callback(after)
        return

    def all_at_once(changes: list[Parameter[Any]]) -> SetParametersResult:
        changes[:] = before(changes)  # rclpy stores what is in the list afterwards
        result = judge(changes)
        if result.successful:
            after(changes)
        return result

    node.add_on_set_parameters_callback(all_at_once)
