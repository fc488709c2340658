# SPDX-License-Identifier: Apache-2.0
"""Camera bytes -> network input in one Triton kernel: colour, resize, normalisation, cast.

The operations and their order are those of the plain path in ``device_preprocess``, and products
are not fused with sums, so that both give the same values. Needs triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpt_ros.engine import triton_launch
from dpt_ros.engine.input.device_preprocess import DeviceInput
from dpt_ros.engine.input.encodings import find_encoding

_LAYOUTS = {
    layout: number
    for number, layout in enumerate(("interleaved", "yuv422", "yuv420", "yuv444", "bayer"))
}
# Output pixels of one program: neighbours below one another share most of their source rows.
_ROWS, _COLUMNS = 4, 64


@triton.jit
def _eight_bits(value, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """One sample, int32 where it is an integer -> its level 0..255 as int32."""
    if BITS == 16:
        level = (value + 128) // 257
    elif BITS == 32:
        number = tl.where(value != value, 0.0, value)
        level = (tl.minimum(tl.maximum(number, 0.0), 1.0) * 255.0 + 0.5).to(tl.int32)
    else:
        level = value
    return level


@triton.jit
def _load(address, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    value = tl.load(address)
    if BITS == 16:
        value = value.to(tl.int32) & 0xFFFF
    elif BITS == 8:
        value = value.to(tl.int32)
    return value


@triton.jit
def _limited(value, SHIFT: tl.constexpr):  # type: ignore[no-untyped-def]
    # Fixed point -> 0..255, halves up.
    return tl.minimum(tl.maximum((value + (1 << (SHIFT - 1))) >> SHIFT, 0), 255)


@triton.jit
def _bayer_color(same_row, same_column, here, sideways, upright, diagonal):  # type: ignore[no-untyped-def]
    return tl.where(
        same_row,
        tl.where(same_column, here, (sideways + 1) >> 1),
        tl.where(same_column, (upright + 1) >> 1, (diagonal + 2) >> 2),
    )


@triton.jit
def sample(  # type: ignore[no-untyped-def]
    picture, y, x, height, width,
    LAYOUT: tl.constexpr, BITS: tl.constexpr, CHANNELS: tl.constexpr,
    FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr,
):  # fmt: skip
    """Red, green and blue of the source pixels at rows y and columns x: 0..255 as float32."""
    if LAYOUT == 0:
        pixel = picture + (y * width + x) * CHANNELS
        red = _eight_bits(_load(pixel + FIRST, BITS), BITS)
        green = red
        blue = red
        if CHANNELS > 1:
            green = _eight_bits(_load(pixel + SECOND, BITS), BITS)
            blue = _eight_bits(_load(pixel + THIRD, BITS), BITS)
    elif LAYOUT == 4:
        # The outermost rows and columns repeat their neighbours.
        y = tl.minimum(tl.maximum(y, 1), height - 2)
        x = tl.minimum(tl.maximum(x, 1), width - 2)
        pixel = picture + y * width + x
        above = pixel - width
        below = pixel + width
        here = _load(pixel, BITS)
        sideways = _load(pixel - 1, BITS) + _load(pixel + 1, BITS)
        upright = _load(above, BITS) + _load(below, BITS)
        diagonal = _load(above - 1, BITS) + _load(above + 1, BITS)
        diagonal += _load(below - 1, BITS) + _load(below + 1, BITS)
        row = (y & 1) == FIRST
        column = (x & 1) == SECOND
        red = _bayer_color(row, column, here, sideways, upright, diagonal)
        blue = _bayer_color(~row, ~column, here, sideways, upright, diagonal)
        green = tl.where(row == column, (sideways + upright + 2) >> 2, here)
        red = _eight_bits(red, BITS)
        green = _eight_bits(green, BITS)
        blue = _eight_bits(blue, BITS)
    else:
        if LAYOUT == 1:
            luma = _load(picture + (y * width + x) * 2 + FIRST, BITS)
            chroma = picture + (y * width + (x >> 1) * 2) * 2
            u = _load(chroma + SECOND, BITS)
            v = _load(chroma + THIRD, BITS)
        else:
            luma = _load(picture + y * width + x, BITS)
            chroma = picture + height * width
            if LAYOUT == 2:
                chroma += (y >> 1) * width + (x >> 1) * 2
            else:
                chroma += (y * width + x) * 2
            u = _load(chroma + FIRST, BITS)
            v = _load(chroma + SECOND, BITS)
        if LAYOUT == 3:
            # The 10-bit fixed point of cv2.transform
            luma = luma * 1192
            red = _limited(luma + 1634 * v - 228272, 10)
            green = _limited(luma - 401 * u - 832 * v + 138829, 10)
            blue = _limited(luma + 2066 * u - 283480, 10)
        else:
            # The 20-bit fixed point of cv2.cvtColor
            luma = tl.maximum(luma - 16, 0) * 1220542
            u -= 128
            v -= 128
            red = _limited(luma + 1673527 * v, 20)
            green = _limited(luma - 852492 * v - 409993 * u, 20)
            blue = _limited(luma + 2116026 * u, 20)
    return red.to(tl.float32), green.to(tl.float32), blue.to(tl.float32)


# One compiled variant per format: sizes are not worth specialising for.
@triton.jit(
    do_not_specialize=["picture_samples", "in_height", "in_width", "out_height", "out_width"]
)
def preprocess_kernel(  # type: ignore[no-untyped-def]
    pixels, out, row_taps, row_weights, column_taps, column_weights, normalisation,
    picture_samples, in_height, in_width, out_height, out_width,
    LAYOUT: tl.constexpr, BITS: tl.constexpr, CHANNELS: tl.constexpr,
    FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr, RESIZE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of ROWS x COLUMNS output pixels of one picture; out is NHWC."""
    picture = tl.program_id(2).to(tl.int64)
    source = pixels + picture * picture_samples
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = (y < out_height)[:, None] & (x < out_width)[None, :]
    # Threads outside the output read its last pixel.
    y = tl.minimum(y, out_height - 1)
    x = tl.minimum(x, out_width - 1)
    if RESIZE:
        red = tl.zeros((ROWS, COLUMNS), tl.float32)
        green = tl.zeros((ROWS, COLUMNS), tl.float32)
        blue = tl.zeros((ROWS, COLUMNS), tl.float32)
        # Not unrolled: a Bayer pixel would take 250 registers.
        for down in range(4):
            source_y = tl.load(row_taps + down * out_height + y)[:, None]
            row_weight = tl.load(row_weights + down * out_height + y)[:, None]
            row_red = tl.zeros((ROWS, COLUMNS), tl.float32)
            row_green = tl.zeros((ROWS, COLUMNS), tl.float32)
            row_blue = tl.zeros((ROWS, COLUMNS), tl.float32)
            for right in tl.static_range(4):
                source_x = tl.load(column_taps + right * out_width + x)[None, :]
                weight = tl.load(column_weights + right * out_width + x)[None, :]
                r, g, b = sample(source, source_y, source_x, in_height, in_width,
                                 LAYOUT, BITS, CHANNELS, FIRST, SECOND, THIRD)  # fmt: skip
                row_red += r * weight
                row_green += g * weight
                row_blue += b * weight
            red += row_red * row_weight
            green += row_green * row_weight
            blue += row_blue * row_weight
    else:
        red, green, blue = sample(source, y[:, None], x[None, :], in_height, in_width,
                                  LAYOUT, BITS, CHANNELS, FIRST, SECOND, THIRD)  # fmt: skip
    target = out + ((picture * out_height + y[:, None]) * out_width + x[None, :]) * 3
    red = red * tl.load(normalisation) + tl.load(normalisation + 3)
    green = green * tl.load(normalisation + 1) + tl.load(normalisation + 4)
    blue = blue * tl.load(normalisation + 2) + tl.load(normalisation + 5)
    tl.store(target, red.to(out.dtype.element_ty), mask=there)
    tl.store(target + 1, green.to(out.dtype.element_ty), mask=there)
    tl.store(target + 2, blue.to(out.dtype.element_ty), mask=there)


