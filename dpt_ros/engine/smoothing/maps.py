# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on maps of a batch of cameras, of torch or, on a CPU, of numpy and OpenCV.

On a CPU an operation of torch on 3,000 values takes twice as long as numpy's, and sampling takes
four times as long as OpenCV's. So the filter's functions are written in what both have in common:
``arrays`` gives them numpy arrays of the same memory for one camera on a CPU, and tensors
elsewhere; the functions of this module take either, the arrays (1, ...).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpt_ros.engine.output import postprocess

Array = Any
"""A tensor, or a numpy array."""

LARGEST = float(np.finfo(np.float32).max)
_KERNEL = np.ones((3, 3), np.uint8)


def in_numpy(values: Tensor) -> bool:
    """Whether ``arrays`` gives arrays for these and others of the same cameras (B, ...)."""
    return len(values) == 1 and postprocess.on_host(values)


def arrays(*tensors: Tensor) -> tuple[Array, ...]:
    """What to compute with, see above; by the first one."""
    return tuple(x.numpy() for x in tensors) if in_numpy(tensors[0]) else tensors


def tensor(values: Array) -> Tensor:
    """The way back."""
    # NumPy 1 makes float64 of float32 scalars in places.
    if isinstance(values, np.ndarray):
        return torch.from_numpy(values.astype(np.float32, copy=False))
    return values


def library(values: Array) -> Any:
    """numpy or torch."""
    return np if isinstance(values, np.ndarray) else torch


