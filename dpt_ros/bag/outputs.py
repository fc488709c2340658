# SPDX-License-Identifier: Apache-2.0
"""What dpt_bag can write; a module of its own, because the help of the command lists it."""

from __future__ import annotations

# The contract's outputs; those for people and the points are many bytes and easily made again.
MAPS = (
    "depth/image",
    "depth/camera_info",
    "depth/inverse",
    "depth/confidence",
    "semantic/labels",
    "semantic/confidence",
    "semantic/label_info",
)
ALL_OUTPUTS = (*MAPS, "depth/color", "depth/points", "semantic/color")
STORAGES = ("mcap", "sqlite3")
