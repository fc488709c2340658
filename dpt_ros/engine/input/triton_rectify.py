# SPDX-License-Identifier: Apache-2.0
"""Raw camera bytes -> a rectified RGB picture in one Triton kernel; its plain twin is in
``rectify``. Needs triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpt_ros.engine import triton_launch
from dpt_ros.engine.input.device_preprocess import checked_pixels
from dpt_ros.engine.input.encodings import picture_size
from dpt_ros.engine.input.triton_device_preprocess import format_constants, sample

_PIXELS = 256  # of one program


@triton.jit
def _level(value):  # type: ignore[no-untyped-def]
    return (value + 0.5).to(tl.int32).to(tl.uint8)


@triton.jit(do_not_specialize=["picture_samples", "in_height", "in_width", "out_pixels"])
def rectify_kernel(  # type: ignore[no-untyped-def]
    pixels, table, out, picture_samples, in_height, in_width, out_pixels,
    LAYOUT: tl.constexpr, BITS: tl.constexpr, CHANNELS: tl.constexpr,
    FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """PIXELS neighbours of one rectified picture; out is NHWC."""
    picture = tl.program_id(1).to(tl.int64)
    source = pixels + picture * picture_samples
    place = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    there = place < out_pixels
    place = tl.minimum(place, out_pixels - 1)
    x = tl.load(table + 2 * place)
    y = tl.load(table + 2 * place + 1)
    left = tl.floor(x)
    top = tl.floor(y)
    x -= left
    y -= top
    red = tl.zeros((PIXELS,), tl.float32)
    green = tl.zeros((PIXELS,), tl.float32)
    blue = tl.zeros((PIXELS,), tl.float32)
    # Not unrolled: a Bayer pixel takes many registers.
    for tap in range(4):
        down = tap // 2
        right = tap % 2
        row = tl.minimum(top.to(tl.int32) + down, in_height - 1)
        column = tl.minimum(left.to(tl.int32) + right, in_width - 1)
        weight = tl.where(down == 1, y, 1.0 - y) * tl.where(right == 1, x, 1.0 - x)
        r, g, b = sample(source, row, column, in_height, in_width,
                         LAYOUT, BITS, CHANNELS, FIRST, SECOND, THIRD)  # fmt: skip
        red += r * weight
        green += g * weight
        blue += b * weight
    target = out + (picture * out_pixels + place) * 3
    tl.store(target, _level(red), mask=there)
    tl.store(target + 1, _level(green), mask=there)
    tl.store(target + 2, _level(blue), mask=there)


def rectified(pixels: Tensor, encoding: str, table: Tensor) -> Tensor:
    """The Triton version of ``rectify.rectified``."""
    pixels = checked_pixels(pixels, encoding).contiguous()
    height, width = table.shape[:2]
    in_height, in_width = picture_size(tuple(pixels.shape[1:]), encoding)
    out = torch.empty((len(pixels), height, width, 3), dtype=torch.uint8, device=pixels.device)
    triton_launch.run(
        rectify_kernel,
        (triton.cdiv(height * width, _PIXELS), len(pixels)),
        (pixels, table, out, pixels.stride(0), in_height, in_width, height * width),
        format_constants(encoding, pixels) | {"PIXELS": _PIXELS},
        fp_fusion=False,
    )
    return out
