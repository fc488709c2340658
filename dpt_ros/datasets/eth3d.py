# SPDX-License-Identifier: Apache-2.0
"""ETH3D (Schöps et al., CVPR 2017): high-resolution multi-view scenes with laser depth."""

from __future__ import annotations

from pathlib import Path

from dpt_ros.datasets.files import FileDataset, depth_of_floats, find_path, read_rgb
from dpt_ros.datasets.sample import DatasetError, Sample

_IMAGES, _DEPTHS = "images/dslr_images", "ground_truth_depth/dslr_images"


class Eth3dDataset(FileDataset):
    """ETH3D: the distorted images (SCENE_dslr_jpg.7z) and the depth rendered into them
    (SCENE_dslr_depth.7z), unpacked side by side.

    Expected: ``SCENE/images/dslr_images/DSC_0001.JPG`` and, under the same name, the raw float32
    values ``SCENE/ground_truth_depth/dslr_images/DSC_0001.JPG``, metres, +Inf where unknown.
    """

    name = "eth3d"

    def __init__(self, root: Path, split: str = "test") -> None:
        # MiDaS and DPT test on what ETH3D calls training: only there the truth is public.
        self._root = root
        found = (p for p in root.glob(f"*/{_DEPTHS}/*") if p.suffix.lower() in (".jpg", ".png"))
        names = sorted(p.relative_to(root).as_posix().replace(_DEPTHS, _IMAGES) for p in found)
        self._list(names, f"No SCENE/{_DEPTHS}/*.JPG found in {root}.")

    def read(self, index: int) -> Sample:
        name = self._entries[index]
        rgb = read_rgb(self._root / name)
        path = self._root / name.replace(_IMAGES, _DEPTHS)
        content = find_path("the depth of an image", path).read_bytes()
        if len(content) != 4 * rgb.shape[0] * rgb.shape[1]:
            raise DatasetError(
                f"{path} holds {len(content) // 4} values, but its image has {rgb.shape[1]}x"
                f"{rgb.shape[0]} pixels: expected raw float32 of the same size."
            )
        sample = f"{name.split('/')[0]}/{Path(name).name}"
        return Sample(sample, rgb, depth_of_floats(content, rgb.shape[:2]))
