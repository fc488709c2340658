# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs Image and CompressedImage <-> arrays, uncopied where bytes allow.

Encodings and their layouts are those of sensor_msgs/image_encodings and cv_bridge. Whatever is
wrong with a message raises a `MessageError`; nothing else leaves this module for any input.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import Header

from dpt_ros.engine.input.encodings import ENCODINGS
from dpt_ros.engine.text import one_line
from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.messages.image_files import file_header, odd_label, undecodable, with_jpeg_end

MAX_SIDE = 16384
MAX_BYTES = 2**31
MAX_COMPRESSED_PIXELS = 64_000_000


def image_pixels(msg: Image) -> np.ndarray:
    """The pixels of an Image in the camera's own layout, as a view of the message's bytes.

    Returns:
        (H, W) or (H, W, C), uint8, uint16 or float32 in this machine's byte order; nv12 and nv21
        as (H * 3 / 2, W), nv24 as (3 * H, W), as OpenCV stacks planes. A copy is made only for the
        other byte order, for a 16 or 32 bit image whose ``step`` is no multiple of its samples,
        and for a padded nv24. A view of a serialised image is read-only.

    Raises:
        MessageError: an unknown encoding, an impossible size, or too few bytes.
    """
    layout = ENCODINGS.get(msg.encoding)
    if layout is None:
        raise MessageError(
            "unknown encoding",
            f"The image has the encoding '{msg.encoding}', which is not known;"
            f" known are {', '.join(ENCODINGS)}.",
        )
    width, height = msg.width, msg.height
    _check_side_lengths(width, height)
    if (layout.even_width and width % 2) or (layout.even_height and height % 2):
        raise MessageError(
            "bad size",
            f"The image is {width}x{height}, but {msg.encoding} shares colour between neighbouring"
            " pixels and needs an even size.",
        )
    dtype = np.dtype(layout.dtype)
    row_bytes = width * max(layout.channels, 1) * dtype.itemsize
    rows = int(height * layout.planes)
    data = np.frombuffer(msg.data, np.uint8)
    step = _row_step(msg, data.size, rows, row_bytes)
    if msg.encoding == "nv24":
        return _nv24_planes(data, width, height, step)
    shape = (rows, width, layout.channels) if layout.channels else (rows, width)
    foreign = dtype.itemsize > 1 and bool(msg.is_bigendian) != (sys.byteorder == "big")
    stored = dtype.newbyteorder() if foreign else dtype
    strides = (step, max(layout.channels, 1) * dtype.itemsize, dtype.itemsize)[: len(shape)]
    view: np.ndarray = np.ndarray(shape, stored, data, strides=strides)
    if foreign or step % dtype.itemsize or not view.flags.aligned:
        return np.ascontiguousarray(view, dtype)
    return view


def _row_step(msg: Image, size: int, rows: int, row_bytes: int) -> int:
    """Bytes from row to row; ``step`` is used only where the size of the data is ambiguous."""
    if size == rows * row_bytes or rows == 1:
        step = row_bytes
    elif msg.step >= row_bytes:
        step = msg.step
    else:
        raise MessageError(
            "bad step",
            f"The image has a step of {msg.step} bytes, but a row of {msg.width} {msg.encoding}"
            f" pixels takes {row_bytes}, and {rows} rows without padding would have"
            f" {rows * row_bytes} bytes, not {size}.",
        )
    if step * rows >= MAX_BYTES:
        raise MessageError(
            "bad size",
            f"The image claims {step} x {rows} bytes, more than the {MAX_BYTES} allowed.",
        )
    # Some drivers leave out the padding of the last row.
    least = step * rows if msg.encoding == "nv24" else step * (rows - 1) + row_bytes
    if size < least:
        raise MessageError(
            "short data",
            f"The image holds {size} bytes, but {rows} rows with a step of {step} bytes"
            f" ({msg.width}x{msg.height} {msg.encoding}) need {least}.",
        )
    return step


def _check_side_lengths(width: int, height: int) -> None:
    if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE:
        raise MessageError(
            "bad size",
            f"The image is {width}x{height}, but each side must be between 1 and {MAX_SIDE}.",
        )


def _nv24_planes(data: np.ndarray, width: int, height: int, step: int) -> np.ndarray:
    """(3 * H, W): the luma rows, then per image row the two halves of its interleaved UV row."""
    rows = data[: 3 * height * step].reshape(-1, step)
    if step == width:
        return rows
    # A UV row has twice the bytes of a luma row, and its padding follows after both halves.
    chroma = rows[height:].reshape(height, 2 * step)[:, : 2 * width]
    return np.concatenate([rows[:height, :width], chroma.reshape(2 * height, width)])


