# SPDX-License-Identifier: Apache-2.0
"""Which of the node's topics a viewer shows, and what it needs them for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# What can be shown.
KINDS = (
    "image",
    "depth",
    "deviation",
    "inverse",
    "labels",
    "confidence",
    "points",
    "path",
    "plots",
)
IMAGE = "sensor_msgs/msg/Image"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"


@dataclass(frozen=True)
class Topic:
    """A topic that is shown.

    Args:
        name: relative, as docs/topics.md has it.
        types: of its messages.
        kinds: what it is needed for, names of ``KINDS``.
        frames: whether its messages show how the camera and the node keep pace.
    """

    name: str
    types: tuple[str, ...]
    kinds: frozenset[str]
    frames: bool = False


def _topic(name: str, kinds: str, *types: str, frames: bool = False) -> Topic:
    return Topic(name, types, frozenset(kinds.split()), frames)


TOPICS = (
    _topic("image", "image", IMAGE, frames=True),
    _topic("image/compressed", "image", "sensor_msgs/msg/CompressedImage", frames=True),
    _topic("camera_info", "points path", CAMERA_INFO),
    _topic("odom", "points path", "nav_msgs/msg/Odometry"),
    _topic("depth/image", "depth", IMAGE, frames=True),
    _topic("depth/camera_info", "points path", CAMERA_INFO),
    _topic("depth/confidence", "deviation", IMAGE),
    _topic("depth/inverse", "inverse", IMAGE),
    _topic("depth/points", "points", "sensor_msgs/msg/PointCloud2"),
    _topic("semantic/labels", "labels", IMAGE, frames=True),
    _topic("semantic/confidence", "confidence", IMAGE),
    # JSON where vision_msgs is not installed.
    _topic(
        "semantic/label_info",
        "labels points",
        "vision_msgs/msg/LabelInfo",
        "std_msgs/msg/String",
    ),
    _topic("/diagnostics", "plots", "diagnostic_msgs/msg/DiagnosticArray"),
)
BY_NAME = {topic.name: topic for topic in TOPICS}
# What points are made of where no depth/points comes.
_PARTS = {
    "image": "rgb",
    "image/compressed": "rgb",
    "depth/image": "depth",
    "semantic/labels": "labels",
}
# The topics that a kind cannot be shown without, one of them.
_NEEDED = {
    "image": {"image", "image/compressed"},
    "depth": {"depth/image"},
    "deviation": {"depth/confidence"},
    "inverse": {"depth/inverse"},
    "labels": {"semantic/labels"},
    "confidence": {"semantic/confidence"},
    "path": {"odom"},
}


def joined_parts(there: Iterable[str], kinds: Iterable[str]) -> frozenset[str]:
    """The parts that points are made of ("depth", "rgb", "labels") where none are published.

    Args:
        there: topics of a camera that were recorded.
        kinds: what is shown.

    Returns:
        Nothing where depth/points is there, or no points are wanted or possible.
    """
    there = set(there)
    if "points" not in kinds or "depth/points" in there or "depth/image" not in there:
        return frozenset()
    if not there & {"camera_info", "depth/camera_info"}:
        return frozenset()
    return frozenset(part for topic, part in _PARTS.items() if topic in there)


def wanted_topics(there: Iterable[str], kinds: Iterable[str]) -> set[str]:
    """The topics among those that are there which are needed to show ``kinds``."""
    there, kinds = set(there), set(kinds)
    if "image" in there:
        there.discard("image/compressed")
    joined = joined_parts(there, kinds)
    return {t for t in there if BY_NAME[t].kinds & kinds or _PARTS.get(t) in joined}


def possible_kinds(there: Iterable[str], kinds: Iterable[str]) -> set[str]:
    """Those of ``kinds`` that these topics can show."""
    there = set(there)
    can = {kind for kind in kinds if kind == "plots" or _NEEDED.get(kind, set()) & there}
    if "depth/points" in there or joined_parts(there, kinds):
        can |= {"points"} & set(kinds)
    return can
