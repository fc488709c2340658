# SPDX-License-Identifier: Apache-2.0
"""Modules of a DPT on a CPU: weights in oneDNN's own layout, few passes over the maps.

PyTorch hands float32 products to MKL, which is slow on some CPUs, and reorders the weights at
every call. Here each weight is reordered once. oneDNN is reached through operators that
torch.compile uses and that are not public, so :func:`unavailable` tries them first.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.nn.functional as F
from timm.layers import pad_same
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from dpt_ros.engine.inference.fold import fold
from dpt_ros.model.decoder import Read, ResidualConvUnit
from dpt_ros.model.dpt import DPT
from dpt_ros.model.encoder import PlainConv2dSame
from dpt_ros.model.heads import DepthHead, SegmentationHead, to_depth

DTYPES = (torch.float32, torch.bfloat16)

_NOTHING, _RELU, _GELU = ("none", ""), ("relu", ""), ("gelu", "none")
Fused = tuple[str, str]


def supports_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX-512 BF16 or AMX), not by way of float32."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.9
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))


def unavailable(dtype: torch.dtype) -> str | None:
    """The reason why :func:`pack` does not work here, None if it does.

    It runs both operators on a few numbers and compares them with the plain ones.
    """
    if not torch.backends.mkldnn.is_available():
        return f"torch {torch.__version__} was built without oneDNN."
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 5, 7, generator=generator).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    linear, conv = nn.Linear(16, 32).to(dtype), nn.Conv2d(16, 32, 3, padding=1).to(dtype)
    tokens = x.permute(0, 2, 3, 1)
    try:
        with torch.inference_mode():
            errors = [
                (PackedLinear(linear, _RELU)(tokens) - linear(tokens).relu()).abs().max(),
                (PackedConv2d(conv, _RELU)(x) - conv(x).relu()).abs().max(),
            ]
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        return f"torch {torch.__version__} has no oneDNN operators that fit: {reason}"
    if max(float(error) for error in errors) > 32 * torch.finfo(dtype).eps:
        return f"the oneDNN operators of torch {torch.__version__} give wrong results."
    return None


def pack(model: DPT, dtype: torch.dtype) -> None:
    """Replace a network's modules by packed ones for inference on the CPU, in place.

    The network is folded first. The plain weights are freed layer by layer. A packed network
    takes any input size and batch, gives the same numbers up to rounding, and can be neither
    trained, saved, moved nor converted. In bfloat16 the depth head is float32 from its last
    convolution on.

    Args:
        model: in eval mode, on the CPU, float32.
        dtype: of weights and activations, float32 or bfloat16.

    Raises:
        ValueError: another dtype, or a network in training or not on the CPU.
        RuntimeError: this torch cannot do it (:func:`unavailable`); the network is untouched.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}, but must be torch.float32 or torch.bfloat16.")
    if model.training or any(p.device.type != "cpu" for p in model.parameters()):
        raise ValueError("The network to pack must be in eval mode and on the CPU.")
    reason = unavailable(dtype)
    if reason:
        raise RuntimeError(f"The network cannot be packed: {reason}")
    _keep_freed_memory()
    with torch.no_grad():
        fold(model)
        _pack_children(model, dtype)
        model.to(dtype).requires_grad_(False)


class PackedLinear(nn.Module):
    """A linear layer, with what follows it: (..., I) -> (..., O)."""

    def __init__(self, linear: nn.Linear, fused: Fused = _NOTHING) -> None:
        super().__init__()
        # Attributes and no buffers: an opaque tensor cannot be converted or moved.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        return self.with_bias(x, self.bias)

    def with_bias(self, x: Tensor, bias: Tensor | None) -> Tensor:
        attr, algorithm = self.fused
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, attr, [], algorithm)


