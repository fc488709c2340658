# SPDX-License-Identifier: Apache-2.0
"""Golden cases of the published DPT: outputs of the reference on formula-made weights and inputs.

The weights follow from the official key names alone, so no file of weights is needed. A few cases
and all key lists are in test/reference; the others are used where ../shared/reference exists.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from functools import cache
from typing import Any

import numpy as np
import torch

from helpers.places import ROOT, TEST

HERE = TEST / "reference"
SHARED = ROOT.parent / "shared" / "reference" / "open"
BIAS = "scratch.output_conv.4.bias"


@cache
def _table(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((HERE / f"{name}.json.gz").read_bytes()))


def key_list(kind: str) -> dict[str, tuple[int, ...]]:
    """Official key -> shape; kind is depth_ or seg_ with hybrid, large or base."""
    return {key: tuple(shape) for key, shape in _table("keys")[kind]}


def huggingface_keys(kind: str) -> dict[str, tuple[tuple[int, ...], str, int | None]]:
    """transformers key -> shape, official key and which third of its rows (None: all of them).

    Args:
        kind: hybrid, large or large_ade.
    """
    table = {}
    for key, shape, official in _table("keys_huggingface")[kind]:
        name, third = (official, None) if isinstance(official, str) else official
        table[key] = (tuple(shape), name, third)
    return table


def golden_tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value of one entry, from its official name and shape (reference recipe v1)."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    random = np.random.Generator(np.random.Philox(key=zlib.crc32(key.encode())))
    n = random.standard_normal(shape)
    scales = {"running_mean": 0.1, "cls_token": 0.5, "pos_embed": 0.3}
    last = key.rsplit(".", 1)[-1]
    if last == "running_var":
        value = np.exp(0.2 * n)
    elif last in scales:
        value = scales[last] * n
    elif key == "scratch.output_conv.4.weight" and shape[0] == 1:
        value = 60.0 * n
    elif last == "bias":
        value = 0.1 * n
    elif key.endswith(".norm3.weight"):
        value = 0.3 * (1 + 0.1 * n)
    elif len(shape) == 1:
        value = 1 + 0.1 * n
    else:
        transposed = key.endswith(("act_postprocess1.4.weight", "act_postprocess2.4.weight"))
        fan_in = shape[0] if transposed else math.prod(shape[1:])
        if ".patch_embed.backbone." in key:
            gain = random.standard_normal((shape[0], 1, 1, 1))
            offset = random.standard_normal((shape[0], 1, 1, 1))
            n = np.exp(0.5 * gain) * (n + 0.5 * offset)
        value = n / math.sqrt(fan_in)
    return torch.from_numpy(np.asarray(value, np.float32))


def golden_state(kind: str) -> dict[str, torch.Tensor]:
    """A whole published state dict; NYU and KITTI have the weights of depth_hybrid."""
    state = {key: golden_tensor(key, shape) for key, shape in key_list(kind).items()}
    bias = _table("biases").get(kind)
    if bias:
        state[BIAS] = torch.tensor(bias)
    return state


def golden_image(seed: int, batch: int, height: int, width: int) -> torch.Tensor:
    """A network input: (B, 3, H, W) float32 in [-1, 1], H and W multiples of 32."""
    random = np.random.Generator(np.random.Philox(key=seed))

    def blocks(side: int) -> np.ndarray:
        values = random.uniform(-1, 1, (batch, 3, height // side, width // side))
        return values.repeat(side, 2).repeat(side, 3)

    coarse, medium, fine = blocks(32), blocks(8), blocks(1)
    return torch.from_numpy((0.5 * coarse + 0.3 * medium + 0.2 * fine).astype(np.float32))


def golden_photo(seed: int, height: int, width: int) -> np.ndarray:
    """A picture: (H, W, 3) uint8 RGB, any size."""
    random = np.random.Generator(np.random.Philox(key=seed))
    rows, columns = -(-height // 32), -(-width // 32)

    def blocks(factor: int, side: int) -> np.ndarray:
        values = random.integers(0, 256, (factor * rows, factor * columns, 3))
        return values.repeat(side, 0).repeat(side, 1)[:height, :width]

    coarse, medium = blocks(1, 32), blocks(4, 8)
    fine = random.integers(0, 256, (height, width, 3))
    return ((5 * coarse + 3 * medium + 2 * fine) // 10).astype(np.uint8)


def reference_cases(*prefixes: str) -> list[str]:
    """Names of the cases at hand that start with one of ``prefixes``."""
    names = {path.stem for folder in (HERE, SHARED) for path in folder.glob("*.npz")}
    return sorted(name for name in names if name.startswith(prefixes))


def load_case(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a case and its description."""
    path = SHARED / f"{name}.npz"
    with np.load(path if path.exists() else HERE / f"{name}.npz") as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays.pop("meta")))
