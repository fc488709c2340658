# SPDX-License-Identifier: Apache-2.0
"""Plays a bag at the rate it was recorded, where ``ros2 bag`` is not installed."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import rclpy
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.interfaces import QosDurability

from dpt_ros.bag.reader import BagError, BagReader
from dpt_ros.bag.salvage import Channel
from dpt_ros.ros.messages.types import TRANSPORTS, base_topic, message_class
from dpt_ros.ros.share import transport_environment

_SETTLED = 1.0  # seconds; longer than a node takes to adapt its QoS to the publishers
_DELIVERY = Duration(seconds=2)


def play(
    node: Node,
    reader: BagReader,
    topics: Sequence[str],
    also: Sequence[str] = (),
    rate: float = 1.0,
    wait: float = 30.0,
) -> list[tuple[int, int]]:
    """Publish the messages of ``topics`` as serialised in the bag.

    Args:
        node: publishes, under its namespace and remaps.
        topics: names as in the bag; without a leading slash they are published under the node's
            namespace. Where the bag has an image as CompressedImage only, that is played. Playing
            starts when the first topic has a subscriber.
        also: more topics, which may be missing.
        rate: 2.0 plays twice as fast as recorded.
        wait: seconds to wait for that subscriber.

    Returns:
        (time in the bag, time of publishing by time.monotonic_ns), nanoseconds, per message of
        the first topic.

    Raises:
        BagError: a topic is not in the bag or its type not installed, or the first topic had no
            subscriber in time.
    """
    names = _names(reader, topics, also, node.get_namespace())
    publishers: dict[str, Publisher] = {}
    for topic, name in names.items():
        channel = reader.channels[topic]
        try:
            kind = _message_class(channel.msgtype)
        except BagError as error:
            if not {name, base_topic(name)}.isdisjoint(topics):
                raise
            _print(f"{topic} is not played. {error}")
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
        for publisher in publishers.values():  # undelivered messages would end with the publisher
            publisher.wait_for_all_acked(_DELIVERY)
    return sent


def _names(
    reader: BagReader, topics: Sequence[str], also: Sequence[str], namespace: str = "/"
) -> dict[str, str]:
    """Names to publish under, by topic of the bag, in the order given.

    A name without a leading slash may be in the bag with the namespace or without.
    """
    there = {topic.lstrip("/"): topic for topic in reader.channels}
    names: dict[str, str] = {}
    missing = []
    for name in dict.fromkeys((*topics, *also)):
        for form in (name + end for end in TRANSPORTS.values()):
            full = form if form.startswith("/") else f"{namespace}/{form}"
            if topic := there.get(full.lstrip("/")) or there.get(form.lstrip("/")):
                names.setdefault(topic, form)
                break
        else:
            missing += [name] if name in topics else []
    if missing:
        raise BagError(
            f"{reader.path} has no topic {', '.join(sorted(missing))}; its topics are"
            f" {', '.join(sorted(reader.channels))}."
        )
    return names


def _profile(channel: Channel) -> QoSProfile:
    """Transient local where it was recorded as such (tf_static)."""
    offered = [getattr(qos, "durability", None) for qos in channel.qos]
    profile = QoSProfile(depth=10)
    if offered and all(durability == QosDurability.TRANSIENT_LOCAL for durability in offered):
        profile.durability = DurabilityPolicy.TRANSIENT_LOCAL
    return profile


def _message_class(name: str) -> Any:
    """The class of a type's name, which comes from the bag and is not trusted."""
    package = name.partition("/msg/")[0]
    # Other packages are not imported: that could run any program.
    if not re.fullmatch(r"[a-z][a-z0-9_]*_(msgs|interfaces)", package):
        raise BagError(f"The bag has messages of '{name}', which is no message type of ROS.")
    if (kind := message_class(name)) is None:
        raise BagError(f"The bag has messages of '{name}', which is not installed.")
    return kind


def _wait_for_subscriber(publisher: Publisher, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    since, before = time.monotonic(), 0
    # Until the number is steady: a new subscriber may still change its QoS.
    while not before or time.monotonic() - since < _SETTLED:
        count = publisher.get_subscription_count()
        if count != before:
            since, before = time.monotonic(), count
        if not count and time.monotonic() > deadline:
            raise BagError(
                f"{publisher.topic_name} had no subscriber within {seconds:g} s; start the node"
                " first, with the same namespace and ROS_DOMAIN_ID."
            )
        time.sleep(0.02)


def run(args: argparse.Namespace, ros_args: list[str]) -> int:
    """dpt_bag_player with its arguments parsed. Returns the exit code."""
    # Fast DDS reads it when the first node is made.
    os.environ.update(transport_environment())
    rclpy.init(args=ros_args)
    node = Node("bag_player")
    try:
        reader = BagReader(args.bag)
        sent = play(node, reader, args.topics, args.also, args.rate, args.wait)
    except (BagError, OSError) as error:
        _print(str(error))
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut this short
        node.destroy_node()
        rclpy.try_shutdown()
    if args.times:
        args.times.write_text("".join(f"{bag},{wall}\n" for bag, wall in sent))
    for message in (*reader.warnings, *reader.problems):
        _print(message)
    return 3 if reader.problems else 0


def _print(message: str) -> None:
    print(f"dpt_bag_player: {message}", file=sys.stderr, flush=True)
