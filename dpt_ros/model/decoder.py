# SPDX-License-Identifier: Apache-2.0
"""The convolutional decoder of DPT: Reassemble (Read, Concatenate, Resample) and Fusion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int] | torch.Size

READOUTS = ("ignore", "add", "project")


def init_convolution(module: nn.Module) -> None:
    """Weights for training from scratch that keep the variance of the input."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Read(nn.Module):
    """Use of the readout token: (B, 1 + N, D) -> (B, N, D) (paper section 3.2).

    "ignore" drops it, "add" adds it to every other token, "project" concatenates it to every other
    token and projects the pair back to D with a linear layer and GELU.
    """

    def __init__(self, width: int, readout: str) -> None:
        super().__init__()
        self.readout = readout
        if readout == "project":
            self.project = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        patches, readout = tokens[:, 1:], tokens[:, :1]
        if self.readout == "ignore":
            return patches
        if self.readout == "add":
            return patches + readout
        return F.gelu(self.project(torch.cat([patches, readout.expand_as(patches)], dim=-1)))


class Reassemble(nn.Module):
    """Tokens to an image-like feature map: Read, Concatenate, Resample.

    Args:
        width: token width D.
        channels: channels of the map after Resample.
        features: channels of the decoder.
        factor: scale of the map relative to the token grid: 4, 2, 1 or 0.5.
        readout: see :class:`Read`.
    """

    def __init__(
        self, width: int, channels: int, features: int, factor: float, readout: str
    ) -> None:
        super().__init__()
        self.read = Read(width, readout)
        self.project = nn.Conv2d(width, channels, 1)
        self.resample: nn.Module
        if factor > 1:
            self.resample = nn.ConvTranspose2d(channels, channels, int(factor), int(factor))
        elif factor < 1:
            self.resample = nn.Conv2d(channels, channels, 3, stride=round(1 / factor), padding=1)
        else:
            self.resample = nn.Identity()
        self.out = nn.Conv2d(channels, features, 3, padding=1, bias=False)
        self.apply(init_convolution)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, 1 + h * w, D) -> (B, features, factor * h, factor * w)."""
        x = self.read(tokens)
        x = x.transpose(1, 2).unflatten(2, grid)
        x = self.resample(self.project(x))
        return self.out(x)


class ReassembleMap(nn.Module):
    """A feature map of the ResNet is an image already: only its channels are adapted."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.out = nn.Conv2d(channels, features, 3, padding=1, bias=False)
        self.apply(init_convolution)

    def forward(self, feature_map: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.out(feature_map)


class ResidualConvUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), each convolution followed by batch norm if ``batch_norm``."""

    def __init__(self, features: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1, bias=not batch_norm)
        self.norm1 = nn.BatchNorm2d(features) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=not batch_norm)
        self.norm2 = nn.BatchNorm2d(features) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(F.relu(x)))
        return x + self.norm2(self.conv2(F.relu(y)))


class Fusion(nn.Module):
    """One RefineNet stage: add the reassembled map to the path from below, refine, upsample.

    Args:
        features: channels.
        batch_norm: whether the residual units have it (the published label networks do).
        deepest: the first stage of the decoder, which has no path from below.
    """

    def __init__(self, features: int, batch_norm: bool, deepest: bool = False) -> None:
        super().__init__()
        self.skip_unit = None if deepest else ResidualConvUnit(features, batch_norm)
        self.unit = ResidualConvUnit(features, batch_norm)
        self.out = nn.Conv2d(features, features, 1)
        self.apply(init_convolution)

    def forward(self, feature_map: Tensor, path: Tensor | None, size: Size) -> Tensor:
        """(B, F, h, w), and a path of the same shape -> (B, F, *size)."""
        x = feature_map
        if self.skip_unit is not None and path is not None:
            x = path + self.skip_unit(feature_map)
        # The published order is upsample, then 1x1 convolution. The two commute, because the
        # bilinear weights sum to one, and this order costs a quarter.
        x = self.out(self.unit(x))
        return F.interpolate(x, size=list(size), mode="bilinear", align_corners=True)
