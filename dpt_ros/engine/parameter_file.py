# SPDX-License-Identifier: Apache-2.0
"""The node's parameters without a node: from a parameter file, and NAME:=VALUE."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dpt_ros.engine.settings import TYPES, Settings, check, common_name
from dpt_ros.engine.text import one_line

# Parameters that rclpy itself declares, and prefixes of those it declares later.
_RCLPY_NAMES = ("use_sim_time", "start_type_description_service")
_RCLPY_PREFIXES = ("qos_overrides.",)
# What reading another file than one of parameters may raise.
_NOT_PARAMETERS = (RuntimeError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError)


def read_settings(
    file: Path | None, given: Sequence[str]
) -> tuple[Settings, dict[str, dict[str, Any]]]:
    """Settings as the node would have them.

    Args:
        file: a ROS parameter file, for the node dpt or for all nodes.
        given: "NAME:=VALUE", which override the file.

    Returns:
        The settings, and by camera the attributes of Settings that are set for it alone.

    Raises:
        ValueError: a parameter or the file is wrong.
    """
    values = _from_file(file) if file is not None else {}
    for text in given:
        name, sign, value = text.partition(":=")
        if not sign or not name:
            raise ValueError(one_line(f"-p {text}: expected NAME:=VALUE."))
        try:
            values[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            why = _single_spaced(error)
            raise ValueError(one_line(f"-p {text}: the value is not YAML ({why}).")) from error
    common = {name: value for name, value in values.items() if name == common_name(name)}
    for name, value in common.items():
        try:
            Settings.parse({name: value})
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


def is_of_rclpy(name: str) -> bool:
    """Whether rclpy itself declares a parameter."""
    return name in _RCLPY_NAMES or name.startswith(_RCLPY_PREFIXES)


def unknown_name(name: str, more: Iterable[str] = ()) -> str:
    """The message for a parameter that does not exist, with the nearest one that does.

    Args:
        name: of no parameter.
        more: names of parameters beside those of Settings.
    """
    near = difflib.get_close_matches(name, [*TYPES, *more], n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"Unknown parameter {name!r}{hint}; config/dpt.yaml lists them all."


def _single_spaced(error: Exception) -> str:
    """The text of an error, which YAML's readers write on several lines."""
    return " ".join(str(error).split())


def _from_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file} does not exist.")
    try:
        # Not by rclpy's own reader: Humble has none, and Jazzy's refuses valid files.
        nodes = yaml.safe_load(file.read_text()) or {}
        names = [name for name in ("/**", "dpt", "/dpt") if name in nodes]
        if not names:
            raise RuntimeError(f"it is for {', '.join(map(str, nodes)) or 'no node'}, not for dpt")
        flat = [value for name in names for value in _flat(nodes[name]["ros__parameters"])]
    except _NOT_PARAMETERS as error:
        raise ValueError(
            one_line(f"{file} is no parameter file for the node dpt: {_single_spaced(error)}.")
        ) from error
    return {name: value for name, value in flat if not is_of_rclpy(name)}


def _flat(given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full names and values, ("scale.source", ...), as rclpy reads them."""
    for name, value in given.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
