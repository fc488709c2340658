# SPDX-License-Identifier: Apache-2.0
"""ROS 2 Humble's rclpy is older: what it lacks is used in dpt_ros/ros/compatibility.py alone.

Not run on Humble, which has no wheels: judged by names in its sources, and by hiding newer ones.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy")

from helpers.places import ROOT, TEST
from helpers.rclpy_names import humble, names_of, words
from helpers.ros_processes import RANDOM_NETWORKS, RELIABLE, ros_domain
from sensor_msgs.msg import Image

AS_HUMBLE = str(TEST / "helpers" / "humble_rclpy.py")
NAMES = humble()
INSTALLED = names_of(Path(importlib.util.find_spec("rclpy").origin).parent)
NEWER = words(INSTALLED) - words(NAMES)
# Newer words of rclpy that mean something else in dpt_ros, and one of Humble's compiled module.
ELSE = {"Action", "autostart", "chain", "mutex", "once", "version", "STEADY_TIME"}
ATTRIBUTES = NEWER - ELSE - {"matched"}
KEYWORDS = NEWER - ELSE


def newer_uses(source: str) -> set[str]:
    """What a file uses of rclpy, or may use, that Humble does not have."""
    tree = ast.parse(source)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rclpy"):
            there = NAMES.get(node.module)
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}" in NAMES
                if there is None or not (alias.name in there or submodule):
                    found.add(f"from {node.module} import {alias.name}")
        elif isinstance(node, ast.Import):
            modules = {alias.name for alias in node.names if alias.name.startswith("rclpy")}
            found |= {f"import {module}" for module in modules - NAMES.keys()}
        elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            found.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) != "subscription_events":
            found |= {f"{word.arg}=" for word in node.keywords if word.arg in KEYWORDS}
    return found


def test_names_that_humble_does_not_have_are_used_in_one_module_only():
    assert len(NAMES["rclpy.node"]) > 100
    uses = {}
    for path in sorted((ROOT / "dpt_ros").rglob("*.py")):
        source = path.read_text()
        if "rclpy" in source and (found := newer_uses(source)):
            uses[str(path.relative_to(ROOT))] = found
    assert set(uses) == {"dpt_ros/ros/compatibility.py"}, uses


@pytest.mark.parametrize(
    "line",
    [
        "from rclpy.event_handler import SubscriptionEventCallbacks",
        "from rclpy.parameter import parameter_dict_from_yaml_file",
        "from rclpy.subscription import MessageInfo",
        "import rclpy.event_handler",
        "node.add_post_set_parameters_callback(print)",
        "SubscriptionEventCallbacks(matched=print)",
    ],
)
def test_a_newer_name_is_found(line):
    assert newer_uses(line)


def test_parameters_and_parameter_files_are_as_ever_without_the_newer_names():
    files = ["test/ros/test_parameters.py", "test/bag/test_bag.py"]
    command = [sys.executable, AS_HUMBLE, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *files, "-k", "parameter or setting or override or camera"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TEST)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_node_runs_without_the_newer_names():
    with ros_domain() as domain:
        given = [w for name, v in RANDOM_NETWORKS.items() for w in ("-p", f"{name}:={v}")]
        node = domain.start(AS_HUMBLE, "-m", "dpt_ros.ros.dpt_node", "--ros-args", *given)
        domain.wait_for_state("active")
        domain.start_camera(64, 48, 1000, reliable=True)
        depths = domain.listen(Image, "depth/image", RELIABLE)
        domain.spin_until(lambda: len(depths) > 3)
        # An integer for a float, a wrong value, and one that takes effect at once.
        assert domain.set_parameter("max_range", 50) == ""
        assert "must be one of 32FC1, 16UC1" in domain.set_parameter("depth_encoding", "8UC1")
        assert domain.set_parameter("depth_encoding", "16UC1") == ""
        domain.spin_until(lambda: depths[-1].encoding == "16UC1")
        assert node.end()[0] == 0, node.output
