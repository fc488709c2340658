# SPDX-License-Identifier: Apache-2.0
"""NYU Depth V2 (Silberman et al., ECCV 2012): the labelled images and their usual split."""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dpt_ros.datasets import files
from dpt_ros.datasets.files import FileDataset, find_path, read_depth_png, read_rgb
from dpt_ros.datasets.sample import DatasetError, Sample
from dpt_ros.engine.frame import CameraModel

# The colour camera as camera_params.m of the dataset's toolbox has it.
CAMERA = CameraModel(640, 480, 518.8579, 519.46961, 325.58245, 253.73617)
_MAT, _SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"


class NyuDataset(FileDataset):
    """NYU Depth V2, 654 test images of 480x640.

    The folder holds either ``nyu_depth_v2_labeled.mat`` and ``splits.mat`` as published (needs
    h5py and scipy), or the common extract ``official_splits/test/SCENE/rgb_00045.jpg`` with
    ``sync_depth_00045.png`` in millimetres (its images have a black border). If the list of BTS
    (Lee et al., 2019), ``nyudepthv2_test_files_with_gt.txt``, is there, its images are read in
    its order.

    Args:
        depth: "raw", as measured, or "filled", with the holes closed by the authors.
    """

    name = "nyu"

    def __init__(self, root: Path, split: str = "test", depth: str = "raw") -> None:
        files.check_choice("depth", depth, ("raw", "filled"))
        self._raw = depth == "raw"
        self._mat: Any = None
        if (root / _MAT).exists():
            self._open_mat(root, split)
            self.variant = f".mat file, {depth} depth"
        else:
            self._list_images(root, split)
            self.variant = f"extract with black borders, {depth} depth"

    def _open_mat(self, root: Path, split: str) -> None:
        h5py, io = _matlab_readers()
        path = find_path("the published split of NYU Depth V2", root / _SPLITS)
        try:
            indices = io.loadmat(path)[f"{split}Ndxs"]
        except (KeyError, ValueError, NotImplementedError) as error:
            raise DatasetError(
                f"{path} is not splits.mat of NYU Depth V2: it has no {split}Ndxs."
            ) from error
        self._entries = [int(i) - 1 for i in indices.ravel()]
        try:
            self._mat, self._opened_by = h5py.File(root / _MAT, "r"), os.getpid()
        except OSError as error:
            raise DatasetError(f"{root / _MAT} is not a MATLAB 7.3 file: {error}.") from error
        self._depths = "rawDepths" if self._raw else "depths"
        for name in ("images", self._depths):
            if name not in self._mat:
                raise DatasetError(
                    f"{root / _MAT} holds no {name}, but {', '.join(self._mat) or 'nothing'}."
                )
        count = len(self._mat["images"])
        if max(self._entries, default=0) >= count:
            raise DatasetError(
                f"splits.mat names image {max(self._entries) + 1}, but {root / _MAT} has {count}."
            )

    def _list_images(self, root: Path, split: str) -> None:
        self._folder = find_path(
            f"{_MAT} with {_SPLITS} beside it, or the folder of the extracted images",
            root / "official_splits" / split,
            root / split,
            root / "nyu_depth_v2" / split,
        )
        name = f"nyudepthv2_{split}_files_with_gt.txt"
        listed = [folder / name for folder in (root, self._folder) if (folder / name).exists()]
        if listed:
            lines = files.read_lines(listed[0], "the list of BTS")
            names = [line.split()[0].lstrip("/") for line in lines]
        else:
            found = [*self._folder.rglob("rgb_*.jpg"), *self._folder.rglob("rgb_*.png")]
            names = sorted(path.relative_to(self._folder).as_posix() for path in found)
        self._list(names, f"There is no SCENE/rgb_00000.jpg in {self._folder}.")

    def read(self, index: int) -> Sample:
        name, rgb, depth = self._from_folder(index) if self._mat is None else self._from_mat(index)
        camera = CAMERA if rgb.shape[:2] == (CAMERA.height, CAMERA.width) else None
        return Sample(name, rgb, depth, camera=camera)

    def _from_folder(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        name = self._entries[index]
        image = self._folder / name
        number = re.sub(r"^rgb", "", image.stem)
        if self._raw:
            truth = image.with_name(f"sync_depth{number}.png")
        else:
            truth = image.parent / "dense" / f"sync_depth_dense{number}.png"
        rgb = read_rgb(image)
        return name, rgb, read_depth_png(truth, 1000.0, rgb.shape[:2])

    def _from_mat(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        i = self._entries[index]
        if self._opened_by != os.getpid():
            # A worker that was forked must not read through its parent's file position.
            h5py, _ = _matlab_readers()
            self._mat, self._opened_by = h5py.File(self._mat.filename, "r"), os.getpid()
        # MATLAB stores columns first: (3, W, H) and (W, H)
        rgb = np.ascontiguousarray(self._mat["images"][i].transpose(2, 1, 0))
        depth = np.ascontiguousarray(self._mat[self._depths][i].T).astype(np.float32)
        depth[depth <= 0] = np.nan
        return f"{i + 1:04d}", rgb, depth


def _matlab_readers() -> tuple[ModuleType, ModuleType]:
    try:
        return import_module("h5py"), import_module("scipy.io")
    except ImportError as error:
        raise DatasetError(
            f"{_MAT} is read by h5py and scipy, and {error.name} is not installed: "
            "pip install h5py scipy, or give the extracted images."
        ) from error
