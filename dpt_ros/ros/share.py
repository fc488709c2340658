# SPDX-License-Identifier: Apache-2.0
"""The files of share/dpt_ros, and the environment in which our processes talk to each other."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from ament_index_python.packages import PackageNotFoundError, get_package_share_path

_CHECKOUT = Path(__file__).parents[2]
# That name the Fast DDS profile: in Kilted and later, in Jazzy and before.
_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
_DEFAULT_ROOM = 512 * 1024


def share_path(name: str) -> Path:
    """A file of the package's share folder, such as "config/fastdds.xml".

    A checkout's own file wins, so that what runs from a checkout is all of one version.

    Raises:
        FileNotFoundError: the package is installed without its share folder.
    """
    if (_CHECKOUT / "package.xml").is_file():
        return _CHECKOUT / name
    # pip puts share/ beside lib/, of which no ament index may know.
    candidates = [folder / "share" / "dpt_ros" / name for folder in _CHECKOUT.parents]
    with suppress(PackageNotFoundError):
        candidates.insert(0, get_package_share_path("dpt_ros") / name)
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"share/dpt_ros/{name} was not found; install dpt_ros with pip or colcon, whole."
    )


def transport_environment() -> dict[str, str]:
    """The variable that lets Fast DDS carry whole images in shared memory.

    Whoever chose a profile or the built-in transports keeps them: then it is empty, or names the
    user's profile in the variable that this distribution reads.
    """
    read, other = _VARIABLES[::-1] if _rclpy_major() < 9 else _VARIABLES
    if read in os.environ or "FASTDDS_BUILTIN_TRANSPORTS" in os.environ:
        return {}
    # Kilted (rclpy 9) reads both names and warns of the second one, Jazzy (7) the second only.
    if other in os.environ:
        return {read: os.environ[other]} if _rclpy_major() < 9 else {}
    return {read: str(share_path("config/fastdds.xml"))}


def shared_memory_room() -> int:
    """Bytes that a message may have to reach a best-effort reader, by the Fast DDS profile.

    What is not known (another middleware, a profile that cannot be read) is taken for enough.
    """
    if os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") != "rmw_fastrtps_cpp":
        return sys.maxsize
    if os.environ.get("FASTDDS_BUILTIN_TRANSPORTS", "").startswith("LARGE_DATA"):
        return sys.maxsize
    path = next((os.environ[name] for name in _VARIABLES if name in os.environ), "")
    if not path:
        return _DEFAULT_ROOM
    try:
        tree = ElementTree.parse(path)
    except (OSError, ElementTree.ParseError):
        return _DEFAULT_ROOM  # Fast DDS reports it and takes its defaults
    sizes = [
        int(element.text or 0)
        for element in tree.iter()
        if element.tag.rpartition("}")[2] == "segment_size"
    ]
    return max(sizes, default=_DEFAULT_ROOM)


def _rclpy_major() -> int:
    for distribution in ("rclpy", "ros-rclpy"):
        with suppress(metadata.PackageNotFoundError):
            return int(metadata.version(distribution).split(".")[0])
    return 0
