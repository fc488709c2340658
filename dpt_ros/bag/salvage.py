# SPDX-License-Identifier: Apache-2.0
"""Reads bag files that rosbags refuses: damaged ones, and ones with messages not of ROS 2.

MCAP is a sequence of records: opcode, length, content (mcap.dev/spec). Most records are in chunks,
which may be compressed and are read one by one, so that a damaged one costs only itself.
A SQLite table is a tree of pages, so its rows are read one by one.
"""

from __future__ import annotations

import heapq
import sqlite3
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zlib import crc32

import lz4.frame  # type: ignore[import-untyped]

from dpt_ros.bag.files import MAGICS, MCAP, zstd
from dpt_ros.ros.messages.error import MessageError

CDR = "cdr"
_RECORD = struct.Struct("<BQ")
_CHUNK = struct.Struct("<QQQI")
_MESSAGE = struct.Struct("<HIQQ")
_SCHEMA, _CHANNEL, _MESSAGE_RECORD, _CHUNK_RECORD = 3, 4, 5, 6
_OPCODES = range(1, 16)
_MISSES = 20_000  # consecutive missing rows after which reading ends
_SMALLEST_ROW = 8  # bytes
# Each gives the beginning where the rest is missing.
_DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "zstd": lambda packed: zstd.ZstdDecompressor().decompress(packed),
    "lz4": lambda packed: lz4.frame.LZ4FrameDecompressor().decompress(packed),
}


class Message(NamedTuple):
    """A message as it was recorded: topic, time of recording in nanoseconds, CDR bytes."""

    topic: str
    time: int
    data: bytes

    @property
    def stamp(self) -> int:
        """The stamp of a message that begins with a Header, nanoseconds.

        Raises:
            MessageError: there are too few bytes.
        """
        if len(self.data) < 12:
            text = f"A message of {len(self.data)} bytes has no header."
            raise MessageError("malformed message", text)
        sec, nanosec = struct.unpack_from("<iI" if self.data[1] & 1 else ">iI", self.data, 4)
        return int(sec) * 1_000_000_000 + int(nanosec)


@dataclass(frozen=True)
class Channel:
    """A topic of a bag."""

    topic: str  # its name
    msgtype: str  # "sensor_msgs/msg/Image", ...
    count: int = 0  # messages there should be, 0 if that is not known
    definition: str = ""  # text of the message's definition
    digest: str = ""  # RIHS01 hash of the type
    qos: tuple[object, ...] = ()  # offered QoS profiles, as rosbags has them
    encoding: str = CDR  # of its messages; those of ROS 2 are CDR

    @property
    def is_sound(self) -> bool:
        """Whether it can be written to another file: everything is valid text."""
        texts = (self.topic, self.msgtype, self.definition, self.digest, self.encoding)
        # Not a lone surrogate, which YAML allows.
        return all(isinstance(t, str) and t == t.encode(errors="ignore").decode() for t in texts)


@dataclass(frozen=True)
class _Part:
    """The content of a chunk of an MCAP file, or the record of a message outside of any."""

    at: int
    size: int
    whole: bool
    opcode: int
    start: int = 0


