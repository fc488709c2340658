# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs Image, CompressedImage and CameraInfo <-> arrays, uncopied where bytes allow.

Encodings and their layouts are those of sensor_msgs/image_encodings and cv_bridge. Whatever is
wrong with a message raises a `MessageError`; nothing else leaves this module for any input.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.input.encodings import ENCODINGS
from dpt_ros.ros.camera.rectified import unrectified
from dpt_ros.ros.messages.error import MessageError, one_line
from dpt_ros.ros.messages.image_files import file_header, odd_label, undecodable, with_jpeg_end
from dpt_ros.ros.plausibility import calibration_doubt, calibration_fault

if TYPE_CHECKING:
    from dpt_ros.ros.messages.cdr import CompressedImageView, ImageView

MAX_SIDE = 16384
MAX_BYTES = 2**31
MAX_COMPRESSED_PIXELS = 64_000_000


def image_pixels(msg: Image | ImageView) -> np.ndarray:
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


def _row_step(msg: Image | ImageView, size: int, rows: int, row_bytes: int) -> int:
    """Bytes from row to row; where the data say it themselves, ``step`` does not matter.

    Raises:
        MessageError: it matters, and is too small, or there are too few bytes.
    """
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
    """A JPEG, PNG, WebP or TIFF file of which the header was read, and no more.

    Args:
        kind: "JPEG", "PNG", "WebP" or "TIFF".
        width, height: of the picture, pixels.
        data: the file, (N,) uint8, as a view of the message's bytes.
        stored_as: the format string of the message.
        ended: whether the file has its end marker.
    """

    kind: str
    width: int
    height: int
    data: np.ndarray
    stored_as: str
    ended: bool = True

    @property
    def oddity(self) -> str:
        """A sentence on a format string that says something else than the file, "" if none does.

        The file is right: its kind is known by its bytes, and its colours are true ones.
        """
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


def compressed_file(msg: CompressedImage | CompressedImageView) -> CompressedFile:
    """The file in a CompressedImage, to be decoded where there is time for it.

    JPEG, PNG, WebP and TIFF are told apart by their bytes. Of the format string of image_transport
    ("rgb8; jpeg compressed bgr8") only the pattern of a Bayer image is used, which no file tells.

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


def compressed_pixels(msg: CompressedImage | CompressedImageView) -> tuple[np.ndarray, str]:
    """The decoded pixels of a CompressedImage and their encoding, at once.

    Returns and raises what ``compressed_file`` and its ``decode`` do.
    """
    return compressed_file(msg).decode()


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
    """An Image of ``pixels``, (H, W) or (H, W, C), with ``header`` as it is.

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


def jpeg_message(rgb: np.ndarray, header: Header, quality: int = 90) -> CompressedImage:
    """A CompressedImage of ``rgb``, (H, W, 3) uint8, as image_transport would make it."""
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    msg = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
    give_bytes(msg, data)
    return msg


def millimetres(depth: np.ndarray) -> np.ndarray:
    """Depth as 16UC1 holds it (REP 118).

    Args:
        depth: (H, W) float32, metres.

    Returns:
        (H, W) uint16, millimetres; 0 where depth is unknown, out of range or beyond 65.535 m.
    """
    rounded = depth * np.float32(1000.0) + np.float32(0.5)
    return np.where((rounded >= 1) & (rounded < 65536), rounded, 0).astype(np.uint16)


def give_bytes(msg: Image | CompressedImage | PointCloud2, contents: np.ndarray) -> None:
    """Let ``msg`` hold the bytes of a contiguous array, uncopied and unchecked.

    The public setter walks over every byte in Python for anything but bytes and array.array
    (40 ms for a VGA image), and those cost a copy. The serialiser takes any buffer.
    """
    msg._data = contents.reshape(-1).view(np.uint8)


