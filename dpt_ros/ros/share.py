# SPDX-License-Identifier: Apache-2.0
"""The files of share/dpt_ros, and the environment in which our processes talk to each other."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_path

_CHECKOUT = Path(__file__).parents[2]


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

    Empty where the environment names a profile already: whoever has one of their own keeps it.
    """
    variables = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
    if any(variable in os.environ for variable in variables):
        return {}
    # Jazzy (rclpy 7) knows the second name only, Kilted (9) warns of it.
    return {variables[_rclpy_major() < 9]: str(share_path("config/fastdds.xml"))}


def _rclpy_major() -> int:
    for distribution in ("rclpy", "ros-rclpy"):
        with suppress(metadata.PackageNotFoundError):
            return int(metadata.version(distribution).split(".")[0])
    return 0
