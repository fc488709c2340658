# SPDX-License-Identifier: Apache-2.0
"""Camera bytes -> network input on the device they lie on, with the arithmetic of ``preprocess``.

Everything here can be recorded in a CUDA graph: constants are made once, nothing is copied from
the host, nothing waits. On a GPU with triton one kernel does all of it; elsewhere plain torch does
the same operations in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.input.encodings import Encoding, check_shape, find_encoding, picture_size
from dpt_ros.engine.input.preprocess import normalisation
from dpt_ros.engine.triton_launch import has_twin

_TRITON = "dpt_ros.engine.input.triton_device_preprocess"
TENSOR_DTYPES = {np.uint8: torch.uint8, np.uint16: torch.int16, np.float32: torch.float32}
"""Types of pixels as tensors: uint16 as int16 of the same bits, since torch computes little on
uint16."""


def rgb(pixels: Tensor, encoding: str) -> Tensor:
    """Camera pixels as RGB pictures, on the device they lie on, in plain torch.

    Bit for bit what ``preprocess.to_rgb`` gives: fixed-point YUV, bilinear Bayer and roundings as
    OpenCV has them. nv24 alone can differ by one level, where OpenCV has no vector code for
    ``cv2.transform`` and rounds a float instead.

    Args:
        pixels: (B, H, W) or (B, H, W, C) uint8, int16 (the bits of uint16) or float32; planes of
            nv12, nv21 and nv24 stacked as in ``Frame.pixels``.
        encoding: a name of ``ENCODINGS``.

    Returns:
        (B, H, W, 3) uint8, contiguous; rgb8 itself, uncopied.

    Raises:
        ValueError: unknown encoding, or pixels that do not fit it.
    """
    shape = tuple(pixels.shape[1:])
    check_shape(shape, encoding)
    row, size = find_encoding(encoding), picture_size(shape, encoding)
    pixels = checked_pixels(pixels, encoding)
    if row.layout == "interleaved":
        return _to_eight_bits(_interleaved(pixels, row))
    if row.layout == "bayer":
        return _to_eight_bits(_demosaic(pixels, row))
    if row.layout == "yuv444":
        return _yuv444(pixels, size)
    return _fixed_point_rgb(*_luma_and_chroma(pixels, row, size))


class DeviceInput:
    """Pixels of one encoding and size -> network input, on one device.

    The result is ``preprocess.network_input`` of ``to_rgb`` (``exact=True``) but computed in
    float32: cubic resize (a = -0.75, half-pixel centres, borders repeated, no antialias) of
    unrounded values, at OpenCV's positions and with its weights.

    Args:
        encoding: a name of ``ENCODINGS``.
        pixels_shape: of one frame's pixels, as in ``Frame.pixels``.
        size: (height, width) of the network's input.
        mean, std: per channel, of values in 0..1.
        device: where pixels and result are.
        dtype: of the result: float32, float16 or bfloat16.

    Attributes:
        picture_size: (height, width) of the picture.
        row_taps, column_taps: (4, height) and (4, width) int32, rows and columns that a cubic
            resize reads.
        row_weights, column_weights: float32 of the same shapes.
        normalisation: (2, 3) float32, see ``preprocess.normalisation``.

    Raises:
        ValueError: unknown encoding, or a shape, size or type that is impossible.
    """

    def __init__(
        self,
        encoding: str,
        pixels_shape: Sequence[int],
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.encoding, self.pixels_shape = encoding, tuple(pixels_shape)
        check_shape(self.pixels_shape, encoding)
        if min(size) < 1:
            raise ValueError(f"The network's input is {size}, but both sides must be positive.")
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"The input is to be {dtype}, but must be float32, 16 or bfloat16.")
        self.picture_size = picture_size(self.pixels_shape, encoding)
        self.size, self.dtype = (int(size[0]), int(size[1])), dtype
        self.device = torch.device(device)
        self.row_taps, self.row_weights, self.column_taps, self.column_weights = (
            torch.from_numpy(one).to(device)
            for source, target in zip(self.picture_size, self.size, strict=True)
            for one in cubic_taps(source, target)
        )
        self.normalisation = torch.from_numpy(normalisation(mean, std)).to(device)

    @property
    def resized(self) -> bool:
        """Whether the picture has another size than the network's input."""
        return self.size != self.picture_size

    def __call__(self, pixels: Tensor) -> Tensor:
        """The network's input.

        Args:
            pixels: (B, \\*pixels_shape) on the device; uint8, float32, or uint16 as int16.

        Returns:
            (B, 3, height, width) in channels_last memory, normalised, new at every call.

        Raises:
            ValueError: the pixels have another shape, type or device.
        """
        shape = self.pixels_shape
        if tuple(pixels.shape[1:]) != shape or pixels.device.type != self.device.type:
            raise ValueError(
                f"The pixels have shape {tuple(pixels.shape)} on {pixels.device}, but must be"
                f" (B, {', '.join(map(str, shape))}) on {self.device}."
            )
        return network_input(checked_pixels(pixels, self.encoding), self)


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


@has_twin(_TRITON)
def network_input(pixels: Tensor, plan: DeviceInput) -> Tensor:
    """Pixels (B, \\*plan.pixels_shape) as the network's input (B, 3, height, width)."""
    values = rgb(pixels, plan.encoding)
    if plan.resized:
        values = _resize(values, plan)
    scale, offset = plan.normalisation.unbind()
    return (values * scale + offset).to(plan.dtype).permute(0, 3, 1, 2)


