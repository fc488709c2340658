# SPDX-License-Identifier: Apache-2.0
"""What to predict: pictures and videos in folders, webcams; and the names of their results."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dpt_ros.run.pictures import is_picture

RECORD = "dpt_run.json"  # marks a folder of results
# Those that neither Pillow nor OpenCV reads are here to be named, not passed over in silence.
_PICTURES = {
    *(".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe"),
    *(".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
}
_VIDEOS = {
    *(".3gp", ".avi", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".ts", ".webm", ".wmv"),
}


@dataclass(frozen=True)
class Source:
    """One picture, video or webcam."""

    path: Path  # the file; /dev/videoN of a webcam
    name: str  # of its results, relative to a folder, without a suffix
    kind: str  # "picture", "video" or "webcam"


def find_sources(
    source: str | int | Path, recursive: bool = False, leave_out: Path | None = None
) -> tuple[list[Source], list[Path]]:
    """The pictures and videos that a path stands for, in the order of their names.

    Args:
        source: a picture, a video, a folder of them; or a webcam: N or /dev/videoN.
        recursive: whether to look into sub folders. Folders of results are left out.
        leave_out: a folder not to look into.

    Returns:
        What was found; files of the folder that are neither picture nor video.

    Raises:
        ValueError: there is nothing at the path, or nothing of use.
    """
    path = Path(str(source))
    if isinstance(source, int) or (str(source).isdecimal() and not path.exists()):
        path = Path(f"/dev/video{source}")
    number = path.name.removeprefix("video")
    if path.parent == Path("/dev") and number.isdecimal():
        return [Source(path, f"camera{number}_{time.strftime('%Y%m%d_%H%M%S')}", "webcam")], []
    if path.is_dir():
        return _in_folder(path, recursive, leave_out)
    if not path.exists():
        raise ValueError(f"{path} does not exist: expected a picture, a video or a folder.")
    return [Source(path, path.stem, _kind(path) or "video")], []


def _in_folder(
    folder: Path, recursive: bool, leave_out: Path | None
) -> tuple[list[Source], list[Path]]:
    kinds = {path: _kind(path) for path in _files(folder, recursive, leave_out)}
    found = [path for path, kind in kinds.items() if kind]
    if not found:
        hint = "" if recursive else "; --recursive looks into its sub folders"
        raise ValueError(f"{folder} has no pictures or videos{hint}.")
    names = _names([path.relative_to(folder) for path in found])
    sources = [Source(path, name, kinds[path]) for path, name in zip(found, names, strict=True)]
    return sources, [path for path, kind in kinds.items() if not kind]


def _files(folder: Path, recursive: bool, leave_out: Path | None) -> Iterator[Path]:
    """The files of a folder that are not hidden."""

    def failed(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}.") from error

    for place, folders, files in os.walk(folder, onerror=failed):
        here = Path(place)
        for name in sorted(files):
            if not name.startswith(".") and ((here / name).is_file() or _kind(here / name)):
                yield here / name
        folders[:] = [
            name
            for name in sorted(folders)
            if recursive and not name.startswith(".") and not _is_output(here / name, leave_out)
        ]


def _is_output(folder: Path, leave_out: Path | None) -> bool:
    same = leave_out is not None and folder.resolve() == leave_out.resolve()
    return same or (folder / RECORD).exists()


def _kind(path: Path) -> str:
    """ "picture" or "video", by the suffix, else by the contents; "" for anything else."""
    suffix = path.suffix.lower()
    if suffix in _PICTURES:
        return "picture"
    if suffix in _VIDEOS:
        return "video"
    return "picture" if path.is_file() and is_picture(path) else ""


def _names(paths: list[Path]) -> list[str]:
    """Names without suffixes where these are unique, also among the folders and in lower case."""
    stems = Counter(str(path.with_suffix("")).casefold() for path in paths)
    taken = {str(path).casefold() for path in paths}
    taken |= {str(parent).casefold() for path in paths for parent in path.parents}

    def name(path: Path) -> str:
        stem = str(path.with_suffix(""))
        alone = stems[stem.casefold()] == 1 and stem.casefold() not in taken
        return stem if alone else str(path)

    return [name(path) for path in paths]
