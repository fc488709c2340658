# SPDX-License-Identifier: Apache-2.0
"""Depth and intrinsics to organised points, on the device, in the layout of a PointCloud2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.frame import CameraModel


@dataclass(frozen=True)
class Field:
    """A field of a point, as sensor_msgs/PointField has it.

    Args:
        name: of the field.
        offset: bytes from the beginning of the point.
        datatype: 7 is FLOAT32, 6 is UINT32.
    """

    name: str
    offset: int
    datatype: int


# "rgb" is PCL's: 0x00RRGGBB in the bytes of a float32, which is how pcl::PointXYZRGBL, RViz and
# depth_image_proc write and read it. "label" is a uint32 as in pcl::PointXYZRGBL. Nav2's layers
# read x, y and z alone: its semantic_segmentation_layer takes the class of point k from byte k of
# the label image, so that image and cloud must have one size.
FIELDS = (
    Field("x", 0, 7),
    Field("y", 4, 7),
    Field("z", 8, 7),
    Field("rgb", 12, 7),
    Field("label", 16, 6),
)
POINT_STEP = 20
# One point as a numpy scalar; rgb as the integer that its float's bytes are.
POINT = np.dtype(
    {
        "names": [field.name for field in FIELDS],
        "formats": ["<f4", "<f4", "<f4", "<u4", "<u4"],
        "offsets": [field.offset for field in FIELDS],
        "itemsize": POINT_STEP,
    }
)
_WORDS = POINT_STEP // 4


@overload
def points(
    depth: Tensor,
    rgb: Tensor | None,
    labels: Tensor | None,
    camera: CameraModel,
    stride: int = 1,
    far: float = 0.0,
) -> Tensor: ...


@overload
def points(
    depth: np.ndarray,
    rgb: np.ndarray | None,
    labels: np.ndarray | None,
    camera: CameraModel,
    stride: int = 1,
    far: float = 0.0,
) -> np.ndarray: ...


def points(
    depth: Tensor | np.ndarray,
    rgb: Tensor | np.ndarray | None,
    labels: Tensor | np.ndarray | None,
    camera: CameraModel,
    stride: int = 1,
    far: float = 0.0,
) -> Tensor | np.ndarray:
    """The point that every ``stride``-th pixel of every ``stride``-th row sees.

    Where depth is unknown (NaN) or not positive, x, y and z are NaN. The point is not left out:
    an organised cloud keeps its shape, so that point and pixel, label and confidence go on to
    belong together; and NaN, not Inf, since PCL and Nav2 pass over NaN while an infinite point
    would be transformed and binned. Where depth is beyond range (+Inf) they are NaN too, or with
    ``far`` a point at that distance: Nav2 clears up to a point and nothing where there is none.

    Args:
        depth: (H, W) float32, metres along optical Z.
        rgb: (H, W, 3) uint8, None for black.
        labels: (H, W) uint8 class ids, None for 0.
        camera: rectified intrinsics; those of another size are scaled.
        stride: pixels from point to point.
        far: metres from the camera to the point of a pixel beyond range, along its ray; 0 for
            none. The same for all, so that one limit of range tells these points from others.

    Returns:
        From a tensor: (h, w, 5) float32 on its device, a point's bytes as ``FIELDS`` has them:
        the fourth and fifth number hold bytes of integers and mean nothing as floats. From an
        array: (h, w) of dtype ``POINT``. h = ceil(H / stride), w = ceil(W / stride).

    Raises:
        ValueError: shapes that do not fit together, a stride below 1, or ``far`` below 0.
    """
    tensor = torch.as_tensor(depth)
    _check(tensor, rgb, labels, stride)
    if not 0 <= far < float("inf"):
        raise ValueError(f"Far points are {far} m away, but must be at least 0 and finite.")
    height, width = tensor.shape
    camera = camera.scaled(width, height)
    said = tensor[::stride, ::stride].float()
    # Comparisons are False for NaN.
    z = torch.where((said > 0) & (said < torch.inf), said, torch.nan)
    rows, columns = z.shape
    cloud = torch.zeros(rows, columns, _WORDS, device=z.device)
    # A ramp is made on the device: nothing is copied from the host.
    x = torch.arange(columns, device=z.device, dtype=torch.float32)
    y = torch.arange(rows, device=z.device, dtype=torch.float32)[:, None]
    x, y = (x * stride - camera.cx) / camera.fx, (y * stride - camera.cy) / camera.fy
    if far:
        z = torch.where(said == torch.inf, far / (1 + x.square() + y.square()).sqrt(), z)
    torch.mul(z, x, out=cloud[..., 0])
    torch.mul(z, y, out=cloud[..., 1])
    cloud[..., 2] = z
    words = cloud.view(torch.int32)
    if rgb is not None:
        color = torch.as_tensor(rgb)[::stride, ::stride].to(z.device, torch.int32)
        words[..., 3] = (color[..., 0] << 16) | (color[..., 1] << 8) | color[..., 2]
    if labels is not None:
        words[..., 4] = torch.as_tensor(labels)[::stride, ::stride].to(z.device)
    return cloud if isinstance(depth, Tensor) else as_array(cloud)


def as_array(cloud: Tensor) -> np.ndarray:
    """A cloud on the host as (h, w) of dtype ``POINT``, uncopied.

    Args:
        cloud: (h, w, 5) float32 from ``points``, contiguous and on the CPU.

    Raises:
        ValueError: it is elsewhere, or of another layout.
    """
    if cloud.ndim != 3 or cloud.shape[2] != _WORDS or cloud.dtype != torch.float32:
        raise ValueError(
            f"A cloud is float32 of shape (h, w, {_WORDS}), not {cloud.dtype} of shape"
            f" {tuple(cloud.shape)}."
        )
    if cloud.device.type != "cpu" or not cloud.is_contiguous():
        raise ValueError("The cloud must be contiguous and on the CPU.")
    return cloud.numpy().view(POINT)[..., 0]


def stride_image(image: Tensor, stride: int) -> Tensor:
    """The pixels that ``points`` makes points of, contiguous: for labels and confidence.

    Args:
        image: (H, W) or (H, W, C).
        stride: pixels from point to point; 1 gives the image itself.
    """
    return image if stride == 1 else image[::stride, ::stride].contiguous()


def stride_camera(camera: CameraModel, stride: int) -> CameraModel:
    """Intrinsics of an image of every ``stride``-th pixel, the first one included.

    Unlike in ``CameraModel.scaled`` the pixel at 0 stays at 0.
    """
    return CameraModel(
        -(-camera.width // stride),
        -(-camera.height // stride),
        camera.fx / stride,
        camera.fy / stride,
        camera.cx / stride,
        camera.cy / stride,
    )


def _check(
    depth: Tensor,
    rgb: Tensor | np.ndarray | None,
    labels: Tensor | np.ndarray | None,
    stride: int,
) -> None:
    if depth.ndim != 2:
        raise ValueError(f"Depth has shape {tuple(depth.shape)}, but must be (H, W).")
    if stride < 1:
        raise ValueError(f"The stride of the points is {stride}, but must be at least 1.")
    size = tuple(depth.shape)
    if rgb is not None and tuple(rgb.shape) != (*size, 3):
        raise ValueError(
            f"The picture has shape {tuple(rgb.shape)}, but must be {(*size, 3)} like the depth."
        )
    if labels is not None and tuple(labels.shape) != size:
        raise ValueError(
            f"The labels have shape {tuple(labels.shape)}, but must be {size} like the depth."
        )
