# SPDX-License-Identifier: Apache-2.0
"""Plays a bag's messages at the pace they were recorded, where ``ros2 bag`` is missing."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import rclpy
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.interfaces import QosDurability

from dpt_ros.bag.player_command import player_arguments
from dpt_ros.bag.reader import BagError, BagReader
from dpt_ros.bag.salvage import Channel
from dpt_ros.ros.messages.error import one_line

_SETTLED = 1.0  # seconds; longer than a node takes to choose its QoS by what is published
_DELIVERY = Duration(seconds=2)


class NoSubscriber(Exception):
    """Nobody came to listen in time."""


def play(
    node: Node,
    reader: BagReader,
    topics: Sequence[str],
    also: Sequence[str] = (),
    rate: float = 1.0,
    wait: float = 30.0,
    say: Callable[[str], None] = lambda sentence: None,
) -> list[tuple[int, int]]:
    """Publish the messages of ``topics``, unchanged, as serialised in the bag.

    Args:
        node: publishes, under its namespace and remaps.
        reader: of the bag.
        topics: names as in the bag; without a leading slash they are published under the node's
            namespace. Of an image that the bag has compressed only, that is played. The first
            one's subscriber is waited for.
        also: the same, of topics that need not be there.
        rate: 2.0 plays twice as fast as recorded.
        wait: seconds to wait for that subscriber.
        say: takes a sentence about a topic of ``also`` that cannot be played.

    Returns:
        (time in the bag, time of publishing by time.monotonic_ns), nanoseconds, per message of
        the first topic.

    Raises:
        NoSubscriber: nobody subscribed to the first topic in time.
        BagError: a topic is not in the bag, or holds what is no message.
    """
    names = _names(reader, topics, also)
    publishers: dict[str, Publisher] = {}
    for topic, name in names.items():
        channel = reader.channels[topic]
        try:
            kind = _message_class(channel.msgtype)
        except BagError as error:
            if not {name, name.removesuffix("/compressed")}.isdisjoint(topics):
                raise
            say(f"{topic} is not played. {error}")
            continue
        publishers[topic] = node.create_publisher(kind, name, _profile(channel))
    first = next(iter(names))
    _wait_for_subscriber(publishers[first], wait)
    sent = []
    start_wall = time.monotonic_ns()
    start_bag = None
    for message in reader.messages(publishers):
        start_bag = message.time if start_bag is None else start_bag
        due = start_wall + (message.time - start_bag) / rate
        time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
        if not rclpy.ok(context=node.context):
            break
        if message.topic == first:
            sent.append((message.time, time.monotonic_ns()))
        publishers[message.topic].publish(message.data)
    else:
        for publisher in publishers.values():  # what is on its way would end with the publisher
            publisher.wait_for_all_acked(_DELIVERY)
    return sent


def _names(reader: BagReader, topics: Sequence[str], also: Sequence[str]) -> dict[str, str]:
    """Names to publish under, by topic of the bag, in the order asked for.

    Raises:
        BagError: one of ``topics`` is not there.
    """
    there = {topic.lstrip("/"): topic for topic in reader.channels}
    names: dict[str, str] = {}
    missing = []
    for name in dict.fromkeys((*topics, *also)):
        for form in (name, f"{name}/compressed"):
            if (topic := there.get(form.lstrip("/"))) is not None:
                names.setdefault(topic, form)
                break
        else:
            missing += [name] if name in topics else []
    if missing:
        raise BagError(
            f"{reader.path} has no topic {', '.join(sorted(missing))}; it has"
            f" {', '.join(sorted(reader.channels))}."
        )
    return names


def _profile(channel: Channel) -> QoSProfile:
    """As recorded: what was latched (tf_static) is there for who comes later."""
    offered = [getattr(qos, "durability", None) for qos in channel.qos]
    profile = QoSProfile(depth=10)
    if offered and all(durability == QosDurability.TRANSIENT_LOCAL for durability in offered):
        profile.durability = DurabilityPolicy.TRANSIENT_LOCAL
    return profile


def _message_class(name: str) -> Any:
    """The class of a type as a bag names it, which may name anything."""
    package, _, message = name.partition("/msg/")
    # Other packages are not even imported: that alone can run a program.
    if not re.fullmatch(r"[a-z][a-z0-9_]*_(msgs|interfaces)", package):
        raise BagError(one_line(f"The bag has messages of '{name}', which is no type of ROS."))
    try:
        return getattr(import_module(f"{package}.msg"), message)
    except (ImportError, AttributeError) as error:
        raise BagError(
            one_line(f"The bag has messages of '{name}', which are not installed here.")
        ) from error


def _wait_for_subscriber(publisher: Publisher, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    since, before = time.monotonic(), 0
    # A while without change: a subscriber that has just come may still renew its QoS.
    while not before or time.monotonic() - since < _SETTLED:
        count = publisher.get_subscription_count()
        if count != before:
            since, before = time.monotonic(), count
        if not count and time.monotonic() > deadline:
            raise NoSubscriber(
                f"Nobody subscribed to {publisher.topic_name} within {seconds:g} s; start the "
                "node first, and give it the same namespace and ROS_DOMAIN_ID."
            )
        time.sleep(0.02)


def main(argv: Sequence[str] | None = None) -> int:
    """Play the bag that the arguments name. Returns the exit code."""
    args, ros_args = player_arguments(argv)
    rclpy.init(args=ros_args)
    node = Node("bag_player")
    try:
        reader = BagReader(args.bag)
        sent = play(node, reader, args.topics, args.also, args.rate, args.wait, _say)
    except (NoSubscriber, BagError, OSError) as error:
        _say(str(error))
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut this short
        node.destroy_node()
        rclpy.try_shutdown()
    if args.times:
        args.times.write_text("".join(f"{bag},{wall}\n" for bag, wall in sent))
    for sentence in (*reader.remarks, *reader.notes):
        _say(sentence)
    return 3 if reader.notes else 0


def _say(sentence: str) -> None:
    print(f"dpt_bag_player: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
