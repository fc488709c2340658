# SPDX-License-Identifier: Apache-2.0
"""The node's ROS parameters: declared from the fields of Settings, checked by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, replace
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from dpt_ros.engine.parameter_file import is_of_rclpy, unknown_name
from dpt_ros.engine.settings import FIELDS, PER_CAMERA, TYPES, Settings, check, common_name
from dpt_ros.ros.compatibility import add_parameter_callbacks


class Parameters:
    """A node's parameters as a `Settings` that is always valid.

    A wrong value given at start-up does not end the process: its parameter keeps the default, and
    ``problems`` holds an error message until a valid one is set.

    Each of ``cameras`` has parameters of its own, ``front.camera_in_base``; an empty one stands
    for the common value. ``on_change`` gets the settings after an accepted change; while the node
    is ``configured``, only live parameters may change.
    """

    def __init__(
        self, node: Node, on_change: Callable[[Settings], None], configured: Callable[[], bool]
    ) -> None:
        self.settings = Settings()
        self.problems: dict[str, str] = {}
        self._of_cameras: dict[str, Any] = {}  # values by name, "front.camera_in_base"
        self._node = node
        self._on_change = on_change
        self._configured = configured
        self._declare(FIELDS)
        given = dict(node._parameter_overrides)
        self._apply_overrides({k: v for k, v in given.items() if k == common_name(k)})
        self._declare_for_cameras()
        self._warn_of_unknown(given)
        add_parameter_callbacks(node, _in_declared_types, self._check, self._adopt)

    def of_camera(self, camera: str) -> Settings:
        """The settings as they are for one camera, "" for the only one."""
        own = {name: self._of_cameras.get(f"{camera}.{name}") for name in PER_CAMERA}
        changed = {FIELDS[name].name: value for name, value in own.items() if value}
        return replace(self.settings, **changed) if changed else self.settings

    def _knows(self, name: str) -> bool:
        return name in FIELDS or name in self._of_cameras

    def _declare(self, specs: Mapping[str, Field[Any]]) -> None:
        # Overrides are applied later, so that a wrong one gets an error message.
        for name, spec in specs.items():
            descriptor = _descriptor(common_name(name), spec)
            self._node.declare_parameter(
                name, _plain(spec.default), descriptor, ignore_override=True
            )

    def _apply_overrides(self, overrides: Mapping[str, Parameter[Any]]) -> None:
        for name, given in overrides.items():
            if not self._knows(name):
                continue
            try:
                value = _checked(given)
            except ValueError as error:
                self.problems[name] = str(error)
                continue
            self._store({name: value})
            self._node.set_parameters([Parameter(name, value=_plain(value))])

    def _store(self, values: Mapping[str, Any]) -> None:
        common = {FIELDS[name].name: v for name, v in values.items() if name in FIELDS}
        self.settings = replace(self.settings, **common)
        self._of_cameras |= {name: v for name, v in values.items() if name not in FIELDS}

    def _declare_for_cameras(self) -> None:
        """Declare the parameters that each camera has for itself, unless they are declared."""
        names = [f"{camera}.{name}" for camera in self.settings.cameras for name in PER_CAMERA]
        new = {name: FIELDS[common_name(name)] for name in names if name not in self._of_cameras}
        # All first: a declaration calls this again.
        self._of_cameras |= {name: spec.default for name, spec in new.items()}
        self._declare(new)
        given = self._node._parameter_overrides
        self._apply_overrides({name: given[name] for name in new if name in given})

    def _warn_of_unknown(self, names: Iterable[str]) -> None:
        for name in names:
            if is_of_rclpy(name) or self._knows(name):
                continue
            message = unknown_name(name, self._of_cameras)
            self._node.get_logger().warning(f"{message} It is ignored.")

    def _check(self, changes: list[Parameter[Any]]) -> SetParametersResult:
        for change in changes:
            if not self._knows(change.name):
                continue
            try:
                value = _checked(change)
            except ValueError as error:
                return SetParametersResult(successful=False, reason=str(error))
            same = value == self._value(change.name)
            if self._configured() and not same and not is_live(change.name):
                return SetParametersResult(
                    successful=False,
                    reason=f"{change.name} takes effect at configure: deactivate and clean up the"
                    " node first.",
                )
        return SetParametersResult(successful=True)

    def _value(self, name: str) -> Any:
        if name in self._of_cameras:
            return self._of_cameras[name]
        return getattr(self.settings, FIELDS[name].name)

    def _adopt(self, changes: list[Parameter[Any]]) -> None:
        ours = {p.name: _checked(p) for p in changes if self._knows(p.name)}
        for name in ours:
            self.problems.pop(name, None)
        if ours:
            self._store(ours)
            self._declare_for_cameras()
            self._on_change(self.settings)


def constraints(name: str, spec: Field[Any]) -> str:
    """A parameter's valid values and when a change takes effect, in a few words."""
    meta = spec.metadata
    words = []
    if meta["choices"]:
        words.append("one of " + ", ".join(meta["choices"]))
    if math.isfinite(meta["low"]):
        low, high = meta["low"], meta["high"]
        words.append(f"{low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}")
    words.append("live" if meta["live"] else "takes effect at configure")
    if meta["per_camera"]:
        words.append(f"of one of several cameras: front.{name}")
    return "; ".join(words)


def is_live(name: str) -> bool:
    """Whether a change of parameter ``name`` takes effect while the node runs."""
    return bool(FIELDS[common_name(name)].metadata["live"])


def _in_declared_types(changes: list[Parameter[Any]]) -> list[Parameter[Any]]:
    """``ros2 param set ... max_range 5`` sends an integer: make it 5.0. ``off`` comes as false."""
    changed = []
    for p in changes:
        expected = TYPES.get(common_name(p.name))
        if expected is float and p.type_ == Parameter.Type.INTEGER:
            p = Parameter(p.name, value=float(p.value))
        elif expected is str and p.value is False:
            p = Parameter(p.name, value="off")
        changed.append(p)
    return changed


def _checked(parameter: Parameter[Any]) -> Any:
    if parameter.type_ == Parameter.Type.NOT_SET:
        raise ValueError(f"{parameter.name} cannot be unset; set it to another value.")
    return check(parameter.name, _plain(parameter.value))


def _plain(value: Any) -> Any:
    """A value as rclpy takes it: lists for tuples, never empty, for an empty one has no type."""
    return value if isinstance(value, str | bool | int | float) else list(value) or [""]


def _descriptor(name: str, spec: Field[Any]) -> ParameterDescriptor:
    meta = spec.metadata
    descriptor = ParameterDescriptor(
        # So that a value of the wrong type reaches ``check`` and gets its error message.
        dynamic_typing=True,
        description=f"{meta['text']} When to change it: {meta['when']}",
        additional_constraints=constraints(name, spec),
    )
    if math.isfinite(meta["low"]) and math.isfinite(meta["high"]):
        if TYPES[name] is int:
            limits = IntegerRange(from_value=int(meta["low"]), to_value=int(meta["high"]))
            descriptor.integer_range = [limits]
        else:
            bounds = FloatingPointRange(from_value=meta["low"], to_value=meta["high"])
            descriptor.floating_point_range = [bounds]
    return descriptor
