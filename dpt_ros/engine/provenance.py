# SPDX-License-Identifier: Apache-2.0
"""What outputs are made with: settings, networks, weights, machine. Equal ones, equal outputs."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.loading import load_networks
from dpt_ros.engine.settings import Settings, parameter_name

# Settings that do not change the output.
_WITHOUT_EFFECT = ("image_reliability", "max_age", "diagnostics_period", "autostart", "threads")


@lru_cache(maxsize=1)
def networks_for(settings: Settings) -> Networks:
    """The networks of these settings, loaded once for one input after another.

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


def made_with(settings: Settings, networks: Networks) -> dict[str, Any]:
    """The parameters, networks and weights of an output; weights by name, size and checksum."""
    values = asdict(settings)
    weights = weights_paths(settings)
    values |= {name: path.name for name, path in weights.items()}
    values["device"] = networks.device.type
    # By the names that users set them by, for the message on differences.
    names = {spec.name: parameter_name(spec) for spec in fields(settings)}
    return {
        "parameters": {names[k]: v for k, v in values.items() if k not in _WITHOUT_EFFECT},
        "networks": [networks.depth_name, networks.label_name],
        "weights": [file_mark(file) for path in weights.values() for file in _files(path)],
    }


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


def weights_paths(settings: Settings) -> dict[str, Path]:
    """The files and folders of weights, by the names of their settings."""
    given = {name: getattr(settings, name) for name in ("depth_weights", "label_weights")}
    named = {k: value for k, value in given.items() if value not in ("", "download", "random")}
    paths = {name: Path(value).expanduser() for name, value in named.items()}
    return {name: path for name, path in paths.items() if path.exists()}


def _files(path: Path) -> list[Path]:
    """The file and its external data, or the files of a folder of weights."""
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.is_file())
    data = path.with_name(f"{path.name}.data")  # of an .onnx file
    return [path, data] if data.is_file() else [path]


def file_mark(path: Path) -> list[Any]:
    """Identifies a file: name, size, and a checksum of its ends."""
    size, ends = path.stat().st_size, 1 << 16
    with path.open("rb") as file:
        check = zlib.crc32(file.read(ends))
        file.seek(max(0, size - ends))
        check = zlib.crc32(file.read(ends), check)
    return [path.name, size, check]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> str:
    """What is not the same, in words; "" if all is."""
    words = []
    for key in dict.fromkeys([*before, *now]):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            prefix = "" if key == "parameters" else f"{within}{key}."
            words += [inner] if (inner := differences(a, b, prefix)) else []
        elif a != b:
            long = max(len(str(a)), len(str(b))) > 60
            words.append(f"{within}{key}" if long else f"{within}{key}: {a!r}, now {b!r}")
    return "; ".join(words)
