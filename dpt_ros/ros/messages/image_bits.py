# SPDX-License-Identifier: Apache-2.0
"""16-bit images of cameras that use fewer bits of each value, as 10- and 12-bit sensors do.

Neither an encoding (mono16, bayer_rggb16) nor a file has the number of bits in use.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

_FULL = 65535
_JUDGED = 10  # images
_USUAL = (8, 10, 12, 14)


class ImageBits:
    """Scales 16-bit images to full range, and warns of images that do not use it.

    ``bits`` gives the parameter image_bits; 0 or 16 leaves images unchanged.
    """

    def __init__(self, bits: Callable[[], int], warn: Callable[[str], None]) -> None:
        self._bits = bits
        self._warn = warn
        self._left = _JUDGED
        self._largest = 0

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """The pixels, (H, W) or (H, W, C) of any type, in full range: themselves, or uint16."""
        if pixels.dtype != np.uint16:
            return pixels
        bits = self._bits()
        if bits in (0, 16):
            if self._left:
                self._judge(int(pixels.max()))
            return pixels
        most = (1 << bits) - 1
        if self._left and (largest := int(pixels.max())) > most:
            self._left = 0
            self._warn(
                f"image_bits is {bits}, but the image has values up to {largest}: values above"
                f" {most} become white. Set image_bits to {largest.bit_length()} or more, or to 0"
                " for the full range."
            )
        flat = np.ascontiguousarray(pixels).reshape(len(pixels), -1)  # a channel for OpenCV
        return cv2.multiply(flat, _FULL / most).reshape(pixels.shape)

    def _judge(self, largest: int) -> None:
        if not largest:  # a covered lens
            return
        self._largest = max(self._largest, largest)
        self._left -= 1
        needed = self._largest.bit_length()
        if not self._left and needed <= _USUAL[-1]:
            usual = min(bits for bits in _USUAL if bits >= needed)
            self._warn(
                f"The largest value in {_JUDGED} images of 16 bits is {self._largest}, so they are"
                f" nearly black. If the camera uses {usual} bits of each value, set image_bits to"
                f" {usual}."
            )
