# SPDX-License-Identifier: Apache-2.0
"""A camera driver as a process: images whose stamps say what they are, and how many it sent."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from soak.frames import image_of

_LAST = 3  # frames at the end that come slowly, so that none before them is lost unseen


class Camera(Node):
    """Publishes image and camera_info; knows how many images it sent."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__("camera")
        self._width, self._height, self._encoding = args.width, args.height, args.encoding
        self._jpeg = args.encoding == "jpeg"
        reliability = (
            ReliabilityPolicy.BEST_EFFORT if args.best_effort else ReliabilityPolicy.RELIABLE
        )
        kind, topic = (CompressedImage, "image/compressed") if self._jpeg else (Image, "image")
        self.images = self.create_publisher(
            kind, topic, QoSProfile(depth=args.depth, reliability=reliability)
        )
        self._infos = self.create_publisher(CameraInfo, "camera_info", 1)
        self.sent = 0

    def publish(self) -> None:
        """Send the next image, stamped now."""
        size = self._width, self._height
        encoding = "rgb8" if self._jpeg else self._encoding
        info, image = image_of(time.time_ns(), *size, self.sent, encoding)
        self._infos.publish(info)
        self.images.publish(_compressed(image) if self._jpeg else image)
        self.sent += 1


def _compressed(image: Image) -> CompressedImage:
    """As image_transport does it, with its default quality."""
    rgb = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])
    form = "rgb8; jpeg compressed bgr8"
    return CompressedImage(header=image.header, format=form, data=data.tobytes())


def main() -> None:
    """Publish until the frames are sent or a signal comes, then some more slowly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("width", type=int, help="pixels, a multiple of 8")
    parser.add_argument("height", type=int, help="pixels, a multiple of 8")
    parser.add_argument("--encoding", default="rgb8", choices=("rgb8", "bgr8", "mono8", "jpeg"))
    parser.add_argument("--rate", type=float, default=10.0, help="frames per second")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="how long")
    parser.add_argument("--depth", type=int, default=1, help="of the publisher's history")
    parser.add_argument("--best-effort", action="store_true", help="offer no more than that")
    parser.add_argument("--wait", action="store_true", help="begin when somebody listens")
    args, ros_args = parser.parse_known_args()
    rclpy.init(args=ros_args)
    camera = Camera(args)
    while args.wait and not camera.images.get_subscription_count():
        time.sleep(0.02)
    if args.wait:
        time.sleep(1.0)  # the subscriber may still choose its reliability
    begin = time.monotonic()
    print(f"first image at {begin:.6f}", flush=True)
    while time.monotonic() - begin < args.seconds:
        camera.publish()
        time.sleep(max(0.0, begin + camera.sent / args.rate - time.monotonic()))
    for _ in range(_LAST):
        time.sleep(0.5)
        camera.publish()
    time.sleep(0.5)
    print(f"sent {camera.sent}", flush=True)
    while rclpy.ok():
        time.sleep(0.05)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except rclpy_implementation.RCLError:
        if rclpy.ok():  # else a signal came while an image was published
            raise
