# SPDX-License-Identifier: Apache-2.0
"""A DPT rewritten for inference: the same function with fewer operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dpt_ros.model.encoder import fold_weight_standardization

if TYPE_CHECKING:
    from dpt_ros.model import DPT

# What follows what: names of a convolution and of the batch norm behind it, in one module.
_PAIRS = (("conv1", "norm1"), ("conv2", "norm2"), ("conv", "norm"))


def fold(model: DPT) -> None:
    """Fold what inference leaves constant into the weights, in place, in float64.

    Weight standardisation and the decoder's batch norms go into their convolutions; the auxiliary
    head and the dropout, which only training uses, are removed. Its output stays the same
    up to rounding, and it must not be trained any further. What is folded already stays.

    Args:
        model: in eval mode.
    """
    fold_weight_standardization(model)
    model.auxiliary_head = None
    if model.label_head is not None:
        model.label_head.dropout = cast(nn.Dropout, nn.Identity())
    for module in model.modules():
        for conv_name, norm_name in _PAIRS:
            norm = getattr(module, norm_name, None)
            if isinstance(norm, nn.BatchNorm2d):
                conv = getattr(module, conv_name)
                dtype = conv.weight.dtype
                folded = fuse_conv_bn_eval(conv.double(), norm.double())
                setattr(module, conv_name, folded.to(dtype))
                setattr(module, norm_name, nn.Identity())
