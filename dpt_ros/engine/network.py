# SPDX-License-Identifier: Apache-2.0
"""Networks made ready to run: chosen by the settings, loaded, on their device, warmed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dpt_ros.data import class_names, palette
from dpt_ros.engine.preprocess import network_size
from dpt_ros.engine.settings import Settings

if TYPE_CHECKING:
    from dpt_ros.model import DPT

EMBEDDED = "dpt_hybrid_embedded"
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
    """The networks cannot be made ready; the message says why and what to do."""


class Network:
    """One DPT in eval mode on its device and in its number format.

    Args:
        model: what ``create_model`` gave.
        device: where it runs.
        dtype: of weights and activations; a metric head computes its metres in float32.
    """

    def __init__(self, model: DPT, device: torch.device, dtype: torch.dtype) -> None:
        self.spec = model.spec
        self.device = device
        self.dtype = dtype
        self._model = model.to(device, dtype).to(memory_format=torch.channels_last)
        self._model.requires_grad_(False)

    def input_size(self, height: int, width: int, settings: Settings) -> tuple[int, int]:
        """(height, width) at which a picture of the given size enters this network."""
        return network_size(
            height,
            width,
            settings.input_height or self.spec.net_height,
            settings.input_width or self.spec.net_width,
            self.spec.multiple_of,
        )

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the network.

        Args:
            images: (B, 3, H, W) float32, normalised, on the network's device.

        Returns:
            By task: "depth" (B, H, W) float32, relative inverse depth or metres; "labels":
            logits (B, C, H, W).
        """
        with torch.inference_mode():
            result = self._model(images.to(self.dtype))
        return result if isinstance(result, dict) else {self.spec.tasks[0]: result}


@dataclass(frozen=True)
class Networks:
    """The networks of a node: one for depth, one for labels, or one object for both.

    Args:
        depth: predicts depth, None if nothing does.
        labels: predicts labels, None if nothing does.
        device: where they run.
        precision: "fp32", "fp16" or "bf16".
        class_names: names of the classes; that of id k + 1 is at k.
        palette: (256, 3) uint8 RGB, indexed by id.
        random: whether any weights are random, so that nothing predicted means anything.
        notes: sentences that whoever runs the networks should read once.
    """

    depth: Network | None
    labels: Network | None
    device: torch.device
    precision: str
    class_names: tuple[str, ...]
    palette: np.ndarray
    random: bool
    notes: tuple[str, ...]

    @property
    def depth_name(self) -> str | None:
        return self.depth.spec.name if self.depth else None

    @property
    def label_name(self) -> str | None:
        return self.labels.spec.name if self.labels else None

    @property
    def metric(self) -> bool:
        """Whether depth comes in metres; else it is relative inverse depth."""
        return self.depth is not None and self.depth.spec.invert

    @property
    def max_depth(self) -> float | None:
        """The largest depth in metres that the depth network can say, None if it has no limit."""
        if self.depth is None or not self.depth.spec.invert or not self.depth.spec.shift:
            return None
        return 1.0 / self.depth.spec.shift


def load_networks(settings: Settings) -> Networks:
    """Choose, load, check and warm the networks that the settings ask for.

    Raises:
        NetworkError: a device, a name or a file is wrong; the message says what to do.
    """
    device = _device(settings.device)
    precision = settings.precision
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise NetworkError(
            "precision is fp16, but a CPU computes half precision slower than single; "
            "set precision to auto, fp32 or bf16, or device to cuda."
        )
    if settings.threads:
        torch.set_num_threads(settings.threads)

    notes: list[str] = []
    names = {
        "depth": _choose("depth", settings.depth_network, settings.depth_weights, notes),
        "labels": _choose("labels", settings.label_network, settings.label_weights, notes),
    }
    weights = {"depth": settings.depth_weights, "labels": settings.label_weights}
    if not any(names.values()):
        raise NetworkError(
            "depth_network and label_network are both none, so there is nothing to compute; "
            "name at least one network."
        )
    ready: dict[tuple[str, str], Network] = {}
    chosen: dict[str, Network | None] = {"depth": None, "labels": None}
    for task, name in names.items():
        if name is None:
            continue
        key = (name, weights[task])
        if key not in ready:
            model = _create(name, weights[task], settings, _PARAMETERS[task][1])
            ready[key] = _on_device(model, device, _DTYPES[precision])
        if task not in ready[key].spec.tasks:
            raise NetworkError(
                f"{name} predicts {' and '.join(ready[key].spec.tasks)}, not {task}; "
                f"set {_PARAMETERS[task][0]} to another network or to none."
            )
        chosen[task] = ready[key]
    random = "random" in [weights[task] for task, name in names.items() if name]
    if random:
        notes.append("Weights are random as asked: the predictions mean nothing.")
    labels = chosen["labels"]
    classes = class_names(labels.spec.class_names) if labels else ()
    return Networks(
        depth=chosen["depth"],
        labels=labels,
        device=device,
        precision=precision,
        class_names=classes,
        palette=palette(labels.spec.class_names) if labels else np.zeros((256, 3), np.uint8),
        random=random,
        notes=tuple(notes),
    )


def _device(name: str) -> torch.device:
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


def _choose(task: str, name: str, weights: str, notes: list[str]) -> str | None:
    """The network's name that a setting stands for, None for no network."""
    if name == "none":
        return None
    if name != "auto":
        return name
    from dpt_ros.model import cached_checkpoint

    network, file = _PARAMETERS[task]
    if not weights:
        for candidate in _PREFERRED[task]:
            if cached_checkpoint(candidate):
                notes.append(f"{network}: {candidate}, found among the downloads.")
                return candidate
    notes.append(
        f"{network}: {EMBEDDED}, the small network that comes with the package and knows a "
        f"synthetic world only; for a published one set {network} to {_PREFERRED[task][0]} and "
        f"{file} to download."
    )
    return EMBEDDED


def _create(name: str, weights: str, settings: Settings, parameter: str) -> DPT:
    try:
        from dpt_ros.model import create_model
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        raise NetworkError(
            "torch and torchvision do not fit together (operator torchvision::nms is missing): "
            "install both from the same source and for the same device."
        ) from error
    try:
        return create_model(name, weights=weights or None, weight_std=settings.weight_std)
    except (ValueError, OSError) as error:
        raise NetworkError(f"{name} cannot be loaded ({parameter}): {error}") from error


def _on_device(model: DPT, device: torch.device, dtype: torch.dtype) -> Network:
    try:
        network = Network(model, device, dtype)
        spec = network.spec
        network(torch.zeros(1, 3, spec.net_height, spec.net_width, device=device))
    except torch.cuda.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info(device)
        raise NetworkError(
            f"{model.spec.name} does not fit into the memory of {device}: {free >> 20} of "
            f"{total >> 20} MiB are free; end what else uses it, or choose a smaller network."
        ) from error
    return network
