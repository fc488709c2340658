# SPDX-License-Identifier: Apache-2.0
"""The description of its network in a trained file, which can be built from it alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dpt_ros.data import class_names, palette
from dpt_ros.model.checkpoint_file import is_safetensors
from dpt_ros.model.decoder import READOUTS
from dpt_ros.model.encoder import WEIGHT_STDS
from dpt_ros.model.zoo import ZOO, Geometry, ModelSpec, ResNetGeometry

_LARGEST = 8192
"""Largest size of a network in a file: building larger ones would take forever."""
_FIELDS = (
    *("tasks", "net_width", "net_height", "focal", "multiple_of", "scale", "shift", "invert"),
    *("num_classes", "batch_norm", "readout", "weight_std"),
)


class DescriptionError(ValueError):
    """A file's description of its network is invalid."""


def describe(spec: ModelSpec) -> dict[str, str]:
    """The metadata of a safetensors file with weights of ``spec``: the row's name, what differs
    from the row, and the names and colours of the classes."""
    content: dict[str, Any] = {name: getattr(spec, name) for name in _FIELDS}
    content["geometry"] = asdict(spec.geometry)
    metadata = {"format": "pt", "model": spec.name, "network": json.dumps(content)}
    if "labels" in spec.tasks and spec.class_names:
        names, colors = class_names(spec.class_names), palette(spec.class_names)
        classes = [
            {"name": name, "color": colors[k].tolist()} for k, name in enumerate(names, start=1)
        ]
        metadata["classes"] = json.dumps(classes)
    return metadata


def described_spec(path: Path) -> ModelSpec | None:
    """The network that a file of :func:`describe` holds; None if it has no description.

    Raises:
        DescriptionError: the description is invalid.
    """
    if not is_safetensors(path):
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return None  # reading the tensors raises the reason
    if "network" not in metadata:
        return None
    return spec_of(metadata, path)


def spec_of(metadata: Mapping[str, str], path: Path) -> ModelSpec:
    """The network that :func:`describe` described.

    Args:
        path: of the file, for its classes and for messages.

    Raises:
        DescriptionError: the description is invalid.
    """
    name = metadata.get("model")
    if name not in ZOO:
        raise DescriptionError(
            f"{path} names the network {name!r}, which this version of dpt_ros does not have; the "
            f"networks are {', '.join(ZOO)}."
        )
    try:
        content = json.loads(metadata["network"])
        geometry = _geometry(content.pop("geometry"))
        spec = replace(ZOO[name], geometry=geometry, **_checked(content))
        own_classes = "labels" in spec.tasks and "classes" in metadata
        if own_classes:
            _check_classes(json.loads(metadata["classes"]), spec.num_classes)
    except (
        ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise DescriptionError(f"{path} describes its network wrongly: {error}.") from error
    if "labels" not in spec.tasks:
        return replace(spec, class_names="")
    return replace(spec, class_names=str(path.resolve())) if own_classes else spec


def _check_classes(classes: Any, count: int) -> None:
    if not 1 <= count <= 254 or len(classes) != count:
        raise ValueError(f"it lists {len(classes)} classes, but its head has {count}")
    for entry in classes:
        name, color = entry["name"], entry["color"]
        if not isinstance(name, str) or len(color) != 3:
            raise ValueError(f"a class is {entry}")
        if not all(isinstance(value, int) and 0 <= value <= 255 for value in color):
            raise ValueError(f"the colour of {name} is {color}")


def _checked(content: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := set(content) - set(_FIELDS):
        raise ValueError(f"it has {', '.join(sorted(unknown))}, which are no fields of a network")
    fields = dict(content)
    fields["tasks"] = tuple(fields["tasks"])
    if fields["tasks"] not in (("depth",), ("labels",), ("depth", "labels")):
        raise ValueError(f"its tasks are {fields['tasks']}")
    for key in ("net_width", "net_height", "multiple_of"):
        _size(key, fields[key])
    for key, choices in (("readout", READOUTS), ("weight_std", WEIGHT_STDS)):
        if fields[key] not in choices:
            raise ValueError(f"{key} is {fields[key]!r}")
    for key in ("invert", "batch_norm"):
        if not isinstance(fields[key], bool):
            raise ValueError(f"{key} is {fields[key]!r}")
    for key in ("scale", "shift", "focal"):
        fields[key] = float(fields[key])
    if not isinstance(fields["num_classes"], int):
        raise ValueError(f"num_classes is {fields['num_classes']!r}")
    return fields


def _geometry(content: dict[str, Any]) -> Geometry:
    resnet = content.pop("resnet")
    if resnet is not None:
        sizes = {k: _sizes(k, v) for k, v in resnet.items() if k != "bottle_ratio"}
        ratio = float(resnet["bottle_ratio"])
        if not 0 < ratio <= 1:
            raise ValueError(f"bottle_ratio is {ratio}")
        resnet = ResNetGeometry(bottle_ratio=ratio, **sizes)
    taps = {key: _sizes(key, content.pop(key), 0) for key in ("stage_taps", "block_taps")}
    sizes = {key: _sizes(key, value) for key, value in content.items()}
    geometry = Geometry(resnet=resnet, **taps, **sizes)
    stages = len(resnet.layers) if resnet else 0
    if (
        len(geometry.stage_taps) + len(geometry.block_taps) != 4
        or any(tap >= stages for tap in geometry.stage_taps)
        or any(tap >= geometry.depth for tap in geometry.block_taps)
        or geometry.width % geometry.heads
    ):
        raise ValueError(f"its sizes do not fit together: {geometry}")
    return geometry


def _sizes(key: str, value: Any, smallest: int = 1) -> Any:
    if isinstance(value, list):
        return tuple(_size(key, one, smallest) for one in value)
    return _size(key, value, smallest)


def _size(key: str, value: Any, smallest: int = 1) -> int:
    if not isinstance(value, int) or not smallest <= value <= _LARGEST:
        raise ValueError(f"{key} is {value!r}")
    return value
