# SPDX-License-Identifier: Apache-2.0
"""A camera driver with the middleware's defaults, as a process of its own."""

from __future__ import annotations

import contextlib
import sys
import time

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from dpt_ros.ros.messages.image import image_message


def camera_picture(width: int, height: int) -> np.ndarray:
    """What `stock_camera` shows: (H, W, 3) uint8."""
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


def stock_camera(width: int, height: int, frames: int, reliable: bool, fast: bool) -> None:
    """A camera driver: waits for a subscriber, publishes at 10 Hz, and prints how many it sent.

    Args:
        width, height: of the images, rgb8.
        frames: how many.
        reliable: or best effort.
        fast: fill messages by our own fast path instead of the plain setters.
    """
    rclpy.init()
    node = Node("camera")
    reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
    publisher = node.create_publisher(
        Image,
        "image",
        QoSProfile(depth=1, reliability=reliability),
    )
    while not publisher.get_subscription_count():
        time.sleep(0.02)
    time.sleep(1.0)  # the subscriber may still choose its reliability
    pixels = camera_picture(width, height)
    for number in range(frames):
        header = Header(frame_id="cam")
        header.stamp.sec = number
        if fast:
            msg = image_message(pixels, "rgb8", header)
        else:
            msg = Image(header=header, width=width, height=height, encoding="rgb8", step=3 * width)
            msg.data = pixels.tobytes()
        publisher.publish(msg)
        time.sleep(0.1)
    time.sleep(0.5)
    print(f"sent {frames}", flush=True)
    while rclpy.ok():  # stays, like a driver, until it is ended; on Jazzy no signal ends a sleep
        time.sleep(0.1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        stock_camera(*map(int, sys.argv[1:4]), *(word == "1" for word in sys.argv[4:6]))
