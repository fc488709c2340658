# SPDX-License-Identifier: Apache-2.0
"""KITTI depth: the split of Eigen et al. with the improved truth of Uhrig et al. (3DV 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpt_ros.datasets.files import inverse_of, need_one, read_depth_png, read_lines, read_rgb
from dpt_ros.datasets.sample import Dataset, DatasetError, Sample
from dpt_ros.engine.frame import CameraModel

_PER_METRE = 256.0
_LISTS = {
    "test": ("eigen_test_files_with_gt.txt", "test_files.txt", "eigen_test_files.txt"),
    "train": ("eigen_train_files_with_gt.txt", "train_files.txt", "eigen_train_files.txt"),
}
_SELECTION = "val_selection_cropped"


@dataclass(frozen=True)
class _Entry:
    """A line of a list: picture relative to the raw data, and its drive, camera and number."""

    picture: str
    drive: str
    camera: str
    number: str


class KittiDataset(Dataset):
    """KITTI: raw pictures, a list of files, and the annotated depth maps (PNG, 1/256 m).

    Expected in the folder: the raw data ``2011_09_26/2011_09_26_drive_0002_sync/image_02/data/``
    (also under ``raw/`` or ``raw_data/``); a list, of BTS (``eigen_test_files_with_gt.txt``) or
    of Monodepth2 (``test_files.txt``); the annotated maps
    ``DRIVE/proj_depth/groundtruth/image_02`` (also under ``data_depth_annotated/``, ``train/`` and
    ``val/``). Of Eigen's 697 test pictures 652 have a map; the others are left out, see
    ``without_truth``.

    Args:
        files: the list, if it stands elsewhere or has another name.
        depth_root: folder of the annotated maps, if it is another one.
        official_val: keep only drives of the official validation set (maps under ``val/``), as
            the zero-shot tables of MiDaS and DPT do.
        selection: read ``val_selection_cropped`` (pictures and maps of 352x1216) instead.

    Attributes:
        without_truth: listed pictures that have no depth map.
    """

    name = "kitti"

    def __init__(
        self,
        root: Path,
        split: str = "test",
        files: str = "",
        depth_root: str = "",
        official_val: bool = False,
        selection: bool = False,
    ) -> None:
        self.without_truth: tuple[str, ...] = ()
        self._pairs: list[tuple[str, Path, Path]] = []
        if selection:
            self._list_selection(root)
            return
        wanted = [Path(files).expanduser()] if files else [root / n for n in _LISTS[split]]
        listing = need_one(wanted, f"the list of Eigen's {split} pictures")
        entries = [_entry(line, listing) for line in read_lines(listing, "the list")]
        raw = need_one(
            (r for r in (root, root / "raw", root / "raw_data", root / "input")
             if entries and (r / entries[0].picture).parent.exists()),
            f"the raw data with {entries[0].picture if entries else 'a drive'} in {root}",
        )  # fmt: skip
        places = _depth_places(Path(depth_root).expanduser() if depth_root else root)
        if official_val:
            places = [place for place in places if place.name == "val"]
        missing = []
        for entry in entries:
            tail = f"{entry.drive}/proj_depth/groundtruth/{entry.camera}/{entry.number}.png"
            found = [place / tail for place in places if (place / tail).exists()]
            if found:
                self._pairs.append((entry.picture, raw / entry.picture, found[0]))
            else:
                missing.append(entry.picture)
        self.without_truth = tuple(missing)
        if missing:
            self.notes = (
                f"{len(missing)} of the {len(entries)} listed pictures have no depth map and are "
                "skipped.",
            )
        if not self._pairs:
            raise DatasetError(
                f"None of the {len(entries)} pictures of {listing} has a depth map: expected "
                f"DRIVE/proj_depth/groundtruth/image_02/NUMBER.png in "
                f"{' or '.join(str(place) for place in places) or 'a folder val'}."
            )

    def _list_selection(self, root: Path) -> None:
        folder = need_one(
            [root / _SELECTION, root / "depth_selection" / _SELECTION],
            "KITTI's selection for validation",
        )
        for picture in sorted((folder / "image").glob("*.png")):
            name = picture.name.replace("_sync_image_", "_sync_groundtruth_depth_")
            self._pairs.append((picture.name, picture, folder / "groundtruth_depth" / name))
        if not self._pairs:
            raise DatasetError(f"There is no picture in {folder / 'image'}.")

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, index: int) -> Sample:
        name, picture, truth = self._pairs[index]
        rgb = read_rgb(picture)
        depth = read_depth_png(truth, _PER_METRE, rgb.shape[:2])
        return Sample(name, rgb, depth, inverse_of(depth), camera=_camera(picture, rgb.shape[:2]))


def _entry(line: str, listing: Path) -> _Entry:
    words = line.split()
    parts = words[0].split("/")
    if words[0].endswith((".png", ".jpg")) and len(parts) == 5:
        return _Entry(words[0], parts[1], parts[2], Path(parts[4]).stem)
    if len(words) == 3 and len(parts) == 2 and words[1].isdigit() and words[2] in ("l", "r"):
        camera, number = "image_02" if words[2] == "l" else "image_03", f"{int(words[1]):010d}"
        return _Entry(f"{words[0]}/{camera}/data/{number}.png", parts[1], camera, number)
    raise DatasetError(
        f"{listing} has the line {line!r}, but expected DATE/DRIVE/image_02/data/NUMBER.png ... "
        "or DATE/DRIVE NUMBER l."
    )


def _depth_places(root: Path) -> list[Path]:
    above = [root, root / "data_depth_annotated", root / "gt"]
    below = [folder / name for folder in above for name in ("train", "val")]
    return [place for place in (*below, *above) if place.is_dir()]


def _camera(picture: Path, shape: tuple[int, int]) -> CameraModel | None:
    """The rectified camera of a raw picture, if its calibration is there."""
    if len(picture.parts) < 5:
        return None
    listing = picture.parents[3] / "calib_cam_to_cam.txt"
    if not listing.exists():
        return None
    wanted = f"P_rect_{picture.parents[1].name[-2:]}:"
    for line in read_lines(listing, "KITTI's calibration"):
        if line.startswith(wanted):
            p = [float(word) for word in line.split()[1:]]
            return CameraModel(shape[1], shape[0], p[0], p[5], p[2], p[6])
    return None
