# SPDX-License-Identifier: Apache-2.0
"""The conversion of one bag: what to do, its result, and everything that it depends on."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dpt_ros.bag import MAPS
from dpt_ros.bag.reader import BagReader
from dpt_ros.bag.topics import Camera, ChosenTopics
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.loading import load_networks
from dpt_ros.engine.settings import Settings, parameter_name

# Settings that do not change the output.
_WITHOUT_EFFECT = ("image_reliability", "max_age", "diagnostics_period", "autostart", "threads")


@dataclass(frozen=True)
class Job:
    """One bag to make from another.

    Args:
        source: bag to read.
        out: folder to write.
        settings: as of the node.
        own: of each camera by its name, settings in the place of the common ones.
        chosen: topics set by the user.
        outputs: endings of the topics to write, see ``ALL_OUTPUTS``.
        with_input: copy all messages of the input.
        storage: "mcap" or "sqlite3".
        packed: compress with zstd.
        overwrite: replace an output of dpt_bag.
        file_frames: frames in one file of the bag; 0 for a choice by the bag's length.
    """

    source: Path
    out: Path
    settings: Settings = field(default_factory=Settings)
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    chosen: ChosenTopics = field(default_factory=ChosenTopics)
    outputs: tuple[str, ...] = MAPS
    with_input: bool = False
    storage: str = "mcap"
    packed: bool = False
    overwrite: bool = False
    file_frames: int = 0


@dataclass(frozen=True)
class Result:
    """The result of a job.

    Args:
        frames: in the bag that was written.
        computed: of these, by this run.
        failed: images that could not be read.
        seconds: that this run took, without loading the networks.
        outcome: "done", "done before", or "damaged" (what could be read is done).
        problems: what of the input could not be read.
    """

    frames: int
    computed: int
    failed: int
    seconds: float
    outcome: str
    problems: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def networks_for(settings: Settings) -> Networks:
    """The networks of these settings, loaded once for bags one after another.

    Raises:
        NetworkError: see ``load_networks``.
    """
    torch.manual_seed(0)  # for weights that are random
    networks = load_networks(settings)
    if networks.device.type == "cuda":
        # Benchmarks choose between algorithms by time, and their bits differ.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    return networks


def made_from(
    job: Job, reader: BagReader, cameras: list[Camera], networks: Networks
) -> dict[str, Any]:
    """Everything that the output is made from; weights and input by name, size and checksum."""
    settings = asdict(job.settings)
    weights = weights_paths(job.settings)
    settings |= {name: path.name for name, path in weights.items()}
    settings["device"] = networks.device.type
    # By the names that users set them by, for the message on differences.
    names = {spec.name: parameter_name(spec) for spec in fields(job.settings)}
    parameters = {names[k]: v for k, v in settings.items() if k not in _WITHOUT_EFFECT}
    parameters |= {f"{c}.{names[k]}": v for c, own in job.own.items() for k, v in own.items()}
    topics = [[channel.topic, channel.msgtype] for channel in reader.channels.values()]
    return {
        "parameters": parameters,
        "networks": [networks.depth_name, networks.label_name],
        "weights": [_mark(file) for path in weights.values() for file in _files(path)],
        "cameras": [asdict(camera) for camera in cameras],
        "outputs": list(job.outputs),
        "input topics": topics if job.with_input else False,
        "storage": job.storage,
        "compression": job.packed,
        "frames in a file": job.file_frames,
        "input": [_mark(file) for file in reader.files],
    }


def weights_paths(settings: Settings) -> dict[str, Path]:
    """The files and folders of weights, by the names of their settings."""
    names = ("depth_weights", "label_weights")
    given = {name: getattr(settings, name) for name in names}
    paths = {
        name: Path(value).expanduser()
        for name, value in given.items()
        if value not in ("", "download", "random")
    }
    return {name: path for name, path in paths.items() if path.exists()}


def _files(path: Path) -> list[Path]:
    """The file and its external data, or the files of a folder of weights."""
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.is_file())
    data = path.with_name(f"{path.name}.data")  # of an .onnx file
    return [path, data] if data.is_file() else [path]


def _mark(path: Path) -> list[Any]:
    """Identifies a file: name, size, and a checksum of its ends."""
    size, ends = path.stat().st_size, 1 << 16
    with path.open("rb") as file:
        check = zlib.crc32(file.read(ends))
        file.seek(max(0, size - ends))
        check = zlib.crc32(file.read(ends), check)
    return [path.name, size, check]


def machine(networks: Networks) -> dict[str, Any]:
    """What else the bytes of the output depend on."""
    on_gpu = networks.device.type == "cuda"
    try:
        ours = version("dpt_ros")
    except PackageNotFoundError:  # run from a checkout
        ours = ""
    return {
        "device": torch.cuda.get_device_name(networks.device) if on_gpu else "cpu",
        "precision": networks.precision,
        "torch": torch.__version__,
        "dpt_ros": ours,
        "states": 2,  # form of the cameras' states
        "threads": 0 if on_gpu else torch.get_num_threads(),
    }
