# SPDX-License-Identifier: Apache-2.0
"""Plays a bag's messages at the pace they were recorded, where ``ros2 bag`` is missing."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection

from dpt_ros.ros.command_line import player_arguments
from dpt_ros.ros.messages import one_line


class BagError(ValueError):
    """A bag cannot be read; the text is a sentence."""


class NoSubscriber(Exception):
    """Nobody came to listen in time."""


def play(
    node: Node, bag: Path, topics: list[str], rate: float = 1.0, wait: float = 30.0
) -> list[tuple[int, int]]:
    """Publish the messages of ``topics``, unchanged, as serialised in the bag.

    Args:
        node: publishes, under its namespace and remaps.
        bag: a rosbag2 folder or an mcap file.
        topics: names without a leading slash; the first one's subscriber is waited for.
        rate: 2.0 plays twice as fast as recorded.
        wait: seconds to wait for that subscriber.

    Returns:
        (time in the bag, time of publishing by time.monotonic_ns), nanoseconds, per message of
        the first topic.

    Raises:
        NoSubscriber: nobody subscribed to the first topic in time.
        ValueError: a topic is not in the bag.
        BagError: the bag cannot be read, or holds what is no message.
    """
    with ExitStack() as stack:
        with _reading(bag):
            reader = stack.enter_context(AnyReader([bag]))
            start_bag = reader.start_time
        connections = [c for c in reader.connections if c.topic.lstrip("/") in topics]
        missing = set(topics) - {c.topic.lstrip("/") for c in connections}
        if missing:
            raise BagError(
                one_line(
                    f"{bag} has no topic {', '.join(sorted(missing))}; it has "
                    f"{', '.join(sorted(reader.topics)) or 'none'}."
                )
            )
        publishers = {
            c.topic.lstrip("/"): node.create_publisher(
                _message_class(c.msgtype), c.topic.lstrip("/"), QoSProfile(depth=10)
            )
            for c in connections
        }
        _wait_for_subscriber(publishers[topics[0]], wait)
        sent = []
        start_wall = time.monotonic_ns()
        for connection, stamp, data in _messages(reader, connections, bag):
            due = start_wall + (stamp - start_bag) / rate
            time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
            if not rclpy.ok(context=node.context):
                break
            topic = connection.topic.lstrip("/")
            if topic == topics[0]:
                sent.append((stamp, time.monotonic_ns()))
            publishers[topic].publish(data)
        return sent


@contextmanager
def _reading(bag: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file can make a reader raise anything
        raise BagError(
            f"{bag} cannot be read as a bag: {one_line(str(error) or type(error).__name__)}; give"
            " a whole rosbag2 folder or .mcap file."
        ) from error


def _messages(
    reader: AnyReader, connections: Sequence[Connection], bag: Path
) -> Iterator[tuple[Connection, int, bytes]]:
    with _reading(bag):
        for connection, stamp, data in reader.messages(connections):
            yield connection, stamp, bytes(data)


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
    since = None
    # Half a second without change: a subscriber that has just come may still renew its QoS.
    while since is None or time.monotonic() - since < 0.5:
        count = publisher.get_subscription_count()
        since = (since or time.monotonic()) if count else None
        if time.monotonic() > deadline:
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
        sent = play(node, args.bag, args.topics, args.rate, args.wait)
    except (NoSubscriber, BagError, OSError) as error:
        print(f"dpt_bag_player: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut this short
        node.destroy_node()
        rclpy.try_shutdown()
    if args.times:
        args.times.write_text("".join(f"{bag},{wall}\n" for bag, wall in sent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
