# SPDX-License-Identifier: Apache-2.0
"""The operations between a DPT's convolutions and matrix products, one kernel each on a GPU.

Each function has two versions of the same result up to rounding: Triton's for a CUDA tensor, if
triton is installed, and plain torch otherwise. Maps are (B, C, H, W) in channels_last memory; the
Triton versions raise a ValueError for others. They are for inference and have no gradient.
"""

from __future__ import annotations

from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from dpt_ros.engine import triton_launch
from dpt_ros.engine.faults import innermost_line, is_out_of_memory
from dpt_ros.engine.output.postprocess import classify, resize_labels
from dpt_ros.engine.triton_launch import (
    has_twin,
    triton_enabled,
    triton_installed,
    turn_off_triton,
)
from dpt_ros.model.heads import to_depth

_SLOWER = "The networks run on the GPU without fused Triton kernels, which is slower"
_TRITON = "dpt_ros.engine.inference.triton_kernels"


def probe(device: torch.device) -> str:
    """Compile, load and run one kernel on a GPU; turn Triton off if that fails.

    Triton needs a C compiler and Python's headers where it runs, for the launcher that it
    compiles, a folder that it can write to, and a driver that fits.

    Returns:
        "" if Triton's versions are used; else why plain torch is.

    Raises:
        torch.OutOfMemoryError: the device's memory is full.
    """
    if not triton_enabled():
        return "" if triton_installed() else f"{_SLOWER}: triton is not installed."
    x = torch.linspace(-1, 1, 64, device=device).view(1, 16, 2, 2)
    x = x.contiguous(memory_format=torch.channels_last)
    bias = torch.full((16,), 0.25, device=device)
    try:
        right = torch.equal(import_module(_TRITON).bias_act(x, bias, relu=True), F.relu(x + 0.25))
        why = "" if right else "a kernel computed wrong values"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # any, from Triton, its compiler or its launcher
        if is_out_of_memory(error):
            raise
        why = innermost_line(error)
    if why:
        turn_off_triton()
        return f"{_SLOWER}: {why}. Triton needs gcc and Python's headers (python3-dev)."
    return ""


@has_twin(_TRITON)
def group_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """GroupNorm with float32 statistics, then plus the residual, then ReLU.

    Args:
        x: (B, C, H, W).
        weight, bias: (C,).
        groups: a divisor of C.
        eps: added to the variance.
        residual: like ``x``, or None.
        relu: whether a ReLU comes last.
    """
    x = F.group_norm(x, groups, weight, bias, eps)
    if residual is not None:
        x = x + residual
    return F.relu(x) if relu else x


@has_twin(_TRITON)
def upsample_add(
    x: Tensor,
    size: tuple[int, int] | torch.Size,
    skip: Tensor | None = None,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """Bilinear with aligned corners to ``size``, plus what is given.

    Args:
        x: (B, C, h, w).
        size: (H, W).
        skip, residual: (B, C, H, W) each, or None.
        bias: (C,), or None.
        relu: whether to return the ReLU of the sum too.

    Returns:
        the sum (B, C, H, W), and its ReLU, or the sum again.
    """
    size = (size[0], size[1])
    if bias is not None:
        x = x + bias[:, None, None]
    x = F.interpolate(x, size, mode="bilinear", align_corners=True)
    if skip is not None:
        x = x + skip
    if residual is not None:
        x = x + residual
    return x, F.relu(x) if relu else x


@has_twin(_TRITON)
def bias_act(
    x: Tensor, bias: Tensor | None, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Bias, residual and ReLU after a convolution without bias.

    Args:
        x: (B, C, H, W).
        bias: (C,), or None.
        residual: like ``x``, or None.
        relu: whether a ReLU comes last.
    """
    if bias is not None:
        x = x + bias[:, None, None]
    if residual is not None:
        x = x + residual
    return F.relu(x) if relu else x


@has_twin(_TRITON)
def add_layer_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x + y, and its LayerNorm.

    Args:
        x, y: (B, N, D), one type.
        weight, bias: (D,).
        eps: added to the variance.
    """
    total = x + y
    return total, F.layer_norm(total, weight.shape, weight, bias, eps)


@has_twin(_TRITON)
def depth_tail(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: float,
    shift: float,
    invert: bool,
    x_bias: Tensor | None = None,
) -> Tensor:
    """The end of the depth head, in float32: ReLU, 1x1 convolution, ReLU, scale, shift, inversion.

    Args:
        x: (B, K, H, W), the output of the head's second convolution.
        weight, bias: (K,) and (1,), of the last convolution.
        scale, shift, invert: see :class:`dpt_ros.model.heads.DepthHead`.
        x_bias: (K,), added to ``x`` first, or None.

    Returns:
        (B, H, W) float32, relative inverse depth or metres.
    """
    if x_bias is not None:
        x = x + x_bias[:, None, None]
    x = F.conv2d(F.relu(x).float(), weight.float()[None, :, None, None], bias.float())
    return to_depth(F.relu(x).squeeze(1), scale, shift, invert)


def classify_upsampled(
    logits: Tensor, network_size: tuple[int, int], size: tuple[int, int], confidence: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Labels as in isl-org/DPT's run_segmentation.py at the network's size, then resized.

    The logits are resized bilinearly, corners aligned, to the network's size; argmax + 1 there;
    then each pixel of the picture takes the nearest label.

    Args:
        logits: (B, C, h, w), the label head's before its last upsampling; on a GPU they are
            copied unless a pixel's classes are side by side in memory (channels_last).
        network_size: (height, width) of the network's input.
        size: (height, width) of the result.
        confidence: whether to return the probability of the chosen class too.

    Returns:
        labels (B, *size) uint8, 1..C, the first of equal classes; and their softmax probability
        as uint8, 0..255, or None.
    """
    if triton := triton_launch.triton_of(logits, _TRITON):
        if logits.stride(1) != 1:  # of another backend than PyTorch
            logits = logits.contiguous(memory_format=torch.channels_last)
        return triton.classify_upsampled(logits, network_size, size, confidence)
    maps = F.interpolate(logits, network_size, mode="bilinear", align_corners=True)
    labels, sure = classify(maps, network_size, confidence)
    return resize_labels(labels, size), None if sure is None else resize_labels(sure, size)
