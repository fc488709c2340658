# SPDX-License-Identifier: Apache-2.0
"""The Triton version of ``fused_depth``: five kernels, float32 inside, no atomics, no
synchronisation.

Block sizes follow from shapes alone. Needs triton; ``fused_depth`` does not.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dpt_ros.engine import triton_launch
from dpt_ros.engine.output import triton_fused_depth_jit as jit
from dpt_ros.engine.output.fused_depth import FRONT, LEVELS, FusionSettings, grid_of

_BLOCK = 256  # pixels of one program
_AROUND_BLOCK = 16  # cells of one program that looks at those around each
_PUSH_BLOCK, _PUSH_WARPS = 1024, 8  # of the one program per camera


def fuse(
    sensor: Tensor, depth: Tensor, sigma: Tensor, settings: FusionSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`dpt_ros.engine.output.fused_depth.fuse`."""
    batch, height, width = triton_launch.check_maps("fuse", sensor, depth, sigma)
    cell, step = grid_of(width)
    rows, columns = triton.cdiv(height, cell), triton.cdiv(width, cell)
    size = (height, width, rows, columns)
    s = {name: float(value) for name, value in vars(settings).items()}

    code = torch.empty_like(sensor, dtype=torch.uint8)
    mirrors = sensor.new_empty(batch, rows, columns)
    pixels = min(triton.next_power_of_2(cell**2), _BLOCK)
    cells = _BLOCK // pixels
    limits = (s["near"], s["far"], s["mirror"], s["edge"], s["edge"] ** FRONT)
    triton_launch.run(
        jit.decide_kernel,
        (triton.cdiv(rows * columns, cells), batch),
        (sensor, depth, code, mirrors, *size, *limits, s["tolerance"], s["tolerance_metres"]),
        {"CELL": cell, "CELLS": cells, "PIXELS": pixels},
    )

    around = torch.empty_like(mirrors, dtype=torch.uint8)
    # Of every cell of every level the sum of weighted logarithms, and that of weights
    lengths = [triton.cdiv(rows, 1 << k) * triton.cdiv(columns, 1 << k) for k in range(LEVELS)]
    sums = sensor.new_empty(batch, 2, sum(lengths))
    pixels = min(triton.next_power_of_2((cell // step) ** 2), _BLOCK)
    cells = min(_BLOCK // pixels, _AROUND_BLOCK)
    triton_launch.run(
        jit.weigh_kernel,
        (triton.cdiv(rows * columns, cells), batch),
        (sensor, depth, code, mirrors, around, sums, *size, sum(lengths), s["other"]),
        {"CELL": cell, "STEP": step, "CELLS": cells, "PIXELS": pixels},
    )
    side = 1 << (LEVELS - 1)
    tiles = triton.cdiv(columns, side)
    triton_launch.run(
        jit.pull_kernel,
        (tiles * triton.cdiv(rows, side), 2 * batch),
        (sums, rows, columns, sum(lengths), tiles),
        {"LEVELS": LEVELS},
    )
    factors = sensor.new_empty(batch, sum(lengths))
    triton_launch.run(
        jit.push_kernel,
        (batch,),
        (sums, factors, rows, columns, sum(lengths), s["other"]),
        {"LEVELS": LEVELS, "BLOCK": _PUSH_BLOCK},
        _PUSH_WARPS,
    )

    fused, deviation = torch.empty_like(sensor), torch.empty_like(sensor)
    origin = torch.empty_like(code)
    maps = (sensor, depth, sigma, code, around, factors, fused, origin, deviation)
    triton_launch.run(
        jit.select_kernel,
        (triton.cdiv(height * width, _BLOCK), batch),
        (*maps, *size, sum(lengths), s["noise"]),
        {"CELL": cell, "BLOCK": _BLOCK},
    )
    return fused, origin, deviation
