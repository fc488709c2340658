# SPDX-License-Identifier: Apache-2.0
"""A network that runs, on whatever backend, and the networks of a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.faults import AccelerationError
from dpt_ros.engine.inference.backend import Backend, Maps
from dpt_ros.engine.input.preprocess import network_size
from dpt_ros.engine.settings import Settings
from dpt_ros.model.heads import MIN_INVERSE_DEPTH
from dpt_ros.model.zoo import ModelSpec

# Most pixels of an input, relative to the size that the network aims at; a panorama has 5.
MOST_AREA = 16
# Depth beyond this share of a metric network's largest depth only means "farther".
_SATURATED = 0.98


class Network:
    """A network on its backend.

    Args:
        spec: what it predicts, and from which images.
        device: where images and results are.
        backend: what computes them.

    Attributes:
        warnings: of what is slower than it could be.
    """

    def __init__(self, spec: ModelSpec, device: torch.device, backend: Backend) -> None:
        self.spec = spec
        self.device = device
        self.backend = backend
        self.warnings = backend.warnings

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
    def __call__(self, images: Tensor, depth: bool = True, labels: bool = True) -> Maps:
        """As `Backend`, of images (B, 3, H, W) of any floating type."""
        return self.backend(images.to(self.backend.input_dtype), depth, labels)

    def retried(
        self, warn: Callable[[str], None], images: Tensor, depth: bool = True, labels: bool = True
    ) -> Maps:
        """As a call; accelerations that fail are turned off, with a message to ``warn``."""
        while True:
            try:
                return self(images, depth, labels)
            except AccelerationError as error:
                error.turn_off()
                warn(str(error))

    def check(self, height: int, width: int) -> None:
        """Run it once on a black picture of the given size; see ``retried``."""
        new: list[str] = []
        self.retried(new.append, torch.zeros(1, 3, height, width, device=self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.warnings += tuple(new)


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
    random: bool = False
    warnings: tuple[str, ...] = ()
    groups: Tensor | None = None
    floor: tuple[int, ...] = ()

    @property
    def depth_name(self) -> str | None:
        return self.depth.spec.name if self.depth else None

    @property
    def label_name(self) -> str | None:
        return self.labels.spec.name if self.labels else None

    @property
    def capturable(self) -> bool:
        """Whether the networks' work can be captured in a CUDA graph."""
        return all(one.backend.capturable for one in (self.depth, self.labels) if one)

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