def camera_model(info: CameraInfo, topic: str = "") -> tuple[CameraModel | None, str]:
    """The rectified pinhole camera of ``info``, and a warning ("" when there is none).

    It is the left 3x3 of ``P``, or ``K`` where ``P`` is empty, moved by the region of interest
    and divided by the binning, so that it speaks of the pixels of the image as published.
    None when the camera is not calibrated, or when no camera can have such a calibration.

    Args:
        info: the calibration.
        topic: of the image that it belongs to; its name tells whether the image is rectified.
    """
    source = info.p if info.p[0] else info.k
    per_row = 4 if info.p[0] else 3
    fx, cx, fy, cy = source[0], source[2], source[per_row + 1], source[per_row + 2]
    camera = _pinhole(info, fx, fy, cx, cy)
    if camera is None:
        return None, (
            "camera_info has no calibration (no size, or no focal length that a lens can have), so"
            " depth goes out without"
            " usable intrinsics; calibrate the camera with camera_calibration."
        )
    if fault := calibration_fault(camera):
        return None, one_line(f"camera_info: {fault}.")
    doubt = calibration_doubt(camera)
    words = [f"camera_info: {doubt}." if doubt else "", unrectified(info, topic)]
    return camera, one_line(" ".join(word for word in words if word))


def camera_info_message(camera: CameraModel, header: Header) -> CameraInfo:
    """The CameraInfo of a rectified camera without distortion."""
    info = CameraInfo(header=header, width=camera.width, height=camera.height)
    info.distortion_model = "plumb_bob"
    info.d = [0.0] * 5
    info.k = camera.matrix().ravel()
    info.r = np.eye(3).ravel()
    info.p = np.column_stack([camera.matrix(), np.zeros(3)]).ravel()
    return info


def scaled_camera_info(info: CameraInfo, width: int, height: int, header: Header) -> CameraInfo:
    """``info`` for the same view resized to ``width`` x ``height``: K and P scaled, D zero.

    The baseline term of a stereo camera's ``P`` is kept in metres. ``R`` is the identity where it
    is empty.
    """
    out = CameraInfo(header=header, width=width, height=height, distortion_model="plumb_bob")
    out.d = [0.0] * 5
    out.r = info.r if any(info.r) else np.eye(3).ravel()
    raw = _pinhole(info, info.k[0], info.k[4], info.k[2], info.k[5])
    rectified = _pinhole(info, info.p[0], info.p[5], info.p[2], info.p[6])
    if raw := raw or rectified:
        out.k = raw.scaled(width, height).matrix().ravel()
    if camera := rectified or raw:
        camera = camera.scaled(width, height)
        baseline = float(info.p[3]) / float(info.p[0]) if rectified else 0.0
        shift = [camera.fx * baseline, 0.0, 0.0]
        out.p = np.column_stack([camera.matrix(), shift]).ravel()
    return out


def _pinhole(info: CameraInfo, fx: float, fy: float, cx: float, cy: float) -> CameraModel | None:
    """Intrinsics of the full sensor, brought to the image that its ROI and binning give."""
    bin_x, bin_y, roi = max(info.binning_x, 1), max(info.binning_y, 1), info.roi
    whole = CameraModel(
        (roi.width or info.width) // bin_x,
        (roi.height or info.height) // bin_y,
        float(fx) / bin_x,
        float(fy) / bin_y,
        (float(cx) - roi.x_offset) / bin_x,
        (float(cy) - roi.y_offset) / bin_y,
    )
    return whole if _is_camera(whole) else None


def _is_camera(camera: CameraModel) -> bool:
    """Whether there can be such a lens: 0.01 of the width is 178.9 degrees, 1e4 is 0.006."""
    sides = ((camera.width, camera.fx, camera.cx), (camera.height, camera.fy, camera.cy))
    return all(
        side > 0 and 0.01 <= focal / side <= 1e4 and abs(center) <= 1e4 * side
        for side, focal, center in sides
    )
