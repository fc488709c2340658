# SPDX-License-Identifier: Apache-2.0
"""The files of share/dpt_ros, and the Fast DDS profile among them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

_CHECKOUT = Path(__file__).parents[2]
# The variable that names the Fast DDS profile: in Kilted and later, in Jazzy and before.
_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
_DEFAULT_SIZE = 512 * 1024


def share_path(name: str) -> Path:
    """A file of the package's share folder, such as "config/fastdds.xml".

    In a checkout it is the checkout's own file, so that all is of one version.

    Raises:
        FileNotFoundError: the package is installed without its share folder.
    """
    if (_CHECKOUT / "package.xml").is_file():
        return _CHECKOUT / name
    # pip puts share/ beside lib/, which need not be in the ament index; without an index: OSError.
    candidates = [folder / "share" / "dpt_ros" / name for folder in _CHECKOUT.parents]
    from ament_index_python.packages import PackageNotFoundError, get_package_share_path

    with suppress(PackageNotFoundError, OSError):
        candidates.insert(0, get_package_share_path("dpt_ros") / name)
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"share/dpt_ros/{name} was not found; reinstall dpt_ros with pip or colcon."
    )


def profile_variables() -> tuple[str, str]:
    """The variable from which this distribution reads the Fast DDS profile, and the other one."""
    return _VARIABLES[::-1] if _rclpy_major() < 9 else _VARIABLES


def transport_environment() -> dict[str, str]:
    """The environment variable with which Fast DDS has room for images in shared memory.

    Empty where the user has chosen a profile or built-in transports; or the user's profile, in the
    variable that this distribution reads.
    """
    read, other = profile_variables()
    if read in os.environ or "FASTDDS_BUILTIN_TRANSPORTS" in os.environ:
        return {}
    # Kilted (rclpy 9) reads both and warns about the second; Jazzy (7) reads the second only.
    if other in os.environ:
        return {read: os.environ[other]} if _rclpy_major() < 9 else {}
    return {read: str(share_path("config/fastdds.xml"))}


def shared_memory_size() -> int:
    """The size of the shared memory segment of the Fast DDS profile, bytes.

    A larger message does not reach a best-effort subscriber. With another middleware: sys.maxsize.
    """
    if os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") != "rmw_fastrtps_cpp":
        return sys.maxsize
    if os.environ.get("FASTDDS_BUILTIN_TRANSPORTS", "").startswith("LARGE_DATA"):
        return sys.maxsize
    path = next((os.environ[name] for name in _VARIABLES if name in os.environ), "")
    if not path:
        return _DEFAULT_SIZE
    try:
        tree = ElementTree.parse(path)
    except (OSError, ElementTree.ParseError):
        return _DEFAULT_SIZE  # Fast DDS logs the error and uses its defaults
    sizes = [
        int(element.text or 0)
        for element in tree.iter()
        if element.tag.rpartition("}")[2] == "segment_size"
    ]
    return max(sizes, default=_DEFAULT_SIZE)


def _rclpy_major() -> int:
    for distribution in ("rclpy", "ros-rclpy"):
        with suppress(metadata.PackageNotFoundError):
            return int(metadata.version(distribution).split(".")[0])
    return 0
