# SPDX-License-Identifier: Apache-2.0
"""Writes a bag so that whatever ends the process loses nothing that was finished.

The bag is a rosbag2 folder whose files are written one after another. A file is written aside,
flushed to the disk and renamed into its place; then the state that the next one begins with takes
the place of the state before, in one step as well. What was in the making is made again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import yaml
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import (
    Stores,
    TypesysError,
    get_types_from_idl,
    get_types_from_msg,
    get_typestore,
)

from dpt_ros.bag.files import METADATA
from dpt_ros.bag.node import TYPES
from dpt_ros.bag.reader import BagError
from dpt_ros.bag.salvage import Channel

STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
_ASIDE = ".dpt_bag"  # folder in the bag, while it is in the making
_OURS = "dpt_bag"  # key in the bag's custom_data
# Those in C, which are thirty times faster, where PyYAML was built with them.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_DIGEST = sha256().digest_size  # bytes
_FOREVER = QosTime(9223372036, 854775807)


def saved_frames(path: Path) -> int:
    """Frames in the complete files of a bag in the making, after which the next run resumes."""
    try:
        contents = (path / _ASIDE / "state.pt").read_bytes()[_DIGEST:]
    except FileNotFoundError:
        return 0
    state = torch.load(BytesIO(contents), map_location="cpu", weights_only=True)
    return int(state["progress"]["frames"])


def offered(latched: bool) -> tuple[Qos, ...]:
    """The QoS that the node offers its outputs with."""
    durability = QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE
    return (
        Qos(
            QosHistory.KEEP_LAST,
            1 if latched else 10,
            QosReliability.RELIABLE,
            durability,
            _FOREVER,
            _FOREVER,
            QosLiveliness.AUTOMATIC,
            _FOREVER,
            False,
        ),
    )


def described(channel: Channel) -> Channel | None:
    """The channel with the definition of its type; None if nobody knows that."""
    store = get_typestore(Stores.EMPTY)
    try:
        if channel.definition:
            store.register(_types(channel))
            definition = channel.definition
        else:
            store = TYPES
            definition, _ = store.generate_msgdef(channel.msgtype, ros_version=2)
        digest = channel.digest or store.hash_rihs01(channel.msgtype)
    except (TypesysError, LookupError, ValueError, TypeError, AssertionError, RecursionError):
        return None
    about = (channel.topic, channel.msgtype, channel.count, definition, digest, channel.qos)
    return Channel(*about)


def _types(channel: Channel) -> Any:
    separator = "=" * 80 + "\n"
    if not channel.definition.startswith(f"{separator}IDL: "):
        return get_types_from_msg(channel.definition, channel.msgtype)
    types: dict[str, Any] = {}
    for part in channel.definition.split(separator)[1:]:
        types.update(get_types_from_idl(part.split("\n", 1)[1]))
    return types


@dataclass
class Progress:
    """How far a run came, as of its last complete file.

    Args:
        position: messages of the input that were dealt with.
        frames: of these, the images that were computed.
        failed: images that could not be, by the sentence that says why.
        bag: rosbag2's metadata of the files so far, empty before the first.
        engine: the past of the cameras, see ``Refiner.state_dict``.
        outputs: what the outputs remember, by camera.
    """

    position: int = 0
    frames: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    bag: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, dict[str, float]] = field(default_factory=dict)


class OutputBag:
    """A bag in the making. Use it as a context: no other process writes there meanwhile.

    Args:
        path: of the folder.
        asked: what the bag is made from and how; plain values.
        machine: what else its bytes depend on; plain values.
        storage: "mcap" or "sqlite3".
        packed: compress messages, with zstd.
        overwrite: begin anew whatever is there, if dpt_bag made it.

    Attributes:
        progress: of the run that this one goes on with, or a new one.
        finished: what ``finish`` wrote, if the bag is complete.
        note: a sentence, if what was there could not be used.

    Raises:
        BagError: from ``__enter__``: there is something else, or a bag made otherwise.
    """

    def __init__(
        self,
        path: Path,
        asked: Mapping[str, Any],
        machine: Mapping[str, Any],
        storage: str = "mcap",
        packed: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self.progress = Progress()
        self.finished: dict[str, Any] | None = None
        self.note = ""
        # As they will be read back: lists for tuples.
        self._asked = json.loads(json.dumps(asked))
        self._machine = json.loads(json.dumps(machine))
        self._plugin = STORAGES[storage]
        self._packed = packed
        self._overwrite = overwrite
        self._channels: list[Channel] = []
        self._writer: Writer | None = None
        self._connections: dict[str, Connection] = {}
        self._lock = -1

    @property
    def _aside(self) -> Path:
        return self.path / _ASIDE

    @property
    def _part(self) -> Path:
        """Where the file in the making is: a bag of its own."""
        number = len(self.progress.bag.get("files", ()))
        return self._aside / f"{self.path.name}_{number}"

    def __enter__(self) -> OutputBag:
        self._refuse_others()
        if self.finished is not None:
            shutil.rmtree(self._aside, ignore_errors=True)  # left by who was killed at the end
            return self
        with ExitStack() as failed:
            self._lock = self._locked()
            failed.callback(self.__exit__)
            self._refuse_others()  # who held the lock may have finished
            if self._overwrite:
                self._clear()
            elif self.finished is None:
                self._go_on()
            for entry in self._aside.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)  # what was in the making
            failed.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.abort()
            self._writer = None
            shutil.rmtree(self._part, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _refuse_others(self) -> None:
        """See what is there.

        Raises:
            BagError: it is not ours, or was made otherwise and must not be overwritten.
        """
        if not self.path.exists():
            return
        about = self._about()
        if about is None and not self._aside.is_dir():
            if self.path.is_dir() and not any(self.path.iterdir()):
                return
            raise BagError(f"{self.path} exists and is no bag of dpt_bag; choose another name.")
        if about is None or self._overwrite:
            return
        if different := _differences(about["asked"], self._asked):
            raise BagError(
                f"{self.path} was made otherwise ({different}); choose another name, or begin"
                " anew with --overwrite."
            )
        if about["finished"]:
            self.finished = about

    def _about(self) -> dict[str, Any] | None:
        """What we wrote into the bag's metadata."""
        try:
            found = _read_yaml(self.path / METADATA)
            about = dict(json.loads(found["rosbag2_bagfile_information"]["custom_data"][_OURS]))
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
            return None
        kinds = {"asked": dict, "finished": bool}
        if about.get("finished"):
            kinds |= {"frames": int, "failed": int, "notes": list}
        return about if all(isinstance(about.get(k), kind) for k, kind in kinds.items()) else None

    def _locked(self) -> int:
        while True:
            self._aside.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._aside / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(lock, 32).decode(errors="replace")
                os.close(lock)
                raise BagError(
                    f"{self.path} is being written by another dpt_bag (process {owner})."
                ) from None
            if os.fstat(lock).st_nlink:
                os.ftruncate(lock, 0)
                os.write(lock, str(os.getpid()).encode())
                return lock
            os.close(lock)  # whose folder was taken away by who finished meanwhile

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            if entry == self._aside:
                (entry / "state.pt").unlink(missing_ok=True)
            elif entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _go_on(self) -> None:
        file = self._aside / "state.pt"
        if not file.exists():
            return
        written = file.read_bytes()
        digest, contents = written[:_DIGEST], written[_DIGEST:]
        if sha256(contents).digest() != digest:
            raise BagError(
                f"{self.path} was interrupted, and the file that says where is damaged"
                f" ({_ASIDE}/{file.name}); begin anew with --overwrite."
            )
        state = torch.load(BytesIO(contents), map_location="cpu", weights_only=True)
        # Before the first file there is no metadata to tell that the bag was made otherwise.
        if different := _differences(json.loads(state["asked"]), self._asked):
            raise BagError(
                f"{self.path} was begun otherwise ({different}); choose another name, or begin"
                " anew with --overwrite."
            )
        if different := _differences(json.loads(state["machine"]), self._machine):
            self.note = (
                f"{self.path} was begun on another machine ({different}), which would give other"
                " bytes: it is begun anew."
            )
            self._clear()
            return
        progress = state["progress"]
        bag = json.loads(progress["bag"])
        for name in bag.get("relative_file_paths", ()):
            if not (self.path / name).is_file():
                raise BagError(
                    f"{name}, which was finished, is missing in {self.path}; begin anew with"
                    " --overwrite."
                )
        self.progress = Progress(**progress | {"bag": bag})

    def open(self, channels: Sequence[Channel]) -> None:
        """Say which topics there will be, each with the definition of its type."""
        self._channels = list(channels)

    def write(self, topic: str, time: int, data: bytes | memoryview) -> None:
        """Write a serialised message, with its time of recording."""
        if self._writer is None:
            self._begin()
        assert self._writer is not None
        self._writer.write(self._connections[topic], time, data)

    def _begin(self) -> None:
        writer = Writer(self._part, version=9, storage_plugin=self._plugin)
        if self._packed:
            mcap = self._plugin == StoragePlugin.MCAP
            mode = CompressionMode.STORAGE if mcap else CompressionMode.MESSAGE
            writer.set_compression(mode, CompressionFormat.ZSTD)
        writer.open()
        self._writer = writer
        self._connections = {
            channel.topic: writer.add_connection(
                channel.topic,
                channel.msgtype,
                msgdef=channel.definition,
                rihs01=channel.digest,
                offered_qos_profiles=channel.qos,  # type: ignore[arg-type]
            )
            for channel in self._channels
        }

    def checkpoint(self, progress: Progress) -> None:
        """Finish the file in the making and remember what the next one begins with."""
        bag = self.progress.bag
        if self._writer is not None:
            part = self._part
            self._writer.close()
            self._writer = None
            about = _read_yaml(part / METADATA)
            about = about["rosbag2_bagfile_information"]
            (name,) = about["relative_file_paths"]
            _sync(part / name)
            os.replace(part / name, self.path / name)
            _sync(self.path)
            shutil.rmtree(part)
            bag = joined(bag, about) if bag else about
        self.progress = progress
        self.progress.bag = bag
        state = vars(progress) | {"bag": json.dumps(bag)}
        contents = BytesIO()
        asked, machine = json.dumps(self._asked), json.dumps(self._machine)
        torch.save({"asked": asked, "machine": machine, "progress": state}, contents)
        written = contents.getvalue()
        # Of a damaged file torch would read other numbers without a word.
        _replace(self._aside / "state.pt", sha256(written).digest() + written)
        self._write_metadata({"finished": False})

    def finish(self, notes: Sequence[str]) -> None:
        """Mark the bag as complete.

        Args:
            notes: sentences on what of the input could not be read.
        """
        failed = self.progress.failed
        about = {
            "finished": True,
            "frames": self.progress.frames,
            "failed": sum(failed.values()),
            "notes": [*notes, *(f"{n} images: {why}" for why, n in failed.items())],
        }
        self.finished = about
        self._write_metadata(about)
        shutil.rmtree(self._aside)

    def _write_metadata(self, about: Mapping[str, Any]) -> None:
        """The files written so far as one bag."""
        if not self.progress.bag:
            return
        ours = {_OURS: json.dumps({"asked": self._asked, **about})}
        bag = self.progress.bag | {"custom_data": ours}
        text = yaml.dump({"rosbag2_bagfile_information": bag}, Dumper=_Dumper)
        _replace(self.path / METADATA, text.encode())


