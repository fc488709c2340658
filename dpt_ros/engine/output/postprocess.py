# SPDX-License-Identifier: Apache-2.0
"""Network output to depth and labels of the image's size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

# Classes upsampled at a time; all 150 of a VGA image would take 184 MB. Fewer of a huge picture.
_CLASSES, _MOST_VALUES = 16, 1 << 28
_torch_only: ContextVar[bool] = ContextVar("torch_only", default=False)


def on_host(values: torch.Tensor) -> bool:
    """Whether the values are on the CPU, where OpenCV is faster than torch, unless torch is to
    compute everything, see ``torch_only``."""
    return values.device.type == "cpu" and not (_torch_only.get() or torch.compiler.is_exporting())


@contextmanager
def torch_only() -> Iterator[None]:
    """Within, torch computes on a CPU too, in this thread: what a GPU and an export compute."""
    token = _torch_only.set(True)
    try:
        yield
    finally:
        _torch_only.reset(token)


def batched(cameras: Sequence[tuple[np.ndarray, ...]]) -> Any:
    """The results of cameras, one by one, as a tuple of tensors of a batch."""
    parts = zip(*cameras, strict=True)
    batch = (np.stack(part) if len(part) > 1 else part[0][None] for part in parts)
    return tuple(torch.from_numpy(part) for part in batch)


def resize_depth(depth: torch.Tensor, size: tuple[int, int], exact: bool = True) -> torch.Tensor:
    """Resize bicubically (isl-org/DPT run_monodepth.py); it can overshoot below 0.

    Args:
        depth: (B, H, W) float32.
        size: (height, width).
        exact: use torch, as published; else the fastest on the device. OpenCV's sampling
            positions differ by up to 1e-4 pixels.

    Returns:
        (B, height, width) float32.
    """
    if tuple(depth.shape[-2:]) == size:
        return depth
    if on_host(depth) and not exact:
        maps = [
            cv2.resize(one.numpy(), size[::-1], interpolation=cv2.INTER_CUBIC) for one in depth
        ]
        return torch.from_numpy(np.stack(maps))
    return _bicubic(depth[:, None], size)[:, 0]


def resize_labels(labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize by nearest neighbour, pixel centres aligned.

    Args:
        labels: (B, H, W) uint8, class ids or confidence.
        size: (height, width).

    Returns:
        (B, height, width) uint8.
    """
    if tuple(labels.shape[-2:]) == size:
        return labels
    return F.interpolate(labels[:, None], size, mode="nearest-exact")[:, 0]


def classify(
    logits: torch.Tensor, size: tuple[int, int], confidence: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Bicubic logits, then argmax + 1 (isl-org/DPT run_segmentation.py).

    Args:
        logits: (B, C, H, W).
        size: (height, width).
        confidence: whether to compute the softmax probability of the label.

    Returns:
        labels (B, height, width) uint8, 1..C; and their probability as uint8, 0..255, or None.
    """
    best, index, total = None, None, None
    step = max(min(_CLASSES, _MOST_VALUES // (size[0] * size[1])), 1)
    for first in range(0, logits.shape[1], step):
        part = _bicubic(logits[:, first : first + step], size)
        part_best, part_index = part.max(dim=1)
        part_index += first + 1
        if best is None or index is None:
            best, index = part_best, part_index
            if confidence:
                total = torch.exp(part - best[:, None]).sum(dim=1)
            continue
        index = torch.where(part_best > best, part_index, index)
        new_best = torch.maximum(best, part_best)
        if total is not None:
            # Online softmax: rescale the sum when the maximum changes.
            total = total * torch.exp(best - new_best)
            total += torch.exp(part - new_best[:, None]).sum(dim=1)
        best = new_best
    assert index is not None, "a label network has at least one class"
    probability = None if total is None else (255.0 / total + 0.5).to(torch.uint8)
    return index.to(torch.uint8), probability


def _bicubic(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps.float()
    return F.interpolate(maps.float(), size, mode="bicubic", align_corners=False)
