# SPDX-License-Identifier: Apache-2.0
"""What other runtimes compute of a network: from the normalised image to the outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from dpt_ros.model.dpt import DPT

NAMES = {"depth": "inverse_depth", "labels": "logits"}
"""Name of the output of each task."""


class Outputs(nn.Module):
    """A DPT up to inverse depth and logits, in the order of the spec's tasks.

    Args:
        model: folded; it is not copied.
        raw: leave out scale and shift of the inverse depth.
    """

    def __init__(self, model: DPT, raw: bool = False) -> None:
        super().__init__()
        self.model = model
        heads: dict[str, Callable[[Tensor], Tensor]] = {}
        if model.depth_head is not None:
            depth = copy.copy(model.depth_head)
            depth.invert = False
            if raw:
                depth.scale, depth.shift = 1.0, 0.0
            heads["depth"] = depth
        if model.label_head is not None:
            heads["labels"] = model.label_head
        self.heads = [heads[task] for task in model.spec.tasks]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> inverse depth (B, H, W), logits (B, C, H / 2, W / 2), as far as known;
        float32, whatever the format of the weights."""
        features = self.model.features(images.to(self.model.encoder.cls_token.dtype))
        return tuple(head(features).float() for head in self.heads)
