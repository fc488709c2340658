# SPDX-License-Identifier: Apache-2.0
"""Checks of the networks on this machine, and of the room for more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from dpt_ros.apps.doctor.finding import Finding, Machine, error, size_of, warning
from dpt_ros.model.download import cache_folder, cache_path, sha256_of
from dpt_ros.model.zoo import EMBEDDED_NAME, ROWS

_ROOM = 3e9  # bytes: the largest network and its ONNX file


def check_networks(machine: Machine, hashed: bool = False) -> Iterator[Finding]:
    """The embedded network, the downloaded ones, and the room in their folder; ``hashed``: compare
    the sha256 with the published ones, seconds per network."""
    # dpt_ros.data needs NumPy, which may be what is missing.
    embedded = Path(__file__).parents[2] / "data" / f"{EMBEDDED_NAME}.safetensors"
    if embedded.is_file():
        yield Finding(EMBEDDED_NAME, "comes with dpt_ros; not valid for real scenes")
    else:
        yield error(EMBEDDED_NAME, f"{embedded} is missing.", "Install dpt_ros again.")
    folder = cache_folder()
    free = shutil.disk_usage(next(x for x in (folder, *folder.parents) if x.exists())).free
    message = f"{folder}, {size_of(free)} free"
    if free < _ROOM:
        message += ": a large network takes 1.4 GB, and its ONNX file as much."
        yield warning("cache", message, "Set DPT_ROS_CACHE to a folder with room.")
    else:
        yield Finding("cache", message)
    for spec in (row for row in ROWS if row.url):
        path = cache_path(spec)
        part = path.with_name(f"{path.name}.part")
        if path.is_file():
            yield _downloaded(spec.name, path, spec.sha256, hashed)
        elif part.is_file() and part.stat().st_size:
            message = f"{size_of(part.stat().st_size)} of an unfinished download."
            yield warning(spec.name, message, "Start it again: it goes on where it stopped.")


def _downloaded(name: str, path: Path, sha256: str, hashed: bool) -> Finding:
    message = f"{path}, {size_of(path.stat().st_size)}"
    if not hashed:
        return Finding(name, f"{message}, sha256 not compared (--hash does)")
    finding = hash_finding(name, path, sha256)
    if finding.level:
        return error(name, finding.message, f"rm {path}, and download it again.")
    return finding


def hash_finding(name: str, path: Path, sha256: str) -> Finding:
    """A file beside its published sha256: all digits, the first ones, or "" if it is unknown."""
    with path.open("rb") as file:
        digest = sha256_of(file)
    text = f"{path}, sha256 {digest}"
    if not digest.startswith(sha256):
        return warning(name, f"{text}, but {sha256} is published.", "Get the published file.")
    how = {0: "; none is published", 64: ", as published"}
    return Finding(name, text + how.get(len(sha256), f", published are the digits {sha256}"))
