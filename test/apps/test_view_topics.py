# SPDX-License-Identifier: Apache-2.0
"""What dpt_view takes for what, and the layouts for Foxglove and RViz."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.places import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header, String

from dpt_ros.apps.view.bag import Source, find_sources
from dpt_ros.apps.view.messages import class_map, cloud_columns
from dpt_ros.apps.view.topics import TOPICS
from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.output.point_cloud import points
from dpt_ros.ros.messages.image import MessageError
from dpt_ros.ros.messages.point_cloud import cloud_message

CAMERA = CameraModel(16, 12, 15.0, 15.0, 7.5, 5.5)
DEPTH = np.full((12, 16), 2.0, np.float32)
IMAGE, INFO = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo"


def test_cameras_are_found_by_the_names_of_their_topics() -> None:
    bag = {
        "/front/image": IMAGE,
        "/front/depth/image": IMAGE,
        "/rear/semantic/labels": IMAGE,
        "/anchors/camera_info": INFO,  # another sensor's
        "/truth/depth": IMAGE,
        "/front/depth/points": IMAGE,  # of the wrong type
        "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
    }
    found = find_sources(bag, {})
    assert found == {
        "/front/image": Source("front", "image"),
        "/front/depth/image": Source("front", "depth/image"),
        "/rear/semantic/labels": Source("rear", "semantic/labels"),
        "/diagnostics": Source("", "/diagnostics"),
    }
    assert set(find_sources(bag, {}, ["rear"])) == {"/rear/semantic/labels", "/diagnostics"}


def test_a_remapped_topic_takes_the_place_of_the_one_by_that_name() -> None:
    bag = {"/image": IMAGE, "/cam/image_raw": IMAGE, "/depth/image": IMAGE}
    found = find_sources(bag, {"image": "/cam/image_raw"})
    assert found["/cam/image_raw"] == Source("", "image")
    assert "/image" not in found
    two = {"/a/depth/image": IMAGE, "/b/depth/image": IMAGE, "/left": IMAGE}
    assert find_sources(two, {"b/image": "/left"})["/left"] == Source("b", "image")


@given(st.integers(1, 6), st.integers(1, 6), st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_cloud_comes_back_as_it_was_made(height: int, width: int, labelled: bool) -> None:
    depth = np.linspace(1, 3, height * width, dtype=np.float32).reshape(height, width)
    rgb = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    labels = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    camera = CameraModel(width, height, 5.0, 5.0, 1.0, 1.0)
    cloud = points(depth, rgb, labels if labelled else None, camera)
    xyz, colors, classes = cloud_columns(cloud_message(cloud, Header()))
    np.testing.assert_array_equal(xyz[..., 2], depth)
    np.testing.assert_array_equal(colors, rgb)
    assert classes is not None
    np.testing.assert_array_equal(classes, labels if labelled else 0)


def test_a_cloud_that_is_short_or_has_no_places_is_refused() -> None:
    cloud = cloud_message(points(DEPTH, None, None, CAMERA), Header())
    cloud._data = cloud._data[:-1]
    with pytest.raises(MessageError, match="The cloud holds"):
        cloud_columns(cloud)
    with pytest.raises(MessageError, match="no float32 or float64 fields"):
        cloud_columns(PointCloud2(width=1, height=1, point_step=4, row_step=4))


@given(st.text())
def test_a_string_that_is_no_class_map_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(MessageError, match="not a class map"):
        class_map(String(data=text))


def _node_topics() -> set[str]:
    text = (ROOT / "docs" / "topics.md").read_text()
    rows = (line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_every_topic_shown_is_one_of_the_nodes() -> None:
    assert {t.name for t in TOPICS} - {"image/compressed"} <= _node_topics()


# Of rviz_default_plugins/plugins_description.xml.
DISPLAYS = {"Grid", "Image", "PointCloud2", "Odometry"}


def test_the_rviz_config_shows_topics_of_the_node_with_displays_that_rviz_has() -> None:
    text = (ROOT / "config" / "dpt.rviz").read_text()
    displays = yaml.safe_load(text)["Visualization Manager"]["Displays"]
    assert {d["Class"].partition("rviz_default_plugins/")[2] for d in displays} == DISPLAYS
    topics = [display["Topic"]["Value"] for display in displays if "Topic" in display]
    assert len(topics) == len(set(topics)) > 5
    assert set(topics) <= _node_topics()


def test_the_foxglove_layout_shows_topics_of_the_node_and_every_panel_has_its_place() -> None:
    layout = json.loads((ROOT / "config" / "foxglove.json").read_text())
    panels = layout["configById"]
    text = json.dumps(panels)
    named = set(re.findall(r'"(/[a-z_/]+)', text))
    assert {"/image", "/depth/points", "/diagnostics"} <= named
    assert named <= {"/" + name.lstrip("/") for name in _node_topics()}
    tabs = [tab["layout"] for panel in panels.values() for tab in panel.get("tabs", [])]
    placed = Counter(tabs + list(_leaves(layout["layout"])))
    assert placed == Counter(panels.keys())


def _leaves(layout: Any) -> Iterator[str]:
    if isinstance(layout, str):
        yield layout
    else:
        yield from _leaves(layout["first"])
        yield from _leaves(layout["second"])