def joined(bag: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """rosbag2's metadata of a bag with one more file, that was written as a bag of its own."""
    start = min(_start(bag), _start(more))
    end = max(_start(one) + one["duration"]["nanoseconds"] for one in (bag, more))
    topics = [
        {**topic, "message_count": topic["message_count"] + other["message_count"]}
        for topic, other in zip(
            bag["topics_with_message_count"], more["topics_with_message_count"], strict=True
        )
    ]
    return {
        **bag,
        "relative_file_paths": [*bag["relative_file_paths"], *more["relative_file_paths"]],
        "files": [*bag["files"], *more["files"]],
        "message_count": bag["message_count"] + more["message_count"],
        "starting_time": {"nanoseconds_since_epoch": start},
        "duration": {"nanoseconds": end - start},
        "topics_with_message_count": topics,
    }


def _start(about: Mapping[str, Any]) -> int:
    return int(about["starting_time"]["nanoseconds_since_epoch"])


def _read_yaml(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=_Loader)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> str:
    """What is not the same, in words; "" if all is."""
    words = []
    for key in dict.fromkeys([*before, *now]):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            prefix = "" if key == "parameters" else f"{within}{key}."
            words += [inner] if (inner := _differences(a, b, prefix)) else []
        elif a != b:
            long = max(len(str(a)), len(str(b))) > 60
            words.append(f"{within}{key}" if long else f"{within}{key}: {a!r}, now {b!r}")
    return "; ".join(words)


def _replace(path: Path, contents: bytes) -> None:
    """Put contents in the place of a file, so that there is always the one or the other."""
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
