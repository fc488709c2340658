# SPDX-License-Identifier: Apache-2.0
"""Datasets as people have them on their disks: one test per kind."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dpt_ros.datasets.registry import open_dataset
from dpt_ros.datasets.sample import DatasetError

DRIVE = "2011_09_26/2011_09_26_drive_0002_sync"
NAME = "image_02/data/0000000069"


def kitti(root: Path, suffix: str, line: str) -> np.ndarray:
    """A picture with its map and a list of one line, in a folder; its RGB."""
    rgb = np.full((8, 12, 3), (200, 100, 50), np.uint8)
    picture = root / "raw" / DRIVE / f"{NAME}{suffix}"
    truth = root / "data_depth_annotated" / "val" / DRIVE.partition("/")[2]
    truth = truth / "proj_depth/groundtruth/image_02/0000000069.png"
    for path, pixels in ((picture, rgb[..., ::-1]), (truth, np.full((8, 12), 2560, np.uint16))):
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), pixels)
    (root / "test_files.txt").write_bytes(line.encode())
    return rgb


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize(
    "line", [f"{DRIVE} 69 l\n", f"\ufeff{DRIVE} 69 l\r\n", f"\ufeff{DRIVE}/{NAME}.png x 0\n"]
)
def test_kitti_is_read_as_png_or_jpeg_and_lists_may_have_a_byte_order_mark(
    tmp_path, suffix, line
) -> None:
    rgb = kitti(tmp_path, suffix, line)
    (sample,) = open_dataset("kitti", tmp_path)
    assert np.abs(sample.rgb.astype(int) - rgb).max() < 8
    assert sample.depth is not None
    assert (sample.depth == 10).all()


def test_a_folder_one_level_off_is_answered_with_the_right_one(tmp_path) -> None:
    root = tmp_path / "data" / "kitti"
    kitti(root, ".png", f"{DRIVE} 69 l\n")
    for wrong in (root.parent, root / "raw"):
        with pytest.raises(DatasetError, match=f"The folder {root} holds it: use that.$"):
            open_dataset("kitti", wrong)
    with pytest.raises(DatasetError, match=r"Found none of .*test_files.txt or ") as refused:
        open_dataset("kitti", root / "raw" / DRIVE)
    assert "use that" not in str(refused.value)


def test_a_list_without_its_pictures_names_where_they_were_expected(tmp_path) -> None:
    kitti(tmp_path, ".png", f"{DRIVE} 69 l\n")
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=rf"Found none of .*raw/{DRIVE}/image_02/data or .*"):
        open_dataset("kitti", tmp_path)
    (tmp_path / "test_files.txt").write_text("\n")
    with pytest.raises(DatasetError, match=r"test_files.txt lists no image"):
        open_dataset("kitti", tmp_path)
