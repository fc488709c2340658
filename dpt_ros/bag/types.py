# SPDX-License-Identifier: Apache-2.0
"""Message types in bags: serialisation and definitions."""

from __future__ import annotations

from array import array
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
from rosbags.typesys import (
    Stores,
    TypesysError,
    get_types_from_idl,
    get_types_from_msg,
    get_typestore,
)

from dpt_ros.bag.salvage import Channel
from dpt_ros.ros.video.messages import FFMPEG, FOXGLOVE

# Those of rosbags, vision_msgs, and video.
TYPES = get_typestore(Stores.ROS2_KILTED)
_CLASS = "uint16 class_id\nstring class_name\n"
_LABELS = "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n"
TYPES.register(get_types_from_msg(_CLASS, "vision_msgs/msg/VisionClass"))
TYPES.register(get_types_from_msg(_LABELS, "vision_msgs/msg/LabelInfo"))
_PACKET = (
    "std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\n"
    "uint8 flags\nbool is_bigendian\nuint8[] data\n"
)
_VIDEO = "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n"
TYPES.register(get_types_from_msg(_PACKET, FFMPEG))
TYPES.register(get_types_from_msg(_VIDEO, FOXGLOVE))
_SEPARATOR = "=" * 80 + "\n"


def type_name(kind: type) -> str:
    """The name of a message class of rclpy, "sensor_msgs/msg/Image"."""
    return f"{kind.__module__.partition('.')[0]}/msg/{kind.__name__}"


def message_class(name: str) -> Any:
    """The class of rclpy of a type's name; None where it is not installed."""
    package, _, message = name.partition("/msg/")
    try:
        return getattr(import_module(f"{package}.msg"), message, None)
    except ImportError:
        return None


def serialised(message: Any) -> memoryview:
    """A message of rclpy as CDR.

    rclpy's serialiser leaves the padding between fields uninitialised. rosbags sets it to 0, so
    that equal messages are equal bytes.
    """
    return TYPES.serialize_cdr(_of_rosbags(message), type_name(type(message)))


def _of_rosbags(value: Any) -> Any:
    """A message of rclpy, or the value of a field, as rosbags has it; arrays are not copied."""
    if hasattr(value, "get_fields_and_field_types"):
        # The public attribute of a byte array makes a copy of it.
        names = value.get_fields_and_field_types()
        kind = TYPES.types[type_name(type(value))]
        return kind(*(_of_rosbags(getattr(value, f"_{name}")) for name in names))
    if isinstance(value, array):
        return np.asarray(value)
    if isinstance(value, list):
        return [_of_rosbags(item) for item in value]
    return value


def with_definition(channel: Channel) -> Channel | None:
    """The channel with the definition of its type and its hash; None if the type is unknown."""
    store, definition = TYPES, channel.definition
    try:
        if definition:
            store = get_typestore(Stores.EMPTY)
            store.register(_types(channel))
        else:
            definition, _ = store.generate_msgdef(channel.msgtype, ros_version=2)
        digest = channel.digest or store.hash_rihs01(channel.msgtype)
    except (TypesysError, LookupError, ValueError, TypeError, AssertionError, RecursionError):
        return None
    return replace(channel, definition=definition, digest=digest)


def _types(channel: Channel) -> Any:
    if not channel.definition.startswith(f"{_SEPARATOR}IDL: "):
        return get_types_from_msg(channel.definition, channel.msgtype)
    types: dict[str, Any] = {}
    for part in channel.definition.split(_SEPARATOR)[1:]:
        types.update(get_types_from_idl(part.split("\n", 1)[1]))
    return types
