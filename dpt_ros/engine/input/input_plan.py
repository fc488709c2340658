# SPDX-License-Identifier: Apache-2.0
"""What is known before the first frame about a conversion to network input: sizes, constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.input.encodings import check_shape, picture_size
from dpt_ros.engine.input.preprocess import normalisation

TENSOR_DTYPES = {np.uint8: torch.uint8, np.uint16: torch.int16, np.float32: torch.float32}
"""Types of pixels as tensors: uint16 as int16 of the same bits, since torch computes little on
uint16."""


@dataclass(frozen=True)
class InputPlan:
    """Sizes and constants of one conversion; tensors are on its device.

    Args:
        encoding: a name of ``ENCODINGS``.
        pixels_shape: of one frame's pixels, as in ``Frame.pixels``.
        picture_size, size: (height, width) of the picture and of the network's input.
        dtype: of the result.
        row_taps, column_taps: (4, height) and (4, width) int32, rows and columns that a cubic
            resize reads.
        row_weights, column_weights: float32 of the same shapes.
        normalisation: (2, 3) float32, see ``preprocess.normalisation``.
    """

    encoding: str
    pixels_shape: tuple[int, ...]
    picture_size: tuple[int, int]
    size: tuple[int, int]
    dtype: torch.dtype
    row_taps: Tensor
    row_weights: Tensor
    column_taps: Tensor
    column_weights: Tensor
    normalisation: Tensor

    @property
    def resized(self) -> bool:
        return self.size != self.picture_size


def make_plan(
    encoding: str,
    pixels_shape: Sequence[int],
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    dtype: torch.dtype,
) -> InputPlan:
    """Check sizes and types, and bring the constants to the device.

    Args:
        encoding: a name of ``ENCODINGS``.
        pixels_shape: of one frame's pixels, as in ``Frame.pixels``.
        size: (height, width) of the network's input.
        mean, std: per channel, of values in 0..1.
        device: where pixels and result are.
        dtype: of the result: float32, float16 or bfloat16.

    Raises:
        ValueError: unknown encoding, or a shape, size or type that is impossible.
    """
    shape = tuple(pixels_shape)
    check_shape(shape, encoding)
    if min(size) < 1:
        raise ValueError(f"The network's input is {size}, but both sides must be positive.")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"The input is to be {dtype}, but must be float32, 16 or bfloat16.")
    source = picture_size(shape, encoding)
    constants = [
        *cubic_taps(source[0], size[0]),
        *cubic_taps(source[1], size[1]),
        normalisation(mean, std),
    ]
    tensors = [torch.from_numpy(one).to(device) for one in constants]
    return InputPlan(encoding, shape, source, (int(size[0]), int(size[1])), dtype, *tensors)


def cubic_taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples that a cubic resize of one side reads, and their weights.

    Positions and weights are rounded to float32 where OpenCV's INTER_CUBIC on float64 pictures
    does it, which is what the published scripts run: at other positions, a 1920-pixel row would
    come out up to 0.02 grey levels different.

    Returns:
        (4, target) int32 indices of 0..source-1 and (4, target) float32 weights that sum to one.
    """
    inverse_scale = target / source  # rounded twice, as OpenCV does it
    position = ((np.arange(target) + 0.5) * (1.0 / inverse_scale) - 0.5).astype(np.float32)
    first = np.floor(position)
    one, a = np.float32(1), np.float32(-0.75)
    t = position - first
    u = one - t
    outer = ((a * (t + one) - 5 * a) * (t + one) + 8 * a) * (t + one) - 4 * a
    left = ((a + 2) * t - (a + 3)) * t * t + one
    right = ((a + 2) * u - (a + 3)) * u * u + one
    weights = np.stack([outer, left, right, one - outer - left - right])
    indices = first.astype(np.int32) + np.arange(-1, 3, dtype=np.int32)[:, None]
    return np.clip(indices, 0, source - 1), weights
