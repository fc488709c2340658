# SPDX-License-Identifier: Apache-2.0
"""Serialised images as they come over the wire: any bytes."""

from __future__ import annotations

import struct

from sensor_msgs.msg import Image

from dpt_ros.ros.messages.cdr import read_compressed_image, read_image
from dpt_ros.ros.messages.image import MessageError, compressed_file, image_pixels
from fuzz.properties import Broken, bounded, refusal


def seeds() -> list[bytes]:
    """An Image and a CompressedImage in both byte orders, and their beginnings."""
    found = []
    for order, begin in (("<", b"\0\1\0\0"), (">", b"\0\0\0\0")):
        header = begin + struct.pack(f"{order}iII", 12, 34, 4) + b"cam\0"
        image = header + struct.pack(f"{order}III", 2, 3, 5) + b"rgb8\0\0"
        image += b"\0\0" + struct.pack(f"{order}II", 9, 18) + bytes(range(18))
        jpeg = header + struct.pack(f"{order}I", 5) + b"jpeg\0\0\0\0"
        jpeg += struct.pack(f"{order}I", 5) + b"\xff\xd8\xff\xd9\0"
        found += [image, jpeg, image[:30], header]
    return found


def one_input(data: bytes) -> None:
    for read in (read_image, read_compressed_image):
        with bounded(len(data)), refusal(MessageError):
            view = read(data)
            text = view.encoding if isinstance(view, Image) else view.format
            if len(text) + len(view.header.frame_id) + view.data.size > len(data):
                raise Broken("There is more in the message than was sent.")
            if isinstance(view, Image):
                image_pixels(view)
            else:
                compressed_file(view)
