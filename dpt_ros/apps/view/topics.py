# SPDX-License-Identifier: Apache-2.0
"""The topics of the node that dpt_view shows, and what each is needed for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# What can be shown.
KINDS = (
    "image", "depth", "deviation", "inverse", "labels", "confidence", "points", "path", "plots",
)  # fmt: skip
IMAGE = "sensor_msgs/msg/Image"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
# A String has the same as JSON, where vision_msgs is not installed.
LABEL_INFO = ("vision_msgs/msg/LabelInfo", "std_msgs/msg/String")
DIAGNOSTICS = "/diagnostics"


class Topic(NamedTuple):
    """A topic that can be shown."""

    name: str  # relative, as in docs/topics.md
    types: tuple[str, ...]  # of its messages
    shows: str = ""  # the kind, of ``KINDS``, that this topic makes possible
    helps: tuple[str, ...] = ()  # further kinds that it is needed for
    # Of a frame ("rgb", "depth", "labels"), from which points are computed where depth/points is
    # not published. Such topics are those whose rate is plotted.
    part: str = ""

    @property
    def kinds(self) -> set[str]:
        """All kinds that it is needed for."""
        return {self.shows, *self.helps} - {""}


TOPICS = (
    Topic("image", (IMAGE,), "image", part="rgb"),
    Topic("image/compressed", ("sensor_msgs/msg/CompressedImage",), "image", part="rgb"),
    Topic("camera_info", (CAMERA_INFO,), helps=("points", "path")),
    Topic("odom", ("nav_msgs/msg/Odometry",), "path", ("points",)),
    Topic("depth/image", (IMAGE,), "depth", part="depth"),
    Topic("depth/camera_info", (CAMERA_INFO,), helps=("points", "path")),
    Topic("depth/confidence", (IMAGE,), "deviation"),
    Topic("depth/inverse", (IMAGE,), "inverse"),
    Topic("depth/points", ("sensor_msgs/msg/PointCloud2",), "points"),
    Topic("semantic/labels", (IMAGE,), "labels", part="labels"),
    Topic("semantic/confidence", (IMAGE,), "confidence"),
    Topic("semantic/label_info", LABEL_INFO, helps=("labels", "points")),
    Topic(DIAGNOSTICS, ("diagnostic_msgs/msg/DiagnosticArray",), helps=("plots",)),
)
BY_NAME = {topic.name: topic for topic in TOPICS}


def joined_parts(available: Iterable[str], kinds: Iterable[str]) -> frozenset[str]:
    """The parts from which points are computed ("depth", "rgb", "labels"), of the topics of a
    camera that were recorded and the kinds that are shown; nothing if depth/points is available,
    or points are not shown or not possible."""
    available = set(available)
    if "points" not in kinds or "depth/points" in available or "depth/image" not in available:
        return frozenset()
    if not available & {"camera_info", "depth/camera_info"}:
        return frozenset()
    return frozenset(BY_NAME[topic].part for topic in available) - {""}


def needed_topics(available: Iterable[str], kinds: Iterable[str]) -> set[str]:
    """Those of the available topics that are needed to show ``kinds``."""
    available, kinds = set(available), set(kinds)
    if "image" in available:
        available.discard("image/compressed")
    joined = joined_parts(available, kinds)
    return {t for t in available if BY_NAME[t].kinds & kinds or BY_NAME[t].part in joined}


def possible_kinds(available: Iterable[str], kinds: Iterable[str]) -> set[str]:
    """Those of ``kinds`` that the available topics can show."""
    can = {"plots", *(BY_NAME[topic].shows for topic in available)}
    if joined_parts(available, kinds):
        can.add("points")
    return can & set(kinds)
