# SPDX-License-Identifier: Apache-2.0
"""Reads recorded bags (rosbag2: mcap, sqlite3, zstd), intact and damaged ones.

Messages stay serialised, so that definitions of their types are not needed. metadata.yaml and the
names of files are used where the files themselves do not give the information.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import yaml
from rosbags.interfaces import Connection, Qos
from rosbags.rosbag2 import Reader

from dpt_ros.bag.files import (
    MCAP,
    METADATA,
    is_bag,
    is_storage,
    no_bag,
    other_form,
    readable,
    storage_files,
    storage_of,
    zstd,
)
from dpt_ros.bag.salvage import CDR, Channel, Message, SalvagedFile, SalvagedMcap, SalvagedSqlite
from dpt_ros.engine.text import one_line
from dpt_ros.file_kinds import kind_of_file

MAX_MESSAGE = 1 << 30  # bytes of a message that was compressed; the largest image has half of it
_BAD_YAML = (yaml.YAMLError, ValueError, RecursionError)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class BagError(Exception):
    """A bag cannot be used.

    Args:
        message: texts of the bag in it may be long and have control characters.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Once:
    """Passes each message on the first time, as one line: it may have texts of a bag in it."""

    def __init__(self, take: Callable[[str], object], most: int = sys.maxsize) -> None:
        self._take, self._most = take, most
        self._known: set[str] = set()

    def __call__(self, message: str) -> None:
        message = one_line(message)
        if message not in self._known and len(self._known) < self._most:
            self._known.add(message)
            self._take(message)


class BagReader:
    """One bag.

    Args:
        path: a rosbag2 folder, or a storage file.

    Attributes:
        channels: by topic, of those in CDR. A topic of several types has its first one.
        problems: what cannot be read, in the order in which it was found.
        warnings: what was read in another way than usual, or is not of ROS 2.

    Raises:
        BagError: there is no bag, or nothing in it can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.channels: dict[str, Channel] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._problem, self._warn = Once(self.problems.append), Once(self.warnings.append)
        self._counted = False  # whether metadata has the number of messages
        if not path.exists():
            raise BagError(f"{path} does not exist.")
        if not is_bag(path):
            raise BagError(no_bag(path))
        self.files = [path]
        if path.is_dir():
            self.files = self._from_metadata() or self._from_folder()
        self._learn_types()
        others = self._leave_out_others()
        if not self.channels:
            kinds = [f"{f.name} is {kind}." for f in self.files if (kind := kind_of_file(f))]
            why = " ".join(kinds or [*others, *self.problems])
            raise BagError(f"Nothing of {path} can be read. {why}".strip())

    def _from_folder(self) -> list[Path]:
        files, copies = storage_files(self.path)
        if copies:
            self._warn(
                f"{', '.join(copy.name for copy in copies)} is ignored: the same recording exists"
                " in another form."
            )
        return files

    def _leave_out_others(self) -> list[str]:
        """Remove topics whose messages are not CDR; the warnings on them."""
        others = [c for c in self.channels.values() if c.encoding != CDR]
        if not others:
            return []
        for channel in others:
            del self.channels[channel.topic]
        named = ", ".join(f"{c.topic} ({c.msgtype or '?'}, {c.encoding or '?'})" for c in others)
        self._warn(f"Ignored, because not messages of ROS 2 (CDR): {named}.")
        if any(channel.encoding == "ros1" for channel in others):
            self._warn("Convert messages of ROS 1: rosbags-convert --src IN --dst OUT.")
        return self.warnings

    def _from_metadata(self) -> list[Path]:
        """The files of metadata.yaml, whose channels are added; none if it cannot be used."""
        path = self.path / METADATA
        if not path.exists():
            self._problem(
                f"{METADATA} is missing, so files are found by their names and missing messages"
                " cannot be counted."
            )
            return []
        try:
            metadata = yaml.safe_load(path.read_text())["rosbag2_bagfile_information"]
            names = [Path(name).name for name in metadata["relative_file_paths"]]
            if wrong := [name for name in names if not is_storage(name)]:
                raise ValueError(wrong)
            files = [path.with_name(name) for name in dict.fromkeys(names)]
            there = {file: file if file.is_file() else other_form(file) for file in files}
            for entry in metadata["topics_with_message_count"]:
                topic, count = entry["topic_metadata"], entry["message_count"]
                digest = topic.get("type_description_hash") or ""
                encoding = topic.get("serialization_format") or CDR
                channel = Channel(
                    topic["name"], topic["type"], count, digest=digest, encoding=encoding
                )
                if not (channel.is_sound and isinstance(count, int) and count >= 0):
                    raise ValueError(topic)
                # A topic of several types has an entry for each.
                before = self.channels.get(channel.topic)
                count += before.count if before is not None else 0
                self.channels[channel.topic] = replace(channel, count=count)
        except (*_BAD_YAML, OSError, KeyError, TypeError, AttributeError) as error:
            self.channels.clear()
            self._problem(
                f"{METADATA} is damaged ({type(error).__name__}), so files are found by their"
                " names and missing messages cannot be counted."
            )
            return []
        self._counted = True
        for file, other in there.items():
            if other is None:
                self._problem(f"{file.name}, listed in {METADATA}, is missing.")
            elif other != file:
                self._warn(f"{other.name} is read instead of {file.name}, listed in {METADATA}.")
        return [other for other in there.values() if other is not None]

    def _learn_types(self) -> None:
        """Read definitions from the first readable file; without metadata, from all."""
        for file in self.files:
            try:
                with self._opened(file) as (_, bag):
                    found = bag.channels
            except ValueError as error:
                self._problem(str(error))
                continue
            for channel in found:
                if channel.is_sound:
                    self._add(channel)
                else:
                    self._problem(f"{file.name}: the description of a topic is damaged.")
            if self._counted and found:
                return

    def _add(self, channel: Channel) -> None:
        """Merge a file's description of a topic with what is known of it."""
        if self._counted:
            channel = replace(channel, count=0)
        known = self.channels.get(channel.topic)
        if known is not None:
            channel = replace(
                known,
                count=known.count + channel.count,
                definition=known.definition or channel.definition,
                digest=known.digest or channel.digest,
                qos=known.qos or channel.qos,
                encoding=channel.encoding,
            )
        self.channels[channel.topic] = channel

    def count(self, topics: Collection[str]) -> int | None:
        """How many messages of these topics there should be; None if that is not known."""
        counts = [self.channels[topic].count for topic in topics]
        return sum(counts) if self._counted or all(counts) else None

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """The messages of some topics in the order of recording.

        What cannot be read is skipped, and listed in ``problems`` at the end.
        """
        read: Counter[str] = Counter()
        packed = timeless = 0
        for file in self.files:
            for message in self._messages(file, topics):
                # In SQLite any value can be a time; not every number can be written again.
                if not (isinstance(message.time, int) and 0 <= message.time < 1 << 63):
                    timeless += 1
                    continue
                if message.data[:4] == _ZSTD_MAGIC:
                    content = _unpacked(message.data)
                    if content is None:
                        packed += 1
                        continue
                    message = message._replace(data=content)
                read[message.topic] += 1
                yield message
        if packed:
            self._problem(
                f"{packed} compressed messages are damaged or too large and are ignored."
            )
        if timeless:
            self._problem(f"{timeless} messages have no valid time of recording and are ignored.")
        for topic in sorted(topics) if self._counted else ():
            if read[topic] < self.channels[topic].count:
                missing = self.channels[topic].count - read[topic]
                self._problem(
                    f"{missing} of {self.channels[topic].count} messages of {topic} cannot be"
                    " read."
                )

    def _messages(self, file: Path, topics: Collection[str]) -> Iterator[Message]:
        try:
            with self._opened(file) as (local, bag):
                messages = bag.messages(topics)
                if isinstance(bag, _Intact):
                    done = 0
                    try:
                        for message in messages:
                            yield message
                            done += 1
                        return
                    except Exception as error:  # rosbags raises anything for a damaged file
                        self._problem(f"{file.name} is damaged: {_text(error)}")
                    # Both orders are that of time, so what was read comes first here, too.
                    messages = islice(self._salvaged(local).messages(topics), done, None)
                yield from messages
        except ValueError as error:
            self._problem(str(error))

    @contextmanager
    def _opened(self, file: Path) -> Iterator[tuple[Path, _Intact | SalvagedFile]]:
        """A readable form of a file, and its reader."""
        with readable(file, self._problem, self._warn) as local:
            try:
                whole = _Intact(local)
            except Exception as error:  # as above
                # rosbags also refuses intact files, for topics that are not of ROS 2.
                yield local, self._salvaged(local, f"{file.name} is damaged: {_text(error)}")
                return
            with closing(whole):
                yield local, whole

    def _salvaged(self, local: Path, damage: str = "") -> SalvagedFile:
        bag = (SalvagedMcap if storage_of(local) == MCAP else SalvagedSqlite)(local)
        if bag.problems and damage:
            self._problem(damage)
        for problem in bag.problems:
            self._problem(problem)
        return bag