class PackedConv2d(nn.Module):
    """A convolution, with what follows it: (B, I, H, W) -> (B, O, h, w), both channels last."""

    def __init__(self, conv: nn.Conv2d, fused: Fused = _NOTHING) -> None:
        super().__init__()
        self.kernel, self.stride = conv.kernel_size, conv.stride
        self.same_pad = isinstance(conv, PlainConv2dSame) and conv.same_pad
        padding = [0, 0] if self.same_pad else list(conv.padding)
        self.where = (padding, list(conv.stride), list(conv.dilation), 1)
        weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        # The best layout of other convolutions depends on the input's size, and one that does not
        # fit is reordered at every call, a hundred times slower than the plain one. For these it
        # was the same at every size tried.
        if conv.stride == (1, 1) and not conv.in_channels % 64 and not conv.out_channels % 64:
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.where)
        self.weight = weight
        # The size of the last input and its weight, in one attribute that threads replace whole.
        self.last: tuple[torch.Size, Tensor] | None = None
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        attr, algorithm = self.fused
        x = self.padded(x)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight_for(x), self.bias, *self.where, attr, [], algorithm
        )

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """Add the convolution of ``x`` to ``total``, in place."""
        x = self.padded(x)
        return torch.ops.mkldnn._convolution_pointwise_(
            total, x, self.weight_for(x), self.bias, *self.where, "add", 1.0, None, [], None
        )

    def weight_for(self, x: Tensor) -> Tensor:
        """The weight in the best layout for inputs of the size of ``x``."""
        if self.weight.is_mkldnn:
            return self.weight
        last = self.last
        if last is None or last[0] != x.shape:
            last = self.last = (
                x.shape,
                torch.ops.mkldnn._reorder_convolution_weight(
                    self.weight, *self.where, list(x.shape)
                ),
            )
        return last[1]

    def padded(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return pad_same(x, list(self.kernel), list(self.stride)) if self.same_pad else x


class PackedPointwise(nn.Module):
    """A 1x1 convolution as a linear layer over the channels, whose layout fits every size."""

    def __init__(self, conv: nn.Conv2d, fused: Fused = _NOTHING) -> None:
        super().__init__()
        self.linear = PackedLinear(_linear(conv.weight.flatten(1), conv.bias), fused)
        self.stride = conv.stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride != (1, 1):
            x = x[:, :, :: self.stride[0], :: self.stride[1]]
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PackedTranspose(nn.Module):
    """A transposed convolution whose patches do not overlap: a linear layer, then a shuffle."""

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.factors, self.channels = conv.stride, conv.out_channels
        weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)
        bias = conv.bias
        if bias is not None:
            bias = bias.repeat(self.factors[0] * self.factors[1])
        self.linear = PackedLinear(_linear(weight, bias))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        rows, columns = self.factors
        y = self.linear(x.permute(0, 2, 3, 1))
        y = y.view(batch, height, width, rows, columns, self.channels).transpose(2, 3)
        y = y.reshape(batch, height * rows, width * columns, self.channels)
        return y.permute(0, 3, 1, 2)