class SalvagedFile(ABC):
    """The readable part of a file; a ValueError where there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []  # what cannot be read; empty for an intact file
        self._by_number: dict[int, Channel] = {}

    @property
    def channels(self) -> list[Channel]:
        return list(self._by_number.values())

    @abstractmethod
    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """Topic, time of recording and bytes of each CDR message, in the order of time."""

    def _topic(self, number: int, topics: Collection[str]) -> str:
        """The topic of a number, "" unless it is one of these and its messages are CDR."""
        channel = self._by_number.get(number)
        wanted = channel is not None and channel.topic in topics and channel.encoding == CDR
        return channel.topic if channel is not None and wanted else ""


class SalvagedMcap(SalvagedFile):
    """An MCAP file without a usable index, with broken chunks, or with other schemas."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._parts: list[_Part] = []
        self._schemas: dict[int, tuple[str, str]] = {}
        with path.open("rb") as file:
            if file.read(len(MAGICS[MCAP])) != MAGICS[MCAP]:
                raise ValueError(
                    f"{path.name} is no MCAP file: its first bytes are not those of MCAP."
                )
            self._walk(file, path.stat().st_size)
            broken = sum(not self._learn(file, part) for part in self._parts)
        if broken:
            self.problems.append(
                f"{path.name}: {broken} of {len(self._parts)} chunks are damaged; their"
                " unreadable records are ignored."
            )
        if not self._by_number:
            raise ValueError(f"{path.name}: nothing can be read, not even its topics.")

    def _walk(self, file: BinaryIO, size: int) -> None:
        """Find the records, up to the end or to bytes that are no record."""
        at = len(MAGICS[MCAP])
        while at + _RECORD.size <= size:
            file.seek(at)
            opcode, length = _RECORD.unpack(file.read(_RECORD.size))
            at += _RECORD.size
            if opcode == 2:  # the footer: the file is complete
                return
            if opcode not in _OPCODES:
                self.problems.append(
                    f"{self.path.name}: {size - at} of {size} bytes, from {at} on, are not MCAP"
                    " records and are ignored."
                )
                return
            inside = file.read(min(length, size - at, _CHUNK.size))
            if opcode in (_SCHEMA, _CHANNEL):
                file.seek(at)
                self._record(opcode, file.read(min(length, size - at)))
            whole = at + length <= size
            if opcode == _MESSAGE_RECORD and len(inside) >= _MESSAGE.size and whole:
                start, before = _MESSAGE.unpack_from(inside)[2], _RECORD.size
                self._parts.append(_Part(at - before, before + length, whole, opcode, start))
            if opcode == _CHUNK_RECORD and len(inside) == _CHUNK.size:
                start = _CHUNK.unpack(inside)[0]
                self._parts.append(_Part(at, min(length, size - at), whole, opcode, start))
            at += length
        self.problems.append(f"{self.path.name} ends early, after {size} bytes.")

    def _learn(self, file: BinaryIO, part: _Part) -> bool:
        """Read the channels of a part; whether all of it can be read."""
        content, good = _content(file, part)
        taken = 0
        for opcode, body in _records(content):
            taken += _RECORD.size + len(body)
            if opcode in (_SCHEMA, _CHANNEL):
                self._record(opcode, body)
        return good and taken == len(content)

    def _record(self, opcode: int, body: bytes) -> None:
        try:
            if opcode == _SCHEMA:
                (number,) = struct.unpack_from("<H", body)
                name, at = _string(body, 2)
                form, at = _string(body, at)
                # Of protobuf it is bytes.
                text = _string(body, at)[0] if form.startswith("ros2") else ""
                self._schemas[number] = (name, text)
                return
            number, schema = struct.unpack_from("<HH", body)
            topic, at = _string(body, 4)
            encoding, _ = _string(body, at)
            # Schema 0 stands for none.
            name, definition = self._schemas[schema] if schema else ("", "")
            self._by_number[number] = Channel(topic, name, 0, definition, encoding=encoding)
        except (struct.error, UnicodeDecodeError, KeyError):
            self.problems.append(f"{self.path.name}: the description of a topic is damaged.")

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        with self.path.open("rb") as file:
            streams = (self._messages(file, part, topics) for part in self._parts)
            for time, _, _, topic, data in heapq.merge(*streams):
                if topic:
                    yield Message(topic, time, data)

    def _messages(
        self, file: BinaryIO, part: _Part, topics: Collection[str]
    ) -> Iterator[tuple[int, int, int, str, bytes]]:
        # Without this, merging would read every part at once to know its first time.
        yield part.start, 0, 0, "", b""
        content, _ = _content(file, part)
        found = []
        for number, (opcode, body) in enumerate(_records(content)):
            if opcode == _MESSAGE_RECORD and len(body) >= _MESSAGE.size:
                channel, _, time, _ = _MESSAGE.unpack_from(body)
                if topic := self._topic(channel, topics):
                    found.append((time, part.at, number, topic, body[_MESSAGE.size :]))
        yield from sorted(found, key=lambda one: one[0])


