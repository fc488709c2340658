# SPDX-License-Identifier: Apache-2.0
"""The kept inputs of each target: ``corpus/TARGET.tar.xz``, one file per input."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def name_of(content: bytes) -> str:
    """The file name of an input: the first 12 hex digits of its SHA-1."""
    return hashlib.sha1(content).hexdigest()[:12]


def read_archive(path: Path) -> list[bytes]:
    """The inputs of an archive in the order of their names."""
    with tarfile.open(path) as archive:
        members = sorted(archive.getmembers(), key=lambda member: member.name)
        return [archive.extractfile(member).read() for member in members]  # type: ignore


def write_archive(path: Path, inputs: Iterable[bytes]) -> None:
    """Write an archive whose bytes depend on the inputs only: no dates, owners or modes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz", format=tarfile.USTAR_FORMAT, preset=9) as archive:
        for name, content in sorted((name_of(content), content) for content in inputs):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def unpack(target: str, folder: Path) -> None:
    """Write the kept inputs of a target into a folder, one file each, for libFuzzer."""
    folder.mkdir(parents=True, exist_ok=True)
    for content in kept_inputs(target):
        (folder / name_of(content)).write_bytes(content)


def kept_inputs(target: str) -> list[bytes]:
    """The kept inputs of a target, none for a new target."""
    path = archive_of(target)
    return read_archive(path) if path.exists() else []


def archive_of(target: str) -> Path:
    return CORPUS / f"{target}.tar.xz"
