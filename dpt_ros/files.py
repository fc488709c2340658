# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, contents: bytes) -> None:
    """Replace a file atomically."""
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