def empty(like: Array, *shape: int) -> Array:
    """float32, not initialised."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, np.float32)
    return like.new_empty(shape)


def identity(size: int, like: Array) -> Array:
    """(size, size) float32."""
    if isinstance(like, np.ndarray):
        return np.eye(size, dtype=np.float32)
    return torch.eye(size, device=like.device)


def choose(condition: Array, one: Array | float, other: Array) -> Array:
    """The one (B, ...) for cameras of which a condition (B,) holds, else the other (B, ...)."""
    if isinstance(other, np.ndarray):
        if not condition[0]:
            return other
        return one if isinstance(one, np.ndarray) else np.full_like(other, one)
    condition = condition.reshape(-1, *[1] * (other.ndim - 1))
    if isinstance(one, bool):  # ONNX Runtime does not select among these
        return other | condition if one else other & ~condition
    return torch.where(condition, one, other)


def put(values: Array, mask: Array, others: Array | float) -> None:
    """Replace values (B, H, W) by others where a mask (B, H, W) is true."""
    if isinstance(values, np.ndarray):
        np.copyto(values, others, where=mask)
    else:
        values.copy_(torch.where(mask, others, values))


def pixel_grid(
    height: int, width: int, device: torch.device, over: tuple[int, int] | None = None
) -> Tensor:
    """(3, H, W): every pixel's x and y, and 1; in pixels, or in those of maps of another (height,
    width) with the same corners."""
    # Kept for a CPU only: a graph would read what it does not own.
    kept = device.type == "cpu" and not torch.compiler.is_exporting()
    make = _pixel_grid if kept else _pixel_grid.__wrapped__
    return make(height, width, device, over or (height, width))


@lru_cache(maxsize=16)
def _pixel_grid(height: int, width: int, device: torch.device, over: tuple[int, int]) -> Tensor:
    with torch.inference_mode(False):
        y = torch.linspace(0, over[0] - 1, height, device=device)[:, None].expand(height, width)
        x = torch.linspace(0, over[1] - 1, width, device=device).expand(height, width)
        return torch.stack([x, y, torch.ones_like(x)])


def scaled(values: Array, factor: Any, offset: Any, out: Array | None = None) -> Array:
    """factor * values + offset, of (B, H, W); both are numbers, or (B,) of the cameras."""
    if isinstance(values, np.ndarray):
        f, o = (float(x if isinstance(x, float) else x[0]) for x in (factor, offset))
        flat = values[0]
        return cv2.addWeighted(flat, f, flat, 0.0, o, None if out is None else out[0])[None]
    f, o = (x if isinstance(x, float) else x[:, None, None] for x in (factor, offset))
    return torch.add(f * values, o, out=out)


def linear(factors: Array, x: Array, y: Array, z: Array) -> Array:
    """(B, H, W): factors (B, 4) of x, y, 1 and z; x and y may be of one camera, for all."""
    if isinstance(z, np.ndarray):
        a, b, c, d = factors[0].tolist()
        plane = cv2.addWeighted(x[0], a, y[0], b, c)
        return cv2.scaleAdd(z[0], d, plane, plane)[None]
    a, b, c, d = (factors[:, k, None, None] for k in range(4))
    return a * x + b * y + c + d * z


def length(x: Array, y: Array) -> Array:
    """Of vectors: (B, H, W) of x and y like that; on a CPU in the memory of x."""
    if isinstance(x, np.ndarray):
        cv2.magnitude(x[0], y[0], x[0])
        return x
    return (x * x + y * y).sqrt()


def square_root(values: Array) -> Array:
    """(B, H, W) of what is not negative."""
    return cv2.sqrt(values[0])[None] if isinstance(values, np.ndarray) else values.sqrt()


def interleaved(maps: Array) -> Any:
    """(B, C, H, W), at best C = 4, as ``sample`` takes them fastest: OpenCV samples four
    interleaved channels in the time of one."""
    if isinstance(maps, Tensor) or maps.shape[1] == 2:  # OpenCV 5.0 rounds positions for two
        return maps
    mixed = maps[0].transpose(1, 2, 0)
    return mixed if mixed.flags.c_contiguous else cv2.merge(list(maps[0])).reshape(mixed.shape)


def stacked(planes: Sequence[Array]) -> Array:
    """(B, C, H, W) of C (B, H, W); on a CPU a view of what ``interleaved`` makes of it."""
    if isinstance(planes[0], Tensor):
        return torch.stack(tuple(planes), 1)
    return cv2.merge([one[0] for one in planes]).transpose(2, 0, 1)[None]


def classes(logits: Array) -> Iterator[slice]:
    """Those of (B, C, h, w) to compute at a time: on a CPU four, some of them twice."""
    total = logits.shape[1]
    count = min(4, total) if isinstance(logits, np.ndarray) else total
    for first in range(0, total, max(count, 1)):
        yield slice(min(first, total - count), min(first, total - count) + count)


def finite(maps: Tensor) -> Array:
    """(B, C, h, w) float32, 0 in place of NaN and inf; on a CPU map by map in memory."""
    (found,) = arrays(maps.float())
    if isinstance(found, Tensor):
        return torch.nan_to_num(found, 0.0, 0.0, 0.0)
    if not found.flags.c_contiguous:  # a network on a CPU gives all channels of a pixel together
        count, pixels = found.shape[1], found[0].transpose(1, 2, 0)
        found = np.empty(found.shape, np.float32)
        cv2.transpose(pixels.reshape(-1, count), found.reshape(count, -1))
    # The sum of the squares is finite if all are, but for the largest.
    if np.isfinite(np.vdot(found, found)):
        return found
    return np.nan_to_num(found, True, 0.0, 0.0, 0.0)


def sample(maps: Any, position: Array, out: Array | None = None) -> Array:
    """(B, C, H, W), or ``interleaved``, at positions (B, 2, h, w) of each camera or (1, 2, h, w)
    for all, x and y in pixels; the nearest value beyond the border."""
    if isinstance(maps, Tensor):
        height, width = maps.shape[2:]
        x, y = position[:, 0] * (2 / max(width - 1, 1)), position[:, 1] * (2 / max(height - 1, 1))
        grid = torch.stack([x - 1, y - 1], -1).expand(len(maps), -1, -1, -1)
        sampled = F.grid_sample(maps, grid, padding_mode="border", align_corners=True)
        return sampled if out is None else out.copy_(sampled)
    x, y = position[0]
    count = maps.shape[2] if maps.ndim == 3 else maps.shape[1]
    found = np.empty((1, count, *x.shape), np.float32) if out is None else out
    if maps.ndim == 3:
        cv2.split(_remap(maps, x, y), list(found[0]))
    else:
        for plane, into in zip(maps[0], found[0], strict=True):
            _remap(plane, x, y, into)
    return found


def sample_elsewhere(
    mask: Array, elsewhere: Array, position: Array, found: Array, maps: Any
) -> tuple[Array, Array]:
    """Positions (B, 2, h, w) and what ``sample`` found there (B, C, h, w), with other positions
    where a mask (B, h, w) is true; on a CPU in place, and only there sampled again."""
    if not isinstance(mask, np.ndarray):
        position = library(mask).where(mask[:, None], elsewhere, position)
        return position, sample(maps, position)
    left, top, width, height = cv2.boundingRect(mask[0].view(np.uint8))
    if width:
        part = (..., slice(top, top + height), slice(left, left + width))
        np.copyto(position[part], elsewhere[part], where=mask[part])
        found[part] = sample(maps, position[part])
    return position, found


def _remap(
    values: np.ndarray, x: np.ndarray, y: np.ndarray, into: np.ndarray | None = None
) -> np.ndarray:
    if _EXACT_REMAP:
        return cv2.remap(values, x, y, cv2.INTER_LINEAR, into, cv2.BORDER_REPLICATE)
    height, width = values.shape[:2]
    where = np.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], -1)
    maps = torch.from_numpy(values.reshape(1, height, width, -1)).movedim(3, 1)
    at = torch.from_numpy(where.astype(np.float32))[None]
    found = F.grid_sample(maps, at, padding_mode="border", align_corners=True)[0].movedim(0, 2)
    result = found.numpy().reshape(*x.shape, *values.shape[2:])
    if into is not None:
        into[...] = result
    return result


def _remap_is_exact() -> bool:
    """OpenCV 4 rounds positions to 1/32 pixel, which repeated every frame would blur."""
    at = np.full((1, 1), 0.51, np.float32)
    values = np.array([[0, 1], [0, 1]], np.float32)
    return bool(abs(cv2.remap(values, at, at, cv2.INTER_LINEAR)[0, 0] - 0.51) < 1e-4)


_EXACT_REMAP = _remap_is_exact()


def opened(mask: Array) -> Array:
    """A mask (B, H, W) without what is smaller than 3x3 pixels: noise."""
    if isinstance(mask, np.ndarray):
        flat = mask[0].view(np.uint8)
        return cv2.morphologyEx(flat, cv2.MORPH_OPEN, _KERNEL).view(bool)[None]
    return max_pool3x3(min_pool3x3(mask.float())) > 0


def min_pool3x3(values: Array) -> Array:
    """(B, H, W): the minimum of every 3x3 neighbourhood."""
    if isinstance(values, np.ndarray):
        return cv2.erode(values[0], _KERNEL)[None]
    return -max_pool3x3(-values)


def max_pool3x3(values: Array) -> Array:
    """(B, H, W): the maximum of every 3x3 neighbourhood."""
    if isinstance(values, np.ndarray):
        return cv2.dilate(values[0], _KERNEL)[None]
    return F.max_pool2d(values, 3, 1, 1)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) to another (height, width), pixel centres aligned."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def thumbnail(image: Array, size: tuple[int, int]) -> Array:
    """(B, H, W) averaged to another (height, width)."""
    if isinstance(image, np.ndarray):
        return cv2.resize(image[0], size[::-1], interpolation=cv2.INTER_AREA)[None]
    return F.interpolate(image[:, None], size, mode="area")[:, 0]
