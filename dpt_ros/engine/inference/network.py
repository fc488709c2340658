# SPDX-License-Identifier: Apache-2.0
"""Networks made ready to run: chosen by the settings, loaded, on their device, warmed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dpt_ros.data import class_names, palette
from dpt_ros.engine.faults import AccelerationError, first_line, is_out_of_memory
from dpt_ros.engine.inference import kernels
from dpt_ros.engine.inference.cpu_modules import pack, supports_bf16, unavailable
from dpt_ros.engine.inference.fold import fold
from dpt_ros.engine.inference.gpu_modules import fuse
from dpt_ros.engine.input.preprocess import network_size
from dpt_ros.engine.output.label_groups import LabelGroups
from dpt_ros.engine.scale.ground import floor_ids
from dpt_ros.engine.settings import Settings
from dpt_ros.model.zoo import list_models, unknown_model

if TYPE_CHECKING:
    from dpt_ros.model import DPT

EMBEDDED = "dpt_hybrid_embedded"
# Pixels of an input, over those that the network aims at; 5 is a panorama, 115 no robot's memory.
MOST_AREA = 16
# What ``auto`` prefers among the checkpoints that are already on this machine.
_PREFERRED = {
    "depth": ("dpt_hybrid_nyu", "dpt_hybrid_kitti", "dpt_hybrid_midas", "dpt_large_midas"),
    "labels": ("dpt_hybrid_ade20k", "dpt_large_ade20k"),
}
_PARAMETERS = {
    "depth": ("depth_network", "depth_weights"),
    "labels": ("label_network", "label_weights"),
}
# A metric network that answers within this share of its largest depth means "beyond".
_SATURATED = 0.98
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class NetworkError(Exception):
    """The networks cannot be made ready; the message says why and what to do."""


class Network:
    """One DPT made ready to run: folded, in its number format, with fused operations.

    Args:
        model: what ``create_model`` gave; it is rewritten and must not be used otherwise.
        device: where it runs.
        dtype: of weights and activations; a metric head computes its metres in float32.
        backend: "torch", or "openvino" on a CPU.
        threads: of the CPU; 0 leaves the choice to the backend. Used by openvino only.
        compiled: rewrite it with torch.compile, which happens at the first call of each shape.

    Attributes:
        input_dtype: what ``images`` are best given in.
        notes: sentences on what is not as it should be.

    Raises:
        ImportError: openvino is asked for and not installed; the message says how to get it.
    """

    def __init__(
        self,
        model: DPT,
        device: torch.device,
        dtype: torch.dtype,
        backend: str = "torch",
        threads: int = 0,
        compiled: bool = False,
    ) -> None:
        self.spec = model.spec
        self.device = device
        self.dtype = dtype
        self.input_dtype = torch.float32 if backend == "openvino" else dtype
        self.notes: tuple[str, ...] = ()
        self._compiled = compiled and backend == "torch"
        fold(model)
        model.requires_grad_(False)
        if model.depth_head is not None:
            model.depth_head.invert = False  # metres are made at the end, after scale and filter
        self._predict: Callable[[Tensor, bool, bool], dict[str, Tensor]]
        if backend == "openvino":
            from dpt_ros.engine.inference.openvino import OpenVinoModel

            runs = OpenVinoModel(model, "bf16" if dtype == torch.bfloat16 else "fp32", threads)
            self._predict = lambda images, depth, labels: runs(images)
            return
        if device.type == "cpu":
            self._prepare_for_cpu(model)
        else:
            self._prepare_for_gpu(model)
        self._predict = self._plain = partial(_predict, model)
        if compiled:
            self._predict = torch.compile(
                self._predict, mode="max-autotune-no-cudagraphs", dynamic=False
            )

    def _prepare_for_cpu(self, model: DPT) -> None:
        problem = unavailable(self.dtype)
        if problem is None:
            pack(model, self.dtype)
            return
        model.to(self.dtype).to(memory_format=torch.channels_last)
        self.notes = (f"The networks run on the CPU without oneDNN, which is slower: {problem}",)

    def _prepare_for_gpu(self, model: DPT) -> None:
        fuse(model)
        model.to(self.device, self.dtype).to(memory_format=torch.channels_last)

    def input_size(self, height: int, width: int, settings: Settings) -> tuple[int, int]:
        """(height, width) at which a picture of the given size enters this network.

        Raises:
            ValueError: the picture is so long that this would be more than `MOST_AREA` times the
                pixels that the network aims at. The published rule keeps the shorter side.
        """
        aim_height = settings.input_height or self.spec.net_height
        aim_width = settings.input_width or self.spec.net_width
        size = network_size(height, width, aim_height, aim_width, self.spec.multiple_of)
        if size[0] * size[1] > MOST_AREA * aim_height * aim_width:
            raise ValueError(
                f"An image of {width}x{height} would enter the network as {size[1]}x{size[0]}"
                f" pixels, more than {MOST_AREA} times {aim_width}x{aim_height}; crop it."
            )
        return size

    @torch.inference_mode()
    def __call__(
        self, images: Tensor, depth: bool = True, labels: bool = True
    ) -> dict[str, Tensor]:
        """Run the network.

        Args:
            images: (B, 3, H, W), normalised, on the network's device.
            depth: whether depth is wanted.
            labels: whether labels are wanted.

        Returns:
            as far as requested and known: "inverse_depth" (B, H, W) float32, 1/m from a metric
            network, else relative; "logits" (B, C, H / 2, W / 2), before the head's last
            upsampling.

        Raises:
            AccelerationError: a kernel, or torch.compile, fails at this shape.
        """
        images = images.to(self.input_dtype)
        if not self._compiled:
            return self._predict(images, depth, labels)
        try:
            return self._predict(images, depth, labels)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # whatever dynamo, inductor, Triton or a C compiler raise
            if is_out_of_memory(error):
                raise
            raise AccelerationError(
                f"torch.compile fails for {self.spec.name}, so it runs without, which is slower:"
                f" {first_line(error)}",
                self._compile_no_more,
            ) from error

    def check(self, height: int, width: int) -> None:
        """Run it once on a black picture of the given size, and turn off, with a note, whatever
        makes it faster and cannot be used."""
        while True:
            try:
                self(torch.zeros(1, 3, height, width, device=self.device))
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                return
            except AccelerationError as error:
                error.turn_off()
                self.notes += (str(error),)

    def _compile_no_more(self) -> None:
        self._compiled, self._predict = False, self._plain


def _predict(model: DPT, images: Tensor, depth: bool, labels: bool) -> dict[str, Tensor]:
    features = model.features(images)
    outputs: dict[str, Tensor] = {}
    if depth and model.depth_head is not None:
        outputs["inverse_depth"] = model.depth_head(features)
    if labels and model.label_head is not None:
        outputs["logits"] = model.label_head.logits(features)
    return outputs


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
        groups: (G, C) membership of the network's classes in label groups, on the device; None
            where labels are the network's own classes.
        floor: ids of the labels on which a robot stands.
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
    groups: Tensor | None = None
    floor: tuple[int, ...] = ()

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
    def farthest(self) -> float:
        """Metres beyond which the network's depth only says "farther"; inf if it has no limit."""
        if self.depth is None or not self.depth.spec.invert or not self.depth.spec.shift:
            return float("inf")
        return _SATURATED / self.depth.spec.shift


