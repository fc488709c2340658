# SPDX-License-Identifier: Apache-2.0
"""Reads recorded bags (rosbag2: mcap, sqlite3, zstd), whole ones and damaged ones."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml
from rosbags.interfaces import Qos
from rosbags.rosbag2 import Reader

from dpt_ros.ros.bag_salvage import Channel, DamagedFile, open_damaged
from dpt_ros.ros.message_error import one_line

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

METADATA = "metadata.yaml"
_STORAGE = (".mcap", ".db3")
_COMPRESSED = ".zstd"
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


def is_bag(path: Path) -> bool:
    """Whether this is a bag: a folder with storage files or metadata, or a storage file."""
    if path.is_dir():
        return (path / METADATA).is_file() or bool(_storage_files(path))
    return path.is_file() and _is_storage(path.name)


def _is_storage(name: str) -> bool:
    return name.removesuffix(_COMPRESSED).endswith(_STORAGE)


def _storage_files(folder: Path) -> list[Path]:
    """Storage files in the order of the numbers in their names."""

    def order(path: Path) -> list[Any]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]

    return sorted((p for p in folder.iterdir() if _is_storage(p.name)), key=order)


class BagReader:
    """One bag.

    Args:
        path: a rosbag2 folder, or a storage file.

    Attributes:
        channels: by topic. A topic of several types has its first one.
        notes: sentences on what was not as it should be, in the order in which it was found.

    Raises:
        BagError: there is no bag, or nothing in it can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.channels: dict[str, Channel] = {}
        self.notes: list[str] = []
        self._counted = False  # whether metadata says how many messages there are
        if not path.exists():
            raise BagError(f"{path} does not exist.")
        if not is_bag(path):
            raise BagError(
                f"{path} is no bag: expected a folder with {METADATA}, or a file named *.mcap,"
                " *.db3, *.mcap.zstd or *.db3.zstd."
            )
        self.files = [path]
        if path.is_dir():
            self.files = self._from_metadata() or _storage_files(path)
        self._learn_types()
        if not self.channels:
            raise BagError(f"Nothing of {path} can be read. {' '.join(self.notes)}".strip())

    def _note(self, sentence: str) -> None:
        sentence = one_line(sentence)
        if sentence not in self.notes:
            self.notes.append(sentence)

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
            missing = [file for file in files if not file.is_file()]
            for entry in about["topics_with_message_count"]:
                topic, count = entry["topic_metadata"], entry["message_count"]
                digest = topic.get("type_description_hash") or ""
                channel = Channel(topic["name"], topic["type"], count, digest=digest)
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
        for file in missing:
            self._note(f"{file.name}, which {METADATA} names, is missing.")
        return [file for file in files if file not in missing]

    def _named(self, names: Iterable[str]) -> list[Path]:
        """The storage files of these names, each once.

        Raises:
            ValueError: a name is not that of a storage file.
        """
        files = list(dict.fromkeys(self.path / Path(name).name for name in names))
        if wrong := [file.name for file in files if not _is_storage(file.name)]:
            raise ValueError(wrong)
        return files

    def _count_of(self, topic: str) -> int:
        return self.channels[topic].count if topic in self.channels else 0

    def _learn_types(self) -> None:
        """Take definitions from the first file that can be read; without metadata, from all."""
        for file in self.files:
            try:
                with self._opened(file) as bag:
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
        done = 0
        try:
            with self._local(file) as local:
                try:
                    with _Whole(local) as bag:
                        for message in bag.messages(topics):
                            yield Message(*message)
                            done += 1
                    return
                except Exception as error:  # a damaged file can make a reader raise anything
                    self._note(f"{file.name} is damaged: {_words(error)}")
                damaged = open_damaged(local)
                for problem in damaged.problems:
                    self._note(problem)
                # Both orders are that of time, so what came already comes first here, too.
                for message in islice(damaged.messages(topics), done, None):
                    yield Message(*message)
        except ValueError as error:
            self._note(str(error))

    @contextmanager
    def _opened(self, file: Path) -> Iterator[_Whole | DamagedFile]:
        with self._local(file) as local:
            try:
                bag = _Whole(local)
            except Exception as error:  # as above
                self._note(f"{file.name} is damaged: {_words(error)}")
                damaged = open_damaged(local)
                for problem in damaged.problems:
                    self._note(problem)
                yield damaged
                return
            with bag:
                yield bag

    @contextmanager
    def _local(self, file: Path) -> Iterator[Path]:
        """The file, unpacked if it was compressed as a whole."""
        if file.suffix != _COMPRESSED:
            yield file
            return
        with TemporaryDirectory(prefix="dpt_bag_") as folder:
            unpacked = Path(folder, file.stem)
            with zstd.open(file, "rb") as packed, unpacked.open("wb") as out:
                try:
                    shutil.copyfileobj(packed, out, 1 << 20)
                except (zstd.ZstdError, EOFError) as error:
                    self._note(f"{file.name} can be unpacked in part only: {_words(error)}")
            yield unpacked


class _Whole:
    """A storage file that is as it should be, so far."""

    def __init__(self, path: Path) -> None:
        self._reader = Reader(path)
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
            )
            for c in self._reader.connections
        ]

    def messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        connections = [c for c in self._reader.connections if c.topic in topics]
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


def _is_sound(qos: Qos) -> bool:
    """Whether what YAML says of a QoS profile can be written again."""
    times = (*qos.deadline, *qos.lifespan, *qos.liveliness_lease_duration)
    return all(isinstance(number, int) for number in (qos.depth, *times)) and isinstance(
        qos.avoid_ros_namespace_conventions, bool
    )


def _words(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if text.endswith(".") else f"{text}."