class _Intact:
    """A storage file as rosbags reads it, without damage so far."""

    def __init__(self, path: Path) -> None:
        self._reader = Reader.STORAGE_PLUGINS[storage_of(path)](path)
        self._reader.open()

    def close(self) -> None:
        self._reader.close()

    @property
    def channels(self) -> list[Channel]:
        return [
            Channel(
                c.topic,
                c.msgtype,
                max(c.msgcount, 0),
                c.msgdef.data,
                c.digest,
                tuple(q for q in getattr(c.ext, "offered_qos_profiles", ()) if _is_sound(q)),
                _encoding(c),
            )
            for c in self._reader.connections
        ]

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        connections = [
            c for c in self._reader.connections if c.topic in topics and _encoding(c) == CDR
        ]
        if connections:  # rosbags takes none for all
            for connection, time, data in self._reader.messages(connections):
                if not isinstance(data, bytes):
                    raise TypeError("the data of a message are not bytes")
                yield Message(connection.topic, time, data)


def _unpacked(data: bytes) -> bytes | None:
    """A decompressed message; None if it is damaged or too large."""
    unpacker = zstd.ZstdDecompressor()
    try:
        content = unpacker.decompress(data, MAX_MESSAGE)
    except zstd.ZstdError:
        return None
    return bytes(content) if unpacker.eof else None


def _encoding(connection: Connection) -> str:
    return str(getattr(connection.ext, "serialization_format", CDR))


def _is_sound(qos: Qos) -> bool:
    """Whether a QoS profile from YAML can be written again."""
    times = (*qos.deadline, *qos.lifespan, *qos.liveliness_lease_duration)
    return all(isinstance(number, int) for number in (qos.depth, *times)) and isinstance(
        qos.avoid_ros_namespace_conventions, bool
    )


def _text(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if text.endswith(".") else f"{text}."
