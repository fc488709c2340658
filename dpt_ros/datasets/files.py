# SPDX-License-Identifier: Apache-2.0
"""Reading the files of datasets, with an error message for what is missing or malformed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dpt_ros.datasets.sample import Dataset, DatasetError


class FileDataset(Dataset):
    """A dataset of files, which are listed when it is opened."""

    _entries: Sequence[Any]

    def __len__(self) -> int:
        return len(self._entries)

    def _list(self, entries: Sequence[Any], missing: str) -> None:
        """Set the entries; raises DatasetError with the message ``missing`` if there is none."""
        if not entries:
            raise DatasetError(missing)
        self._entries = entries


def check_choice(option: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError unless the value of an option is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{option} is {value!r}, but must be {' or '.join(choices)}.")


def find_path(what: str, *candidates: Path) -> Path:
    """The first of the candidates that exists.

    Args:
        what: description of the file or folder, for the error message.

    Raises:
        DatasetError: none exists.
    """
    for path in candidates:
        if path.exists():
            return path
    places = " or ".join(str(path) for path in candidates)
    missing = f"Found none of {places}" if len(candidates) > 1 else f"{places} does not exist"
    raise DatasetError(f"{missing}: expected {what}.")


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file without empty ones and those that begin with #."""
    try:
        lines = find_path(what, path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not a text file, but {what} was expected.") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def read_rgb(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 of an image file; also found with the suffix of another format than in its
    name (PNG, JPEG).

    Raises:
        DatasetError: there is none.
    """
    others = (path.with_suffix(suffix) for suffix in (".png", ".jpg", ".jpeg"))
    path = next((candidate for candidate in (path, *others) if candidate.exists()), path)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imread(str(find_path("an image", path)), flags)
    if image is None:
        raise DatasetError(f"{path} cannot be read as an image.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_depth_png(path: Path, per_metre: float, shape: tuple[int, int]) -> np.ndarray:
    """Depth from a 16-bit PNG: (H, W) float32, metres, NaN where the file has 0.

    Args:
        per_metre: units of the file per metre.
        shape: (H, W) of the image that it belongs to.

    Raises:
        DatasetError: there is no such file, or it has not 16 bits, one channel and this size.
    """
    stored = cv2.imread(str(find_path("a 16-bit depth PNG", path)), cv2.IMREAD_UNCHANGED)
    if stored is None:
        raise DatasetError(f"{path} cannot be read, but a 16-bit depth PNG was expected.")
    if stored.dtype != np.uint16 or stored.ndim != 2:
        raise DatasetError(
            f"{path} is {stored.dtype} of shape {stored.shape}, but must be a 16-bit depth PNG "
            "with one channel."
        )
    _check_size(path, stored, shape)
    depth = stored.astype(np.float32) / np.float32(per_metre)
    depth[stored == 0] = np.nan
    return depth


def depth_of_floats(content: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Depth from raw little-endian float32 values: (H, W) float32, metres, NaN where a value is
    not positive and finite."""
    depth = np.frombuffer(content, "<f4").reshape(shape).astype(np.float32)
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def read_labels(path: Path, num_classes: int, shape: tuple[int, int]) -> np.ndarray:
    """Class ids from a PNG: (H, W) uint8, 0..``num_classes`` or 255.

    Args:
        num_classes: the greatest id.
        shape: (H, W) of the image that it belongs to.

    Raises:
        DatasetError: there is no such file, it has not 8 bits, one channel and this size, or it
            holds another id.
    """
    # OpenCV turns a PNG with a palette, which label files often have, into colours.
    from PIL import Image

    try:
        with Image.open(find_path("a label PNG", path)) as file:
            mode, labels = file.mode, np.array(file)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read as a label PNG: {error}.") from error
    if mode not in ("L", "P"):
        raise DatasetError(
            f"{path} has the mode {mode}, but labels must be a PNG of 8 bits and one channel."
        )
    _check_size(path, labels, shape)
    wrong = np.unique(labels[(labels > num_classes) & (labels != 255)])
    if wrong.size:
        raise DatasetError(
            f"{path} holds the class id {wrong[0]}, but ids must be 0..{num_classes} or 255."
        )
    return labels


def _check_size(path: Path, array: np.ndarray, shape: tuple[int, int]) -> None:
    if array.shape != shape:
        size, wanted = (f"{width}x{height}" for height, width in (array.shape, shape))
        raise DatasetError(f"{path} has {size} pixels, but its image has {wanted}.")