def _resize(picture: Tensor, plan: DeviceInput) -> Tensor:
    # Along rows first, as OpenCV does it; every sum in the order of the taps.
    weights = plan.column_weights[:, :, None]
    row = picture.index_select(2, plan.column_taps[0]) * weights[0]
    for tap in range(1, 4):
        row = row + picture.index_select(2, plan.column_taps[tap]) * weights[tap]
    weights = plan.row_weights[:, :, None, None]
    values = row.index_select(1, plan.row_taps[0]) * weights[0]
    for tap in range(1, 4):
        values = values + row.index_select(1, plan.row_taps[tap]) * weights[tap]
    return values


def checked_pixels(pixels: Tensor, encoding: str) -> Tensor:
    """Pixels as the tensors of an encoding are: uint16 as int16.

    Raises:
        ValueError: they have another type.
    """
    if pixels.dtype == torch.uint16:
        pixels = pixels.view(torch.int16)
    wanted = TENSOR_DTYPES[find_encoding(encoding).dtype]
    if pixels.dtype != wanted:
        raise ValueError(f"The pixels are {pixels.dtype}, but {encoding} needs {wanted}.")
    return pixels


def _interleaved(pixels: Tensor, row: Encoding) -> Tensor:
    if row.channels == 0:
        return pixels[..., None].expand(*pixels.shape, 3)
    if row.offsets == (0, 1, 2):
        return pixels[..., :3]
    return pixels[..., :3].flip(-1)


def _to_eight_bits(pixels: Tensor) -> Tensor:
    if pixels.dtype == torch.float32:
        pixels = torch.nan_to_num(pixels, nan=0.0, posinf=1.0, neginf=0.0).clamp(0.0, 1.0)
        pixels = (pixels * 255 + 0.5).to(torch.uint8)
    elif pixels.dtype == torch.int16:
        # The nearest of 255 / 65535 = 1 / 257; there are no ties.
        pixels = ((_unsigned(pixels) + 128) // 257).to(torch.uint8)
    return pixels.contiguous()


def _unsigned(pixels: Tensor) -> Tensor:
    return pixels.to(torch.int32) & (0xFFFF if pixels.dtype == torch.int16 else 0xFF)


def _demosaic(pixels: Tensor, row: Encoding) -> Tensor:
    """Bilinear; the outermost rows and columns repeat their neighbours, as in OpenCV."""
    height, width = pixels.shape[1] - 2, pixels.shape[2] - 2
    values = _unsigned(pixels)

    def moved(down: int, right: int) -> Tensor:
        return values[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    sideways, upright = moved(0, -1) + moved(0, 1), moved(-1, 0) + moved(1, 0)
    diagonal = moved(-1, -1) + moved(-1, 1) + moved(1, -1) + moved(1, 1)
    # By whether a pixel shares its row and its column with the interpolated colour.
    found = {
        (True, True): moved(0, 0),
        (True, False): (sideways + 1) >> 1,
        (False, True): (upright + 1) >> 1,
        (False, False): (diagonal + 2) >> 2,
    }
    cross = (sideways + upright + 2) >> 2
    picture = pixels.new_empty((*found[True, True].shape, 3))
    red_row, red_column, _ = row.offsets
    for y in (0, 1):
        for x in (0, 1):
            # The interior begins at row 1 and column 1.
            same = (y != red_row, x != red_column)
            places = (slice(None), slice(y, None, 2), slice(x, None, 2))
            target = picture[places]
            target[..., 0] = found[same][places]
            target[..., 1] = (cross if same[0] == same[1] else found[True, True])[places]
            target[..., 2] = found[not same[0], not same[1]][places]
    picture = torch.cat([picture[:, :1], picture, picture[:, -1:]], 1)
    return torch.cat([picture[:, :, :1], picture, picture[:, :, -1:]], 2)


def _luma_and_chroma(
    pixels: Tensor, row: Encoding, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    batch, (height, width) = pixels.shape[0], size
    if row.layout == "yuv422":
        luma, u, v = row.offsets
        chroma = pixels.reshape(batch, height, width // 2, 1, 4)
        chroma = chroma.expand(batch, height, width // 2, 2, 4).reshape(batch, height, width, 4)
        return pixels[..., luma], chroma[..., u], chroma[..., v]
    u, v, _ = row.offsets
    chroma = pixels[:, height:].reshape(batch, height // 2, 1, width // 2, 1, 2)
    chroma = chroma.expand(batch, height // 2, 2, width // 2, 2, 2)
    chroma = chroma.reshape(batch, height, width, 2)
    return pixels[:, :height], chroma[..., u], chroma[..., v]


def _fixed_point_rgb(luma: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """ITU-R BT.601, video range, in OpenCV's 20-bit fixed point."""
    y = (luma.to(torch.int32) - 16).clamp_min(0) * 1220542 + (1 << 19)
    u, v = u.to(torch.int32) - 128, v.to(torch.int32) - 128
    red = (y + 1673527 * v) >> 20
    green = (y - 852492 * v - 409993 * u) >> 20
    blue = (y + 2116026 * u) >> 20
    return torch.stack([red, green, blue], -1).clamp(0, 255).to(torch.uint8)


def _yuv444(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """``preprocess._YUV_TO_RGB`` in the 10-bit fixed point of ``cv2.transform``."""
    batch, (height, width) = pixels.shape[0], size
    chroma = pixels[:, height:].reshape(batch, height, width, 2).to(torch.int32)
    y, u, v = 1192 * pixels[:, :height].to(torch.int32), chroma[..., 0], chroma[..., 1]
    red = (y + 1634 * v - 228272 + 512) >> 10
    green = (y - 401 * u - 832 * v + 138829 + 512) >> 10
    blue = (y + 2066 * u - 283480 + 512) >> 10
    return torch.stack([red, green, blue], -1).clamp(0, 255).to(torch.uint8)
