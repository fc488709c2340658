# SPDX-License-Identifier: Apache-2.0
"""What the temporal filter works on: numbers from the host, state, and the filtered frame.

Tensors have a leading batch of cameras, all on one device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from dpt_ros.engine.output.postprocess import classify
from dpt_ros.engine.packed import Fields, unpack
from dpt_ros.engine.smoothing.maps import arrays, library, pixel_grid

RESET_REASONS = ("", "scene cut", "no valid depth")

FILTER_FIELDS: Fields = {
    "fresh": ((), "1: the filter's state is not used: first frame, gap, another camera or size"),
    "has_flow": ((), "1: the state has the previous image"),
    "has_ego": ((), "1: to_grid and from_grid are given"),
    "has_odometry": ((), "1: rotation and shift are given"),
    "measurement_noise": ((), "relative standard deviation of a frame's inverse depth"),
    "process_noise": ((), "relative variance added to the state"),
    "min_gain": ((), "least weight of a frame, for depth"),
    "label_gain": ((), "least weight of a frame, for labels; 1: no past of labels"),
    "leak": ((), "share by which scale and shift return to the frame's own"),
    "flow_leak": ((), "the same while the camera's motion is not reliable"),
    "moving_gain": ((), "least gain where something moves by itself"),
    "rotation": ((3, 3), "from this frame's optical axes to the previous frame's, by odometry"),
    "shift": ((3,), "the same motion's shift, metres"),
    "to_grid": ((3, 3), "rays (X/Z, Y/Z, 1) to pixels of the maps: the intrinsic matrix"),
    "from_grid": ((3, 3), "inverse of to_grid"),
    "prior_sigma": ((6,), "standard deviations of odometry: rotation, radians; shift, metres"),
    "free_sigma": ((), "standard deviation of the motion without odometry, radians and metres"),
}
"""Decisions of the host for a frame, from ``filter.plan_frame``. Where it is fresh, the state may
hold anything, NaN too."""

MOTION_FIELDS: Fields = {
    "turn": ((3, 3), "see ``motion.project``; no motion without ego-motion"),
    "shift": ((3,), "as turn"),
    "form": ((4,), "see ``motion.advance``; of the same depths where the motion is not reliable"),
    "has_ego": ((), "1: the camera's motion is estimated"),
    "reliable": ((), "1: it fits the images, too"),
    "fit": ((2,), "scale and shift of the frame's inverse depth that fit the state best"),
    "affine": ((2,), "those applied to it"),
    "usual": ((2,), "those that it would have by itself"),
    "reset_code": ((), "index into ``RESET_REASONS``"),
    "inliers": ((), "share of the samples that fit, 0..1"),
    "age": ((), "frames since the last reset"),
}
"""What ``steps.register`` finds."""


@dataclass(frozen=True)
class FilterState:
    """The filter's state.

    Args:
        maps: (B, 4, H, W): inverse depth, 1/m; its relative variance; luma, grey levels; 1 where
            something moved, decaying.
        logits: (B, C, h, w), or None.
        affine: (B, 2) scale and shift of the last frame.
        age: (B,) frames since the last reset.
        luma: (B, hl, wl) grey levels of the last frame.
    """

    maps: Tensor
    logits: Tensor | None
    affine: Tensor
    age: Tensor
    luma: Tensor


@dataclass(frozen=True)
class FilteredFrame:
    """A filtered frame, on its device.

    Args:
        inverse_depth: (H, W) float32, 1/m; as it came where it is not valid.
        variance: (H, W) float32, relative variance of the inverse depth: the standard deviation
            of the depth z is z * sqrt(variance).
        logits: (C, h, w) smoothed logits, None if none were given.
        affine: (2,) float32, scale and shift applied to the frame's inverse depth.
        gain: (H, W) float32, 0..1, weight of the frame against the state.
        reset_code: () uint8, index into ``RESET_REASONS``: a reset due to the pixels.
        reason: why the filter was reset before the pixels were compared, "" if it was not.
    """

    inverse_depth: Tensor
    variance: Tensor
    logits: Tensor | None
    affine: Tensor
    gain: Tensor
    reset_code: Tensor
    reason: str = ""

    @property
    def reset(self) -> str:
        """Why the filter was reset, "" if it was not; waits for the device."""
        return self.reason or RESET_REASONS[int(self.reset_code)]

    @cached_property
    def _classes(self) -> tuple[Tensor | None, Tensor | None]:
        if self.logits is None:
            return None, None
        size = (self.inverse_depth.shape[0], self.inverse_depth.shape[1])
        full = F.interpolate(self.logits[None].float(), size, mode="bilinear", align_corners=True)
        labels, confidence = classify(full, size, True)
        return labels[0], None if confidence is None else confidence[0]

    @property
    def labels(self) -> Tensor | None:
        """(H, W) uint8 class ids 1..C, upsampled as DPT's head does; computed on first access."""
        return self._classes[0]

    @property
    def confidence(self) -> Tensor | None:
        """(H, W) uint8, 0..255, softmax probability of the label; computed on first access."""
        return self._classes[1]


def given(numbers: Tensor, *tensors: Tensor) -> tuple[Any, ...]:
    """The library to compute with, the numbers by name, arrays of tensors, and the grid of maps
    of the first one's size."""
    height, width = tensors[0].shape[-2:]
    found = arrays(numbers, *tensors, pixel_grid(height, width, numbers.device))
    return library(found[0]), unpack(FILTER_FIELDS, found[0]), *found[1:]
