# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs PointCloud2 <-> arrays."""

from __future__ import annotations

import sys

import numpy as np
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from dpt_ros.engine.cloud import FIELDS, POINT_STEP
from dpt_ros.ros.messages import MessageError, give_bytes

_FLOAT32 = 7  # sensor_msgs/PointField


def cloud_message(cloud: np.ndarray, header: Header) -> PointCloud2:
    """An organised PointCloud2 of ``cloud``, (h, w) of ``engine.cloud.POINT``, uncopied."""
    height, width = cloud.shape
    msg = PointCloud2(
        header=header,
        height=height,
        width=width,
        fields=[
            PointField(name=f.name, offset=f.offset, datatype=f.datatype, count=1) for f in FIELDS
        ],
        is_bigendian=sys.byteorder == "big",
        point_step=POINT_STEP,
        row_step=POINT_STEP * width,
        is_dense=False,
    )
    give_bytes(msg, np.ascontiguousarray(cloud))
    return msg


def cloud_points(msg: PointCloud2) -> np.ndarray:
    """x, y and z of a PointCloud2: (N, 3) float32, not finite ones included.

    Raises:
        MessageError: it has no such fields, or too few bytes.
    """
    offsets = {field.name: field.offset for field in msg.fields if field.datatype == _FLOAT32}
    count = msg.width * msg.height
    step, data = msg.point_step, np.frombuffer(msg.data, np.uint8)
    if not {"x", "y", "z"} <= offsets.keys() or max(offsets[k] for k in "xyz") + 4 > step:
        raise MessageError("bad fields", "The cloud has no float32 fields x, y and z.")
    if not count:
        return np.zeros((0, 3), np.float32)
    if msg.row_step < step * msg.width or data.size < msg.row_step * msg.height:
        raise MessageError(
            "short data",
            f"The cloud holds {data.size} bytes, too few for {count} points of {step} bytes.",
        )
    order = ">" if msg.is_bigendian else "<"
    dtype = np.dtype(
        {
            "names": ["x", "y", "z"],
            "formats": [f"{order}f4"] * 3,
            "offsets": [offsets[k] for k in "xyz"],
            "itemsize": step,
        }
    )
    rows: np.ndarray = np.ndarray(
        (msg.height, msg.width), dtype, data, strides=(msg.row_step, step)
    )
    flat = rows.reshape(-1)
    return np.stack([flat[k] for k in "xyz"], axis=1).astype(np.float32)
