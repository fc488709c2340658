# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs/Image in every encoding: fields of any value, to pixels, to the network's input."""

from __future__ import annotations

import numpy as np
import torch
from sensor_msgs.msg import Image

from dpt_ros.engine.input import device_preprocess
from dpt_ros.engine.input.encodings import ENCODINGS, picture_size
from dpt_ros.engine.input.preprocess import to_rgb
from dpt_ros.ros.messages.image import MessageError, give_bytes, image_pixels
from fuzz.choices import Choices
from fuzz.properties import Broken, bounded, refusal

_ENCODINGS = (*ENCODINGS, "rgb9", "")


def seeds() -> list[bytes]:
    """Per encoding an image of 8 x 6, tight and padded."""
    found = []
    for index, encoding in enumerate(_ENCODINGS):
        layout = ENCODINGS.get(encoding)
        row = 8 * max(layout.channels, 1) * np.dtype(layout.dtype).itemsize if layout else 8
        for padding in (0, 3):
            found.append(bytes([index, 6, 8, row + padding, padding % 2, 1, 40]) + bytes(range(9)))
    return found


def one_input(data: bytes) -> None:
    choices = Choices(data)
    index = choices.take(1)[0]
    encoding = _ENCODINGS[index] if index < len(_ENCODINGS) else choices.text()
    height, width, step = (choices.integer(0, 2**32 - 1) for _ in range(3))
    order = choices.integer(0, 255)
    # As many bytes as are needed, or a few less, or what is there.
    layout = ENCODINGS.get(encoding)
    needed = step * int(height * (layout.planes if layout else 1))
    size = max(needed + choices.integer(0, 2) - 1, 0)
    content = choices.rest()
    if size < 4 * 2**20:
        content = (content * (size // max(len(content), 1) + 1))[:size]
    image = Image(height=height, width=width, encoding=encoding, is_bigendian=order, step=step)
    give_bytes(image, np.frombuffer(content, np.uint8))
    with bounded(len(content)), refusal(MessageError):
        pixels = image_pixels(image)
        _see(pixels, encoding, (height, width))


def _see(pixels: np.ndarray, encoding: str, size: tuple[int, int]) -> None:
    if picture_size(pixels.shape, encoding) != size:
        raise Broken(f"{size} became {pixels.shape}.")
    if min(size) < 3 and encoding.startswith("bayer"):
        with refusal(ValueError):
            device_preprocess.rgb(_tensor(pixels)[None], encoding)
        return
    picture = to_rgb(pixels, encoding)
    if picture.shape != (*size, 3) or picture.dtype != np.uint8:
        raise Broken(f"{encoding} of {size} became {picture.shape} {picture.dtype}.")
    other = device_preprocess.rgb(_tensor(pixels)[None], encoding)[0]
    far = 1 if encoding == "nv24" else 0
    if int((torch.from_numpy(picture.astype(np.int16)) - other).abs().max()) > far:
        raise Broken(f"{encoding} of {size} differs on the device.")


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy())