def format_constants(encoding: str, pixels: Tensor) -> dict[str, int]:
    """The constants of ``sample`` for pixels of an encoding."""
    row = find_encoding(encoding)
    first, second, third = row.offsets
    return {
        "LAYOUT": _LAYOUTS[row.layout],
        "BITS": 8 * pixels.itemsize,
        "CHANNELS": max(row.channels, 1),
        "FIRST": first,
        "SECOND": second,
        "THIRD": third,
    }


def network_input(pixels: Tensor, plan: DeviceInput) -> Tensor:
    """See :func:`dpt_ros.engine.input.device_preprocess.network_input`; channels last."""
    pixels = pixels.contiguous()
    (in_height, in_width), (height, width) = plan.picture_size, plan.size
    out = torch.empty((len(pixels), height, width, 3), dtype=plan.dtype, device=pixels.device)
    constants = (plan.row_taps, plan.row_weights, plan.column_taps, plan.column_weights)
    sizes = (pixels.stride(0), in_height, in_width, height, width)
    triton_launch.run(
        preprocess_kernel,
        (triton.cdiv(width, _COLUMNS), triton.cdiv(height, _ROWS), len(pixels)),
        (pixels, out, *constants, plan.normalisation, *sizes),
        format_constants(plan.encoding, pixels)
        | {"RESIZE": plan.resized, "ROWS": _ROWS, "COLUMNS": _COLUMNS},
        fp_fusion=False,
    )
    return out.permute(0, 3, 1, 2)