def _content(file: BinaryIO, part: _Part) -> tuple[bytes, bool]:
    """The records of a part, and whether they are complete."""
    file.seek(part.at)
    body = file.read(part.size)
    if part.opcode == _MESSAGE_RECORD:
        return body, True
    try:
        _, _, size, checksum = _CHUNK.unpack_from(body)
        compression, at = _string(body, _CHUNK.size)
        (stored,) = struct.unpack_from("<Q", body, at)
        packed = body[at + 8 : at + 8 + stored]
        content = _DECOMPRESSORS[compression](packed)
    except (struct.error, ValueError, zstd.ZstdError, RuntimeError, LookupError):
        return b"", False
    whole = part.whole and len(content) == size
    if whole and checksum and crc32(content) != checksum:
        return b"", False
    return content, whole


def _records(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Opcode and body of the complete records."""
    at = 0
    while at + _RECORD.size <= len(content):
        opcode, length = _RECORD.unpack_from(content, at)
        at += _RECORD.size
        if opcode not in _OPCODES or at + length > len(content):
            return
        yield opcode, content[at : at + length]
        at += length


def _string(body: bytes, at: int) -> tuple[str, int]:
    """A string with its length in front, and where it ends."""
    (length,) = struct.unpack_from("<I", body, at)
    if at + 4 + length > len(body):
        raise struct.error("the string ends early")
    return body[at + 4 : at + 4 + length].decode(), at + 4 + length


class SalvagedSqlite(SalvagedFile):
    """A SQLite file that is damaged, truncated, or without definitions."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._times: list[tuple[int, int]] = []
        lost = 0
        try:
            with closing(_database(path)) as database:
                rows = database.execute("SELECT id, name, type, serialization_format FROM topics")
                self._by_number = {
                    number: Channel(name, kind, encoding=encoding)
                    for number, name, kind, encoding in rows
                }
                for row in self._numbers(database, path.stat().st_size):
                    found = self._row(database, "timestamp, length(data)", row)
                    if found and isinstance(found[0], int):
                        self._times.append((found[0], row))
                    else:
                        lost += found != ()
                whole = not lost and _is_whole(database)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path.name}: nothing can be read ({error}).") from error
        self._times.sort()
        if not whole:
            self.problems.append(
                f"{path.name} is a damaged database: {len(self._times)} of its rows can be read,"
                f" {lost} cannot."
            )

    @staticmethod
    def _numbers(database: sqlite3.Connection, size: int) -> Iterable[int]:
        """Numbers of the rows that a file of this size may have."""
        with suppress(sqlite3.DatabaseError):
            (last,) = database.execute("SELECT max(id) FROM messages").fetchone()
            if last is None:
                return ()
            # A damaged row can have any number; counting up to that could take for ever.
            if isinstance(last, int) and last <= size // _SMALLEST_ROW:
                return range(1, last + 1)
        return _until_gone(database)

    @staticmethod
    def _row(database: sqlite3.Connection, what: str, number: int) -> tuple[Any, ...] | None:
        """Columns of a row; () if there is none, None if it cannot be read."""
        try:
            row = database.execute(f"SELECT {what} FROM messages WHERE id=?", (number,)).fetchone()
        except (sqlite3.DatabaseError, OverflowError):
            return None
        return row or ()

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        with closing(_database(self.path)) as database:
            for time, number in self._times:
                row = self._row(database, "topic_id, data", number)
                topic = self._topic(row[0], topics) if row else ""
                if row and topic and isinstance(row[1], bytes):
                    yield Message(topic, time, row[1])


def _database(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)
    # Else SQLite reads nothing of a truncated file.
    database.execute("PRAGMA writable_schema=ON")
    return database


def _is_whole(database: sqlite3.Connection) -> bool:
    with suppress(sqlite3.DatabaseError):
        return database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    return False


def _until_gone(database: sqlite3.Connection) -> Iterator[int]:
    """Numbers from 1 on, until ``_MISSES`` rows in a row cannot be read."""
    number = missed = 0
    while missed < _MISSES:
        number += 1
        yield number
        missed = missed + 1 if SalvagedSqlite._row(database, "1", number) in ((), None) else 0
