# SPDX-License-Identifier: Apache-2.0
"""Recorded bags: read, converted frame by frame, written, played."""

# What dpt_bag writes by default, and all that it can write. Here, because --help lists it.
MAPS = (
    "depth/image",
    "depth/camera_info",
    "depth/inverse",
    "depth/confidence",
    "semantic/labels",
    "semantic/confidence",
    "semantic/label_info",
)
ALL_OUTPUTS = (
    *MAPS,
    "depth/image/compressedDepth",
    "depth/color",
    "depth/points",
    "semantic/color",
)
STORAGES = ("mcap", "sqlite3")
