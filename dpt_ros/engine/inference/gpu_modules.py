# SPDX-License-Identifier: Apache-2.0
"""Modules of a DPT that call the fused operations of ``kernels``: fewer, larger GPU kernels.

The convolutions and matrix products stay torch's. The operations between them are one call each:
norm, shortcut and ReLU; bias and ReLU; upsampling, skip, bias and ReLU; addition and LayerNorm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import GroupNormAct
from timm.models.resnetv2 import Bottleneck
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dpt_ros.engine.inference import kernels
from dpt_ros.engine.inference.fold import fold
from dpt_ros.model.decoder import Fusion, Read, ResidualConvUnit, Size
from dpt_ros.model.dpt import DPT
from dpt_ros.model.encoder import Encoder
from dpt_ros.model.heads import DepthHead, SegmentationHead

# Tensor cores need the sides of half-precision products in multiples of 16 bytes.
_ALIGNMENT = 8


def fuse(model: DPT) -> None:
    """Replace the model's modules, in place, by ones that use the fused operations.

    Works on any device and in any number format; best called before ``model`` is moved to either.
    The network is folded first. Names of parameters change: load weights before.

    Args:
        model: in eval mode; for inference only from now on.

    Raises:
        ValueError: the model is in training mode, fused already, or has parts that the fused
            modules do not compute.
    """
    if model.training:
        raise ValueError("A network in training mode cannot be fused; call eval() first.")
    if not isinstance(model.encoder, Encoder):
        raise ValueError("The network is fused already.")
    fold(model)
    modules: dict[str, nn.Module] = {"encoder": FusedEncoder(model.encoder)}
    stages: list[Any] = list(model.fusion)
    modules["fusion"] = nn.ModuleList(
        FusedFusion(stage, last=stage is stages[0]) for stage in stages
    )
    if model.depth_head is not None:
        modules["depth_head"] = FusedDepthHead(model.depth_head)
    if model.label_head is not None:
        modules["label_head"] = FusedLabelHead(model.label_head)
    reassemble: Any
    for reassemble in model.reassemble:
        if isinstance(read := getattr(reassemble, "read", None), Read):
            reassemble.read = FusedRead(read) if read.readout == "project" else read
            reassemble.project = Pointwise(reassemble.project)
    for name, module in modules.items():
        setattr(model, name, module.eval())


class Pointwise(nn.Module):
    """A 1x1 convolution with bias, as a matrix product, which adds the bias itself."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.channels = conv.out_channels
        # Rows of zeros up to a multiple that tensor cores take; their results are cut off.
        padding = -self.channels % _ALIGNMENT
        self.weight = nn.Parameter(F.pad(conv.weight.detach().flatten(1), (0, 0, 0, padding)))
        self.bias = nn.Parameter(F.pad(conv.get_parameter("bias").detach(), (0, padding)))

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        y = F.linear(pixels.flatten(0, 2), self.weight, self.bias)
        return y.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)[:, : self.channels]


class FusedNorm(nn.Module):
    """GroupNormAct, and the shortcut of a bottleneck where there is one."""

    def __init__(self, norm: GroupNormAct, relu: bool | None = None) -> None:
        super().__init__()
        _only(norm.drop, nn.Identity)
        _only(norm.act, nn.Identity, nn.ReLU)
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps = norm.num_groups, norm.eps
        self.relu = isinstance(norm.act, nn.ReLU) if relu is None else relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return kernels.group_norm_act(
            x, self.weight, self.bias, self.groups, self.eps, residual, self.relu
        )


