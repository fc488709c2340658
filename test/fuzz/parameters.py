# SPDX-License-Identifier: Apache-2.0
"""Parameters of any value, as from a YAML file, and label groups."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
import yaml

from dpt_ros.data import class_names, palette
from dpt_ros.engine.output.label_groups import (
    LabelGroups,
    load_groups,
    parse_groups,
)
from dpt_ros.engine.settings import Settings, parameter_name
from dpt_ros.ros.camera.poses import pose_matrix
from fuzz.choices import Choices
from fuzz.properties import LONGEST, Broken, bounded, refusal

_NAMES = tuple(parameter_name(spec) for spec in fields(Settings))
_CLASSES = tuple(class_names("labels_world.json"))
_COLOURS = palette("labels_world.json")


def seeds() -> list[bytes]:
    """The defaults as YAML, wrong values of every kind, groups by line."""
    texts = [
        f"{{{name}: {value}}}"
        for name in ("max_range", "cameras", "device", "camera_in_base", "label_groups")
        for value in (".nan", "-1", "1e999", "'x'", "[1, 'a']", "[0, 0, 0, 0, 0, 0, 1]", "{a: b}")
    ]
    texts += ["{cameras: [front, rear]}", "{device: 'cuda:0'}", "{label_groups: ['a: b, c']}"]
    lines = f"a: {_CLASSES[0]}, {_CLASSES[1]}\nother: {_CLASSES[2]}"
    found = [b"\0" + text.encode() for text in texts]
    found += [b"\1" + lines.encode(), b"\1no colon"]
    return [*found, b"\3\x05\x00", b"\3\x01\x7f\xff\xff"]


def one_input(data: bytes) -> None:
    kind, rest = data[:1], data[1:]
    most = LONGEST + 400 * len(data)  # a user's own words come back to the user
    if kind == b"\3":
        values = _any_values(Choices(rest))
        with bounded(len(data)), refusal(ValueError, most=most):
            _see(Settings.parse(values))
    elif kind == b"\1":
        with bounded(len(data)), refusal(ValueError, most=most):
            groups = parse_groups(rest.decode("utf-8", "replace").splitlines())
            LabelGroups.create(groups, _CLASSES, _COLOURS)
    else:
        try:
            values = yaml.safe_load(rest)
        except (yaml.YAMLError, ValueError, RecursionError, LookupError):
            return
        if isinstance(values, dict):
            with bounded(len(data)), refusal(ValueError, most=most):
                _see(Settings.parse(values))


def _any_values(choices: Choices) -> dict[str, Any]:
    values = {}
    while choices.any_left:
        kinds: dict[int, Any] = {
            0: choices.real,
            1: lambda: choices.integer(-(2**63), 2**63 - 1),
            2: choices.text,
            3: lambda: choices.integer(0, 1) == 1,
            4: lambda: [choices.real() for _ in range(choices.integer(0, 8))],
            5: lambda: [choices.text() for _ in range(choices.integer(0, 8))],
        }
        name = choices.pick(_NAMES)
        values[name] = kinds[choices.integer(0, 5)]()
    return values


def _see(settings: Settings) -> None:
    """What was accepted can be used."""
    for pose in (settings.camera_in_base, settings.sensor_in_camera):
        pose_matrix(pose)
    if settings.device != "auto":
        try:
            torch.device(settings.device)
        except RuntimeError as error:
            raise Broken(f"{settings.device!r} was accepted as a device.") from error
    if settings.label_groups and settings.label_groups != ("navigation",):
        groups = parse_groups(settings.label_groups)
        LabelGroups.create(groups, _CLASSES, _COLOURS, known=load_groups()[0])
