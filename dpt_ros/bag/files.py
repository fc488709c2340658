# SPDX-License-Identifier: Apache-2.0
"""The storage files of a bag: which exist, what they are, and readable copies of them.

The kind of a file is told by its first bytes, and by its name only where these are unknown.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dpt_ros.file_kinds import kind_of_file

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

METADATA = "metadata.yaml"
MCAP, SQLITE = ".mcap", ".db3"
_COMPRESSED = (".zstd", ".zst")
MAGICS = {MCAP: b"\x89MCAP0\r\n", SQLITE: b"SQLite format 3\0"}
# What SQLite has not yet moved into the database (or has to revert) when its writer is killed.
_JOURNALS = ("-wal", "-journal")


def is_bag(path: Path) -> bool:
    """Whether this is a bag: a folder with storage files or metadata, or a storage file."""
    if path.is_dir():
        return (path / METADATA).is_file() or any(is_storage(p.name) for p in path.iterdir())
    return path.is_file() and (is_storage(path.name) or _begins(path, MAGICS[MCAP]))


def is_storage(name: str) -> bool:
    """Whether a file's name is that of a storage file, compressed or not."""
    return _unpacked_name(name).endswith((MCAP, SQLITE))


def storage_of(path: Path) -> str:
    """ ".mcap" or ".db3": what an uncompressed storage file is."""
    for storage, magic in MAGICS.items():
        if _begins(path, magic):
            return storage
    return path.suffix


def no_bag(path: Path) -> str:
    """The error message on a path that is no bag."""
    return other_kind(path) or (
        f"{path} is no bag: expected a folder with {METADATA}, or a file named *.mcap, *.db3,"
        " *.mcap.zstd or *.db3.zstd."
    )


def other_kind(path: Path) -> str:
    """The error message on a path that is another kind of file; "" if unknown."""
    old = [path] if path.is_file() else sorted(path.glob("*.bag"))
    if any(_begins(file, b"#ROSBAG V") for file in old):
        return (
            f"{path} is a ROS 1 bag; convert it to a ROS 2 bag: rosbags-convert --src {old[0]}"
            f" --dst {old[0].with_suffix('')}"
        )
    kind = kind_of_file(path) if path.is_file() else ""
    return f"{path} is {kind}." if kind else ""


def storage_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The storage files of a folder, and their copies.

    Files are in the order of the numbers in their names. Those that differ by their suffixes alone
    (x.db3, x.db3.zstd) are copies: a recorder removes its file when the compressed one is
    complete, so the uncompressed one is read.
    """

    def order(path: Path) -> list[Any]:
        parts = re.split(r"(\d+)", _unpacked_name(path.name))
        return [*(int(part) if part.isdigit() else part for part in parts), len(path.name)]

    chosen: dict[str, Path] = {}
    copies = []
    found = [p for p in folder.iterdir() if is_storage(p.name)]
    for path in sorted(sorted(found), key=lambda p: (_is_packed(p), p.name.endswith(SQLITE))):
        if chosen.setdefault(_unpacked_name(path.name).rpartition(".")[0], path) != path:
            copies.append(path)
    return sorted(chosen.values(), key=order), copies


def other_form(path: Path) -> Path | None:
    """The compressed or uncompressed form of a missing storage file."""
    plain = _unpacked_name(path.name)
    for name in (plain, *(plain + suffix for suffix in _COMPRESSED)):
        if (other := path.with_name(name)).is_file():
            return other
    return None


@contextmanager
def readable(
    file: Path, problem: Callable[[str], None], warn: Callable[[str], None]
) -> Iterator[Path]:
    """A storage file, which stays as it is, in the form that its reader needs: uncompressed, with
    its journal applied. Messages: what cannot be read; what was read in another way than usual.
    """
    journals = [file.with_name(file.name + suffix) for suffix in _JOURNALS]
    journals = [journal for journal in journals if journal.is_file() and journal.stat().st_size]
    if not (_is_packed(file) or journals):
        yield file
        return
    with TemporaryDirectory(prefix="dpt_bag_") as folder:
        copy = Path(folder, _unpacked_name(file.name))
        if journals:
            for one in (file, *journals):
                shutil.copyfile(one, copy.with_name(one.name))
            name = journals[0].name
            try:
                with closing(sqlite3.connect(copy)) as database:
                    database.execute("PRAGMA journal_mode=DELETE").fetchall()
                warn(
                    f"{name} was left beside {file.name}: the recorder ended before it could close"
                    " the file. Both are read together, from temporary copies."
                )
            except sqlite3.DatabaseError as error:
                problem(f"{name} cannot be read ({error}), and its messages are ignored.")
                shutil.copyfile(file, copy)
        else:
            with zstd.open(file, "rb") as packed, copy.open("wb") as out:
                try:
                    shutil.copyfileobj(packed, out, 1 << 20)
                except (zstd.ZstdError, EOFError) as error:
                    text = str(error) or type(error).__name__
                    problem(f"Only a part of {file.name} can be unpacked: {text.rstrip('.')}.")
        yield copy


def _is_packed(path: Path) -> bool:
    return path.name.endswith(_COMPRESSED)


def _unpacked_name(name: str) -> str:
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    return name


def _begins(path: Path, magic: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(magic)) == magic
