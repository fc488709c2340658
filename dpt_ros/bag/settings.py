# SPDX-License-Identifier: Apache-2.0
"""The node's parameters where no node is: from its parameter file, and NAME:=VALUE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rclpy.parameter import Parameter

from dpt_ros.engine.settings import Settings, check, common_name
from dpt_ros.ros.messages.error import one_line
from dpt_ros.ros.parameters import unknown_name

# What a parameter file may hold for rclpy itself.
_OF_RCLPY = ("use_sim_time", "start_type_description_service", "qos_overrides.")


def read_settings(
    file: Path | None, given: Sequence[str]
) -> tuple[Settings, dict[str, dict[str, Any]]]:
    """Settings as the node would have them.

    Args:
        file: a ROS parameter file, of the node dpt or of all nodes.
        given: "NAME:=VALUE", stronger than the file.

    Returns:
        The settings, and by camera the attributes of Settings that it has for itself.

    Raises:
        ValueError: a sentence about what is wrong.
    """
    values = _from_file(file) if file is not None else {}
    for text in given:
        name, sign, value = text.partition(":=")
        if not sign or not name:
            raise ValueError(one_line(f"-p {text}: expected NAME:=VALUE."))
        try:
            values[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            words = _words(error)
            raise ValueError(one_line(f"-p {text}: the value is no YAML ({words}).")) from error
    common = {name: value for name, value in values.items() if name == common_name(name)}
    for name in common:
        try:
            Settings.parse({name: common[name]})
        except ValueError as error:
            known = "is not a parameter" not in str(error)
            raise ValueError(str(error) if known else one_line(unknown_name(name))) from error
    settings = Settings.parse(common)
    own: dict[str, dict[str, Any]] = {}
    for name in values.keys() - common.keys():
        camera = name.partition(".")[0]
        if camera not in settings.cameras:
            cameras = list(settings.cameras)
            raise ValueError(
                one_line(f"{name} is set for the camera {camera}, but cameras is {cameras}.")
            )
        if value := check(name, values[name]):
            own.setdefault(camera, {})[common_name(name)] = value
    return settings, own


def _words(error: Exception) -> str:
    """The text of an error, which YAML's readers write on several lines."""
    return " ".join(str(error).split())


def _from_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file} does not exist.")
    try:
        # Not by rclpy's own reader: Humble has none, and that of Jazzy refuses usual files.
        there = yaml.safe_load(file.read_text()) or {}
        names = [name for name in ("/**", "dpt", "/dpt") if name in there]
        if not names:
            raise RuntimeError(f"it is for {', '.join(map(str, there)) or 'no node'}, not for dpt")
        values: dict[str, Any] = {}
        for name in names:
            values |= _flat(there[name]["ros__parameters"])
    except (
        RuntimeError,
        yaml.YAMLError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            one_line(f"{file} is no parameter file of the node dpt: {_words(error)}.")
        ) from error
    return {name: v for name, v in values.items() if not name.startswith(_OF_RCLPY)}


def _flat(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by full name, {"scale.source": ...}, as rclpy would take them."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict):
            values |= _flat(value, f"{prefix}{name}.")
        else:
            found = Parameter(prefix + name, value=value).value
            plain = isinstance(found, str | bool | int | float)
            values[prefix + name] = found if plain else list(found)
    return values
