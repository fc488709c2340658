# SPDX-License-Identifier: Apache-2.0
"""Checks of ROS: distribution, messages, middleware and its profile."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

from dpt_ros.apps.doctor.finding import Finding, Machine, absent, brief, error, versions, warning

MESSAGES = (
    "builtin_interfaces", "diagnostic_msgs", "geometry_msgs", "lifecycle_msgs", "nav_msgs",
    "rcl_interfaces", "rosgraph_msgs", "sensor_msgs", "std_msgs", "std_srvs",
)  # fmt: skip
OPTIONAL = {
    "tf2_ros": "pose_source: tf, sensors beside the camera",
    "tf2_msgs": "tf of dpt_camera_sim and of bags",
    "vision_msgs": "semantic/label_info as LabelInfo, else JSON",
    "ffmpeg_image_transport_msgs": "image/ffmpeg",
    "foxglove_msgs": "image/foxglove",
}
"""Packages that the node works without, and what is lost then."""
_DISTRIBUTIONS = {"3": "humble", "7": "jazzy", "9": "kilted"}  # by the major version of rclpy
_LARGEST_DOMAIN = 232
_MISSING = "missing"


def check_ros(machine: Machine) -> Iterator[Finding | str]:
    """rclpy, its distribution, the messages, the middleware and its profile."""
    yield "rclpy"
    if asked := machine.env.get("RMW_IMPLEMENTATION"):
        yield _middleware(asked)
    sourced = machine.env.get("ROS_DISTRO", "")
    try:
        import_module("rclpy")
    except Exception as why:
        yield _no_rclpy(sourced, why)
        return
    number = next(iter(versions("rclpy", "ros-rclpy").values()), "0")
    own = _DISTRIBUTIONS.get(number.partition(".")[0], "")
    if sourced not in ("", "rolling", own) and own:
        yield error(
            "rclpy",
            f"{number} is of {own}, but ROS_DISTRO is {sourced}: two distributions in one process"
            " do not work.",
            "Open a terminal without source /opt/ros/..., or leave the environment of the wheels.",
        )
    else:
        yield Finding("rclpy", f"{number}, {own or sourced or 'of an unknown distribution'}")
    yield from _messages(own or sourced or "jazzy", "apt" if sourced else "pip")
    if not asked:
        yield "middleware"
        yield Finding("middleware", import_module("rclpy").get_rmw_implementation_identifier())
    yield _domain(machine)
    yield _profile(machine)


def _no_rclpy(sourced: str, why: Exception) -> Finding:
    if not absent("rclpy", why):
        return error(
            "rclpy",
            f"It cannot be imported: {brief(why)}.",
            "With ROS from apt: the Python it was built for, and 'numpy>=1.26,<2'; with wheels:"
            " pip install --force-reinstall '.[ros]'.",
        )
    if sourced:
        return error(
            "rclpy",
            f"ROS_DISTRO is {sourced}, but this Python has no rclpy.",
            "Use the Python that ROS was built for (python3 -m venv --system-site-packages), and"
            " source /opt/ros/$ROS_DISTRO/setup.bash.",
        )
    return warning(
        "rclpy",
        "It is not installed: dpt_node, dpt_bag and dpt_status do not work; networks, dpt_run,"
        " dpt_evaluate and dpt_export do.",
        "source /opt/ros/$ROS_DISTRO/setup.bash; without a ROS install: pip install '.[ros]'.",
    )


def _messages(distribution: str, installer: str) -> Iterator[Finding]:
    problems = {name: _import_problem(name) for name in (*MESSAGES, *OPTIONAL)}
    missing = [name for name in MESSAGES if problems[name] == _MISSING]
    faults = [f"{name}: {why}" for name, why in problems.items() if why not in ("", _MISSING)]
    if missing:
        packages = " ".join(f"ros-{distribution}-{name.replace('_', '-')}" for name in missing)
        message = f"{', '.join(missing)} missing: dpt_node does not start."
        yield error("messages", message, f"{installer} install {packages}.")
    if faults:
        message = f"These cannot be imported: {'; '.join(faults)}."
        yield error("messages", message, "Install them again, of the same distribution as rclpy.")
    if not missing and not faults:
        yield Finding("messages", f"all {len(MESSAGES)} packages")
    if lost := [f"{name} ({use})" for name, use in OPTIONAL.items() if problems[name] == _MISSING]:
        yield Finding("optional", f"not installed (apt, with ROS): {', '.join(lost)}")


def _import_problem(name: str) -> str:
    kind = {"std_srvs": ".srv", "tf2_ros": ""}.get(name, ".msg")
    try:
        import_module(f"{name}{kind}")
    except Exception as why:
        return _MISSING if absent(name, why) else brief(why)
    return ""


def _middleware(asked: str) -> Finding:
    """Whether the library can be loaded; without it the import of rclpy ends the process."""
    try:
        ctypes.CDLL(f"lib{asked}.so")
    except OSError as why:
        del os.environ["RMW_IMPLEMENTATION"]  # of this process only, for the checks that follow
        message = f"RMW_IMPLEMENTATION is {asked}, which cannot be loaded: {brief(why)}."
        package = f"ros-$ROS_DISTRO-{asked.replace('_', '-')}"
        return error("middleware", message, f"unset RMW_IMPLEMENTATION, or apt install {package}.")
    return Finding("middleware", asked)


def _domain(machine: Machine) -> Finding:
    number = machine.env.get("ROS_DOMAIN_ID") or "0"
    if not number.isdecimal() or int(number) > _LARGEST_DOMAIN:
        message = f"ROS_DOMAIN_ID is {number!r}: no node can start."
        return error("domain", message, "Set it to a number from 0 to 101.")
    local = machine.env.get("ROS_LOCALHOST_ONLY") == "1"
    reach = "LOCALHOST" if local else machine.env.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    return Finding("domain", f"ROS_DOMAIN_ID {number}, discovery range {reach}")


def _profile(machine: Machine) -> Finding:
    """The Fast DDS profile that dpt_node would use: whether it exists and is read."""
    from dpt_ros.ros.share import profile_variables, shared_memory_size, transport_environment

    if machine.env.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") != "rmw_fastrtps_cpp":
        return Finding("profile", "none: profiles are for Fast DDS")
    read, other = profile_variables()
    for name in (read, other):
        if (path := machine.env.get(name)) and (fault := _fault(Path(path))):
            message = f"{name} is {path}, {fault}: images above 0.5 MB are lost or late."
            return error("profile", message, f"unset {name}: dpt_node then brings its own.")
    try:
        os.environ.update(transport_environment())
    except FileNotFoundError as why:
        return error("profile", str(why), "Install dpt_ros again.")
    path = os.environ.get(read, "")
    if other in machine.env and read not in machine.env:
        message = f"{other} is set, which this distribution does not read: the camera ignores it."
        return warning("profile", message, f"export {read}={machine.env[other]}")
    if (size := shared_memory_size()) < 1 << 23:
        return warning(
            "profile",
            f"{path or 'none'}, with segments of {size >> 10} KiB: large images are lost or late.",
            f"unset {read} FASTDDS_BUILTIN_TRANSPORTS: dpt_node then brings its own.",
        )
    if read in machine.env or not path:
        return Finding("profile", path or "built-in transports, as set")
    return Finding("profile", f"dpt_node brings its own; for the camera: export {read}={path}")


def _fault(path: Path) -> str:
    """Why a file is no profile of Fast DDS, "" if it is one."""
    try:
        names = {one.tag.rpartition("}")[2] for one in ElementTree.parse(path).iter()}
    except OSError as why:
        return f"which cannot be read ({why.strerror})"
    except ElementTree.ParseError as why:
        return f"which is no XML ({why})"
    return "" if "profiles" in names else "which holds no profiles"