def load_networks(settings: Settings) -> Networks:
    """Choose, load, check and warm the networks that the settings ask for.

    Raises:
        NetworkError: a device, a name or a file is wrong; the message says what to do.
    """
    device = choose_device(settings.device)
    precision = settings.precision
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise NetworkError(
            "precision is fp16, but a CPU computes half precision slower than single; "
            "set precision to auto, fp32 or bf16, or device to cuda."
        )
    if settings.backend == "openvino" and device.type != "cpu":
        raise NetworkError(
            f"backend is openvino, which runs on the CPU, but device is {device}; set device to"
            " cpu or backend to torch."
        )
    if settings.compile and device.type == "cpu":
        raise NetworkError(
            "compile is true, but on a CPU torch.compile is slower than what is built in; set"
            " compile to false, and backend to openvino for more speed."
        )
    if settings.threads:
        torch.set_num_threads(settings.threads)

    notes: list[str] = []
    if precision == "bf16" and device.type == "cpu" and not supports_bf16():
        notes.append("precision is bf16, which this CPU has to emulate: fp32 is faster here.")
    if settings.compile:
        notes.append("torch.compile is at work; the first frame of a new size waits for it.")
    if device.type == "cuda":
        try:
            slower = kernels.probe(device)
        except RuntimeError as error:
            raise _unusable(device, error, "any work") from error
        notes += [slower] if slower else []
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
            model = _create(name, weights[task], settings, task)
            ready[key] = _on_device(model, device, _DTYPES[precision], settings)
        if task not in ready[key].spec.tasks:
            raise NetworkError(
                f"{name} predicts {' and '.join(ready[key].spec.tasks)}, not {task}; "
                f"set {_PARAMETERS[task][0]} to another network or to none."
            )
        chosen[task] = ready[key]
    _check_scale(chosen["depth"], settings)
    notes += dict.fromkeys(note for network in ready.values() for note in network.notes)
    random = "random" in [weights[task] for task, name in names.items() if name]
    if random:
        notes.append("Weights are random as asked: the predictions mean nothing.")
    labels = chosen["labels"]
    classes: tuple[str, ...] = ()
    floor: tuple[int, ...] = ()
    colors, groups = np.zeros((256, 3), np.uint8), None
    if labels is not None:
        classes = class_names(labels.spec.class_names)
        colors = palette(labels.spec.class_names)
        floor = floor_ids(classes)
        if settings.label_groups:
            grouped = _groups(settings.label_groups, classes, colors)
            groups = grouped.matrix(len(classes), device)
            classes, colors = grouped.names, grouped.palette
            # A group is floor if half of its classes are: "other" is not, for one rug in it.
            of_class = grouped.table.tolist()
            counts = Counter(of_class[k] for k in floor)
            floor = tuple(k for k, n in counts.items() if 2 * n >= of_class.count(k))
    return Networks(
        depth=chosen["depth"],
        labels=labels,
        device=device,
        precision=precision,
        class_names=classes,
        palette=colors,
        random=random,
        notes=tuple(notes),
        groups=groups,
        floor=floor,
    )


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


