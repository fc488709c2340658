# SPDX-License-Identifier: Apache-2.0
"""Camera bytes -> network input on the device they lie on, with the arithmetic of ``preprocess``.

Everything here can be recorded in a CUDA graph: constants are made once, nothing is copied from
the host, nothing waits. On a GPU with triton one kernel does all of it; elsewhere plain torch does
the same operations in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.inference.kernels import triton_enabled
from dpt_ros.engine.input.preprocess import picture_size

_U8, _U16, _F32 = torch.uint8, torch.int16, torch.float32


@dataclass(frozen=True)
class PixelFormat:
    """How an encoding keeps its colours.

    Args:
        kind: "interleaved"; "packed", YUV 4:2:2 with two pixels in four bytes; "planar", a plane
            of luma and a half-size one of chroma pairs; "full", the same with chroma at full size;
            "bayer".
        dtype: of the tensor; 16-bit pixels are seen as int16, because torch computes little on
            uint16.
        channels: length of the last axis, 0 where there is none.
        places: interleaved: where in a pixel red, green and blue are. packed: where in four bytes
            the first luma, U and V are. planar and full: which of a pair U and V are, then 0.
            bayer: row and column of the first red, then 0.
    """

    kind: str
    dtype: torch.dtype
    channels: int
    places: tuple[int, int, int]


_RGB, _BGR, _GREY = (0, 1, 2), (2, 1, 0), (0, 0, 0)
_UYVY = PixelFormat("packed", _U8, 2, (1, 0, 2))
_YUYV = PixelFormat("packed", _U8, 2, (0, 1, 3))
_BAYER = {"rggb": (0, 0, 0), "grbg": (0, 1, 0), "gbrg": (1, 0, 0), "bggr": (1, 1, 0)}

FORMATS: dict[str, PixelFormat] = {
    "rgb8": PixelFormat("interleaved", _U8, 3, _RGB),
    "bgr8": PixelFormat("interleaved", _U8, 3, _BGR),
    "rgba8": PixelFormat("interleaved", _U8, 4, _RGB),
    "bgra8": PixelFormat("interleaved", _U8, 4, _BGR),
    "mono8": PixelFormat("interleaved", _U8, 0, _GREY),
    "rgb16": PixelFormat("interleaved", _U16, 3, _RGB),
    "bgr16": PixelFormat("interleaved", _U16, 3, _BGR),
    "mono16": PixelFormat("interleaved", _U16, 0, _GREY),
    "8UC1": PixelFormat("interleaved", _U8, 0, _GREY),
    "8UC3": PixelFormat("interleaved", _U8, 3, _BGR),
    "8UC4": PixelFormat("interleaved", _U8, 4, _BGR),
    "16UC1": PixelFormat("interleaved", _U16, 0, _GREY),
    "16UC3": PixelFormat("interleaved", _U16, 3, _BGR),
    "32FC1": PixelFormat("interleaved", _F32, 0, _GREY),
    "32FC3": PixelFormat("interleaved", _F32, 3, _BGR),
    "uyvy": _UYVY,
    "yuv422": _UYVY,
    "yuyv": _YUYV,
    "yuv422_yuy2": _YUYV,
    "nv12": PixelFormat("planar", _U8, 0, (0, 1, 0)),
    "nv21": PixelFormat("planar", _U8, 0, (1, 0, 0)),
    "nv24": PixelFormat("full", _U8, 0, (0, 1, 0)),
} | {
    f"bayer_{pattern}{bits}": PixelFormat("bayer", dtype, 0, red)
    for pattern, red in _BAYER.items()
    for bits, dtype in ((8, _U8), (16, _U16))
}


def host_tensor(pixels: np.ndarray) -> Tensor:
    """A frame's pixels as a tensor on the host, as ``DeviceInput`` and ``rgb`` take them.

    uint16 is seen as int16 with the same bits. The memory is shared, rows with padding included,
    unless torch cannot: read-only arrays and negative strides are copied.

    Args:
        pixels: uint8, uint16 or float32, any shape.

    Raises:
        ValueError: another type.
    """
    if pixels.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(
            f"The pixels are {pixels.dtype}, but must be uint8, uint16 or float32 in this"
            " machine's byte order."
        )
    if pixels.dtype == np.uint16:
        pixels = pixels.view(np.int16)
    shareable = all(stride >= 0 and stride % pixels.itemsize == 0 for stride in pixels.strides)
    if not pixels.flags.writeable or not shareable:
        pixels = pixels.copy()
    return torch.from_numpy(pixels)


def rgb(pixels: Tensor, encoding: str) -> Tensor:
    """Camera pixels as RGB pictures, on the device they lie on, in plain torch.

    Bit for bit what ``preprocess.to_rgb`` gives: fixed-point YUV, bilinear Bayer and roundings as
    OpenCV has them. nv24 alone can differ by one level, where OpenCV has no vector code for
    ``cv2.transform`` and rounds a float instead.

    Args:
        pixels: (B, H, W) or (B, H, W, C) uint8, int16 (uint16 seen so) or float32; planes of
            nv12, nv21 and nv24 stacked as in ``Frame.pixels``.
        encoding: a name of ``FORMATS``.

    Returns:
        (B, H, W, 3) uint8, contiguous; rgb8 itself, uncopied.

    Raises:
        ValueError: unknown encoding, or pixels that do not fit it.
    """
    form, size = checked_format(encoding, tuple(pixels.shape[1:]))
    pixels = _checked_pixels(pixels, encoding, form)
    if form.kind == "interleaved":
        return _to_eight_bits(_interleaved(pixels, form))
    if form.kind == "bayer":
        return _to_eight_bits(_demosaic(pixels, form))
    if form.kind == "full":
        return _nv24(pixels, size)
    return _fixed_point_rgb(*_luma_and_chroma(pixels, form, size))


class DeviceInput:
    """Pixels of one encoding and size -> network input, on one device.

    The result is ``preprocess.network_input`` of ``to_rgb`` (``exact=True``) but computed in
    float32: cubic resize (a = -0.75, half-pixel centres, borders repeated, no antialias) of
    unrounded values, at OpenCV's positions and with its weights.

    Args:
        encoding: a name of ``FORMATS``.
        pixels_shape: shape of one frame's pixels, as in ``Frame.pixels``.
        size: (height, width) of the network's input.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1.
        device: where pixels and result live.
        dtype: of the result: float32, float16 or bfloat16.
        plain: use plain torch even where the kernel could run.

    Raises:
        ValueError: unknown encoding, or a shape, size or type that cannot be.
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
        plain: bool = False,
    ) -> None:
        self.encoding = encoding
        self.pixels_shape = tuple(pixels_shape)
        self.format, self.picture_size = checked_format(encoding, self.pixels_shape)
        if min(size) < 1:
            raise ValueError(f"The network's input is {size}, but both sides must be positive.")
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"The input is to be {dtype}, but must be float32, 16 or bfloat16.")
        self.size = (int(size[0]), int(size[1]))
        self.dtype = dtype
        self.device = torch.device(device)
        self._kernel = None if plain else self._triton_kernel()
        scale = (1.0 / (255.0 * np.array(std))).astype(np.float32)
        offset = (-np.array(mean) / np.array(std)).astype(np.float32)
        self.normalisation = self._constant(np.stack([scale, offset]))
        self.resized = self.size != self.picture_size
        rows, columns = (
            cubic_taps(*sides) for sides in zip(self.picture_size, self.size, strict=True)
        )
        self.row_taps, self.row_weights = map(self._constant, rows)
        self.column_taps, self.column_weights = map(self._constant, columns)

    @property
    def fused(self) -> bool:
        """Whether one Triton kernel does all the work. Plain torch gives the same values."""
        return self._kernel is not None

    def __call__(self, pixels: Tensor) -> Tensor:
        """The network's input.

        Args:
            pixels: (B, \\*pixels_shape) on the device; uint8, float32, or uint16 seen as int16
                (see ``host_tensor``).

        Returns:
            (B, 3, height, width) in channels_last memory, normalised, new at every call.

        Raises:
            ValueError: the pixels have another shape, type or device.
        """
        if tuple(pixels.shape[1:]) != self.pixels_shape or pixels.device.type != self.device.type:
            raise ValueError(
                f"The pixels have shape {tuple(pixels.shape)} on {pixels.device}, but must be"
                f" (B, {', '.join(map(str, self.pixels_shape))}) on {self.device}."
            )
        if self._kernel is not None:
            return self._kernel(_checked_pixels(pixels, self.encoding, self.format), self)
        return self._plain(pixels)

    def _triton_kernel(self) -> Callable[[Tensor, DeviceInput], Tensor] | None:
        if self.device.type != "cuda" or not triton_enabled():
            return None
        from dpt_ros.engine.input.triton_preprocess import network_input

        return network_input

    def _plain(self, pixels: Tensor) -> Tensor:
        picture = rgb(pixels, self.encoding)
        values = self._resize(picture) if self.resized else picture
        scale, offset = self.normalisation.unbind()
        return (values * scale + offset).to(self.dtype).permute(0, 3, 1, 2)

    def _resize(self, picture: Tensor) -> Tensor:
        # Along rows first, as OpenCV does it; every sum in the order of the taps.
        weights = self.column_weights[:, :, None]
        row = picture.index_select(2, self.column_taps[0]) * weights[0]
        for tap in range(1, 4):
            row = row + picture.index_select(2, self.column_taps[tap]) * weights[tap]
        weights = self.row_weights[:, :, None, None]
        values = row.index_select(1, self.row_taps[0]) * weights[0]
        for tap in range(1, 4):
            values = values + row.index_select(1, self.row_taps[tap]) * weights[tap]
        return values

    def _constant(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def cubic_taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Which samples a cubic resize of one side takes, and how much of each.

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


def checked_format(
    encoding: str, pixels_shape: tuple[int, ...]
) -> tuple[PixelFormat, tuple[int, int]]:
    """The format of an encoding, and (height, width) of the picture in pixels of that shape.

    Raises:
        ValueError: unknown encoding, or a shape that it cannot have.
    """
    form = FORMATS.get(encoding)
    if form is None:
        raise ValueError(
            f"The encoding {encoding!r} cannot be read; known are {', '.join(sorted(FORMATS))}."
        )
    fits = len(pixels_shape) == (3 if form.channels else 2) and 0 not in pixels_shape
    if not fits or (form.channels and pixels_shape[2] != form.channels):
        wanted = f"(H, W, {form.channels})" if form.channels else "(H, W)"
        raise ValueError(
            f"The pixels have shape {pixels_shape}, but {encoding} needs {wanted}, not empty."
        )
    height, width = picture_size(pixels_shape, encoding)
    if form.kind in ("packed", "planar") and width % 2:
        raise ValueError(f"The picture is {width} wide, but {encoding} needs an even width.")
    parts = {"planar": 3, "full": 3}.get(form.kind, 1)
    if pixels_shape[0] % parts:
        raise ValueError(
            f"The pixels have {pixels_shape[0]} rows, but {encoding} needs a multiple of {parts}:"
            " its planes lie below one another."
        )
    if form.kind == "bayer" and min(height, width) < 3:
        raise ValueError(
            f"The picture is {width}x{height}, but {encoding} needs at least 3x3 pixels."
        )
    return form, (height, width)


def _checked_pixels(pixels: Tensor, encoding: str, form: PixelFormat) -> Tensor:
    if pixels.dtype == torch.uint16:
        pixels = pixels.view(torch.int16)
    if pixels.dtype != form.dtype:
        raise ValueError(f"The pixels are {pixels.dtype}, but {encoding} needs {form.dtype}.")
    return pixels


def _interleaved(pixels: Tensor, form: PixelFormat) -> Tensor:
    if form.channels == 0:
        return pixels[..., None].expand(*pixels.shape, 3)
    if form.places == _RGB:
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


def _demosaic(pixels: Tensor, form: PixelFormat) -> Tensor:
    """Bilinear; the outermost rows and columns repeat their neighbours, as in OpenCV."""
    height, width = pixels.shape[1] - 2, pixels.shape[2] - 2
    values = _unsigned(pixels)

    def moved(down: int, right: int) -> Tensor:
        return values[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    sideways, upright = moved(0, -1) + moved(0, 1), moved(-1, 0) + moved(1, 0)
    diagonal = moved(-1, -1) + moved(-1, 1) + moved(1, -1) + moved(1, 1)
    # By whether a pixel shares its row and its column with the colour that is wanted.
    found = {
        (True, True): moved(0, 0),
        (True, False): (sideways + 1) >> 1,
        (False, True): (upright + 1) >> 1,
        (False, False): (diagonal + 2) >> 2,
    }
    cross = (sideways + upright + 2) >> 2
    picture = pixels.new_empty((*found[True, True].shape, 3))
    red_row, red_column, _ = form.places
    for row in (0, 1):
        for column in (0, 1):
            # The interior begins at row 1 and column 1.
            same = (row != red_row, column != red_column)
            places = (slice(None), slice(row, None, 2), slice(column, None, 2))
            target = picture[places]
            target[..., 0] = found[same][places]
            target[..., 1] = (cross if same[0] == same[1] else found[True, True])[places]
            target[..., 2] = found[not same[0], not same[1]][places]
    picture = torch.cat([picture[:, :1], picture, picture[:, -1:]], 1)
    return torch.cat([picture[:, :, :1], picture, picture[:, :, -1:]], 2)


def _luma_and_chroma(
    pixels: Tensor, form: PixelFormat, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    batch, (height, width) = pixels.shape[0], size
    if form.kind == "packed":
        luma, u, v = form.places
        chroma = pixels.reshape(batch, height, width // 2, 1, 4)
        chroma = chroma.expand(batch, height, width // 2, 2, 4).reshape(batch, height, width, 4)
        return pixels[..., luma], chroma[..., u], chroma[..., v]
    u, v, _ = form.places
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


def _nv24(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """``preprocess._YUV_TO_RGB`` in the 10-bit fixed point of ``cv2.transform``."""
    batch, (height, width) = pixels.shape[0], size
    chroma = pixels[:, height:].reshape(batch, height, width, 2).to(torch.int32)
    y, u, v = 1192 * pixels[:, :height].to(torch.int32), chroma[..., 0], chroma[..., 1]
    red = (y + 1634 * v - 228272 + 512) >> 10
    green = (y - 401 * u - 832 * v + 138829 + 512) >> 10
    blue = (y + 2066 * u - 283480 + 512) >> 10
    return torch.stack([red, green, blue], -1).clamp(0, 255).to(torch.uint8)
