# SPDX-License-Identifier: Apache-2.0
"""The launch file with the real launch_ros, where it is installed and the package is sourced."""

from __future__ import annotations

import shutil
import signal

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("launch_ros")

from ament_index_python.packages import get_package_share_directory
from helpers.ros_processes import RANDOM_NETWORKS, Domain, Process, ros_domain
from launch import LaunchContext
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node
from launch_ros.utilities import evaluate_parameters
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from dpt_ros.ros.messages.image import image_message

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


def demo(**given: str) -> list[Node]:
    """The nodes that ``nav_demo.launch.py`` would start with the given arguments."""
    share = get_package_share_directory("dpt_ros")
    source = PythonLaunchDescriptionSource(f"{share}/launch/nav_demo.launch.py")
    context = LaunchContext()
    context.launch_configurations.update(given)

    def nodes(entity: LaunchDescriptionEntity) -> list[Node]:
        if isinstance(entity, Node):
            return [entity]
        return [node for part in entity.visit(context) or [] for node in nodes(part)]

    return nodes(source.get_launch_description(context))


def parameters(node: Node) -> dict[str, object]:
    """Those that the launch file itself gives, evaluated, and "file", where the others are."""
    file, given = evaluate_parameters(LaunchContext(), node._Node__parameters)
    return {**given, "file": str(file)}


def test_the_navigation_demo_starts_node_camera_and_laserscan() -> None:
    started = {node.node_executable: node for node in demo()}
    assert list(started) == [
        "dpt_node",
        "dpt_camera_sim",
        "static_transform_publisher",
        "depthimage_to_laserscan_node",
    ]
    given = parameters(started["dpt_node"])
    assert given["file"].endswith("config/nav2_costmap.yaml")
    assert len(given["sensor_in_camera"]) == 7


def test_the_navigation_demo_takes_the_user_s_camera_and_adds_a_costmap() -> None:
    node, costmap, manager = demo(
        camera="own", laserscan="false", costmap="true", device="cpu", use_sim_time="true"
    )
    assert costmap.node_executable == "nav2_costmap_2d"
    assert manager.node_executable == "lifecycle_manager"
    # A costmap by itself makes no bond.
    parts = evaluate_parameters(LaunchContext(), manager._Node__parameters)
    assert {"bond_timeout": 0.0}.items() <= parts[0].items()
    given = parameters(node)
    assert (given["device"], given["use_sim_time"]) == ("cpu", True)
    assert "sensor_in_camera" not in given


def test_the_navigation_demo_refuses_another_camera() -> None:
    with pytest.raises(ValueError, match="camera is 'usb', but must be sim or own"):
        demo(camera="usb")
