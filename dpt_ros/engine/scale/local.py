# SPDX-License-Identifier: Apache-2.0
"""Local correction beside anchors: a factor of the inverse depth by column and depth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from dpt_ros.engine.scale.inverse_depth import apply_affine

_COLUMNS, _DEPTHS = 40, 64  # of the table
_LOG_NEAR, _LOG_FAR = np.log(4.0), np.log(0.03)  # inverse depth at the table's ends, of 1/m
_COLUMN_CENTERS = (np.arange(_COLUMNS) + 0.5) / _COLUMNS
_DEPTH_CENTERS = np.linspace(_LOG_FAR, _LOG_NEAR, _DEPTHS)
_COLUMN_SIGMA = 0.04  # of the kernel across columns, share of the image width
_DEPTH_SIGMA = 0.05  # of the kernel across depth, relative
_PRIOR_WEIGHT = 0.3  # of "no correction", in anchors
_MAX_LOG_RATIO = 0.6  # from which on an anchor belongs to another object
_MAX_STEP = 0.03  # largest change from one frame to the next, relative
_HALF_LIFE = 0.3  # seconds without anchors


class LocalCorrection:
    """Corrects inverse depth near anchors, after scale and shift.

    A network's error is alike for what stands in one direction at one depth: a whole piece of
    wall is too near, the box before it too far. So the anchors' ratios are averaged over pixels
    that are near in column and in depth, in any row: a 2-D scan, which is one row of anchors,
    corrects whole walls. This is the locally weighted fit of Xu et al. (2022, "Toward 3D scene
    reconstruction from locally scale-aligned monocular video depth") with a weight in depth
    instead of rows, held in a table over columns and depth as in a bilateral grid (Chen et al.
    2007). Far from anchors there is no correction. The table moves by small steps from frame to
    frame, and fades when anchors stop.
    """

    def __init__(self) -> None:
        self._table: np.ndarray | None = None  # logarithms of the factor, (depths, columns)

    def state_dict(self) -> list[list[float]] | None:
        """The table as plain values, for ``load_state_dict``; None if there is no correction."""
        return None if self._table is None else self._table.tolist()

    def load_state_dict(self, state: list[list[float]] | None) -> None:
        """Continue from a ``state_dict``."""
        self._table = None if state is None else np.array(state)

    def update(
        self,
        columns: np.ndarray,
        inverse_depth: np.ndarray,
        measured: np.ndarray,
        seconds: float,
        limit_step: bool,
    ) -> None:
        """Update the table by the anchors of a frame.

        Args:
            columns: (N,) of the anchors, share of the image width, 0 to 1.
            inverse_depth: (N,) of the network there, scale and shift corrected, 1/m, > 0.
            measured: (N,) inverse depth of the anchors, 1/m.
            seconds: since the last frame.
            limit_step: whether depth was published before, so that it must not jump.
        """
        target = np.zeros((_DEPTHS, _COLUMNS))
        if len(columns):
            log = np.log(inverse_depth)
            ratio = np.log(measured) - log
            trust = np.clip(1 - (ratio / _MAX_LOG_RATIO) ** 2, 0, None) ** 2
            across = np.exp(-0.5 * ((_COLUMN_CENTERS - columns[:, None]) / _COLUMN_SIGMA) ** 2)
            along = np.exp(-0.5 * ((_DEPTH_CENTERS[:, None] - log) / _DEPTH_SIGMA) ** 2)
            weight = along @ (trust[:, None] * across)
            target = along @ ((trust * ratio)[:, None] * across) / (weight + _PRIOR_WEIGHT)
        elif self._table is not None:
            target = self._table * 0.5 ** (seconds / _HALF_LIFE)
        if limit_step:
            before = 0.0 if self._table is None else self._table
            target = before + np.clip(target - before, -_MAX_STEP, _MAX_STEP)
        self._table = target if np.abs(target).max() > 1e-4 else None

    def apply(self, raw_inverse_depth: Tensor, affine: tuple[float, float]) -> Tensor:
        """The raw inverse depth of which ``affine`` makes the corrected inverse depth.

        Args:
            raw_inverse_depth: (H, W) float32; what is not > 0 stays as it is.
            affine: scale and shift.

        Returns:
            (H, W) float32; the argument itself where there is no correction.
        """
        if self._table is None:
            return raw_inverse_depth
        scale, shift = affine
        inverse_depth = apply_affine(raw_inverse_depth, affine)
        width = raw_inverse_depth.shape[1]
        x = (torch.arange(width, device=raw_inverse_depth.device) + 0.5) / width
        log = inverse_depth.clamp(min=1e-6).log()
        y = (log - _LOG_FAR) * (2 / (_LOG_NEAR - _LOG_FAR)) - 1
        grid = torch.stack([(x * 2 - 1).to(y).expand_as(y), y * (1 - 1 / _DEPTHS)], -1)
        table = torch.from_numpy(self._table).to(raw_inverse_depth, non_blocking=True)
        factor = grid_sample(
            table[None, None], grid[None], padding_mode="border", align_corners=False
        )[0, 0].exp()
        corrected = (inverse_depth * factor - shift) / scale
        usable = (raw_inverse_depth > 0) & (inverse_depth > 0) & (corrected > 0)
        return torch.where(usable, corrected, raw_inverse_depth)
