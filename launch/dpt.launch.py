# SPDX-License-Identifier: Apache-2.0
"""Starts the node dpt with a camera or a bag, and the Fast DDS profile that images need.

The node activates itself; with ``autostart: false`` in the parameter file a lifecycle manager does
it. A bag is played once the node is active.
"""

import importlib.util
import os
import sys

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    TimerAction,
)
from launch.event_handlers import OnProcessIO
from launch.events.process import ProcessIO
from launch_ros.actions import LifecycleNode, Node

from dpt_ros.ros.share import transport_environment

# Name, default, description. An empty argument keeps the value of the parameter file.
ARGUMENTS = [
    ("image", "image", "topic of the camera image"),
    ("camera_info", "camera_info", "topic of its calibration"),
    ("odom", "odom", "topic of the odometry"),
    ("scan", "anchors/scan", "topic of a 2-D lidar from which the metric scale is estimated"),
    (
        "sensor_in_camera",
        "",
        "pose of the lidar in the camera's optical frame, 'x y z qx qy qz qw'; default: from tf",
    ),
    ("namespace", "", "namespace of the node and its topics"),
    ("params_file", "", "parameter file; default: config/dpt.yaml of this package"),
    ("depth_network", "", "depth network: a name of the zoo, auto or none"),
    ("label_network", "", "label network: a name of the zoo, auto or none"),
    ("depth_weights", "", "weights of the depth network: a file, download or random"),
    ("label_weights", "", "weights of the label network: a file, download or random"),
    ("device", "", "auto, cpu, cuda or cuda:N"),
    ("precision", "", "auto, fp32, fp16 or bf16"),
    (
        "use_sim_time",
        "",
        "true or false; default: true with a bag played by rosbag2, else false",
    ),
    ("bag", "", "bag to play, with its clock"),
    ("rviz", "false", "true: show image, depth and labels in RViz"),
]
PARAMETERS = (
    "depth_network",
    "label_network",
    "depth_weights",
    "label_weights",
    "device",
    "precision",
)


def generate_launch_description() -> LaunchDescription:
    """The arguments, and what they start."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, default, text in ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = {name: context.launch_configurations[name] for name, _, _ in ARGUMENTS}
    config = os.path.join(get_package_share_directory("dpt_ros"), "config")
    bag = given["bag"]
    has_rosbag2 = importlib.util.find_spec("ros2bag") is not None
    sim_time = given["use_sim_time"].lower() == "true"
    if not given["use_sim_time"]:
        sim_time = bool(bag) and has_rosbag2
    overrides: dict[str, object] = {name: given[name] for name in PARAMETERS if given[name]}
    if given["sensor_in_camera"]:
        overrides["sensor_in_camera"] = [float(n) for n in given["sensor_in_camera"].split()]
    node = LifecycleNode(
        package="dpt_ros",
        executable="dpt_node",
        name="dpt",
        namespace=given["namespace"],
        parameters=[
            given["params_file"] or os.path.join(config, "dpt.yaml"),
            {**overrides, "use_sim_time": sim_time},
        ],
        remappings=[
            *((name, given[name]) for name in ("image", "camera_info", "odom")),
            ("anchors/scan", given["scan"]),
        ],
        output="screen",
    )
    actions: list[LaunchDescriptionEntity] = []
    for variable, value in transport_environment().items():
        actions.append(SetEnvironmentVariable(variable, value))
    if bag:
        topics = [given[name] for name in ("image", "camera_info", "odom", "scan")]
        if has_rosbag2:
            players = _rosbag2(bag, topics, given["namespace"])
        else:
            players = [_own_player(bag, topics, given["namespace"])]
        actions.append(_when_ready(node, players))
    if given["rviz"].lower() == "true":
        rviz = os.path.join(config, "dpt.rviz")
        actions.append(
            Node(
                package="rviz2",
                executable="rviz2",
                namespace=given["namespace"],
                arguments=["-d", rviz],
                parameters=[{"use_sim_time": sim_time}],
                remappings=[("image", given["image"]), ("odom", given["odom"])],
            )
        )
    return [*actions, node]


def _rosbag2(bag: str, topics: list[str], namespace: str) -> list[LaunchDescriptionEntity]:
    """rosbag2's player, and what lets it begin.

    It does not wait for subscribers: the node needs time to discover its publishers and to
    subscribe with the QoS that they offer. With --delay its clock would run meanwhile and then go
    back, and (0.26) the first 0.1 s of the bag would come at once, of which the node takes the
    newest image only. So it starts paused.
    """
    command = ["ros2", "bag", "play", bag, "--clock", "--start-paused"]
    # A bag's names are absolute; those without a slash are the node's, in its namespace.
    space = f"/{namespace.strip('/')}"
    relative = [name for name in topics if not name.startswith("/")] if namespace else []
    if relative:
        command += ["--remap", *(f"/{name}:={space}/{name}" for name in relative)]
    resume = ["/rosbag2_player/resume", "rosbag2_interfaces/srv/Resume"]
    start = ExecuteProcess(cmd=["ros2", "service", "call", *resume], output="log")
    player = ExecuteProcess(cmd=command, output="screen")
    return [player, TimerAction(period=3.0, actions=[start])]


def _own_player(bag: str, topics: list[str], namespace: str) -> ExecuteProcess:
    """Where rosbag2 is not installed: it waits for the subscription and publishes no clock."""
    image, *also = topics
    command = [sys.executable, "-m", "dpt_ros.apps.bag_player", bag]
    command += ["--topics", image, "--also", *also, "/tf", "/tf_static"]
    if namespace:
        command += ["--ros-args", "-r", f"__ns:=/{namespace.lstrip('/')}"]
    return ExecuteProcess(cmd=command, output="screen")


def _when_ready(
    node: LifecycleNode, actions: list[LaunchDescriptionEntity]
) -> RegisterEventHandler:
    """Run actions once, when the node logs that it is active.

    Not OnStateTransition: the node is active a tenth of a second after its start, often before
    launch and the node have discovered each other, and the event is then lost.
    """
    waiting = list(actions)

    def look(event: ProcessIO) -> list[LaunchDescriptionEntity] | None:
        if b"Ready on " not in event.text or not waiting:
            return None
        found = waiting[:]
        waiting.clear()
        return found

    return RegisterEventHandler(OnProcessIO(target_action=node, on_stdout=look, on_stderr=look))
