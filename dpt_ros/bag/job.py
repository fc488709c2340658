# SPDX-License-Identifier: Apache-2.0
"""What is to be made of a bag, and all that the result depends on."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dpt_ros.bag.outputs import MAPS
from dpt_ros.bag.reader import BagReader
from dpt_ros.bag.topics import Asked, Camera
from dpt_ros.engine.inference.loading import load_networks
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.settings import Settings, parameter_name

# Settings that say when or where, not what.
_NO_MATTER = ("image_reliability", "max_age", "diagnostics_period", "autostart", "threads")


@dataclass(frozen=True)
class Job:
    """One bag to make from another.

    Args:
        source: bag to read.
        out: folder to write.
        settings: as of the node.
        own: of each camera by its name, settings in the place of the common ones.
        asked: topics that the user names.
        outputs: endings of the topics to write, see ``ALL_OUTPUTS``.
        with_input: copy all messages of the input.
        storage: "mcap" or "sqlite3".
        packed: compress with zstd.
        overwrite: begin anew, whatever was written before.
        file_frames: frames in one file of the bag; 0 for a choice by the bag's length.
    """

    source: Path
    out: Path
    settings: Settings = field(default_factory=Settings)
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: Asked = field(default_factory=Asked)
    outputs: tuple[str, ...] = MAPS
    with_input: bool = False
    storage: str = "mcap"
    packed: bool = False
    overwrite: bool = False
    file_frames: int = 0


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Args:
        frames: in the bag that was written.
        computed: of these, by this run.
        failed: images that could not be read.
        seconds: that this run took, without loading the networks.
        outcome: a word or two: "done", "done before", "damaged" (what can be read is done).
        notes: sentences on what of the input cannot be read.
    """

    frames: int
    computed: int
    failed: int
    seconds: float
    outcome: str
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def networks_for(settings: Settings) -> Networks:
    """The networks of these settings, loaded once for bags one after another.

    Raises:
        NetworkError: see ``load_networks``.
    """
    torch.manual_seed(0)  # for weights that are random
    networks = load_networks(settings)
    if networks.device.type == "cuda":
        # Timing decides between algorithms, and their bits differ.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    return networks


def made_from(
    job: Job, reader: BagReader, cameras: list[Camera], networks: Networks
) -> dict[str, Any]:
    """All that the output is made from."""
    settings = asdict(job.settings)
    files = {
        name: Path(settings[name])
        for name in ("depth_weights", "label_weights")
        if Path(settings[name]).is_file()
    }
    settings |= {name: file.name for name, file in files.items()}
    settings["device"] = networks.device.type
    # By the names that a user gives them, for they are named where they differ.
    names = {spec.name: parameter_name(spec) for spec in fields(job.settings)}
    parameters = {names[k]: v for k, v in settings.items() if k not in _NO_MATTER}
    parameters |= {f"{c}.{names[k]}": v for c, own in job.own.items() for k, v in own.items()}
    topics = [[channel.topic, channel.msgtype] for channel in reader.channels.values()]
    return {
        "parameters": parameters,
        "networks": [networks.depth_name, networks.label_name],
        "weights": [_mark(file) for file in files.values()],
        "cameras": [asdict(camera) for camera in cameras],
        "outputs": list(job.outputs),
        "input topics": topics if job.with_input else False,
        "storage": job.storage,
        "compression": job.packed,
        "frames in a file": job.file_frames,
        "input": [_mark(file) for file in reader.files],
    }


def _mark(path: Path) -> list[Any]:
    """Tells a file from another one: name, size, and a checksum of its ends."""
    size, ends = path.stat().st_size, 1 << 16
    with path.open("rb") as file:
        check = zlib.crc32(file.read(ends))
        file.seek(max(0, size - ends))
        check = zlib.crc32(file.read(ends), check)
    return [path.name, size, check]


def machine(networks: Networks) -> dict[str, Any]:
    """What else decides about bits."""
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
        "threads": 0 if on_gpu else torch.get_num_threads(),
    }