class PackedAttention(nn.Module):
    """Self-attention in bfloat16 by plain products: torch's fused kernel takes twice as long
    where the CPU has no AMX."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads, self.scale = attention.num_heads, attention.scale
        self.qkv = attention.qkv
        self.proj = attention.proj

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
        scores = torch.baddbmm(
            q.new_zeros(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=self.scale
        )
        torch.softmax(scores, dim=-1, out=scores)
        x = torch.bmm(scores, v).unflatten(0, (batch, self.heads))
        return self.proj(x.transpose(1, 2).flatten(2))


class PackedRead(nn.Module):
    """Readout "project": W1 x + (W2 readout + b) instead of W [x, readout] + b."""

    def __init__(self, read: Read, dtype: torch.dtype) -> None:
        super().__init__()
        read = read.to(dtype)
        patches, readout = read.project.weight.chunk(2, dim=1)
        self.patches = PackedLinear(_linear(patches, None), _GELU)
        self.readout = PackedLinear(_linear(readout, read.project.bias))

    def forward(self, tokens: Tensor) -> Tensor:
        bias = self.readout(tokens[:, 0])
        parts = [
            self.patches.with_bias(one[1:], offset)
            for one, offset in zip(tokens, bias, strict=True)
        ]
        return parts[0][None] if len(parts) == 1 else torch.stack(parts)


class PackedResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))); it overwrites x, which nothing else in the network reads."""

    def __init__(self, unit: ResidualConvUnit, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv1 = PackedConv2d(unit.conv1.to(dtype), _RELU)
        self.conv2 = PackedConv2d(unit.conv2.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.conv2.add_to(x, self.conv1(F.relu(x)))


class PackedDepthHead(nn.Module):
    """:class:`~dpt_ros.model.heads.DepthHead`, from its last convolution on in float32."""

    def __init__(self, head: DepthHead, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv3 = PackedPointwise(head.conv3.float(), _RELU)
        self.conv1 = PackedConv2d(head.conv1.to(dtype))
        self.conv2 = PackedConv2d(head.conv2.to(dtype), _RELU)
        self.scale, self.shift, self.invert = head.scale, head.shift, head.invert
        # The largest map of the network. Memory fresh from the system costs more than the
        # upsampling, so it is kept; a call pops it, so that two threads never share it.
        self.scratch: deque[Tensor] = deque(maxlen=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.conv1(features)
        size = (2 * x.shape[2], 2 * x.shape[3])
        try:
            large = self.scratch.pop()
        except IndexError:
            large = x.new_empty(0)
        shape = (len(x), x.shape[1], *size)
        if large.shape != shape:
            large = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        torch.ops.aten.upsample_bilinear2d.out(x, size, True, out=large)
        x = self.conv2(large)
        self.scratch.append(large)
        x = self.conv3(x.float()).squeeze(1)
        return to_depth(x, self.scale, self.shift, self.invert)


def _keep_freed_memory() -> None:
    """Let glibc keep memory that a call frees for the next call, up to 62 MiB.

    Otherwise it gives the maps back to the system, and their pages are fetched again at every
    call: 1,760 of them for the embedded network at 224x320, 740 with it. glibc raises its limits
    when a large block is freed; this one is never written to, so it takes no memory. The node has
    set higher limits already (``ros.process.keep_large_buffers``).
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")


def _pack_children(module: nn.Module, dtype: torch.dtype) -> None:
    for name, child in module.named_children():
        packed = _packed(child, dtype)
        if packed is not None:
            setattr(module, name, packed)
            continue
        _pack_children(child, dtype)
        if isinstance(child, Attention) and dtype == torch.bfloat16 and _is_plain(child):
            setattr(module, name, PackedAttention(child))


def _packed(module: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """The replacement of ``module``; None if only its children can be packed."""
    match module:
        case DepthHead():
            return PackedDepthHead(module, dtype)
        case SegmentationHead():
            module.to(dtype)
            return nn.Sequential(
                PackedConv2d(module.conv, _RELU), PackedPointwise(module.classify)
            )
        case ResidualConvUnit():
            return PackedResidualUnit(module, dtype)
        case Read(readout="project"):
            return PackedRead(module, dtype)
        case Mlp(act=nn.GELU(approximate="none"), norm=nn.Identity()):
            module.to(dtype)
            return nn.Sequential(PackedLinear(module.fc1, _GELU), PackedLinear(module.fc2))
        case nn.Linear():
            return PackedLinear(module.to(dtype))
        case nn.ConvTranspose2d(groups=1, dilation=(1, 1), padding=(0, 0)):
            if module.stride == module.kernel_size and module.output_padding == (0, 0):
                return PackedTranspose(module.to(dtype))
        case nn.Conv2d(groups=1, padding_mode="zeros", padding=(_, _)):
            if module.kernel_size == (1, 1) and module.padding == (0, 0):
                return PackedPointwise(module.to(dtype))
            return PackedConv2d(module.to(dtype))
    return None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().contiguous())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach())
    return linear


def _is_plain(attention: Attention) -> bool:
    extras = (attention.q_norm, attention.k_norm, attention.norm)
    gate = getattr(attention, "gate", None)  # timm 1.0.22 has none
    return gate is None and all(isinstance(extra, nn.Identity) for extra in extras)
