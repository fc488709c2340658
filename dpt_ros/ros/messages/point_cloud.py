# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs PointCloud2 <-> arrays."""

from __future__ import annotations

import sys

import numpy as np
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from dpt_ros.engine.output.point_cloud import FIELD_TYPES, POINT
from dpt_ros.ros.messages.image import MessageError, give_bytes

# Of sensor_msgs/PointField: FLOAT32 and FLOAT64; types of 4 bytes: INT32, UINT32, FLOAT32.
_FLOATS = {7: "f4", 8: "f8"}
_WORDS = (5, 6, 7)


def cloud_message(cloud: np.ndarray, header: Header) -> PointCloud2:
    """An organised PointCloud2 of ``cloud``, (h, w) of ``output.point_cloud.POINT``, uncopied."""
    height, width = cloud.shape
    msg = PointCloud2(
        header=header,
        height=height,
        width=width,
        fields=[
            PointField(name=name, offset=4 * k, datatype=kind, count=1)
            for k, (name, kind) in enumerate(FIELD_TYPES.items())
        ],
        is_bigendian=sys.byteorder == "big",
        point_step=POINT.itemsize,
        row_step=POINT.itemsize * width,
        is_dense=False,
    )
    give_bytes(msg, np.ascontiguousarray(cloud))
    return msg


def cloud_points(msg: PointCloud2) -> np.ndarray:
    """x, y and z of a PointCloud2: (N, 3) float32, not finite ones included.

    Raises:
        MessageError: see ``cloud_rows``.
    """
    rows = cloud_rows(msg).reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):  # a float64 may be beyond float32
        return np.stack([rows[axis].astype(np.float32) for axis in "xyz"], axis=1)


def cloud_rows(msg: PointCloud2) -> np.ndarray:
    """The points of a PointCloud2 as a view of its bytes.

    ``point_step`` and ``row_step`` are used only where the number of bytes is ambiguous.

    Returns:
        (height, width) structured array: x, y, z float32 or float64; rgb and label uint32 where
        the cloud has them in 4 bytes.

    Raises:
        MessageError: it has no fields x, y, z, or too few bytes.
    """
    fields = {f.name: (f.offset, _FLOATS[f.datatype]) for f in msg.fields if f.datatype in _FLOATS}
    if not {"x", "y", "z"} <= fields.keys():
        raise MessageError(
            "bad fields",
            "The cloud has no float32 or float64 fields x, y and z; it has"
            f" {', '.join(field.name for field in msg.fields) or 'none'}.",
        )
    data = np.frombuffer(msg.data, np.uint8)
    height = max(msg.height, 1)
    count = msg.width * height
    least = max(fields[k][0] + int(fields[k][1][1]) for k in "xyz")
    step = msg.point_step
    if step < least and count and data.size % count == 0:
        step = data.size // count
    if step < least and count:
        raise MessageError(
            "bad fields",
            f"The cloud's point_step is {msg.point_step} bytes, but its x, y and z take {least}.",
        )
    row_step = msg.row_step
    if height == 1 or data.size == step * count:
        row_step = step * msg.width
    if count and (
        row_step < step * msg.width or data.size < row_step * (height - 1) + step * msg.width
    ):
        raise MessageError(
            "short data",
            f"The cloud holds {data.size} bytes, which do not fit {count} points of {step} bytes"
            f" (point_step) in {height} rows of {row_step} bytes (row_step).",
        )
    columns = {axis: fields[axis] for axis in "xyz"}
    for field in msg.fields:
        is_word = field.datatype in _WORDS and field.offset + 4 <= step
        if is_word and field.name in ("rgb", "label"):
            columns[field.name] = (field.offset, "u4")
    order = ">" if msg.is_bigendian else "<"
    dtype = np.dtype(
        {
            "names": list(columns),
            "formats": [order + form for _, form in columns.values()],
            "offsets": [offset for offset, _ in columns.values()],
            "itemsize": max(step, least),
        }
    )
    if not count:
        return np.zeros((height, msg.width), dtype)
    return np.ndarray((height, msg.width), dtype, data, strides=(row_step, step))
