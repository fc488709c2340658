# SPDX-License-Identifier: Apache-2.0
"""MPI Sintel (Butler et al., ECCV 2012): rendered films with depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpt_ros.datasets.files import FileDataset, check_choice, depth_of_floats, find_path, read_rgb
from dpt_ros.datasets.sample import DatasetError, Sample
from dpt_ros.engine.frame import CameraModel

_TAG = b"PIEH"  # 202021.25 as a little-endian float32
_FPS = 24.0


class SintelDataset(FileDataset):
    """Sintel's training films, whose truth is public: 1064 frames.

    Expected: ``training/final/SEQUENCE/frame_0001.png`` (or ``clean``) and
    ``training/depth/SEQUENCE/frame_0001.dpt``; ``training/camdata_left`` gives cameras, if there.
    The root may also be the folder ``training`` itself.

    Args:
        render: "final" (with motion blur and fog) or "clean".
    """

    name = "sintel"

    def __init__(self, root: Path, split: str = "test", render: str = "final") -> None:
        check_choice("render", render, ("final", "clean"))
        self._root = root / "training" if (root / "training").is_dir() else root
        self._render = self.variant = render
        depths = find_path("the depth of Sintel (SEQUENCE/frame_0001.dpt)", self._root / "depth")
        find_path(f"the {render} images of Sintel", self._root / render)
        found = (path.relative_to(depths).with_suffix("") for path in depths.glob("*/*.dpt"))
        names = sorted(path.as_posix() for path in found)
        self._list(names, f"No SEQUENCE/frame_0001.dpt found in {depths}.")

    def read(self, index: int) -> Sample:
        name = self._entries[index]
        rgb = read_rgb(self._root / self._render / f"{name}.png")
        sequence, frame = name.split("/")
        number = int("".join(filter(str.isdigit, frame)) or 0)
        depth = _read_dpt(self._root / "depth" / f"{name}.dpt", rgb.shape[:2])
        camera = _read_camera(self._root / "camdata_left" / f"{name}.cam", rgb.shape[:2])
        stamp = round(number * 1e9 / _FPS)
        return Sample(name, rgb, depth, camera=camera, sequence=sequence, stamp_ns=stamp)


def _content(path: Path, header: int) -> bytes:
    """The content of a file behind its tag, at least ``header`` bytes."""
    content = find_path("a file of Sintel", path).read_bytes()
    if not content.startswith(_TAG) or len(content) < 4 + header:
        raise DatasetError(
            f"{path} is not a {path.suffix} file of Sintel: its first bytes differ."
        )
    return content[4:]


def _read_dpt(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float32, metres, of a .dpt file: tag, width, height, values; little endian."""
    content = _content(path, 8)
    width, height = np.frombuffer(content[:8], "<i4")
    if (height, width) != shape or len(content) != 8 + 4 * shape[0] * shape[1]:
        raise DatasetError(
            f"{path} declares {width}x{height} pixels in {len(content) + 4} bytes, but its image "
            f"has {shape[1]}x{shape[0]}."
        )
    return depth_of_floats(content[8:], shape)


def _read_camera(path: Path, shape: tuple[int, int]) -> CameraModel | None:
    if not path.exists():
        return None
    k = np.frombuffer(_content(path, 72)[:72], "<f8")
    return CameraModel(shape[1], shape[0], *(float(k[i]) for i in (0, 4, 2, 5)))
