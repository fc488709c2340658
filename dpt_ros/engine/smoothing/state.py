# SPDX-License-Identifier: Apache-2.0
"""What the temporal filter works on: observation, gains, state, and the filtered frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from dpt_ros.engine.output.postprocess import classify
from dpt_ros.engine.smoothing.motion import EgoMotion

RESET_REASONS = ("", "scene cut", "no valid depth")


@dataclass(frozen=True)
class Observation:
    """A frame, on the device.

    Args:
        raw: (H, W) inverse depth as it came.
        inverse_depth: (H, W) the same, > 0 also where it is not valid.
        valid: (H, W) float32, 1 where it is.
        luma: (H, W) grey levels.
        flow: (5, H, W) optical flow: position in the previous frame (x, y, normalised), residual
            in grey levels, weight along x and y; None if there is none.
        ego: the camera's motion, None if it is not known.
        prior_sigma: (6,) standard deviations of ``ego``, see ``motion.refine``.
        exposure_gain: () factor of the previous frame's luma that makes it as bright.
        correlation: () of the two images.
    """

    raw: Tensor
    inverse_depth: Tensor
    valid: Tensor
    luma: Tensor
    flow: Tensor | None = None
    ego: EgoMotion | None = None
    prior_sigma: Tensor | None = None
    exposure_gain: Tensor | None = None
    correlation: Tensor | float = 1.0

    def at(self, index: Any) -> Observation:
        """At some pixels: an index into (..., H, W)."""
        names = ("raw", "inverse_depth", "valid", "luma")
        maps: dict[str, Any] = {name: getattr(self, name)[index[1:]] for name in names}
        return replace(self, flow=None if self.flow is None else self.flow[index], **maps)


@dataclass(frozen=True)
class FilterGains:
    """Weights of a frame, from the seconds since the previous one.

    Args:
        measurement_noise: relative standard deviation of a frame's inverse depth.
        process_noise: relative variance added to the state.
        min_gain: of a frame, for depth.
        label_gain: of a frame, for labels.
        leak: share by which scale and shift return to the frame's own.
        flow_leak: the same while the camera's motion is not reliable.
        moving_gain: the least gain where something moves by itself.
    """

    measurement_noise: float
    process_noise: float = 0.0
    min_gain: float = 1.0
    label_gain: float = 1.0
    leak: float = 1.0
    flow_leak: float = 1.0
    moving_gain: float = 1.0


@dataclass(frozen=True)
class FilterState:
    """The filter's state of one camera, on the device.

    Args:
        maps: (4, H, W): inverse depth, 1/m; its relative variance; luma, grey levels; 1 where
            something moved, decaying.
        logits: (C, h, w), of mean 0, or None.
        affine: (2,) scale and shift of the last frame.
        age: () frames since the last reset.
    """

    maps: Tensor
    logits: Tensor | None
    affine: Tensor
    age: Tensor


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
