# SPDX-License-Identifier: Apache-2.0
"""Videos and webcams, frame by frame with their stamps; and videos written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dpt_ros.files import move_file

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

_CLOCK = 90_000  # Hz, of the stamps in a video that is written


class VideoReader:
    """One frame out of ``every`` of a video file, turned as its metadata says, or ``live`` of a
    webcam, with the times of arrival as stamps.

    Attributes:
        rate: frames per second that are taken; 0 if unknown.
        frames: how many will come, as far as the file says; None if it does not.
        problem: after the last frame: why there were fewer, else "".

    Raises:
        ValueError: it cannot be opened.
    """

    def __init__(self, path: Path, live: bool = False, every: int = 1) -> None:
        self._live, self._every = live, every
        if live:
            self._capture = cv2.VideoCapture(int(path.name.removeprefix("video")))
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        else:
            self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise ValueError(
                "it cannot be opened: is the camera connected, free, and readable for you (group"
                " video)?"
                if live
                else "it is no video that OpenCV can read, or it is damaged."
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate / every if math.isfinite(rate) and 0 < rate < 1000 else 0.0
        count = 0 if live else self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._count = int(count) if 0 < count < 1e9 else 0
        self.frames = -(-self._count // every) or None
        self.problem = ""

    def __iter__(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Number of the frame in the file, stamp in ns, (H, W, 3) uint8 BGR."""
        number, last = 0, -1
        step = int(1e9 / (self.rate * self._every or 30.0))
        try:
            while self._capture.grab():
                stamp = time.monotonic_ns()
                if not self._live:
                    stamp = round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
                if stamp <= last:  # a stream without stamps
                    stamp = last + step
                if number % self._every == 0:
                    there, pixels = self._capture.retrieve()
                    if not there:
                        break
                    yield number, stamp, pixels
                number, last = number + 1, stamp
        finally:
            self._capture.release()
        # Files without an index only have an estimate, and editors cut a few frames.
        if not number:
            self.problem = "it has no frame that can be read."
        elif self._count - number > max(3, self._count // 50):
            self.problem = f"it ends after {number} of {self._count} frames."


class VideoWriter:
    """An MP4 file: H.264 with PyAV, else MPEG-4 with OpenCV. It appears when it is complete.

    Args:
        path: the file to write.
        rate: frames per second; with PyAV, frames have stamps of their own.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.new")
        self._rate = rate or 30.0
        self._size = (0, 0)
        self._first_ns = 0
        self._file: Any = None
        self._stream: Any = None

    def write(self, rgb: np.ndarray, stamp_ns: int) -> None:
        """Add a frame, (H, W, 3) uint8; all have the size of the first."""
        if self._file is None:
            self._open(rgb.shape[1] // 2 * 2, rgb.shape[0] // 2 * 2)
            self._first_ns = stamp_ns
        if rgb.shape[1::-1] != self._size:
            rgb = np.ascontiguousarray(rgb[: self._size[1], : self._size[0]])
        if av is None:
            self._file.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
            return
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        frame.pts = round((stamp_ns - self._first_ns) * _CLOCK / 1e9)
        frame.time_base = Fraction(1, _CLOCK)
        self._file.mux(self._stream.encode(frame))

    def _open(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if av is None:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            part = self._part.with_suffix(".mp4")  # OpenCV takes the format from the suffix
            self._part = part
            self._file = cv2.VideoWriter(str(part), code, self._rate, self._size)
            if not self._file.isOpened():
                raise OSError(f"OpenCV cannot write {part}; pip install av.")
            return
        self._file = av.open(str(self._part), "w", format="mp4")
        rate = Fraction(self._rate).limit_denominator(1001)
        options = {"crf": "18", "preset": "veryfast"}
        self._stream = self._file.add_stream("libx264", rate=rate, options=options)
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _CLOCK)

    def close(self) -> None:
        """Complete the file; nothing is written without frames."""
        if self._file is None:
            return
        if av is None:
            self._file.release()
        else:
            self._file.mux(self._stream.encode())
            self._file.close()
        self._file = None
        move_file(self._part, self._path)

    def abort(self) -> None:
        """Remove what was written."""
        if self._file is not None:
            self._file.release() if av is None else self._file.close()
            self._file = None
        self._part.unlink(missing_ok=True)
