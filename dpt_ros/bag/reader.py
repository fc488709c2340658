# SPDX-License-Identifier: Apache-2.0
"""The one reader of recorded bags (rosbag2: mcap, sqlite3, zstd), whole ones and damaged ones.

It hands on the bytes of messages, which needs no definitions of their types. What metadata.yaml
and the names of files say is used where the files themselves say nothing else.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import yaml
from rosbags.interfaces import Connection, Qos
from rosbags.rosbag2 import Reader

from dpt_ros.bag.files import (
    METADATA,
    is_bag,
    is_storage,
    no_bag,
    other_form,
    readable,
    storage_files,
    storage_of,
)
from dpt_ros.bag.salvage import CDR, Channel, SalvagedFile, salvage
from dpt_ros.file_kinds import kind_of_file
from dpt_ros.ros.messages.error import one_line

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_MESSAGE = 1 << 30  # bytes of a message that was compressed; the largest image has half of it
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class Message(NamedTuple):
    """A message as it was recorded: topic, time of recording in nanoseconds, CDR bytes."""

    topic: str
    time: int
    data: bytes


class BagError(Exception):
    """A bag cannot be used; the text is a sentence on one line.

    Args:
        sentence: texts of the bag in it may be long and have control characters.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(sentence))


class BagReader:
    """One bag.

    Args:
        path: a rosbag2 folder, or a storage file.

    Attributes:
        channels: by topic, of those in CDR. A topic of several types has its first one.
        notes: sentences on what cannot be read, in the order in which it was found.
        remarks: sentences on what was read in another way than usual, or does not belong to ROS 2.

    Raises:
        BagError: there is no bag, or nothing in it can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.channels: dict[str, Channel] = {}
        self.notes: list[str] = []
        self.remarks: list[str] = []
        self._counted = False  # whether metadata says how many messages there are
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
            why = " ".join(kinds or [*others, *self.notes])
            raise BagError(f"Nothing of {path} can be read. {why}".strip())

    def _remark(self, sentence: str) -> None:
        sentence = one_line(sentence)
        if sentence not in self.remarks:
            self.remarks.append(sentence)

    def _note(self, sentence: str) -> None:
        sentence = one_line(sentence)
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _from_folder(self) -> list[Path]:
        files, copies = storage_files(self.path)
        if copies:
            self._remark(
                f"{', '.join(copy.name for copy in copies)} is left out: the same recording is"
                " there in another form."
            )
        return files

    def _leave_out_others(self) -> list[str]:
        """Take out the topics whose messages are not those of ROS 2; a sentence if there are."""
        others = [c for c in self.channels.values() if c.encoding != CDR]
        if not others:
            return []
        for channel in others:
            del self.channels[channel.topic]
        named = ", ".join(f"{c.topic} ({c.msgtype or '?'}, {c.encoding or '?'})" for c in others)
        self._remark(f"Not messages of ROS 2 (CDR), left out: {named}.")
        if any(channel.encoding == "ros1" for channel in others):
            self._remark("Messages of ROS 1 can be converted: rosbags-convert --src IN --dst OUT.")
        return self.remarks

    def _from_metadata(self) -> list[Path]:
        """The files and channels that metadata.yaml names; none if it cannot be used."""
        path = self.path / METADATA
        if not path.exists():
            self._note(
                f"{METADATA} is missing, so files are read by their names and nobody knows how"
                " many messages there should be."
            )
            return []
        try:
            about = yaml.safe_load(path.read_text())["rosbag2_bagfile_information"]
            files = self._named(about["relative_file_paths"])
            there = {file: file if file.is_file() else other_form(file) for file in files}
            for entry in about["topics_with_message_count"]:
                topic, count = entry["topic_metadata"], entry["message_count"]
                digest = topic.get("type_description_hash") or ""
                encoding = topic.get("serialization_format") or CDR
                channel = Channel(
                    topic["name"], topic["type"], count, digest=digest, encoding=encoding
                )
                if not (channel.is_sound and isinstance(count, int) and count >= 0):
                    raise ValueError(topic)
                count += self._count_of(channel.topic)
                self.channels[channel.topic] = replace(channel, count=count)
        except (
            yaml.YAMLError,
            OSError,
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
        ) as error:
            self.channels.clear()
            self._note(
                f"{METADATA} is damaged ({type(error).__name__}), so files are read by their"
                " names and nobody knows how many messages there should be."
            )
            return []
        self._counted = True
        for file, other in there.items():
            if other is None:
                self._note(f"{file.name}, which {METADATA} names, is missing.")
            elif other != file:
                self._remark(f"{other.name} stands for {file.name}, which {METADATA} names.")
        return [other for other in there.values() if other is not None]

    def _named(self, names: Iterable[str]) -> list[Path]:
        """The storage files of these names, each once.

        Raises:
            ValueError: a name is not that of a storage file.
        """
        files = list(dict.fromkeys(self.path / Path(name).name for name in names))
        if wrong := [file.name for file in files if not is_storage(file.name)]:
            raise ValueError(wrong)
        return files

    def _count_of(self, topic: str) -> int:
        return self.channels[topic].count if topic in self.channels else 0

    def _learn_types(self) -> None:
        """Take definitions from the first file that can be read; without metadata, from all."""
        for file in self.files:
            try:
                with self._opened(file) as (_, bag):
                    found = bag.channels
            except ValueError as error:
                self._note(str(error))
                continue
            for channel in found:
                if channel.is_sound:
                    self._add(channel)
                else:
                    self._note(f"{file.name}: the description of a topic is damaged.")
            if self._counted and found:
                return

    def _add(self, channel: Channel) -> None:
        """Take what a file says of a topic beside what is known of it."""
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
        """How many messages of these topics there should be; None if nobody knows."""
        counts = [self.channels[topic].count for topic in topics]
        return sum(counts) if self._counted or all(counts) else None

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """The messages of some topics in the order of recording.

        What cannot be read is left out; when this ends, ``notes`` says what.
        """
        read: Counter[str] = Counter()
        packed = timeless = 0
        for file in self.files:
            for message in self._messages(file, topics):
                # In SQLite any value can be a time; and not every number can be written again.
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
            self._note(f"{packed} compressed messages are damaged or too large and are left out.")
        if timeless:
            self._note(f"{timeless} messages have no time of recording and are left out.")
        for topic in sorted(topics) if self._counted else ():
            if read[topic] < self.channels[topic].count:
                missing = self.channels[topic].count - read[topic]
                self._note(
                    f"{missing} of {self.channels[topic].count} messages of {topic} cannot be"
                    " read."
                )

    def _messages(self, file: Path, topics: Collection[str]) -> Iterator[Message]:
        try:
            with self._opened(file) as (local, bag):
                messages = bag.messages(topics)
                if isinstance(bag, _Whole):
                    done = 0
                    try:
                        for message in messages:
                            yield Message(*message)
                            done += 1
                        return
                    except Exception as error:  # a damaged file can make a reader raise anything
                        self._note(f"{file.name} is damaged: {_words(error)}")
                    # Both orders are that of time, so what came already comes first here, too.
                    messages = islice(self._salvaged(local).messages(topics), done, None)
                for message in messages:
                    yield Message(*message)
        except ValueError as error:
            self._note(str(error))

    @contextmanager
    def _opened(self, file: Path) -> Iterator[tuple[Path, _Whole | SalvagedFile]]:
        """A file as it can be read, and what reads it."""
        with readable(file, self._note, self._remark) as local:
            try:
                whole = _Whole(local)
            except Exception as error:  # as above
                # rosbags also refuses whole files, for topics that are not ROS 2's.
                yield local, self._salvaged(local, f"{file.name} is damaged: {_words(error)}")
                return
            with whole:
                yield local, whole

    def _salvaged(self, local: Path, damage: str = "") -> SalvagedFile:
        bag = salvage(local, storage_of(local))
        if bag.problems and damage:
            self._note(damage)
        for problem in bag.problems:
            self._note(problem)
        return bag


class _Whole:
    """A storage file that is as it should be, so far."""

    def __init__(self, path: Path) -> None:
        self._reader = Reader.STORAGE_PLUGINS[storage_of(path)](path)
        self._reader.open()

    def __enter__(self) -> _Whole:
        return self

    def __exit__(self, *_: object) -> None:
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

    def messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        connections = [
            c for c in self._reader.connections if c.topic in topics and _encoding(c) == CDR
        ]
        if connections:  # none would mean all
            for connection, time, data in self._reader.messages(connections):
                if not isinstance(data, bytes):  # which of a number would be so many bytes
                    raise TypeError("a message is no bytes")
                yield connection.topic, time, data


def _unpacked(data: bytes) -> bytes | None:
    """What is in a message that was compressed; None if it is damaged or a size bomb."""
    unpacker = zstd.ZstdDecompressor()
    try:
        content = unpacker.decompress(data, MAX_MESSAGE)
    except zstd.ZstdError:
        return None
    return bytes(content) if unpacker.eof else None


def _encoding(connection: Connection) -> str:
    return str(getattr(connection.ext, "serialization_format", CDR))


def _is_sound(qos: Qos) -> bool:
    """Whether what YAML says of a QoS profile can be written again."""
    times = (*qos.deadline, *qos.lifespan, *qos.liveliness_lease_duration)
    return all(isinstance(number, int) for number in (qos.depth, *times)) and isinstance(
        qos.avoid_ros_namespace_conventions, bool
    )


def _words(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if text.endswith(".") else f"{text}."