@dataclass(frozen=True)
class CompressedFile:
    """A JPEG, PNG, WebP or TIFF file of which the header was read, and no more."""

    kind: str  # "JPEG", "PNG", "WebP" or "TIFF"
    width: int  # of the picture, pixels
    height: int
    data: np.ndarray  # the file, (N,) uint8, as a view of the message's bytes
    stored_as: str  # the format string of the message
    ended: bool = True  # whether the file has its end marker

    @property
    def oddity(self) -> str:
        """A warning on a format string that does not match the file, else ""; the file counts."""
        return one_line(odd_label(self.kind, self.stored_as))

    def decode(self) -> tuple[np.ndarray, str]:
        """The pixels and their encoding.

        Returns:
            (H, W) or (H, W, C), uint8 or uint16, and "bgr8", "mono8", "mono16", ...

        Raises:
            MessageError: the file is damaged.
        """
        damaged = undecodable(self.kind, self.data.size)
        data = self.data if self.ended else with_jpeg_end(self.data)
        try:
            pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        except cv2.error as error:
            raise damaged from error
        if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
            raise damaged
        if pixels.shape[:2] != (self.height, self.width):
            raise damaged
        if pixels.shape[2:] == (1,):
            pixels = pixels[..., 0]
        if pixels.shape[2:] == (4,) and pixels.dtype == np.uint16:
            pixels = pixels[..., :3]
        return pixels, _decoded_encoding(pixels, self.stored_as)


def compressed_file(msg: CompressedImage) -> CompressedFile:
    """The file in a CompressedImage, to be decoded where there is time for it.

    JPEG, PNG, WebP and TIFF are recognised by their bytes. Of the format string of image_transport
    ("rgb8; jpeg compressed bgr8") only the pattern of a Bayer image is used, which no file has.

    Raises:
        MessageError: another format, a truncated file, or a size beyond `MAX_COMPRESSED_PIXELS`.
    """
    data = np.frombuffer(msg.data, np.uint8)
    kind, width, height, ended = file_header(data.tobytes(), msg.format)
    if width * height > MAX_COMPRESSED_PIXELS:
        raise MessageError(
            "bad size",
            f"The compressed image is {width}x{height}, more than the"
            f" {MAX_COMPRESSED_PIXELS // 1_000_000} megapixels allowed.",
        )
    _check_side_lengths(width, height)
    return CompressedFile(kind, width, height, data, msg.format, ended)


def _decoded_encoding(pixels: np.ndarray, stored_as: str) -> str:
    """The encoding of decoded pixels: OpenCV's BGR, grey, or the Bayer pattern of the label."""
    bits = 8 * pixels.itemsize
    if pixels.ndim == 2:
        original = stored_as.split(";")[0].strip()
        row = ENCODINGS.get(original)
        if row and row.layout == "bayer" and row.dtype == pixels.dtype.type:
            return original
        return f"mono{bits}"
    return f"bgr{'a' if pixels.shape[2] == 4 else ''}{bits}"


def image_message(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """An Image of ``pixels``, (H, W) or (H, W, C), with ``header`` unchanged.

    The message looks into ``pixels``; leave the array alone until the message is published.
    """
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    msg = Image(
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(sys.byteorder == "big"),
        step=pixels.nbytes // height,
    )
    give_bytes(msg, pixels)
    return msg


def jpeg_message(rgb: np.ndarray, header: Header) -> CompressedImage:
    """A CompressedImage of ``rgb``, (H, W, 3) uint8, as image_transport would make it."""
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])
    msg = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
    give_bytes(msg, data)
    return msg


def millimetres(depth: np.ndarray) -> np.ndarray:
    """Depth, (H, W) float32 in metres, as 16UC1 holds it (REP 118): (H, W) uint16, millimetres; 0
    where depth is unknown, out of range or beyond 65.535 m."""
    rounded = depth * np.float32(1000.0) + np.float32(0.5)
    return np.where((rounded >= 1) & (rounded < 65536), rounded, 0).astype(np.uint16)


def give_bytes(msg: Image | CompressedImage | PointCloud2, contents: np.ndarray) -> None:
    """Let ``msg`` hold the bytes of a contiguous array, uncopied and unchecked.

    The public setter walks over every byte in Python for anything but bytes and array.array
    (40 ms for a VGA image), and those cost a copy. The serialiser takes any buffer.
    """
    msg._data = contents.reshape(-1).view(np.uint8)
