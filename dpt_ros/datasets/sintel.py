# SPDX-License-Identifier: Apache-2.0
"""MPI Sintel (Butler et al., ECCV 2012): rendered films with depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpt_ros.datasets.files import inverse_of, need, read_rgb
from dpt_ros.datasets.sample import Dataset, DatasetError, Sample
from dpt_ros.engine.frame import CameraModel

_TAG = np.float32(202021.25)
_FPS = 24.0


class SintelDataset(Dataset):
    """Sintel's training films, whose truth is public: 1064 frames.

    Expected: ``training/final/SEQUENCE/frame_0001.png`` (or ``clean``) and
    ``training/depth/SEQUENCE/frame_0001.dpt``; ``training/camdata_left`` gives cameras, if there.
    The folder ``training`` itself will do too.

    Args:
        render: "final" (with blur, fog and all) or "clean".
    """

    name = "sintel"

    def __init__(self, root: Path, split: str = "test", render: str = "final") -> None:
        if render not in ("final", "clean"):
            raise ValueError(f"render is {render!r}, but must be final or clean.")
        self._root = root / "training" if (root / "training").is_dir() else root
        self._render = self.variant = render
        depths = need(self._root / "depth", "the depth of Sintel (SEQUENCE/frame_0001.dpt)")
        need(self._root / render, f"the {render} pictures of Sintel")
        self._names = sorted(
            path.relative_to(depths).with_suffix("").as_posix() for path in depths.glob("*/*.dpt")
        )
        if not self._names:
            raise DatasetError(f"No SEQUENCE/frame_0001.dpt found in {depths}.")

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> Sample:
        name = self._names[index]
        rgb = read_rgb(self._root / self._render / f"{name}.png")
        depth = _read_dpt(self._root / "depth" / f"{name}.dpt", rgb.shape[:2])
        sequence, frame = name.split("/")
        number = int("".join(filter(str.isdigit, frame)) or 0)
        return Sample(
            name,
            rgb,
            depth,
            inverse_of(depth),
            camera=_read_camera(self._root / "camdata_left" / f"{name}.cam", rgb.shape[:2]),
            sequence=sequence,
            stamp_ns=round(number * 1e9 / _FPS),
        )


def _read_dpt(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 of a .dpt file: tag, width, height, values; little endian."""
    content = need(path, "a depth file of Sintel").read_bytes()
    size = np.frombuffer(content[4:12], "<i4")
    if len(size) < 2 or np.frombuffer(content[:4], "<f4")[0] != _TAG:
        raise DatasetError(f"{path} is not a .dpt file of Sintel: its first bytes differ.")
    if (size[1], size[0]) != shape or len(content) != 12 + 4 * shape[0] * shape[1]:
        raise DatasetError(
            f"{path} declares {size[0]}x{size[1]} pixels in {len(content)} bytes, but its picture "
            f"has {shape[1]}x{shape[0]}."
        )
    depth = np.frombuffer(content[12:], "<f4").reshape(shape).astype(np.float32)
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def _read_camera(path: Path, shape: tuple[int, int]) -> CameraModel | None:
    if not path.exists():
        return None
    content = path.read_bytes()
    if len(content) < 76 or np.frombuffer(content[:4], "<f4")[0] != _TAG:
        raise DatasetError(f"{path} is not a .cam file of Sintel: its first bytes differ.")
    k = np.frombuffer(content[4:76], "<f8").reshape(3, 3)
    return CameraModel(
        shape[1], shape[0], *(float(k[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    )
