# SPDX-License-Identifier: Apache-2.0
"""The encoder of DPT: a vision transformer, plain or on top of a ResNet, tapped at four depths."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import GroupNormAct, LayerNorm, StdConv2dSame, pad_same, trunc_normal_
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn

from dpt_ros.model.zoo import Geometry, ResNetGeometry

PATCH = 16
"""Side of the square of pixels that becomes one token."""


WEIGHT_STDS = ("timm", "timm045")
"""Arithmetic of weight standardisation: of current timm, and of timm 0.4.5."""


class PlainConv2dSame(nn.Conv2d):
    """A weight-standardised convolution after its weights are folded."""

    def __init__(self, conv: StdConv2dSame, weight: Tensor) -> None:
        channels, steps = (conv.in_channels, conv.out_channels), (conv.stride, conv.padding)
        super().__init__(*channels, conv.kernel_size, *steps, bias=False, device="meta")
        self.weight = nn.Parameter(weight)
        self.same_pad = conv.same_pad

    def forward(self, x: Tensor) -> Tensor:
        if self.same_pad and torch.compiler.is_exporting():
            # Of any side that is a multiple of the stride; worked out from a side that is a
            # symbol, it would take the exporter minutes.
            total = [max(k - s, 0) for k, s in zip(self.kernel_size, self.stride, strict=True)]
            x = F.pad(x, [side for n in reversed(total) for side in (n // 2, n - n // 2)])
        elif self.same_pad:
            x = pad_same(x, self.kernel_size, self.stride)
        return super().forward(x)


class StdConv2dSame045(StdConv2dSame):
    """Weight-standardised convolution as timm 0.4.5 computed it: (w - mean) / (std + 1e-5)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.same_pad:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return F.conv2d(x, standardized_weight(self), None, self.stride, self.padding)


def standardized_weight(conv: StdConv2dSame) -> Tensor:
    """The weight standardised to zero mean and unit variance per output channel."""
    variance, mean = torch.var_mean(conv.weight, dim=(1, 2, 3), correction=0, keepdim=True)
    if isinstance(conv, StdConv2dSame045):
        return (conv.weight - mean) / (variance.sqrt() + 1e-5)
    return (conv.weight - mean) / (variance + conv.eps).sqrt()


def fold_weight_standardization(module: nn.Module) -> None:
    """Replace every weight-standardised convolution in ``module`` by an equal plain one.

    The weights are standardised once, in float64. Names of parameters stay. For inference only:
    training a folded network further would train another function.
    """
    for name, child in module.named_children():
        if isinstance(child, StdConv2dSame):
            with torch.no_grad():
                weight = standardized_weight(child.double()).float()
            folded = PlainConv2dSame(child, weight)
            setattr(module, name, folded.train(child.training))
        else:
            fold_weight_standardization(child)


def build_resnet(geometry: ResNetGeometry, weight_std: str) -> ResNetV2:
    """The convolutional stem of ViT-hybrid: three post-activation stages, stride 16.

    All paddings are TensorFlow's SAME, worked out from the input size.
    """
    conv = StdConv2dSame045 if weight_std == "timm045" else StdConv2dSame
    return ResNetV2(
        layers=geometry.layers,
        channels=geometry.widths,
        stem_chs=geometry.stem,
        bottle_ratio=geometry.bottle_ratio,
        num_classes=0,
        global_pool="",
        preact=False,
        stem_type="same",
        conv_layer=partial(conv, eps=1e-8),
        norm_layer=partial(GroupNormAct, num_groups=geometry.norm_groups, eps=1e-5),
    )


class Encoder(nn.Module):
    """Image to four taps.

    Image patches, or the stride-16 map of a ResNet, are embedded as tokens, join the readout
    token, receive their position embedding and pass the transformer's blocks (paper section 3.1).
    The taps are raw block outputs: no norm is applied to any of them.
    """

    def __init__(self, geometry: Geometry, weight_std: str = "timm") -> None:
        super().__init__()
        width = geometry.width
        self.resnet = None
        if geometry.resnet is None:
            self.patch_embed = nn.Conv2d(3, width, PATCH, PATCH)
        else:
            self.resnet = build_resnet(geometry.resnet, weight_std)
            self.patch_embed = nn.Conv2d(self.resnet.num_features, width, 1)
        self.stage_taps = geometry.stage_taps
        self.block_taps = geometry.block_taps
        self.grid = geometry.grid
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], width))
        norm = partial(LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(width, geometry.heads, qkv_bias=True, norm_layer=norm)
            for _ in range(geometry.depth)
        )
        self._positions: dict[tuple[int, int], Tensor] = {}
        self._positions_of: tuple | None = None
        self.init_weights()

    def init_weights(self) -> None:
        for block in self.blocks:
            block.apply(init_weights_vit_timm)
        trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.xavier_uniform_(self.patch_embed.weight.flatten(1))
        nn.init.zeros_(self.patch_embed.get_parameter("bias"))

    def forward(self, images: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Tap the network at four depths, finest first.

        Args:
            images: (B, 3, H, W), normalised; H and W multiples of 16.

        Returns:
            the taps, each a feature map (B, C, h, w) of the ResNet or tokens (B, 1 + N, D) with
            the readout token first, and the token grid (H / 16, W / 16).
        """
        tokens, grid, taps = self.embed(images)
        x = tokens + self.positions(grid)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.block_taps:
                taps.append(x)
        return taps, grid

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int], list[Tensor]]:
        """Tokens (B, 1 + N, D) without positions, the token grid, and the taps of the ResNet."""
        x, taps = images, []
        if self.resnet is not None:
            x = self.resnet.stem(x)
            for index, stage in enumerate(self.resnet.stages):
                x = stage(x)
                if index in self.stage_taps:
                    taps.append(x)
        x = self.patch_embed(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens, (x.shape[2], x.shape[3]), taps

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding for a token grid: (1, 1 + h * w, D).

        Resized bilinearly, without antialiasing, as published. Without gradients, the result is
        cached per grid until the parameter changes.
        """
        if grid == self.grid:
            return self.pos_embed
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._resized_positions(grid)
        source = self.pos_embed
        version = 0 if source.is_inference() else source._version
        state = (source.device, source.dtype, source.data_ptr(), version)
        if self._positions_of != state:
            self._positions.clear()
            self._positions_of = state
        if grid not in self._positions:
            self._positions[grid] = self._resized_positions(grid)
        return self._positions[grid]

    def _resized_positions(self, grid: tuple[int, int]) -> Tensor:
        readout, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        patches = patches.unflatten(1, self.grid).permute(0, 3, 1, 2)
        patches = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
        return torch.cat([readout, patches.flatten(2).transpose(1, 2)], dim=1)
