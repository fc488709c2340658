# SPDX-License-Identifier: Apache-2.0
"""Depth, points and labels for Nav2, from the synthetic camera or from a real one.

Starts dpt.launch.py, whose other arguments may be given here too, depthimage_to_laserscan, and
optionally a local costmap of Nav2 without planner or controller, with the parameters of
config/nav2_costmap.yaml. The costmap needs tf from odom to base_link and to the camera, which the
synthetic camera broadcasts as a robot does. See docs/navigation.md.
"""

import os

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import LifecycleNode, Node

# Name, default, description.
ARGUMENTS = [
    ("camera", "sim", "sim: start the synthetic camera; own: use the topics below"),
    ("kind", "room", "world of the synthetic camera: room, corridor or yard"),
    ("image", "image", "topic of the camera image"),
    ("camera_info", "camera_info", "topic of its calibration"),
    ("odom", "odom", "topic of the odometry"),
    ("scan", "scan", "topic of a 2-D lidar from which the metric scale is estimated, if any"),
    (
        "namespace",
        "",
        "namespace of the nodes; change the topics in the costmap file accordingly",
    ),
    ("params_file", "", "parameter file of dpt; default: config/nav2_costmap.yaml"),
    (
        "costmap_file",
        "",
        "parameter file of Nav2; default: config/nav2_costmap.yaml, and nav2_semantic.yaml "
        "where semantic_segmentation_layer is installed",
    ),
    ("laserscan", "true", "true: start depthimage_to_laserscan"),
    (
        "camera_frame",
        "",
        "optical frame of your camera; the scan's camera_depth_frame is broadcast relative to it",
    ),
    ("costmap", "false", "true: start a local costmap of Nav2"),
    ("use_sim_time", "false", "true or false"),
]
# Pose of the synthetic robot's lidar in the camera's optical frame: level, 0.3 m below a camera
# that is pitched down by 5 degrees (dpt_ros.world.scan.level_mount). A real robot has tf.
SIM_SCANNER = "0.0 0.2989 0.0261 0.5213 -0.5213 0.4777 0.4777"
SIM_CAMERA_FRAME = "camera_optical_frame"
# x ahead, y to the left, z up, in an optical frame (REP 103): quaternion x y z w.
AHEAD_IN_OPTICAL = (0.5, -0.5, 0.5, 0.5)


def generate_launch_description() -> LaunchDescription:
    """The arguments, and what they start."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, default, text in ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = {name: context.launch_configurations[name] for name, _, _ in ARGUMENTS}
    if given["camera"] not in ("sim", "own"):
        raise ValueError(f"camera is '{given['camera']}', but must be sim or own.")
    share = get_package_share_directory("dpt_ros")
    config = os.path.join(share, "config", "nav2_costmap.yaml")
    costmap_file = given["costmap_file"] or config
    clock = {"use_sim_time": given["use_sim_time"].lower() == "true"}
    namespace = given["namespace"]
    topics = ("image", "camera_info", "odom", "scan")
    wanted = {name: given[name] for name in (*topics, "namespace", "use_sim_time")}
    wanted["params_file"] = given["params_file"] or config
    if given["camera"] == "sim":
        wanted["sensor_in_camera"] = SIM_SCANNER
    node = os.path.join(share, "launch", "dpt.launch.py")
    actions: list[LaunchDescriptionEntity] = [
        # First, since it also sets the environment variable of the Fast DDS profile.
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(node), launch_arguments=wanted.items()
        )
    ]
    if given["camera"] == "sim":
        actions.append(
            Node(
                package="dpt_ros",
                executable="dpt_camera_sim",
                namespace=namespace,
                parameters=[{"kind": given["kind"], "rate": 15.0}],
                remappings=[(name, given[name]) for name in topics],
                output="screen",
            )
        )
    if given["laserscan"].lower() == "true":
        if frame := given["camera_frame"] or (given["camera"] == "sim" and SIM_CAMERA_FRAME):
            actions.append(_depth_frame(frame, clock))
        actions.append(
            Node(
                package="depthimage_to_laserscan",
                executable="depthimage_to_laserscan_node",
                name="depthimage_to_laserscan",
                namespace=namespace,
                parameters=[costmap_file, clock],
                remappings=[
                    ("depth", "depth/image"),
                    ("depth_camera_info", "depth/camera_info"),
                    ("scan", "depth/scan"),
                ],
                output="screen",
            )
        )
    if given["costmap"].lower() == "true":
        files = [costmap_file]
        if not given["costmap_file"]:
            try:
                get_package_share_directory("semantic_segmentation_layer")
                files.append(os.path.join(share, "config", "nav2_semantic.yaml"))
            except PackageNotFoundError:
                text = "The costmap has no semantic layer: semantic_segmentation_layer is missing."
                actions.append(LogInfo(msg=text))
        actions += _costmap(files, clock)
    return actions


def _depth_frame(camera_frame: str, clock: dict[str, bool]) -> Node:
    """Broadcasts the frame of the scan, at the camera's origin."""
    words = [
        word
        for name, value in zip(("qx", "qy", "qz", "qw"), AHEAD_IN_OPTICAL, strict=True)
        for word in (f"--{name}", str(value))
    ]
    return Node(
        package="tf2_ros",
        executable="static_transform_publisher",
        name="camera_depth_frame_publisher",
        arguments=[*words, "--frame-id", camera_frame, "--child-frame-id", "camera_depth_frame"],
        parameters=[clock],
        output="screen",
    )


def _costmap(files: list[str], clock: dict[str, bool]) -> list[LaunchDescriptionEntity]:
    """A local costmap and the lifecycle manager that activates it."""
    costmap = LifecycleNode(
        package="nav2_costmap_2d",
        executable="nav2_costmap_2d",
        name="local_costmap",
        namespace="local_costmap",
        parameters=[*files, clock],
        output="screen",
    )
    manager = Node(
        package="nav2_lifecycle_manager",
        executable="lifecycle_manager",
        name="lifecycle_manager_costmap",
        # A costmap by itself makes no bond, for which the manager would wait.
        parameters=[
            {
                "node_names": ["local_costmap/local_costmap"],
                "autostart": True,
                "bond_timeout": 0.0,
            },
            clock,
        ],
        output="screen",
    )
    return [costmap, manager]
