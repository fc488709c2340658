# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, contents: bytes) -> None:
    """Replace a file atomically."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(contents)
    move_file(new, path)


def move_file(new: Path, path: Path) -> None:
    """Give a complete file its name, atomically, in the place of another one."""
    _sync(new)
    os.replace(new, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
