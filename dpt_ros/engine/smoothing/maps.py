# SPDX-License-Identifier: Apache-2.0
"""Maps of a batch: sampled, resized, morphology; on a CPU by OpenCV where it is faster."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpt_ros.engine.output import postprocess


@lru_cache(maxsize=16)
def pixel_grid(height: int, width: int, device: torch.device) -> Tensor:
    """(3, H, W): every pixel's x and y, normalised to -1..1 with corners aligned, and 1."""
    with torch.inference_mode(False):
        y = torch.linspace(-1, 1, height, device=device).view(-1, 1).expand(height, width)
        x = torch.linspace(-1, 1, width, device=device).expand(height, width)
        return torch.stack([x, y, torch.ones_like(x)])


def sample(maps: Tensor, position: Tensor) -> Tensor:
    """(B, C, H, W) at positions (B, 2, ...), normalised; the nearest value beyond the border."""
    return F.grid_sample(
        maps, position.movedim(1, -1), mode="bilinear", padding_mode="border", align_corners=True
    )


def opened(mask: Tensor) -> Tensor:
    """(B, H, W) of 0 and 1 without what is smaller than 3x3 pixels: noise."""
    return max_pool3x3(-max_pool3x3(-mask))


def max_pool3x3(values: Tensor) -> Tensor:
    """(B, H, W): the maximum of every 3x3 neighbourhood."""
    if postprocess.on_host(values):
        kernel = np.ones((3, 3), np.uint8)
        return torch.from_numpy(np.stack([cv2.dilate(one, kernel) for one in values.numpy()]))
    return F.max_pool2d(values, 3, 1, 1)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) to another (height, width), pixel centres aligned."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