def _groups(lines: tuple[str, ...], classes: tuple[str, ...], colors: np.ndarray) -> LabelGroups:
    try:
        return LabelGroups.parse(lines, classes, colors)
    except ValueError as error:
        raise NetworkError(f"label_groups: {error}") from error


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
    elif weights not in ("download", "random"):
        from dpt_ros.model.describe import DescriptionError, described_spec

        try:
            described = described_spec(Path(weights).expanduser())
        except DescriptionError as error:
            raise NetworkError(f"{file}: {error}") from error
        if described is not None:
            notes.append(f"{network}: {described.name}, as named in {weights}.")
            return described.name
    notes.append(
        f"{network}: {EMBEDDED}, the small network that comes with the package and knows a "
        f"synthetic world only; for a published one set {network} to {_PREFERRED[task][0]} and "
        f"{file} to download."
    )
    return EMBEDDED


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


def _on_device(
    model: DPT, device: torch.device, dtype: torch.dtype, settings: Settings
) -> Network:
    spec = model.spec
    weights = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    try:
        network = Network(
            model, device, dtype, settings.backend, settings.threads, settings.compile
        )
        height, width = network.input_size(spec.net_height, spec.net_width, settings)
        network.check(height, width)
    except ImportError as error:
        raise NetworkError(str(error)) from error
    except RuntimeError as error:
        if device.type != "cuda":
            raise
        what = f"{spec.name} (its weights alone take {weights >> 20} MiB)"
        raise _unusable(device, error, what) from error
    return network


def _unusable(device: torch.device, error: RuntimeError, what: str) -> NetworkError:
    """What to say of an error of a GPU on which something was to be made ready."""
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
