# SPDX-License-Identifier: Apache-2.0
"""The task heads of DPT: depth and semantic labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpt_ros.model.decoder import init_convolution

MIN_INVERSE_DEPTH = 1e-8


class DepthHead(nn.Module):
    """Decoder features at half the input size -> depth at the input size (paper, appendix).

    The convolutions predict a non-negative x. Relative networks (``invert`` false) give
    ``scale * x + shift`` with 1 and 0: relative inverse depth. Metric ones give metres,
    ``1 / (scale * x + shift)``, at most 1 / shift.
    """

    def __init__(
        self,
        features: int,
        widths: tuple[int, int],
        scale: float = 1.0,
        shift: float = 0.0,
        invert: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, widths[0], 3, padding=1)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, padding=1)
        self.conv3 = nn.Conv2d(widths[1], 1, 1)
        self.scale, self.shift, self.invert = scale, shift, invert
        self.init_weights()

    def init_weights(self) -> None:
        self.apply(init_convolution)
        # Training from scratch starts at an inverse depth of 1/3 per metre everywhere.
        start = (1 / 3 - self.shift) / self.scale
        nn.init.normal_(self.conv3.weight, std=0.01 * abs(start))
        nn.init.constant_(self.conv3.get_parameter("bias"), start)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F, H / 2, W / 2) -> (B, H, W), float32 at least."""
        x = upsample2(self.conv1(features))
        x = F.relu(self.conv2(x)).to(self.conv3.weight.dtype)
        x = F.relu(self.conv3(x)).squeeze(1)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return to_depth(x, self.scale, self.shift, self.invert)


class SegmentationHead(nn.Module):
    """Decoder features -> class logits, both at half the input size."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(features)
        self.dropout = nn.Dropout(0.1)
        self.classify = nn.Conv2d(features, num_classes, 1)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.get_parameter("bias"))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F, h, w) -> (B, C, h, w)."""
        return self.classify(self.dropout(F.relu(self.norm(self.conv(features)))))


def to_depth(x: Tensor, scale: float, shift: float, invert: bool) -> Tensor:
    """``scale * x + shift``, and metres, its reciprocal, if ``invert``; see `DepthHead`."""
    x = scale * x + shift
    return x.clamp(min=MIN_INVERSE_DEPTH).reciprocal() if invert else x


def upsample2(x: Tensor) -> Tensor:
    """Twice the size, bilinear, corners aligned."""
    size = (2 * x.shape[2], 2 * x.shape[3])
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
