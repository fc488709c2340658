# SPDX-License-Identifier: Apache-2.0
"""The launch file with the real launch_ros, where it is installed and the package is sourced."""

from __future__ import annotations

import shutil
import signal

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("launch_ros")

from ros_processes import RANDOM_NETWORKS, Domain, Process, ros_domain
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from dpt_ros.ros.messages import image_message

NETWORKS = ("depth_network", "label_network", "depth_weights", "label_weights")


def launch(domain: Domain, **given: str) -> Process:
    """``ros2 launch dpt_ros dpt.launch.py`` with random networks and the given arguments."""
    ros2 = shutil.which("ros2")
    assert ros2 is not None
    networks = {name: str(RANDOM_NETWORKS[name]) for name in NETWORKS}
    words = [f"{name}:={value}" for name, value in {**networks, **given}.items()]
    return domain.start(ros2, "launch", "dpt_ros", "dpt.launch.py", *words)


def test_the_launch_file_brings_the_node_to_active_under_its_namespace_and_remaps() -> None:
    with ros_domain() as domain:
        launched = launch(domain, namespace="robot", image="/cam/image_raw")
        camera = domain.publisher(Image, "/cam/image_raw")
        depths = domain.listen(Image, "/robot/depth/image")
        msg = image_message(np.zeros((64, 96, 3), np.uint8), "rgb8", Header(frame_id="cam"))
        domain.spin_until(lambda: camera.publish(msg) or domain.spin_for(0.2) or depths, 60)
        assert depths[0].header.frame_id == "cam"
        code, _ = launched.end(signal.SIGINT)
        assert code == 0
        assert "process has finished cleanly" in launched.output
        assert "Traceback" not in launched.output


def test_a_wrong_argument_is_a_sentence_in_the_log() -> None:
    with ros_domain() as domain:
        launched = launch(domain, device="tpu")
        launched.wait_for("device is 'tpu', but must be auto, cpu, cuda or cuda:N.")
        launched.end(signal.SIGINT)
