# SPDX-License-Identifier: Apache-2.0
"""A DPT rewritten for inference: the same function with fewer operations, on any device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dpt_ros.model.dpt import DPT
from dpt_ros.model.encoder import PlainConv2dSame, fold_weight_standardization

# What follows what: names of a convolution and of the batch norm behind it, in one module.
_PAIRS = (("conv1", "norm1"), ("conv2", "norm2"), ("conv", "norm"))


def fold(model: DPT) -> None:
    """Fold what inference leaves constant into the weights, in place, in float64.

    Weight standardisation and the decoder's batch norms go into their convolutions; the auxiliary
    head and the dropout, which only training uses, are removed; pooling and 1x1 convolutions pad
    without a copy. The output stays the same up to rounding, and the network cannot be trained any
    further. A folded network is not changed.

    Args:
        model: in eval mode.
    """
    fold_weight_standardization(model)
    model.auxiliary_head = None
    if model.label_head is not None:
        model.label_head.dropout = cast(nn.Dropout, nn.Identity())
    for module in list(model.modules()):
        if isinstance(module, PlainConv2dSame) and module.kernel_size == (1, 1):
            module.same_pad = False  # there is nothing to pad, but pad_same would copy the map
        for name, child in module.named_children():
            if isinstance(child, MaxPool2dSame):
                sizes = (child.kernel_size, child.stride, child.dilation)
                if sizes == ((3, 3), (2, 2), (1, 1)):
                    setattr(module, name, SameMaxPool())
        for conv_name, norm_name in _PAIRS:
            norm = getattr(module, norm_name, None)
            if isinstance(norm, nn.BatchNorm2d):
                conv = getattr(module, conv_name)
                dtype = conv.weight.dtype
                folded = fuse_conv_bn_eval(conv.double(), norm.double())
                setattr(module, conv_name, folded.to(dtype))
                setattr(module, norm_name, nn.Identity())
    model.requires_grad_(False)


class SameMaxPool(nn.Module):
    """Max pooling 3, stride 2, with TensorFlow's SAME padding, without a padded copy."""

    def forward(self, x: Tensor) -> Tensor:
        # SAME pads an even side at its end only, which ceil_mode does without a copy of the map.
        odd = [side % 2 for side in x.shape[-2:]]
        return F.max_pool2d(x, 3, stride=2, padding=odd, ceil_mode=True)


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
