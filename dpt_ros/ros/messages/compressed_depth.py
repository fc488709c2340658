# SPDX-License-Identifier: Apache-2.0
"""Depth images as image_transport's compressedDepth holds them, for its own and other readers."""

from __future__ import annotations

import struct

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from dpt_ros.engine.settings import Settings
from dpt_ros.ros.messages.image import give_bytes, millimetres

_INVERSE_DEPTH = 0  # the only quantisation that the transport's header knows


def compressed_depth_message(
    depth: np.ndarray, header: Header, settings: Settings
) -> CompressedImage:
    """A depth image as compressed_depth_image_transport publishes it.

    Twelve bytes of header (an int32 and the two float32 of the quantisation), then a 16-bit PNG,
    or width and height as uint32 and RVL (Wilson 2017, "Fast lossless depth image compression").

    Args:
        depth: (H, W) float32, metres; NaN unknown, +Inf beyond range.
        header: of the message.
        settings: its encoding: 32FC1 is inverse depth in 65535 steps, 16UC1 millimetres; and the
            parameters of compressedDepth. The nearest depth that can be told apart is about
            quantization squared / 65535.
    """
    parameters = 0.0, 0.0
    encoding, file_format = settings.depth_encoding, settings.compressed_depth_format
    farthest = settings.compressed_depth_depth_max
    quantization = settings.compressed_depth_depth_quantization
    if encoding == "32FC1":
        factor = np.float32(quantization * (quantization + 1))
        offset = np.float32(1 - factor / np.float32(farthest))
        parameters = float(factor), float(offset)
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.minimum(factor / depth + offset, np.float32(65535))
            values = np.where((depth > 0) & (depth < farthest), steps, 0).astype(np.uint16)
    else:
        values = millimetres(depth)
        values[values > min(farthest * 1000, 65535)] = 0
    if file_format == "rvl":
        content = struct.pack("<II", values.shape[1], values.shape[0]) + rvl(values)
    else:
        options = [cv2.IMWRITE_PNG_COMPRESSION, settings.compressed_depth_png_level]
        content = cv2.imencode(".png", values, options)[1].tobytes()
    message = CompressedImage(header=header, format=f"{encoding}; compressedDepth {file_format}")
    data = b"".join([struct.pack("<iff", _INVERSE_DEPTH, *parameters), content])
    give_bytes(message, np.frombuffer(data, np.uint8))
    return message


def rvl(values: np.ndarray) -> bytes:
    """A 16-bit image in RVL: alternating numbers of zeros and of others, and of these the
    differences to the last one, zigzag; each in groups of three bits, the lowest first, eight
    groups in a word of 32 bits, the first one highest.

    Args:
        values: (H, W) uint16.
    """
    flat = values.reshape(-1)
    there = flat != 0
    # Runs begin where it changes; the first is of zeros, perhaps none.
    begin = np.flatnonzero(np.diff(there, prepend=False))
    lengths = np.diff(begin, prepend=0, append=len(flat))
    if len(lengths) % 2:
        lengths = np.append(lengths, 0)  # the last one is of others, perhaps none
    delta = np.diff(flat[there].astype(np.int32), prepend=0)
    zigzag = (delta << 1) ^ (delta >> 31)
    # Behind each pair of lengths stand the differences of its others.
    zeros, others = lengths[::2], lengths[1::2]
    place = 2 * np.arange(len(zeros)) + np.cumsum(others) - others
    numbers = np.empty(len(lengths) + len(zigzag), np.int32)
    is_length = np.zeros(len(numbers), bool)
    is_length[place] = is_length[place + 1] = True
    numbers[place], numbers[place + 1] = zeros, others
    numbers[~is_length] = zigzag
    if not len(flat):
        return b""
    _, bits = np.frexp(numbers.astype(np.float64))
    groups = np.maximum(-(-bits // 3), 1)
    end = np.cumsum(groups)
    nibbles = np.zeros(-(-int(end[-1]) // 8) * 8, np.uint8)
    at = end - groups
    for k in range(int(groups.max())):
        some = np.flatnonzero(groups > k)
        more = (groups[some] > k + 1) << 3
        nibbles[at[some] + k] = (numbers[some] >> 3 * k) & 7 | more
    words = (nibbles[::2] << 4 | nibbles[1::2]).view(">u4")
    return words.astype("<u4").tobytes()
