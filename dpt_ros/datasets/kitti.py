# SPDX-License-Identifier: Apache-2.0
"""KITTI depth: the split of Eigen et al. with the improved truth of Uhrig et al. (3DV 2017)."""

from __future__ import annotations

from pathlib import Path

from dpt_ros.datasets.files import FileDataset, find_path, read_depth_png, read_lines, read_rgb
from dpt_ros.datasets.sample import DatasetError, Sample
from dpt_ros.engine.frame import CameraModel

_PER_METRE = 256.0
_LISTS = {
    "test": ("eigen_test_files_with_gt.txt", "test_files.txt", "eigen_test_files.txt"),
    "train": ("eigen_train_files_with_gt.txt", "train_files.txt", "eigen_train_files.txt"),
}
_RAW = ("", "raw", "raw_data", "input")
_SELECTION = "val_selection_cropped"


class KittiDataset(FileDataset):
    """KITTI: raw images (PNG or JPEG), a list of files, the annotated maps (PNG, 1/256 m).

    Expected in the folder: the raw data ``2011_09_26/2011_09_26_drive_0002_sync/image_02/data/``
    (also under ``raw/`` or ``raw_data/``); a list, of BTS (``eigen_test_files_with_gt.txt``) or
    of Monodepth2 (``test_files.txt``); the annotated maps
    ``DRIVE/proj_depth/groundtruth/image_02`` (also under ``data_depth_annotated/``, ``train/`` and
    ``val/``). Of Eigen's 697 test images 652 have a map; the others are left out, see ``notes``.

    Args:
        files: path of the list, if it is elsewhere or has another name.
        depth_root: folder of the annotated maps, if it is another one.
        official_val: keep only drives of the official validation set (maps under ``val/``), as
            the zero-shot tables of MiDaS and DPT do.
        selection: read ``val_selection_cropped`` (images and maps of 352x1216) instead.
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
        if selection:
            self._list_selection(root)
            return
        lists = [Path(files).expanduser()] if files else [root / name for name in _LISTS[split]]
        listing = find_path(f"the list of Eigen's {split} images", *lists)
        images = [_image(line, listing) for line in read_lines(listing, "the list")]
        if not images:
            raise DatasetError(f"{listing} lists no image.")
        first = Path(images[0]).parent
        folder = find_path("the folder of a listed image", *(root / n / first for n in _RAW))
        raw = folder.parents[len(first.parts) - 1]
        places = _depth_places(Path(depth_root).expanduser() if depth_root else root)
        if official_val:
            places = [place for place in places if place.name == "val"]
        pairs: list[tuple[str, Path, Path]] = []
        for image in images:
            _, drive, camera, _, name = image.split("/")
            tail = f"{drive}/proj_depth/groundtruth/{camera}/{Path(name).stem}.png"
            maps = [place / tail for place in places if (place / tail).exists()]
            pairs += [(image, raw / image, found) for found in maps[:1]]
        if missing := len(images) - len(pairs):
            text = f"{missing} of the {len(images)} listed images have no depth map"
            self.notes = (f"{text} and are skipped.",)
        self._list(
            pairs,
            f"None of the {len(images)} images of {listing} has a depth map: expected "
            f"DRIVE/proj_depth/groundtruth/image_02/NUMBER.png in "
            f"{' or '.join(str(place) for place in places) or 'a folder val'}.",
        )

    def _list_selection(self, root: Path) -> None:
        places = root / _SELECTION, root / "depth_selection" / _SELECTION
        folder = find_path("KITTI's selection for validation", *places)
        pairs = []
        for image in sorted((folder / "image").glob("*.[pj][np]g")):
            name = f"{image.stem.replace('_sync_image_', '_sync_groundtruth_depth_')}.png"
            pairs.append((image.name, image, folder / "groundtruth_depth" / name))
        self._list(pairs, f"There is no image in {folder / 'image'}.")

    def read(self, index: int) -> Sample:
        name, image, truth = self._entries[index]
        rgb = read_rgb(image)
        depth = read_depth_png(truth, _PER_METRE, rgb.shape[:2])
        return Sample(name, rgb, depth, camera=_camera(image, rgb.shape[:2]))


def _image(line: str, listing: Path) -> str:
    """The image that a line of a list names: DATE/DRIVE/CAMERA/data/NUMBER.png."""
    words = line.split()
    if words[0].endswith((".png", ".jpg")) and words[0].count("/") == 4:
        return words[0]
    if len(words) == 3 and words[0].count("/") == 1 and words[1].isdigit():
        camera = {"l": "image_02", "r": "image_03"}.get(words[2])
        if camera is not None:
            return f"{words[0]}/{camera}/data/{int(words[1]):010d}.png"
    raise DatasetError(
        f"{listing} has the line {line!r}, but expected DATE/DRIVE/image_02/data/NUMBER.png ... "
        "or DATE/DRIVE NUMBER l."
    )


def _depth_places(root: Path) -> list[Path]:
    above = [root, root / "data_depth_annotated", root / "gt"]
    below = [folder / name for folder in above for name in ("train", "val")]
    return [place for place in (*below, *above) if place.is_dir()]


def _camera(image: Path, shape: tuple[int, int]) -> CameraModel | None:
    """The rectified camera of a raw image, if its calibration is there."""
    listing = image.parents[min(3, len(image.parents) - 1)] / "calib_cam_to_cam.txt"
    if listing.exists():
        wanted = f"P_rect_{image.parents[1].name[-2:]}:"
        for line in read_lines(listing, "KITTI's calibration"):
            if line.startswith(wanted):
                p = [float(word) for word in line.split()[1:]]
                return CameraModel(shape[1], shape[0], p[0], p[5], p[2], p[6])
    return None
