# SPDX-License-Identifier: Apache-2.0
"""A network that runs: a DPT folded, in its number format, with the operations of its device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.faults import AccelerationError, first_line, is_out_of_memory
from dpt_ros.engine.inference.cpu_modules import pack, unavailable
from dpt_ros.engine.inference.fold import fold
from dpt_ros.engine.inference.gpu_modules import fuse
from dpt_ros.engine.input.preprocess import network_size
from dpt_ros.engine.settings import Settings
from dpt_ros.model.heads import MIN_INVERSE_DEPTH

if TYPE_CHECKING:
    from dpt_ros.model import DPT

# Most pixels of an input, relative to the size that the network aims at; a panorama has 5.
MOST_AREA = 16
# Depth beyond this share of a metric network's largest depth only means "farther".
_SATURATED = 0.98


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
        input_dtype: of ``images``; others are converted.
        warnings: of what is slower than it could be.

    Raises:
        ImportError: openvino is not installed; the message says how to install it.
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
        self.warnings: tuple[str, ...] = ()
        self._compiled = compiled and backend == "torch"
        if model.depth_head is not None:
            model.depth_head.invert = False  # metres are made at the end, after scale and filter
        self._predict: Callable[[Tensor, bool, bool], dict[str, Tensor]]
        if backend == "openvino":
            from dpt_ros.engine.inference.openvino import OpenVinoModel

            openvino = OpenVinoModel(model, "bf16" if dtype == torch.bfloat16 else "fp32", threads)
            self._predict = lambda images, depth, labels: openvino(images)
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
        fold(model)
        model.to(self.dtype).to(memory_format=torch.channels_last)
        self.warnings = (
            f"The networks run on the CPU without oneDNN, which is slower: {problem}",
        )

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
            depth, labels: whether to predict them.

        Returns:
            As far as requested and known: "inverse_depth" (B, H, W) float32, 1/m from a metric
            network, else relative; "logits" (B, C, H / 2, W / 2), before the last upsampling.

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
        except Exception as error:  # any, from dynamo, inductor, Triton or a C compiler
            if is_out_of_memory(error):
                raise
            raise AccelerationError(
                f"torch.compile fails for {self.spec.name}, so it runs without, which is slower:"
                f" {first_line(error)}",
                self._stop_compiling,
            ) from error

    def check(self, height: int, width: int) -> None:
        """Run it once on a black picture of the given size; accelerations that fail are turned
        off, with a warning."""
        while True:
            try:
                self(torch.zeros(1, 3, height, width, device=self.device))
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                return
            except AccelerationError as error:
                error.turn_off()
                self.warnings += (str(error),)

    def _stop_compiling(self) -> None:
        self._compiled, self._predict = False, self._plain


def _predict(model: DPT, images: Tensor, depth: bool, labels: bool) -> dict[str, Tensor]:
    features = model.features(images)
    outputs: dict[str, Tensor] = {}
    if depth and model.depth_head is not None:
        outputs["inverse_depth"] = model.depth_head(features)
    if labels and model.label_head is not None:
        outputs["logits"] = model.label_head(features)
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
        random: whether any weights are random, so that predictions are meaningless.
        warnings: to be shown to the user once.
    """

    depth: Network | None
    labels: Network | None
    device: torch.device
    precision: str
    class_names: tuple[str, ...]
    palette: np.ndarray
    random: bool
    warnings: tuple[str, ...]
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
        """Metres beyond which a metric network's depth only means "farther"; inf for others."""
        return _SATURATED / self.least if self.least else float("inf")

    @property
    def least(self) -> float:
        """The smallest inverse depth of a metric network, 1/m; 0 for others."""
        return max(self.depth.spec.shift, MIN_INVERSE_DEPTH) if self.depth and self.metric else 0.0
