# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels compiled for GPUs that need not be there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dpt_ros.engine.inference import triton_kernels as kernels
from dpt_ros.engine.input.device_preprocess import TENSOR_DTYPES, DeviceInput
from dpt_ros.engine.input.encodings import find_encoding
from dpt_ros.engine.input.triton_device_preprocess import network_input
from dpt_ros.engine.input.triton_rectify import rectified
from dpt_ros.engine.packed import length
from dpt_ros.engine.scale import triton_steps as scale
from dpt_ros.engine.scale.estimator import ScaleState
from dpt_ros.engine.scale.plan import SCALE_FIELDS
from helpers.interpreted import launched_by

ARCHS = (80, 86, 87, 89, 90, 100, 120)
"""Compute capabilities of the GPUs that are supported, times ten."""

_TYPE_NAMES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def network_cubins(arch: int) -> dict[str, bytes]:
    """Compile every kernel at DPT-Hybrid's shapes in half precision; needs no GPU.

    Args:
        arch: compute capability times ten, one of :data:`ARCHS`.

    Returns:
        The machine code (cubin) by kernel and number of its variant.
    """
    cubins: dict[str, bytes] = {}
    vector = torch.empty(1024, dtype=torch.float16)
    with launched_by(compile_launch(arch, cubins)):
        for channels, side, add in ((64, 192, False), (256, 96, True), (1024, 24, True)):
            x = _map(channels, side)
            kernels.group_norm_act(x, vector, vector, 32, 1e-5, x if add else None)
        x, large = _map(256, 48), _map(256, 96)
        kernels.upsample_add(x, (96, 96), large, large, vector, True)
        kernels.bias_act(x, vector, x, True)
        tokens = torch.empty((1, 577, 768), dtype=torch.float16)
        kernels.add_layer_norm(tokens, tokens, vector, vector, 1e-6)
        kernels.depth_tail(_map(32, 384), vector, vector, 1.0, 0.1, True, vector)
        logits = _map(152, 240)[:, :150]
        kernels.classify_upsampled(logits, (480, 480), (480, 480), True)
    return cubins


def scale_cubins(arch: int) -> dict[str, bytes]:
    """Compile the kernels of the scale, for metric and relative networks, without and with the
    floor; needs no GPU.

    Args:
        arch: compute capability times ten, one of :data:`ARCHS`.

    Returns:
        The machine code (cubin) by kernel and number of its variant.
    """
    cubins: dict[str, bytes] = {}
    raw, numbers = torch.zeros(2, 240, 320), torch.zeros(2, length(SCALE_FIELDS))
    logits = torch.zeros((2, 150, 120, 160), dtype=torch.float16)
    state, floor = ScaleState.empty(2), torch.tensor([4, 7])
    with launched_by(compile_launch(arch, cubins)):
        for parts, metric in (((logits, floor), True), ((None, None), False)):
            fits, seen = scale.fit_frame(raw, parts[0], numbers, parts[1])
            _, table, affine, covariance, _ = scale.correct(*state, fits, seen, numbers, metric)
        scale.apply_table(raw, table, affine)
        scale.relative_variance(raw, affine, covariance)
    return cubins


def compile_launch(arch: int, cubins: dict[str, bytes]) -> Callable[..., None]:
    """A launch that compiles a kernel as a GPU would at these arguments, and does not run it.

    Args:
        arch: compute capability times ten, one of :data:`ARCHS`.
        cubins: receives the machine code by kernel and number of its variant.
    """

    def compile_one(
        kernel: Any,
        grid: tuple[int, ...],
        args: tuple,
        meta: dict[str, Any],
        warps: int = 4,
        fp_fusion: bool = True,
    ) -> None:
        signature, attributes = {}, {}
        for parameter, value in zip(kernel.params, args, strict=False):
            signature[parameter.name] = _type_name(value)
            divisible = isinstance(value, Tensor) or (
                isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize
            )
            if divisible:
                attributes[(parameter.num,)] = [["tt.divisibility", 16]]
        signature |= dict.fromkeys(meta, "constexpr")
        compiled = triton.compile(
            ASTSource(kernel, signature, meta, attributes),
            target=GPUTarget("cuda", arch, 32),
            options={"num_warps": warps, "enable_fp_fusion": fp_fusion},
        )
        name = kernel.__name__.removesuffix("_kernel")
        cubins[f"{name}_{sum(key.startswith(name) for key in cubins)}"] = compiled.asm["cubin"]

    return compile_one


def stack_bytes(cubin: bytes) -> int:
    """Memory of a thread for values that its registers have no room for."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))


def _map(channels: int, side: int) -> Tensor:
    shape = (1, channels, side, side)
    return torch.empty(shape, dtype=torch.float16, memory_format=torch.channels_last)


def _type_name(value: Tensor | int | float) -> str:
    if isinstance(value, Tensor):
        return _TYPE_NAMES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def preprocess_cubins(arch: int, encodings: Iterable[str]) -> dict[str, bytes]:
    """Compile the kernel for half precision and a GPU that need not be there.

    Args:
        arch: compute capability times ten, such as 87 for Jetson Orin.
        encodings: names of ``ENCODINGS``.

    Returns:
        Machine code (cubin) by "encoding resize|same".
    """
    cubins: dict[str, bytes] = {}
    for encoding in encodings:
        row = find_encoding(encoding)
        shape = (int(12 * row.planes), 12) + ((row.channels,) if row.channels else ())
        pixels = torch.empty((1, *shape), dtype=TENSOR_DTYPES[row.dtype])
        for name, side in (("resize", 24), ("same", 12)):
            normal = ((0.0,) * 3, (1.0,) * 3)
            plan = DeviceInput(encoding, shape, (side, side), *normal, "cpu", torch.float16)
            made: dict[str, bytes] = {}
            with launched_by(compile_launch(arch, made)):
                network_input(pixels, plan)
            (cubins[f"{encoding} {name}"],) = made.values()
    return cubins


def rectify_cubins(arch: int, encodings: Iterable[str]) -> dict[str, bytes]:
    """Compile the rectification for a GPU that need not be there.

    Args:
        arch: compute capability times ten, such as 87 for Jetson Orin.
        encodings: names of ``ENCODINGS``.

    Returns:
        Machine code (cubin) by encoding.
    """
    cubins: dict[str, bytes] = {}
    for encoding in encodings:
        row = find_encoding(encoding)
        shape = (int(12 * row.planes), 12) + ((row.channels,) if row.channels else ())
        pixels = torch.empty((1, *shape), dtype=TENSOR_DTYPES[row.dtype])
        made: dict[str, bytes] = {}
        with launched_by(compile_launch(arch, made)):
            rectified(pixels, encoding, torch.zeros(12, 12, 2))
        (cubins[encoding],) = made.values()
    return cubins
