# SPDX-License-Identifier: Apache-2.0
"""The conversion of one bag: what to do, its result, and everything that it depends on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dpt_ros.bag import MAPS
from dpt_ros.bag.reader import BagReader
from dpt_ros.bag.topics import Camera, ChosenTopics
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.provenance import file_mark, made_with
from dpt_ros.engine.settings import Settings, parameter_name


@dataclass(frozen=True)
class Job:
    """One bag to make from another."""

    source: Path  # bag to read
    out: Path  # folder to write
    settings: Settings = field(default_factory=Settings)  # as of the node
    own: dict[str, dict[str, Any]] = field(default_factory=dict)  # by camera, instead of these
    chosen: ChosenTopics = field(default_factory=ChosenTopics)
    outputs: tuple[str, ...] = MAPS  # of ``ALL_OUTPUTS``
    with_input: bool = False  # copy all messages of the input
    storage: str = "mcap"  # or "sqlite3"
    packed: bool = False  # compress with zstd
    overwrite: bool = False  # replace an output of dpt_bag
    file_frames: int = 0  # frames in one file of the bag; 0 for a choice by its length


@dataclass(frozen=True)
class Result:
    """The result of a job."""

    frames: int  # in the bag that was written
    computed: int  # of these, by this run
    failed: int  # images that could not be read
    seconds: float  # that this run took, without loading the networks
    outcome: str  # "done", "done before", or "damaged" (what could be read is done)
    problems: tuple[str, ...] = ()  # what of the input could not be read


def made_from(
    job: Job, reader: BagReader, cameras: list[Camera], networks: Networks
) -> dict[str, Any]:
    """Everything that the output is made from; weights and input by name, size and checksum."""
    made = made_with(job.settings, networks)
    names = {spec.name: parameter_name(spec) for spec in fields(job.settings)}
    own = {f"{c}.{names[k]}": v for c, own in job.own.items() for k, v in own.items()}
    topics = [[channel.topic, channel.msgtype] for channel in reader.channels.values()]
    return {
        **made,
        "parameters": made["parameters"] | own,
        "cameras": [asdict(camera) for camera in cameras],
        "outputs": list(job.outputs),
        "input topics": topics if job.with_input else False,
        "storage": job.storage,
        "compression": job.packed,
        "frames in a file": job.file_frames,
        "input": [file_mark(file) for file in reader.files],
    }
