# SPDX-License-Identifier: Apache-2.0
"""A short look at running ROS nodes: cameras, calibrations, dpt_ros nodes, the clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from dpt_ros.apps.doctor.finding import ERROR, Finding, Machine, brief, error, warning
from dpt_ros.apps.status.table import Status, of_dpt, statuses_of, worst
from dpt_ros.ros.messages.types import base_topic, message_class

_SECONDS = 3.0  # to discover others, and again for one message of each
_MOST = 8  # image topics that are looked at
_NO_CAMERA = (
    "Start the camera's driver, or dpt_camera_sim for a synthetic one; give both terminals the"
    " same ROS_DOMAIN_ID and RMW_IMPLEMENTATION."
)


def check_graph(machine: Machine) -> Iterator[Finding | str]:
    """What runs in the domain of this terminal."""
    yield "live look"
    try:
        import rclpy
        from rclpy.node import Node
    except Exception:  # reported by the group ros
        yield Finding("live look", "none without rclpy")
        return
    from dpt_ros.ros.share import transport_environment

    with suppress(FileNotFoundError):  # the check of the profile has said so
        os.environ.update(transport_environment())
    try:
        rclpy.init(args=[])
        node = Node("dpt_doctor", start_parameter_services=False, enable_rosout=False)
    except Exception as why:
        message = f"No node can be created: {brief(why)}."
        yield error("live look", message, "See middleware, domain and profile above.")
        return
    yield from _Look(node).findings()
    node.destroy_node()
    rclpy.try_shutdown()


class _Look:
    def __init__(self, node: Any) -> None:
        from diagnostic_msgs.msg import DiagnosticArray

        from dpt_ros.ros.camera.image_subscription import image_topics

        self._node = node
        self._statuses: dict[str, Status] = {}
        self._received: dict[str, list[Any]] = {}
        node.create_subscription(DiagnosticArray, "/diagnostics", self._receive, 20)
        self._spin(lambda: False)
        ours = {status.node for status in self._statuses.values()}

        def is_ours(topic: str) -> bool:
            infos = node.get_publishers_info_by_topic(topic)
            return {f"{one.node_namespace}/{one.node_name}".lstrip("/") for one in infos} <= ours

        self._cameras = [topic for topic in image_topics(node) if not is_ours(topic[0])]
        names = (name for name, _ in node.get_topic_names_and_types())
        self._published = {name for name in names if node.count_publishers(name)}

    def findings(self) -> Iterator[Finding]:
        for name, kind in self._cameras[:_MOST]:
            self._listen(name, kind)
            if (info := _info_topic(name)) in self._published:
                self._listen(info, "sensor_msgs/msg/CameraInfo")
        self._spin(lambda: all(self._received.values()))
        if not self._cameras:
            where = f"ROS_DOMAIN_ID {os.environ.get('ROS_DOMAIN_ID') or 0}"
            message = f"No image topic is published ({where}, looked for {_SECONDS:g} s)."
            yield warning("camera", message, _NO_CAMERA)
        for name, kind in self._cameras[:_MOST]:
            yield self._camera(name, kind)
        yield from self._nodes()

    def _receive(self, msg: Any) -> None:
        statuses = statuses_of(msg)
        if of_dpt(statuses):
            self._statuses.update({status.name: status for status in statuses})

    def _spin(self, done: Callable[[], bool]) -> None:
        import rclpy

        end = time.monotonic() + _SECONDS
        while rclpy.ok() and (left := end - time.monotonic()) > 0 and not done():
            rclpy.spin_once(self._node, timeout_sec=left)

    def _listen(self, topic: str, kind: str) -> None:
        """Subscribe as the publishers offer, if the type is installed."""
        from rclpy.qos import QoSProfile, ReliabilityPolicy

        if (kind_class := message_class(kind)) is None:
            return
        infos = self._node.get_publishers_info_by_topic(topic)
        reliable = all(i.qos_profile.reliability == ReliabilityPolicy.RELIABLE for i in infos)
        policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        take = self._received.setdefault(topic, []).append
        profile = QoSProfile(depth=1, reliability=policy)
        self._node.create_subscription(kind_class, topic, take, profile)

    def _camera(self, name: str, kind: str) -> Finding:
        from dpt_ros.engine.input.encodings import ENCODINGS

        if name not in self._received:
            package = kind.partition("/")[0].replace("_", "-")
            message = f"{name}: {kind} is not installed here."
            return warning("camera", message, f"apt install ros-$ROS_DISTRO-{package}.")
        if not self._received[name]:
            return warning(
                "camera",
                f"{name} has a publisher, but no {kind} came within {_SECONDS:g} s.",
                "Is it running? Else its images do not fit its shared memory: start the camera"
                " with the profile above, or let it offer reliable.",
            )
        msg, topic = self._received[name][0], _info_topic(name)
        encoding = getattr(msg, "encoding", "") or getattr(msg, "format", "")
        text = f"{name}: {kind} {encoding}"
        if kind == "sensor_msgs/msg/Image":
            text += f" {msg.width}x{msg.height}"
            if encoding not in ENCODINGS:
                message = f"{text}: dpt_node does not know this encoding."
                return error("camera", message, "Let it publish one of docs/topics.md, as rgb8.")
        infos = self._received.get(topic)
        if not infos and any(_info_topic(other) in self._received for other, _ in self._cameras):
            return Finding("camera", f"{text}; no {topic}")  # an image made from a camera's
        if not infos:
            message = f"{text}; no {topic}: no points, no metric anchors."
            return warning("camera", message, "Calibrate the camera, or remap camera_info.")
        if not infos[0].k[0]:
            message = f"{text}; {topic} is not calibrated: K is 0."
            return warning("camera", message, "Calibrate the camera: docs/camera.md.")
        return Finding("camera", f"{text}, {topic} {infos[0].width}x{infos[0].height}")

    def _nodes(self) -> Iterator[Finding]:
        clock = "/clock" in self._published
        names = sorted({status.node for status in self._statuses.values()})
        if not names:
            yield Finding("dpt_node", "none reports on /diagnostics")
        for name in names:
            own = [status for status in self._statuses.values() if status.node == name]
            text = "; ".join(f"{one.part}: {one.message.rstrip('.')}" for one in own)
            level = min(worst(own), ERROR)
            cure = "dpt_status shows its values; docs/troubleshooting.md." if level else ""
            yield Finding("dpt_node", f"/{name}: {text}.", cure, level)
            if not clock and self._uses_sim_time(name):
                message = f"/{name} has use_sim_time, but /clock has no publisher: time stands."
                cure = "Start the simulator or ros2 bag play --clock, or use_sim_time:=false."
                yield error("dpt_node", message, cure)
        if clock:
            yield Finding("/clock", "is published: nodes that follow it need use_sim_time:=true")

    def _uses_sim_time(self, name: str) -> bool:
        from rcl_interfaces.srv import GetParameters

        client = self._node.create_client(GetParameters, f"/{name}/get_parameters")
        future = client.call_async(GetParameters.Request(names=["use_sim_time"]))
        self._spin(future.done)
        return future.done() and bool(future.result().values[0].bool_value)


def _info_topic(image: str) -> str:
    """Where image_transport has the calibration of an image topic."""
    return f"{base_topic(image).rpartition('/')[0]}/camera_info"
