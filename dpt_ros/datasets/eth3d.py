# SPDX-License-Identifier: Apache-2.0
"""ETH3D (Schöps et al., CVPR 2017): high-resolution multi-view scenes with laser depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpt_ros.datasets.files import inverse_of, need, read_rgb
from dpt_ros.datasets.sample import Dataset, DatasetError, Sample

_PICTURES, _DEPTHS = "images/dslr_images", "ground_truth_depth/dslr_images"


class Eth3dDataset(Dataset):
    """ETH3D: the distorted pictures (SCENE_dslr_jpg.7z) and the depth rendered into them
    (SCENE_dslr_depth.7z), unpacked side by side.

    Expected: ``SCENE/images/dslr_images/DSC_0001.JPG`` and, under the same name, the raw float32
    values ``SCENE/ground_truth_depth/dslr_images/DSC_0001.JPG``, metres, +Inf where unknown.
    """

    name = "eth3d"

    def __init__(self, root: Path, split: str = "test") -> None:
        # MiDaS and DPT test on what ETH3D calls training: only there the truth is public.
        self._root = root
        self._names = sorted(
            path.relative_to(root).as_posix().replace(_DEPTHS, _PICTURES)
            for path in root.glob(f"*/{_DEPTHS}/*")
            if path.suffix.lower() in (".jpg", ".png")
        )
        if not self._names:
            raise DatasetError(f"No SCENE/{_DEPTHS}/*.JPG found in {root}.")

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> Sample:
        name = self._names[index]
        rgb = read_rgb(self._root / name)
        path = need(self._root / name.replace(_PICTURES, _DEPTHS), "the depth of a picture")
        depth = np.fromfile(path, "<f4")
        if depth.size != rgb.shape[0] * rgb.shape[1]:
            raise DatasetError(
                f"{path} holds {depth.size} values, but its picture has {rgb.shape[1]}x"
                f"{rgb.shape[0]} pixels: expected raw float32 of the same size."
            )
        depth = depth.reshape(rgb.shape[:2])
        depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
        scene, picture = name.split("/")[0], Path(name).name
        return Sample(f"{scene}/{picture}", rgb, depth, inverse_of(depth))
