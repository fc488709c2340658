# SPDX-License-Identifier: Apache-2.0
"""A parameter: what describes it, and the values that it can have."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

PROVIDERS = ("tensorrt", "cuda", "cpu")
"""Of ONNX Runtime, in the order in which ``auto`` prefers them."""


def setting(
    default: Any,
    text: str,
    when: str,
    *,
    choices: Sequence[str] = (),
    within: tuple[float, float] = (-math.inf, math.inf),
    live: bool = False,
    per_camera: bool = False,
) -> Any:
    """A dataclass field with the metadata of a parameter.

    Args:
        default: defined here only.
        text: what it is or does, one sentence, with its unit.
        when: when to change it.
        choices: the valid values of an enumeration.
        within: the range of a number, inclusive.
        live: whether a change takes effect while the node runs.
        per_camera: whether a named camera can have its own value, ``front.camera_in_base``.
    """
    metadata = {
        "text": text,
        "when": when,
        "choices": tuple(choices),
        "low": within[0],
        "high": within[1],
        "live": live,
        "per_camera": per_camera,
    }
    return field(default=default, metadata=metadata)


def checked(name: str, value: Any, expected: Any, meta: Mapping[str, Any]) -> Any:
    """The value as the attribute of ``Settings`` holds it.

    Args:
        name: of the parameter.
        value: for it.
        expected: its type.
        meta: see ``setting``.

    Raises:
        ValueError: it cannot have this value.
    """
    if expected is float and type(value) is int:
        value = float(value)
    if expected == tuple[float, ...]:
        return _pose(name, value)
    if expected == tuple[str, ...]:
        return _names(name, value)
    if value is False and "off" in meta["choices"]:
        value = "off"  # which YAML reads as false
    if type(value) is not expected:
        raise ValueError(f"{name} is {value!r}, but must be of type {expected.__name__}.")
    if meta["choices"] and value not in meta["choices"]:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(meta['choices'])}.")
    if name == "device" and not re.fullmatch("auto|cpu|cuda(:(0|[1-9][0-9]?))?", value):
        raise ValueError(f"device is {value!r}, but must be auto, cpu, cuda or cuda:N.")
    if name == "onnxruntime.providers" and not {*value.split(",")} <= {*PROVIDERS, "auto"}:
        known = ", ".join(PROVIDERS)
        raise ValueError(f"{name} is {value!r}, but must be auto, or of {known}, with commas.")
    low, high = meta["low"], meta["high"]
    if expected in (int, float) and not (math.isfinite(value) and low <= value <= high):
        limits = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} is {value}, but must be {limits}.")
    return value


def _pose(name: str, value: Any) -> tuple[float, ...]:
    # A ROS parameter file has no empty list; a list of one empty string stands for it.
    if isinstance(value, list | tuple) and list(value) in ([], [""]):
        return ()
    numbers = isinstance(value, list | tuple) and all(type(v) in (int, float) for v in value)
    if not numbers or len(value) != 7 or not all(math.isfinite(v) for v in value):
        raise ValueError(
            f"{name} is {value!r}, but must be 7 numbers, x y z qx qy qz qw, or an empty list."
        )
    if abs(math.hypot(*value[3:]) - 1.0) > 1e-2:
        raise ValueError(f"{name} is {value!r}, but its last 4 numbers must be a unit quaternion.")
    return tuple(float(v) for v in value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} is {value!r}, but must be a list of strings.")
    names = tuple(item for item in value if item)
    if name != "cameras":
        return names
    for item in names:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", item):
            raise ValueError(
                f"cameras contains {item!r}, but a name consists of letters, digits and"
                " underscores and does not begin with a digit."
            )
    if len(set(names)) != len(names):
        raise ValueError(f"cameras is {list(names)!r}, but each name must be unique.")
    return names
