# SPDX-License-Identifier: Apache-2.0
"""Depth and intrinsics to organised points on the device, in the layout of a PointCloud2."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.frame import CameraModel

# One point as a numpy scalar, rgb as an integer.
POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("label", "<u4")])
# Its fields' types in a sensor_msgs/PointField: 7 is FLOAT32, 6 is UINT32.
# As pcl::PointXYZRGBL: "rgb" is 0x00RRGGBB in the bytes of a float32, "label" a uint32. Nav2's
# semantic_segmentation_layer reads x, y and z, and takes the class of point k from byte k of the
# label image, so that image and cloud must have the same size.
FIELD_TYPES = {"x": 7, "y": 7, "z": 7, "rgb": 7, "label": 6}
_WORDS = POINT.itemsize // 4


def points(
    depth: Tensor | np.ndarray,
    rgb: Tensor | np.ndarray | None,
    labels: Tensor | np.ndarray | None,
    camera: CameraModel,
    stride: int = 1,
    far: float = 0.0,
) -> Any:
    """The points of every ``stride``-th pixel of every ``stride``-th row: an organised cloud.

    Where depth is unknown (NaN) or not positive, x, y and z are NaN, which PCL and Nav2 skip.
    Where it is beyond range (+Inf) they are NaN too, or with ``far`` a point at that distance:
    Nav2 clears the space up to a point, and none where there is no point.

    Args:
        depth: (H, W) float32, metres along optical Z.
        rgb: (H, W, 3) uint8, None for black.
        labels: (H, W) uint8 class ids, None for 0.
        camera: rectified intrinsics; those of another size are scaled.
        stride: pixels from point to point.
        far: metres along the ray from the camera to the point of a pixel beyond range; 0 for
            none. The same for all, so that a range limit can exclude these points.

    Returns:
        For a tensor (h, w, 5) float32 on its device, the bytes of ``POINT``: the last two hold
        integers. For an array (h, w) of dtype ``POINT``. h = ceil(H / stride), w alike.

    Raises:
        ValueError: wrong shapes, a stride below 1, or ``far`` negative or infinite.
    """
    tensor = torch.as_tensor(depth)
    _check(tensor, rgb, labels, stride)
    if not 0 <= far < float("inf"):
        raise ValueError(f"far is {far} m, but must be at least 0 and finite.")
    height, width = tensor.shape
    camera = camera.scaled(width, height)
    strided = tensor[::stride, ::stride].float()
    # Comparisons are False for NaN.
    z = torch.where((strided > 0) & (strided < torch.inf), strided, torch.nan)
    rows, columns = z.shape
    cloud = torch.zeros(rows, columns, _WORDS, device=z.device)
    # On the device: nothing is copied from the host.
    x = torch.arange(columns, device=z.device, dtype=torch.float32)
    y = torch.arange(rows, device=z.device, dtype=torch.float32)[:, None]
    x, y = (x * stride - camera.cx) / camera.fx, (y * stride - camera.cy) / camera.fy
    if far:
        z = torch.where(strided == torch.inf, far / (1 + x.square() + y.square()).sqrt(), z)
    torch.mul(z, x, out=cloud[..., 0])
    torch.mul(z, y, out=cloud[..., 1])
    cloud[..., 2] = z
    words = cloud.view(torch.int32)
    if rgb is not None:
        color = torch.as_tensor(rgb)[::stride, ::stride].to(z.device, torch.int32)
        words[..., 3] = (color[..., 0] << 16) | (color[..., 1] << 8) | color[..., 2]
    if labels is not None:
        words[..., 4] = torch.as_tensor(labels)[::stride, ::stride].to(z.device)
    return cloud if isinstance(depth, Tensor) else cloud.numpy().view(POINT)[..., 0]


def _check(
    depth: Tensor, rgb: Tensor | np.ndarray | None, labels: Tensor | np.ndarray | None, stride: int
) -> None:
    if depth.ndim != 2:
        raise ValueError(f"depth has shape {tuple(depth.shape)}, but must be (H, W).")
    if stride < 1:
        raise ValueError(f"stride is {stride}, but must be at least 1.")
    size = tuple(depth.shape)
    if rgb is not None and tuple(rgb.shape) != (*size, 3):
        raise ValueError(
            f"rgb has shape {tuple(rgb.shape)}, but must be {(*size, 3)} like the depth."
        )
    if labels is not None and tuple(labels.shape) != size:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, but must be {size} like the depth."
        )
