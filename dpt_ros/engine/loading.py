# SPDX-License-Identifier: Apache-2.0
"""The networks that the settings name: chosen, loaded, brought to their device and checked."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dpt_ros.data import class_names, palette
from dpt_ros.engine.export.file import PRECISION, ExportError, read_metadata
from dpt_ros.engine.export.network import exported, spec_of
from dpt_ros.engine.faults import first_line, is_out_of_memory
from dpt_ros.engine.inference import kernels
from dpt_ros.engine.inference.backend import Backend, BackendError, TorchModel
from dpt_ros.engine.inference.cpu_modules import supports_bf16
from dpt_ros.engine.inference.network import Network, Networks
from dpt_ros.engine.inference.onnx_runtime import OnnxRuntimeModel
from dpt_ros.engine.inference.openvino import OpenVinoModel, find_device
from dpt_ros.engine.output.label_groups import LabelGroups
from dpt_ros.engine.scale.ground import floor_ids
from dpt_ros.engine.settings import Settings
from dpt_ros.model.zoo import EMBEDDED_NAME, ModelSpec, list_models, unknown_model

if TYPE_CHECKING:
    from dpt_ros.model import DPT

# What ``auto`` prefers among the checkpoints that are already on this machine.
_PREFERRED = {
    "depth": ("dpt_hybrid_nyu", "dpt_hybrid_kitti", "dpt_hybrid_midas", "dpt_large_midas"),
    "labels": ("dpt_hybrid_ade20k", "dpt_large_ade20k"),
}
_PARAMETERS = {
    "depth": ("depth_network", "depth_weights"),
    "labels": ("label_network", "label_weights"),
}
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class NetworkError(Exception):
    """The networks cannot be loaded; the message gives the reason and what to do."""


def load_networks(settings: Settings) -> Networks:
    """Choose, load, check and warm up the networks that the settings ask for.

    Raises:
        NetworkError: a device, a name or a file is wrong; the message says what to do.
    """
    device = choose_device(settings.device)
    _check(settings, device)
    precision = _precision(settings, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    warnings = _backend_warnings(settings, device, precision)
    weights = {task: getattr(settings, file) for task, (_, file) in _PARAMETERS.items()}
    names = {task: _choose(task, settings, warnings) for task in _PARAMETERS}
    if not any(names.values()):
        raise NetworkError(
            "depth_network and label_network are both none, so there is nothing to compute; "
            "name at least one network."
        )
    loaded: dict[tuple[str, str], Network] = {}
    chosen: dict[str, Network | None] = {"depth": None, "labels": None}
    for task, name in names.items():
        if name is None:
            continue
        key = (name, weights[task])
        if key not in loaded:
            loaded[key] = _load(name, weights[task], task, device, precision, settings)
        if task not in loaded[key].spec.tasks:
            raise NetworkError(
                f"{name} predicts {' and '.join(loaded[key].spec.tasks)}, not {task}; "
                f"set {_PARAMETERS[task][0]} to another network or to none."
            )
        chosen[task] = loaded[key]
    labels = chosen["labels"]
    _check_scale(chosen["depth"], settings)
    warnings += dict.fromkeys(text for network in loaded.values() for text in network.warnings)
    random = "random" in [weights[task] for task, name in names.items() if name]
    if random:
        warnings.append("Weights are random as asked: the predictions mean nothing.")
    return Networks(
        depth=chosen["depth"],
        labels=labels,
        device=device,
        precision=precision,
        random=random,
        warnings=tuple(warnings),
        **label_fields(labels.spec if labels else None, settings, device),
    )


def _check(settings: Settings, device: torch.device) -> None:
    """Raise NetworkError if settings do not fit together, or the device."""
    precision, backend, on_cpu = settings.precision, settings.backend, device.type == "cpu"
    if precision == "fp16" and on_cpu and backend != "openvino":
        raise NetworkError(
            "precision is fp16, but a CPU computes half precision slower than single; "
            "set precision to auto, fp32 or bf16, or device to cuda."
        )
    if precision == "bf16" and backend == "onnxruntime":
        raise NetworkError(
            "precision is bf16, but backend onnxruntime computes fp32, or fp16 on a GPU; set"
            " precision to auto, or backend to torch."
        )
    if backend == "openvino" and not on_cpu:
        raise NetworkError(
            f"backend is openvino, which takes its images from the CPU, but device is {device};"
            " set device to cpu (openvino.device may be another), or backend to torch."
        )
    if settings.compile and backend != "torch":
        raise NetworkError(
            f"compile is true, but backend is {backend}, which torch.compile does not know; set"
            " compile to false, or backend to torch."
        )
    if settings.compile and on_cpu:
        raise NetworkError(
            "compile is true, but on a CPU torch.compile is slower than the modules built in; set"
            " compile to false, and backend to openvino for more speed."
        )


def _precision(settings: Settings, device: torch.device) -> str:
    if settings.precision != "auto":
        return settings.precision
    kind = device.type
    if settings.backend == "openvino":
        try:
            kind = find_device(settings.openvino_device).lower()
        except (BackendError, ImportError) as error:
            raise NetworkError(str(error)) from error
    return "fp32" if kind == "cpu" else "fp16"


def _backend_warnings(settings: Settings, device: torch.device, precision: str) -> list[str]:
    warnings = []
    emulated = precision == "bf16" and device.type == "cpu" and not supports_bf16()
    if emulated and settings.backend == "torch":
        warnings.append("precision is bf16, which this CPU emulates: fp32 is faster here.")
    if settings.compile:
        warnings.append("torch.compile is on: the first frame of a new size waits for it.")
    if device.type == "cuda":
        try:
            slower = kernels.probe(device)
        except RuntimeError as error:
            raise _unusable(device, error, "any work") from error
        warnings += [slower] if slower else []
    return warnings


def label_fields(
    spec: ModelSpec | None, settings: Settings, device: torch.device
) -> dict[str, Any]:
    """The fields of ``Networks`` about labels.

    Args:
        spec: of the label network; None if there is none.

    Raises:
        NetworkError: ``label_groups`` name a class that the network does not have.
    """
    if spec is None:
        return {"class_names": (), "palette": np.zeros((256, 3), np.uint8)}
    names, colors = class_names(spec.class_names), palette(spec.class_names)
    floor, groups = floor_ids(names), None
    if settings.label_groups:
        try:
            grouped = LabelGroups.parse(settings.label_groups, names, colors)
        except ValueError as error:
            raise NetworkError(f"label_groups: {error}") from error
        groups = grouped.matrix(len(names), device)
        names, colors = grouped.names, grouped.palette
        # A group is floor if half of its classes are: "other" is not, for one rug in it.
        of_class = grouped.table.tolist()
        counts = Counter(of_class[k] for k in floor)
        floor = tuple(k for k, n in counts.items() if 2 * n >= of_class.count(k))
    return {"class_names": names, "palette": colors, "groups": groups, "floor": floor}


def _check_scale(depth: Network | None, settings: Settings) -> None:
    source = settings.scale_source
    if source == "network" and depth is not None and not depth.spec.invert:
        raise NetworkError(
            f"scale.source is network, but {depth.spec.name} predicts relative inverse depth; set"
            " scale.source to auto, anchors or ground, or take a metric network."
        )
    if source == "ground" and not settings.scale_camera_height:
        raise NetworkError(
            "scale.source is ground, which needs scale.camera_height: set it, in metres."
        )


def choose_device(name: str) -> torch.device:
    """The device that a setting stands for.

    Args:
        name: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        NetworkError: torch finds no such GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise NetworkError(
                f"device is {name}, but torch {torch.__version__} finds no usable GPU; check the "
                "driver with nvidia-smi and that torch was built for CUDA, or set device to cpu."
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise NetworkError(
                f"device is {name}, but there are only {torch.cuda.device_count()} GPUs, "
                "counted from 0."
            )
    return device


def _choose(task: str, settings: Settings, warnings: list[str]) -> str | None:
    """The network's name that the settings stand for, None for no network."""
    network, file = _PARAMETERS[task]
    name, weights = (getattr(settings, parameter) for parameter in (network, file))
    if name == "none":
        return None
    if weights.endswith(".onnx"):
        found = _spec_in_file(Path(weights).expanduser(), file, settings).name
        if name not in ("auto", found):
            raise NetworkError(
                f"{network} is {name}, but {weights} holds a {found}; set {network} to auto."
            )
        return found
    if name != "auto":
        return name
    from dpt_ros.model import cached_checkpoint

    if not weights:
        for candidate in _PREFERRED[task]:
            if cached_checkpoint(candidate):
                warnings.append(f"{network}: {candidate}, found among the downloads.")
                return candidate
    elif weights not in ("download", "random"):
        from dpt_ros.model.describe import DescriptionError, described_spec

        try:
            described = described_spec(Path(weights).expanduser())
        except DescriptionError as error:
            raise NetworkError(f"{file}: {error}") from error
        if described is not None:
            warnings.append(f"{network}: {described.name}, as named in {weights}.")
            return described.name
    warnings.append(
        f"{network}: {EMBEDDED_NAME}, the small network that comes with the package, trained on a "
        f"synthetic world only; for a published one set {network} to {_PREFERRED[task][0]} and "
        f"{file} to download."
    )
    return EMBEDDED_NAME


def _create(name: str, weights: str, settings: Settings, task: str) -> DPT:
    network, file = _PARAMETERS[task]
    try:
        from dpt_ros.model import create_model
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        raise NetworkError(
            "torch and torchvision do not fit together (operator torchvision::nms is missing): "
            "install both from the same source and for the same device."
        ) from error
    if name not in list_models():
        raise NetworkError(f"{network}: {unknown_model(name)}")
    try:
        return create_model(name, weights=weights or None, weight_std=settings.weight_std)
    except (ValueError, OSError) as error:
        raise NetworkError(f"{name} cannot be loaded ({file}): {error}") from error


def _spec_in_file(path: Path, parameter: str, settings: Settings) -> ModelSpec:
    if settings.backend != "onnxruntime":
        raise NetworkError(
            f"{parameter} is {path}, an ONNX file, but backend is {settings.backend}; set backend"
            " to onnxruntime."
        )
    try:
        return spec_of(path)
    except OSError as error:
        raise NetworkError(f"{parameter}: {path} cannot be read: {error.strerror}.") from error
    except ExportError as error:
        raise NetworkError(f"{parameter}: {error}") from error


def _load(
    name: str, weights: str, task: str, device: torch.device, precision: str, settings: Settings
) -> Network:
    """A network that has run once."""
    size = 0
    try:
        if weights.endswith(".onnx"):
            path = Path(weights).expanduser()
            size = path.stat().st_size
            network = _from_file(path, task, device, settings)
        else:
            model = _create(name, weights, settings, task)
            size = sum(p.numel() for p in model.parameters()) * _DTYPES[precision].itemsize
            backend = make_backend(model, device, precision, settings, weights == "random")
            network = Network(model.spec, device, backend)
        spec = network.spec
        network.check(*network.input_size(spec.net_height, spec.net_width, settings))
    except (BackendError, ImportError) as error:
        raise NetworkError(str(error)) from error
    except RuntimeError as error:
        if device.type != "cuda":
            raise
        what = f"{name} (its weights alone take {size >> 20} MiB)"
        raise _unusable(device, error, what) from error
    return network


def make_backend(
    model: DPT, device: torch.device, precision: str, settings: Settings, random: bool = False
) -> Backend:
    """The backend that the settings name, with a network on it.

    Args:
        model: from ``create_model``; it is rewritten and must not be used otherwise.
        device: where images and results are.
        precision: "fp32", "fp16" or "bf16".
        random: whether the weights will not come again, see ``exported``.

    Raises:
        BackendError, ImportError, NetworkError: it cannot run here.
    """
    if settings.backend == "openvino":
        return OpenVinoModel(model, precision, settings.threads, settings.openvino_device)
    if settings.backend == "onnxruntime":
        try:
            path = exported(model, precision, random)
        except OSError as error:
            raise NetworkError(
                f"{model.spec.name} cannot be exported for ONNX Runtime: {error}. Set"
                " DPT_ROS_CACHE to a folder that can be written and has room."
            ) from error
        providers, threads = settings.onnxruntime_providers, settings.threads
        return OnnxRuntimeModel(path, model.spec, device, providers, precision, threads)
    return TorchModel(model, device, _DTYPES[precision], settings.compile)


def _from_file(path: Path, task: str, device: torch.device, settings: Settings) -> Network:
    """The network in an ONNX file, which runs as it is."""
    spec = _spec_in_file(path, _PARAMETERS[task][1], settings)
    precision = json.loads(read_metadata(path).get(PRECISION, '"fp32"'))
    if settings.precision not in ("auto", precision):
        raise NetworkError(
            f"precision is {settings.precision}, but {path} is in {precision}; set precision to"
            " auto."
        )
    providers, threads = settings.onnxruntime_providers, settings.threads
    backend = OnnxRuntimeModel(path, spec, device, providers, precision, threads)
    *_, height, width = backend.shape
    if isinstance(height, int) and isinstance(width, int):
        spec = replace(spec, net_height=height, net_width=width)
    return Network(spec, device, backend)


def _unusable(device: torch.device, error: RuntimeError, what: str) -> NetworkError:
    """The error to raise when a GPU fails while something is loaded onto it."""
    if not is_out_of_memory(error):
        return NetworkError(
            f"{device} fails: {first_line(error)} If it was lost while this process ran, only a"
            " new process can use it again."
        )
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    return NetworkError(
        f"The memory of {device} is too small for {what}: this process had {peak >> 20} MiB in use"
        f" when it ran out, and {free >> 20} of {total >> 20} MiB are free. End other processes"
        " that use the device, or choose a smaller network or input."
    )
