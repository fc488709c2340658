# SPDX-License-Identifier: Apache-2.0
"""Reading the files of datasets, with an error message for what is missing or malformed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from dpt_ros.datasets.sample import DatasetError


def need(path: Path, what: str) -> Path:
    """``path`` if it exists.

    Args:
        what: it is, for the error message.

    Raises:
        DatasetError: it does not exist.
    """
    if not path.exists():
        raise DatasetError(f"{path} does not exist: expected {what}.")
    return path


def need_one(candidates: Iterable[Path], what: str) -> Path:
    """The first of some paths that exists; raises DatasetError if none does."""
    paths = list(candidates)
    for path in paths:
        if path.exists():
            return path
    places = " or ".join(str(path) for path in paths)
    raise DatasetError(f"Found none of {places}: expected {what}.")


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file without empty ones and those that begin with #."""
    try:
        lines = need(path, what).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not a text file, but {what} was expected.") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def read_rgb(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 of a picture file. Raises DatasetError if there is none."""
    picture = cv2.imread(
        str(need(path, "a picture")), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    )
    if picture is None:
        raise DatasetError(f"{path} cannot be read as a picture.")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def read_depth_png(path: Path, per_metre: float, shape: tuple[int, int]) -> np.ndarray:
    """Depth from a 16-bit PNG: (H, W) float32, metres, NaN where the file says 0.

    Args:
        per_metre: units of the file in a metre.
        shape: (H, W) of the picture that it belongs to.

    Raises:
        DatasetError: there is no such file, or it has not 16 bits, one channel and this size.
    """
    stored = _unchanged(path, "a 16-bit depth PNG")
    if stored.dtype != np.uint16 or stored.ndim != 2:
        raise DatasetError(
            f"{path} is {stored.dtype} of shape {stored.shape}, but must be a 16-bit depth PNG "
            "with one channel."
        )
    _check_size(path, stored, shape)
    depth = stored.astype(np.float32) / np.float32(per_metre)
    depth[stored == 0] = np.nan
    return depth


def read_labels(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Class ids from a PNG: (H, W) uint8.

    Args:
        shape: (H, W) of the picture that it belongs to.

    Raises:
        DatasetError: there is no such file, or it has not 8 bits, one channel and this size.
    """
    # OpenCV turns a PNG with a palette, which label files often have, into colours.
    from PIL import Image

    try:
        with Image.open(need(path, "a label PNG")) as file:
            mode, labels = file.mode, np.array(file)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read as a label PNG: {error}.") from error
    if mode not in ("L", "P"):
        raise DatasetError(
            f"{path} has the mode {mode}, but labels must be a PNG of 8 bits and one channel."
        )
    _check_size(path, labels, shape)
    return labels


def _unchanged(path: Path, what: str) -> np.ndarray:
    stored = cv2.imread(str(need(path, what)), cv2.IMREAD_UNCHANGED)
    if stored is None:
        raise DatasetError(f"{path} cannot be read, but {what} was expected.")
    return stored


def _check_size(path: Path, array: np.ndarray, shape: tuple[int, int]) -> None:
    if array.shape != shape:
        raise DatasetError(
            f"{path} has {array.shape[1]}x{array.shape[0]} pixels, but its picture has "
            f"{shape[1]}x{shape[0]}."
        )


def inverse_of(depth: np.ndarray) -> np.ndarray:
    """(H, W) float32, 1/m of a depth in metres: NaN stays NaN, +Inf becomes 0."""
    return (1 / depth).astype(np.float32)
