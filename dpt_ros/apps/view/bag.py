# SPDX-License-Identifier: Apache-2.0
"""Which of a bag's topics can be shown, and what its messages are."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from dpt_ros.apps.view.topics import TOPICS
from dpt_ros.bag.reader import BagError, BagReader

_TYPES = get_typestore(Stores.ROS2_KILTED)
# vision_msgs is not among the store's packages.
for _name, _fields in (
    ("VisionClass", "uint16 class_id\nstring class_name"),
    ("LabelInfo", "std_msgs/Header header\nVisionClass[] class_map\nfloat32 threshold"),
):
    _TYPES.register(get_types_from_msg(_fields, f"vision_msgs/msg/{_name}"))
# Longest first: depth/image ends in image as well.
_LONGEST_FIRST = sorted(TOPICS, key=lambda topic: -len(topic.name))
# Other sensors have these too: alone they make no camera.
_NO_CAMERA = ("camera_info", "depth/camera_info", "odom", "/diagnostics")
_NAMES = ", ".join(topic.name for topic in TOPICS)


class Source(NamedTuple):
    """What a topic of a bag is to a viewer.

    Args:
        camera: prefix of the camera's topics without slashes at its ends, "" for none.
        topic: relative name, of ``view_topics.TOPICS``.
    """

    camera: str
    topic: str


class Bags:
    """Several bags as one.

    Args:
        paths: rosbag2 folders or storage files.

    Attributes:
        types: of the messages, "package/msg/Name", by topic.

    Raises:
        ValueError: nothing of one can be read; the message has the reason.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        try:
            self._readers = [BagReader(path) for path in paths]
        except BagError as error:
            raise ValueError(str(error)) from error
        self.types = {c.topic: c.msgtype for r in self._readers for c in r.channels.values()}
        self._unreadable: Counter[str] = Counter()

    def count(self, topics: Iterable[str]) -> int | None:
        """How many messages of these topics there should be; None if unknown."""
        topics = set(topics)
        counts = [r.count(topics & r.channels.keys()) for r in self._readers]
        return None if None in counts else sum(count or 0 for count in counts)

    def messages(self, topics: Iterable[str]) -> Iterator[tuple[str, int, Any]]:
        """Topic, time of recording in nanoseconds, and message, in the order of recording.

        What cannot be read is skipped, and listed in ``notes`` at the end.
        """
        topics = set(topics)
        streams = [r.messages(topics & r.channels.keys()) for r in self._readers]
        for topic, recorded_ns, data in heapq.merge(*streams, key=lambda message: message.time):
            try:
                message = _TYPES.deserialize_cdr(data, self.types[topic])
            except SerdeError:
                self._unreadable[topic] += 1
                continue
            yield topic, recorded_ns, message

    @property
    def notes(self) -> list[str]:
        """Sentences on what could not be read, or was read in another way than usual."""
        found = [f"{r.path}: {note}" for r in self._readers for note in (*r.warnings, *r.problems)]
        for topic, count in self._unreadable.items():
            found.append(f"{count} messages of {topic} are damaged and were skipped.")
        return found


def find_sources(
    topics: Mapping[str, str], remaps: Mapping[str, str], cameras: Sequence[str] = ()
) -> dict[str, Source]:
    """What of a bag can be shown, by full topic name.

    Args:
        topics: message types of the bag's topics, by full name.
        remaps: full names by the node's own ones, {"image": "/cam/image_raw"}; with several
            cameras by those with a prefix ("front/image"). A name without one belongs to the
            only camera of the bag.
        cameras: prefixes to show; empty for all that are found.

    Raises:
        ValueError: there is nothing to show, or not what was asked for; the message lists what
            the bag has.
    """
    found: dict[Source, str] = {}
    for full, kind in topics.items():
        if full not in remaps.values() and (source := _source(full, kind)):
            found[source] = full
    heads = _cameras(found)
    only = next(iter(heads)) if len(heads) == 1 else ""
    for name, full in remaps.items():
        if full not in topics:
            raise ValueError(
                f"--remap: the bag has no topic {full} to use as {name}. {_listed(topics)}"
            )
        source = _source(f"/{name.strip('/')}", topics[full])
        if source is None:
            raise ValueError(
                f"--remap: {full} has the type {topics[full]}, which cannot be used as {name}."
                f" Available names: {_NAMES}."
            )
        found[Source(source.camera or only, source.topic)] = full
    heads = _cameras(found)
    if not heads:
        raise ValueError(
            f"No topic to show. {_listed(topics)} Topics are found by the node's names:"
            f" {_NAMES}. Name others with --remap, for example image:=/camera/image_raw."
        )
    missing = set(cameras) - heads
    if missing:
        there = ", ".join(sorted(camera or "one without a name" for camera in heads))
        raise ValueError(f"Unknown camera {', '.join(sorted(missing))}. Available: {there}.")
    heads = set(cameras) or heads
    return {
        full: source
        for source, full in found.items()
        if source.camera in heads or source.topic.startswith("/")
    }


def _source(full: str, kind: str) -> Source | None:
    """What a topic is by its name, if it carries what is expected."""
    for topic in _LONGEST_FIRST:
        suffix = "/" + topic.name.lstrip("/")
        if not full.endswith(suffix):
            continue
        prefix = full.removesuffix(suffix).strip("/")
        if kind in topic.types and not (prefix and topic.name.startswith("/")):
            return Source(prefix, topic.name)
    return None


def _cameras(found: Iterable[Source]) -> set[str]:
    return {source.camera for source in found if source.topic not in _NO_CAMERA}


def _listed(topics: Mapping[str, str]) -> str:
    listed = ", ".join(f"{name} ({kind})" for name, kind in sorted(topics.items()))
    return f"The bag has {listed or 'no topics'}."
