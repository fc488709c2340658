# SPDX-License-Identifier: Apache-2.0
"""Bags as input of dpt_view: their messages, and which of their topics can be shown."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.serde import SerdeError

from dpt_ros.apps.view.topics import TOPICS
from dpt_ros.bag.reader import BagError, BagReader
from dpt_ros.bag.types import TYPES

# Longest first: depth/image ends in image as well.
_LONGEST_FIRST = sorted(TOPICS, key=lambda topic: -len(topic.name))
# Other sensors have these, too: by themselves they are no camera.
_NO_CAMERA = ("camera_info", "depth/camera_info", "odom", "/diagnostics")
_NAMES = ", ".join(topic.name for topic in TOPICS)


class Source(NamedTuple):
    """What a topic of a bag is shown as."""

    camera: str  # prefix of its topics without slashes at its ends, "" for none
    topic: str  # relative name, of ``topics.TOPICS``


class Bags:
    """Several bags, rosbag2 folders or storage files, read as one; ``types``: of the messages,
    "package/msg/Name", by topic. Raises ValueError for a bag that cannot be read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        try:
            self._readers = [BagReader(path) for path in paths]
        except BagError as error:
            raise ValueError(str(error)) from error
        self.types = {c.topic: c.msgtype for r in self._readers for c in r.channels.values()}
        self._unreadable: Counter[str] = Counter()

    def count(self, topics: Iterable[str]) -> int | None:
        """The number of messages of these topics; None if unknown."""
        topics = set(topics)
        counts = [r.count(topics & r.channels.keys()) for r in self._readers]
        return None if None in counts else sum(count or 0 for count in counts)

    def messages(self, topics: Iterable[str]) -> Iterator[tuple[str, int, Any]]:
        """Topic, time of recording in nanoseconds, and message, in the order of recording; damaged
        messages are skipped, and counted in ``warnings``."""
        topics = set(topics)
        streams = [r.messages(topics & r.channels.keys()) for r in self._readers]
        for topic, recorded_ns, data in heapq.merge(*streams, key=lambda message: message.time):
            try:
                message = TYPES.deserialize_cdr(data, self.types[topic])
            except SerdeError:
                self._unreadable[topic] += 1
                continue
            yield topic, recorded_ns, message

    @property
    def warnings(self) -> list[str]:
        """What could not be read, or was read in another way than usual."""
        found = [f"{r.path}: {note}" for r in self._readers for note in (*r.warnings, *r.problems)]
        return found + [
            f"{count} messages of {topic} are damaged and were skipped."
            for topic, count in self._unreadable.items()
        ]


def find_sources(
    topics: Mapping[str, str], remaps: Mapping[str, str], cameras: Sequence[str] = ()
) -> dict[str, Source]:
    """The topics of a bag that can be shown, by full name.

    Args:
        topics: message types of the bag's topics, by full name.
        remaps: full names by the node's own ones, {"image": "/cam/image_raw"}; with several
            cameras by those with a prefix ("front/image"). A name without one belongs to the
            only camera of the bag.
        cameras: prefixes to show; empty for all that are found.

    Raises:
        ValueError: there is nothing to show, or a remap or camera does not exist.
    """
    found: dict[Source, str] = {}
    for full, msgtype in topics.items():
        if full not in remaps.values() and (source := _source(full, msgtype)):
            found[source] = full
    known = _cameras(found)
    only = next(iter(known)) if len(known) == 1 else ""
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
    known = _cameras(found)
    if not known:
        raise ValueError(
            f"No topic to show. {_listed(topics)} Topics are found by the node's names:"
            f" {_NAMES}. Give others with --remap, for example image:=/camera/image_raw."
        )
    if unknown := set(cameras) - known:
        available = ", ".join(sorted(camera or "one without a name" for camera in known))
        raise ValueError(f"Unknown camera {', '.join(sorted(unknown))}. Available: {available}.")
    shown = set(cameras) or known
    chosen = (s for s in found if s.camera in shown or s.topic.startswith("/"))
    return {found[source]: source for source in chosen}


def _source(full: str, msgtype: str) -> Source | None:
    """What a topic is by its name, if its type is the expected one."""
    for topic in _LONGEST_FIRST:
        suffix = "/" + topic.name.lstrip("/")
        if full.endswith(suffix):
            prefix = full.removesuffix(suffix).strip("/")
            if msgtype in topic.types and not (prefix and topic.name.startswith("/")):
                return Source(prefix, topic.name)
    return None


def _cameras(found: Iterable[Source]) -> set[str]:
    return {source.camera for source in found if source.topic not in _NO_CAMERA}


def _listed(topics: Mapping[str, str]) -> str:
    listed = ", ".join(f"{name} ({msgtype})" for name, msgtype in sorted(topics.items()))
    return f"The bag has {listed or 'no topics'}."
