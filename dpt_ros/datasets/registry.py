# SPDX-License-Identifier: Apache-2.0
"""Every dataset by its name."""

from __future__ import annotations

import inspect
from contextlib import suppress
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt_ros.model.zoo import did_you_mean

if TYPE_CHECKING:
    from dpt_ros.datasets.sample import Dataset

# Module and class, imported when the dataset is opened, and what is expected in the folder. Each
# class is called with root, split and its own options.
_DATASETS: dict[str, tuple[str, str]] = {
    "world": ("world:WorldDataset", "the synthetic world: depth, labels, videos; needs no folder"),
    "nyu": ("nyu:NyuDataset", "nyu_depth_v2_labeled.mat and splits.mat, or "
        "official_splits/test/SCENE/rgb_*.jpg with sync_depth_*.png"),
    "kitti": ("kitti:KittiDataset", "raw data DATE/DRIVE/image_02/data/*.png, a list "
        "eigen_test_files_with_gt.txt or test_files.txt, and "
        "data_depth_annotated/{train,val}/DRIVE/proj_depth/groundtruth"),
    "eth3d": ("eth3d:Eth3dDataset",
        "SCENE/images/dslr_images/*.JPG and SCENE/ground_truth_depth/dslr_images/*.JPG"),
    "tum": ("tum:TumDataset", "sequences with rgb.txt, depth.txt and what these name"),
    "sintel": ("sintel:SintelDataset",
        "training/final/SEQUENCE/*.png and training/depth/SEQUENCE/*.dpt"),
    "diw": ("diw:DiwDataset", "DIW_test.csv and DIW_test/*.thumb"),
    "ade20k": ("segmentation:Ade20kDataset",
        "images/validation/*.jpg and annotations/validation/*.png"),
    "pascal_context": ("segmentation:PascalContextDataset", "JPEGImages/*.jpg, "
        "SegmentationClassContext/*.png and ImageSets/SegmentationContext/val.txt"),
}  # fmt: skip


def list_datasets() -> dict[str, str]:
    """The names that ``open_dataset`` takes, each with one line on what is expected in the
    folder."""
    return {name: line for name, (_, line) in _DATASETS.items()}


def unknown_dataset(name: str) -> str:
    """The message for a name that is not in ``list_datasets()``."""
    hint, names = did_you_mean(name, _DATASETS), ", ".join(sorted(_DATASETS))
    return f"Unknown dataset {name!r}{hint}. Available: {names}."


def open_dataset(
    name: str, root: Path | str | None = None, split: str = "test", **options: Any
) -> Dataset:
    """Open a dataset; its samples are read when they are accessed.

    Args:
        name: one of ``list_datasets()``.
        root: its folder; None for the synthetic world.
        split: "train" or "test".
        options: of the dataset, see its class; values, or their text from a command line.

    Returns:
        The dataset, a sequence of samples.

    Raises:
        DatasetError: the folder does not hold what was expected.
        ValueError: otherwise: there is no such dataset, split or option, or a value is wrong.
    """
    from dpt_ros.datasets.sample import DatasetError

    if name not in _DATASETS:
        raise ValueError(unknown_dataset(name))
    if split not in ("train", "test"):
        raise ValueError(f"The split is {split!r}, but must be train or test.")
    module, _, found = _DATASETS[name][0].partition(":")
    build = getattr(import_module(f"dpt_ros.datasets.{module}"), found)
    parameters = inspect.signature(build).parameters
    known = {k: spec for k, spec in parameters.items() if k not in ("root", "split")}
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"Unknown option {option!r} of the dataset {name}. Available: "
                f"{', '.join(sorted(known)) or 'none'}."
            )
        options[option] = _typed(option, value, type(known[option].default))
    if name == "world":
        if root is not None:
            raise ValueError(
                f"The dataset world is rendered and has no folder, but root is {root}."
            )
        return build(split=split, **options)
    if root is None:
        raise ValueError(
            f"The dataset {name} needs its folder (--root), with {_DATASETS[name][1]}."
        )
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DatasetError(
            f"The folder {folder} does not exist. Expected for {name}: {_DATASETS[name][1]}."
        )
    try:
        return build(root=folder, split=split, **options)
    except DatasetError as error:
        for other in _near(folder):
            try:
                build(root=other, split=split, **options)
            except (DatasetError, OSError):
                continue
            raise DatasetError(f"{error} The folder {other} holds it: use that.") from error
        raise


def _near(folder: Path) -> list[Path]:
    """The folders one level below and above."""
    inside = (path for path in folder.iterdir() if not path.name.startswith("."))
    return [*islice(sorted(path for path in inside if path.is_dir()), 50), folder.resolve().parent]


def _typed(option: str, value: Any, kind: Any) -> Any:
    """``value`` with the type ``kind`` of the default; words of a command line are parsed."""
    if isinstance(value, str) and kind is bool:
        value = {"true": True, "false": False}.get(value.lower(), value)
    elif isinstance(value, str) and kind in (int, float):
        with suppress(ValueError):  # refused below
            value = kind(value)
    elif kind is float and type(value) is int:
        value = float(value)
    elif kind is str and isinstance(value, Path):
        value = str(value)
    if type(value) is not kind:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
        raise ValueError(f"The option {option} is {value!r}, but must be {words[kind]}.")
    return value
