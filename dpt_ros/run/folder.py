# SPDX-License-Identifier: Apache-2.0
"""The folder of results: what it was made with, what of it is complete, whole files only."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dpt_ros.engine.provenance import differences
from dpt_ros.files import replace_file
from dpt_ros.run.sources import RECORD, Source

# Where each output lies in the folder, and the suffix of its files.
_PLACES = {
    "png": ("depth", ".png"),
    "pfm": ("depth", ".pfm"),
    "npy": ("depth", ".npy"),
    "color": ("color", ".png"),
    "labels": ("labels", ".png"),
    "overlay": ("overlay", ".png"),
    "video": ("video", ".mp4"),
}
_STAMPS = "stamps.csv"  # with the frames of a video; it is written when these are complete


class FolderError(ValueError):
    """Results cannot be written to a folder; the message says why and what to do."""


class ResultFolder:
    """A folder of results.

    A result is complete if its files are younger than the record of the folder, which is written
    before all of them, and than its source.

    Args:
        made_with: everything that the results depend on beside the sources, plain values.
        overwrite: replace what was made with something else.

    Raises:
        FolderError: the folder holds something else, or results of other settings.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any], overwrite: bool) -> None:
        self.path = path
        record = path / RECORD
        check_folder(path)
        made_with = json.loads(json.dumps(made_with))  # as it is read back: lists for tuples
        path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise FolderError(f"Another dpt_run is writing to {path}.") from None
        with ExitStack() as undo:
            undo.callback(self.close)
            if overwrite or not record.exists():
                replace_file(record, (json.dumps(made_with, indent=2) + "\n").encode())
            elif different := differences(_read(record), made_with):
                raise FolderError(
                    f"{path} was made with other settings ({different}); choose another folder,"
                    " or replace its results with --overwrite."
                )
            undo.pop_all()
        self._since = record.stat().st_mtime_ns

    def close(self) -> None:
        """Let another process write."""
        os.close(self._lock)

    def has(self, source: Source, outputs: Sequence[str]) -> bool:
        """Whether the results of a source are complete."""
        frames = [name for name in outputs if name != "video"]
        files = [self.file(source, name) for name in outputs if name == "video"]
        if source.kind == "picture":
            files = [self.file(source, name) for name in outputs]
        elif frames:
            files += [self._stamps(source, name) for name in frames]
            last = _last_number(files[-1])
            files += [self.file(source, name, last) for name in frames]
        try:
            since = max(self._since, source.path.stat().st_mtime_ns)
            return all(file.stat().st_mtime_ns >= since for file in files)
        except OSError:  # one is missing
            return False

    def file(self, source: Source, output: str, number: int | None = None) -> Path:
        """The file of an output of a picture or, by number, of a frame."""
        place, suffix = _PLACES[output]
        name = source.name if number is None else f"{source.name}/{number:06d}"
        return self.path / place / (name + suffix)

    def write(
        self, source: Source, contents: Mapping[str, bytes], number: int | None = None
    ) -> None:
        """Write the files of a picture or of a frame."""
        for output, content in contents.items():
            path = self.file(source, output, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)

    def begin_frames(self, source: Source, outputs: Sequence[str]) -> None:
        """Mark the frames of a video as incomplete."""
        for output in outputs:
            self._stamps(source, output).unlink(missing_ok=True)

    def end_frames(
        self, source: Source, outputs: Sequence[str], stamps: Sequence[tuple[int, int]]
    ) -> None:
        """Mark the frames as complete, by the list of their numbers and stamps in ns."""
        rows = ["frame,seconds", *(f"{number},{stamp / 1e9:.6f}" for number, stamp in stamps)]
        for path in {self._stamps(source, output) for output in outputs}:
            replace_file(path, ("\n".join(rows) + "\n").encode())

    def _stamps(self, source: Source, output: str) -> Path:
        return self.file(source, output, 0).with_name(_STAMPS)


def check_folder(path: Path) -> None:
    """Check that a folder may be written to.

    Raises:
        FolderError: it is no folder, or holds what dpt_run did not write.
    """
    if path.exists() and not path.is_dir():
        raise FolderError(f"{path} is a file; give a folder for the results.")
    if path.is_dir() and not (path / RECORD).exists() and any(path.iterdir()):
        raise FolderError(f"{path} holds files that dpt_run did not write; choose another folder.")


def _read(record: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(record.read_bytes()))
    except (ValueError, TypeError) as error:
        raise FolderError(
            f"{record} is damaged; choose another folder, or replace the results with --overwrite."
        ) from error


def _last_number(stamps: Path) -> int:
    try:
        return int(stamps.read_text().splitlines()[-1].partition(",")[0])
    except (OSError, ValueError, IndexError):
        return -1
