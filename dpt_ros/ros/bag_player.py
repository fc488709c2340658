# SPDX-License-Identifier: Apache-2.0
"""Plays a bag's messages at the pace they were recorded, where ``ros2 bag`` is missing."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rosbags.highlevel import AnyReader, AnyReaderError


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
        AnyReaderError: the bag cannot be read.
    """
    with AnyReader([bag]) as reader:
        connections = [c for c in reader.connections if c.topic.lstrip("/") in topics]
        missing = set(topics) - {c.topic.lstrip("/") for c in connections}
        if missing:
            raise ValueError(
                f"{bag} has no topic {', '.join(sorted(missing))}; it has "
                f"{', '.join(sorted(reader.topics))}."
            )
        publishers = {
            c.topic: node.create_publisher(
                _message_class(c.msgtype), c.topic.lstrip("/"), QoSProfile(depth=10)
            )
            for c in connections
        }
        _wait_for_subscriber(publishers["/" + topics[0]], wait)
        sent = []
        start_wall, start_bag = time.monotonic_ns(), reader.start_time
        for connection, stamp, data in reader.messages(connections):
            due = start_wall + (stamp - start_bag) / rate
            time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
            if not rclpy.ok(context=node.context):
                break
            if connection.topic == "/" + topics[0]:
                sent.append((stamp, time.monotonic_ns()))
            publishers[connection.topic].publish(bytes(data))
        return sent


def _message_class(name: str) -> Any:
    package, _, message = name.partition("/msg/")
    return getattr(import_module(f"{package}.msg"), message)


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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: dpt_bag_player my_bag --topics image camera_info"
    )
    parser.add_argument("bag", type=Path, help="rosbag2 folder or mcap file")
    parser.add_argument("--topics", nargs="+", default=["image", "camera_info"], metavar="NAME")
    parser.add_argument("--rate", type=float, default=1.0, help="speed, 1 as recorded")
    parser.add_argument(
        "--wait", type=float, default=30.0, help="seconds to wait for a subscriber"
    )
    parser.add_argument("--times", type=Path, help="write when each image was published, as CSV")
    args, ros_args = parser.parse_known_args(argv)
    if not args.rate > 0:
        parser.error(f"--rate is {args.rate:g}, but must be positive.")
    rclpy.init(args=ros_args)
    node = Node("bag_player")
    try:
        sent = play(node, args.bag, args.topics, args.rate, args.wait)
    except (NoSubscriber, ValueError, AnyReaderError, OSError) as error:
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