class FusedBottleneck(nn.Module):
    """timm's post-activation Bottleneck; its last norm, shortcut and ReLU are one."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        _only(block.drop_path, nn.Identity)
        _only(block.act3, nn.ReLU)
        self.downsample = block.downsample
        self.conv1, self.norm1 = block.conv1, FusedNorm(block.norm1)
        self.conv2, self.norm2 = block.conv2, FusedNorm(block.norm2)
        self.conv3, self.norm3 = block.conv3, FusedNorm(block.norm3, relu=True)
        if self.downsample is not None:
            _fuse_resnet(self.downsample)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.norm1(self.conv1(x))
        x = self.norm2(self.conv2(x))
        return self.norm3(self.conv3(x), shortcut)


def _fuse_resnet(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Bottleneck):
            setattr(module, name, FusedBottleneck(child))
        elif isinstance(child, GroupNormAct):
            setattr(module, name, FusedNorm(child))
        else:
            _fuse_resnet(child)


class FusedEncoder(nn.Module):
    """The encoder; each addition in the transformer is one with the LayerNorm that follows."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        block: Any
        for block in encoder.blocks:
            _only(block, Block)
            for part in (block.ls1, block.ls2, block.drop_path1, block.drop_path2):
                _only(part, nn.Identity)
            for norm in (block.norm1, block.norm2):
                _only(norm, nn.LayerNorm)
        self.encoder = encoder
        if encoder.resnet is not None:
            _fuse_resnet(encoder.resnet)
            encoder.add_module("patch_embed", Pointwise(encoder.patch_embed))

    def forward(self, images: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """See :class:`dpt_ros.model.encoder.Encoder`."""
        encoder = self.encoder
        images = images.contiguous(memory_format=torch.channels_last)
        tokens, grid, taps = encoder.embed(images)
        blocks: list[Any] = list(encoder.blocks)
        x, normed = _add_norm(tokens, encoder.positions(grid).expand_as(tokens), blocks[0].norm1)
        for index, block in enumerate(blocks):
            x, normed = _add_norm(x, block.attn(normed), block.norm2)
            y = block.mlp(normed)
            if index + 1 < len(blocks):
                x, normed = _add_norm(x, y, blocks[index + 1].norm1)
            else:
                x = x + y
            if index in encoder.block_taps:
                taps.append(x)
        return taps, grid


def _add_norm(x: Tensor, y: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return kernels.add_layer_norm(x, y, norm.weight, norm.bias, norm.eps)


class FusedRead(nn.Module):
    """Read "project": a linear layer of the pair is the sum of one of each.

    The readout token's part is computed once instead of once per token.
    """

    def __init__(self, read: Read) -> None:
        super().__init__()
        tokens, readout = read.project.weight.detach().chunk(2, dim=1)
        self.tokens = nn.Parameter(tokens.contiguous())
        self.readout = nn.Parameter(readout.contiguous())
        self.bias = nn.Parameter(read.project.bias.detach())

    def forward(self, tokens: Tensor) -> Tensor:
        readout = F.linear(tokens[:, 0], self.readout, self.bias)
        if len(tokens) == 1:
            return F.gelu(F.linear(tokens[0, 1:], self.tokens, readout[0]))[None]
        # All tokens lie side by side; those without the readout tokens would have to be copied.
        return F.gelu(F.linear(tokens, self.tokens)[:, 1:] + readout[:, None])


class FusedUnit(nn.Module):
    """A ResidualConvUnit from behind its first ReLU up to its last bias.

    The unit is ``x + bias + forward(relu(x))``: the caller adds ``x`` and the bias together with
    other terms.
    """

    def __init__(self, unit: ResidualConvUnit) -> None:
        super().__init__()
        self.conv1, self.bias1 = _split(unit.conv1, unit.norm1)
        self.conv2, self.bias = _split(unit.conv2, unit.norm2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(kernels.bias_act(self.conv1(x), self.bias1, relu=True))


class FusedFusion(nn.Module):
    """One RefineNet stage; the path stays small until the next stage adds it to its own map.

    Args:
        stage: what it replaces.
        last: whether no stage follows, so that this one upsamples its result itself.
    """

    def __init__(self, stage: Fusion, last: bool) -> None:
        super().__init__()
        self.skip_unit = None if stage.skip_unit is None else FusedUnit(stage.skip_unit)
        self.unit = FusedUnit(stage.unit)
        self.out = Pointwise(stage.out)
        self.last = last

    def forward(self, feature_map: Tensor, path: Tensor | None, size: Size) -> Tensor:
        """(B, F, h, w), and a path of any size -> (B, F, h, w), or (B, F, *size) if last."""
        x, activated = feature_map, F.relu(feature_map)
        if self.skip_unit is not None and path is not None:
            skip = self.skip_unit(activated)
            x, activated = kernels.upsample_add(
                path, x.shape[2:], skip, x, self.skip_unit.bias, relu=True
            )
        x = self.out(kernels.bias_act(self.unit(activated), self.unit.bias, x))
        return kernels.upsample_add(x, size)[0] if self.last else x


class FusedDepthHead(nn.Module):
    """The depth head; all after its last 3x3 convolution is one, in float32."""

    def __init__(self, head: DepthHead) -> None:
        super().__init__()
        self.conv1, self.bias1 = _split(head.conv1)
        self.conv2, self.bias2 = _split(head.conv2)
        self.weight = nn.Parameter(head.conv3.weight.detach().flatten())
        self.bias = head.conv3.get_parameter("bias")
        self.scale, self.shift, self.invert = head.scale, head.shift, head.invert

    def forward(self, features: Tensor) -> Tensor:
        """(B, F, H / 2, W / 2) -> (B, H, W) float32."""
        x = self.conv1(features)
        size = (2 * x.shape[2], 2 * x.shape[3])
        # The bias commutes with the upsampling, because the bilinear weights sum to one.
        x = self.conv2(kernels.upsample_add(x, size, bias=self.bias1)[0])
        return kernels.depth_tail(
            x, self.weight, self.bias, self.scale, self.shift, self.invert, self.bias2
        )


class FusedLabelHead(nn.Module):
    """The label head without its dropout."""

    def __init__(self, head: SegmentationHead) -> None:
        super().__init__()
        self.conv, self.bias = _split(head.conv, head.norm)
        self.classify = Pointwise(head.classify)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F, h, w) -> (B, C, h, w)."""
        return self.classify(kernels.bias_act(self.conv(features), self.bias, relu=True))


def _split(conv: nn.Conv2d, norm: nn.Module | None = None) -> tuple[nn.Conv2d, Tensor | None]:
    """A folded convolution as one without bias and its bias; ``norm`` is what followed it."""
    if norm is not None:
        _only(norm, nn.Identity)
    bias, conv.bias = conv.bias, None
    return conv, bias


def _only(module: nn.Module, *kinds: type[nn.Module]) -> None:
    if not isinstance(module, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"A {type(module).__name__} cannot be fused, only {names}.")
