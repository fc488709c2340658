# SPDX-License-Identifier: Apache-2.0
"""Writes a bag so that an interruption loses nothing of what was complete.

The bag is a rosbag2 folder whose files are written one after another. A file is written in a
folder beside, flushed to the disk and renamed into its place; then the state at its end replaces
the state before, atomically. An incomplete file is written again.
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

from dpt_ros.bag.files import METADATA
from dpt_ros.bag.job import Job
from dpt_ros.bag.reader import BagError
from dpt_ros.bag.salvage import Channel
from dpt_ros.engine.provenance import differences
from dpt_ros.files import move_file, replace_file

_WORK = ".dpt_bag"  # folder in the bag while it is incomplete
_STATE = "state.pt"
_OURS = "dpt_bag"  # key in the bag's custom_data
# Those in C, which are thirty times faster, where PyYAML was built with them.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_DIGEST = sha256().digest_size  # bytes
_FOREVER = QosTime(9223372036, 854775807)


def offered_qos(latched: bool) -> tuple[Qos, ...]:
    """The QoS that the node offers its outputs with."""
    depth, durability = 10, QosDurability.VOLATILE
    if latched:
        depth, durability = 1, QosDurability.TRANSIENT_LOCAL
    how = QosHistory.KEEP_LAST, depth, QosReliability.RELIABLE, durability
    return (Qos(*how, _FOREVER, _FOREVER, QosLiveliness.AUTOMATIC, _FOREVER, False),)


@dataclass
class Progress:
    """The state of a run as of its last complete file."""

    position: int = 0  # messages of the input that were processed
    frames: int = 0  # of these, the images that were computed
    failed: dict[str, int] = field(default_factory=dict)  # images that could not be, by reason
    bag: dict[str, Any] = field(default_factory=dict)  # rosbag2's metadata of complete files
    engine: dict[str, Any] = field(default_factory=dict)  # see ``Runner.state_dict``
    outputs: dict[str, dict[str, float]] = field(default_factory=dict)  # by camera


def saved_frames(path: Path) -> int:
    """Frames in the complete files of an incomplete bag, after which the next run resumes."""
    file = path / _WORK / _STATE
    return int(_read_state(file)["progress"]["frames"]) if file.exists() else 0


def _read_state(file: Path) -> dict[str, Any]:
    """What ``checkpoint`` wrote; of a damaged file torch would silently read other numbers."""
    written = file.read_bytes()
    if sha256(written[_DIGEST:]).digest() != written[:_DIGEST]:
        raise BagError(f"The saved state {file} is damaged; start again with --overwrite.")
    state = torch.load(BytesIO(written[_DIGEST:]), map_location="cpu", weights_only=True)
    return dict(state)


class OutputBag:
    """A bag that is written. Use it as a context, which locks the bag.

    Args:
        made_from: see ``job.made_from``; plain values.
        machine: what else its bytes depend on; plain values.

    Attributes:
        progress: of the run that is resumed, or a new one.
        finished: what ``finish`` wrote, if the bag is complete.
        warning: why an interrupted run could not be resumed, else "".

    Raises:
        BagError: from ``__enter__``: the path holds something else, or a bag of other settings.
    """

    def __init__(self, job: Job, made_from: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        self.path = job.out
        self.progress = Progress()
        self.finished: dict[str, Any] | None = None
        self.warning = ""
        # As they are read back: lists for tuples.
        self._made_from = json.loads(json.dumps(made_from))
        self._machine = json.loads(json.dumps(machine))
        self._job = job
        self._channels: list[Channel] = []
        self._writer: Writer | None = None
        self._connections: dict[str, Connection] = {}
        self._work = job.out / _WORK
        self._lock = -1

    @property
    def _part(self) -> Path:
        """The file being written, as a bag of its own."""
        number = len(self.progress.bag.get("files", ()))
        return self._work / f"{self.path.name}_{number}"

    def __enter__(self) -> OutputBag:
        self._examine()
        if self.finished is not None:
            shutil.rmtree(self._work, ignore_errors=True)  # left by a process killed at the end
            return self
        with ExitStack() as failed:
            self._lock = self._locked()
            failed.callback(self.__exit__)
            self._examine()  # the process that held the lock may have finished
            if self._job.overwrite:
                self._clear()
            elif self.finished is None:
                self._resume()
            for entry in self._work.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)  # the incomplete file
            failed.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def abort(self) -> None:
        """Remove the incomplete file."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None
            shutil.rmtree(self._part, ignore_errors=True)

    def _examine(self) -> None:
        """Find out what is at the path; a BagError unless it may be written or is finished."""
        if not self.path.exists():
            return
        ours = self._our_metadata()
        if ours is None and not self._work.is_dir():
            if self.path.is_dir() and not any(self.path.iterdir()):
                return
            raise BagError(f"{self.path} exists and is no bag of dpt_bag; choose another name.")
        if ours is None or self._job.overwrite:
            return
        self._refuse_others(ours["asked"])
        if ours["finished"]:
            self.finished = ours

    def _refuse_others(self, made_from: Mapping[str, Any]) -> None:
        if different := differences(made_from, self._made_from):
            raise BagError(
                f"{self.path} was made with other settings or input ({different}); choose another"
                " name, or replace it with --overwrite."
            )

    def _our_metadata(self) -> dict[str, Any] | None:
        """What dpt_bag wrote into the bag's metadata."""
        try:
            found = _read_yaml(self.path / METADATA)
            ours = dict(json.loads(found["rosbag2_bagfile_information"]["custom_data"][_OURS]))
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
            return None
        kinds = {"asked": dict, "finished": bool}
        if ours.get("finished"):
            kinds |= {"frames": int, "failed": int, "notes": list}
        return ours if all(isinstance(ours.get(k), kind) for k, kind in kinds.items()) else None

    def _locked(self) -> int:
        while True:
            self._work.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
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
            os.close(lock)  # its folder was removed by a process that finished meanwhile

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            if entry == self._work:
                (entry / _STATE).unlink(missing_ok=True)
            elif entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _resume(self) -> None:
        file = self._work / _STATE
        if not file.exists():
            return
        state = _read_state(file)
        # Before the first file there is no metadata to examine.
        self._refuse_others(json.loads(state["asked"]))
        if different := differences(json.loads(state["machine"]), self._machine):
            self.warning = (
                f"{self.path} was started on another machine ({different}), which would give other"
                " bytes: it is started again."
            )
            self._clear()
            return
        progress = state["progress"]
        bag = json.loads(progress["bag"])
        for name in bag.get("relative_file_paths", ()):
            if not (self.path / name).is_file():
                raise BagError(
                    f"The complete file {name} is missing in {self.path}; start again with"
                    " --overwrite."
                )
        self.progress = Progress(**progress | {"bag": bag})

    def open(self, channels: Sequence[Channel]) -> None:
        """Set the topics, each with the definition of its type."""
        self._channels = list(channels)

    def write(self, topic: str, time: int, data: bytes | memoryview) -> None:
        """Write a serialised message, with its time of recording."""
        if self._writer is None:
            self._begin()
        assert self._writer is not None
        self._writer.write(self._connections[topic], time, data)

    def _begin(self) -> None:
        plugin = StoragePlugin[self._job.storage.upper()]
        writer = Writer(self._part, version=9, storage_plugin=plugin)
        if self._job.packed:
            mcap = plugin == StoragePlugin.MCAP
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
        """Complete the current file and save the state at its end."""
        bag = self.progress.bag
        if self._writer is not None:
            part = self._part
            self._writer.close()
            self._writer = None
            metadata = _read_yaml(part / METADATA)["rosbag2_bagfile_information"]
            (name,) = metadata["relative_file_paths"]
            move_file(part / name, self.path / name)
            shutil.rmtree(part)
            bag = joined(bag, metadata) if bag else metadata
        self.progress = progress
        self.progress.bag = bag
        state = vars(progress) | {"bag": json.dumps(bag)}
        contents = BytesIO()
        texts = {"asked": json.dumps(self._made_from), "machine": json.dumps(self._machine)}
        torch.save({**texts, "progress": state}, contents)
        written = contents.getvalue()
        replace_file(self._work / _STATE, sha256(written).digest() + written)
        self._write_metadata({"finished": False})

    def finish(self, problems: Sequence[str]) -> list[str]:
        """Mark the bag as complete; what could not be read of the input and the images that
        failed, in words."""
        failed = self.progress.failed
        notes = [*problems, *(f"{n} images: {why}" for why, n in failed.items())]
        self.finished = {
            "finished": True,
            "frames": self.progress.frames,
            "failed": sum(failed.values()),
            "notes": notes,
        }
        self._write_metadata(self.finished)
        shutil.rmtree(self._work)
        return notes

    def _write_metadata(self, ours: Mapping[str, Any]) -> None:
        """Make the complete files one bag."""
        if not self.progress.bag:
            return
        custom = {_OURS: json.dumps({"asked": self._made_from, **ours})}
        bag = self.progress.bag | {"custom_data": custom}
        text = yaml.dump({"rosbag2_bagfile_information": bag}, Dumper=_Dumper)
        replace_file(self.path / METADATA, text.encode())


def joined(bag: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """rosbag2's metadata of a bag and one more file, which was written as a bag of its own."""
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


def _start(metadata: Mapping[str, Any]) -> int:
    return int(metadata["starting_time"]["nanoseconds_since_epoch"])


def _read_yaml(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=_Loader)
