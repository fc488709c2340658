# SPDX-License-Identifier: Apache-2.0
"""What anchors say beyond scale and shift: a correction per direction and depth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

_COLUMNS, _DEPTHS = 40, 64  # of the table
_NEAREST, _FARTHEST = 4.0, 0.03  # 1/m, the inverse depths of the table's ends
_WIDTH = 0.04  # standard deviation of what is beside an anchor, of the picture's width
_DEPTH = 0.05  # the same in depth, relative
_ALONE = 0.3  # how many anchors say "no correction"
_MOST = 0.6  # log of the ratio from which on an anchor is of something else
_STEP = 0.03  # largest change from one frame to the next, relative
_HALF_LIFE = 0.3  # seconds without anchors


class LocalCorrection:
    """Corrects inverse depth near anchors, after scale and shift were.

    A network's error is alike for what stands in one direction at one depth: a whole piece of
    wall is too near, the box before it too far. So the anchors' ratios are averaged over pixels
    that are near in column and in depth, whatever their row: a 2-D scan, which is one row of
    anchors, sets whole walls right. This is the locally weighted fit of Xu et al. (2022, "Toward
    3D scene reconstruction from locally scale-aligned monocular video depth") with a weight in
    depth instead of rows, held in a table over columns and depth as in a bilateral grid (Chen et
    al. 2007). Far from anchors there is no correction.

    From frame to frame the table moves by small steps, and fades when anchors stop.
    """

    def __init__(self) -> None:
        self._log_near, self._log_far = np.log(_NEAREST), np.log(_FARTHEST)
        self._columns = (np.arange(_COLUMNS) + 0.5) / _COLUMNS
        self._depths = np.linspace(self._log_far, self._log_near, _DEPTHS)
        self._table: np.ndarray | None = None  # logarithms of the factor, (depths, columns)

    def reset(self) -> None:
        """Forget the anchors."""
        self._table = None

    def state(self) -> list[list[float]] | None:
        """The table, for ``restore``."""
        return None if self._table is None else self._table.tolist()

    def restore(self, state: list[list[float]] | None) -> None:
        """Go on from a ``state``."""
        self._table = None if state is None else np.array(state)

    def take(
        self,
        columns: np.ndarray,
        inverse: np.ndarray,
        truth: np.ndarray,
        seconds: float,
        limit_step: bool,
    ) -> None:
        """Take the anchors of a frame in.

        Args:
            columns: (N,) where they are in the picture, 0 to 1.
            inverse: (N,) what the network says there, scale and shift corrected, 1/m, > 0.
            truth: (N,) what was measured, 1/m.
            seconds: since the last frame.
            gently: whether depth went out before, so that it must not jump.
        """
        target = np.zeros((_DEPTHS, _COLUMNS))
        if len(columns):
            log = np.log(inverse)
            ratio = np.log(truth) - log
            trust = np.clip(1 - (ratio / _MOST) ** 2, 0, None) ** 2
            beside = np.exp(-0.5 * ((self._columns - columns[:, None]) / _WIDTH) ** 2)
            behind = np.exp(-0.5 * ((self._depths[:, None] - log) / _DEPTH) ** 2)
            weight = behind @ (trust[:, None] * beside)
            target = behind @ ((trust * ratio)[:, None] * beside) / (weight + _ALONE)
        elif self._table is not None:
            target = self._table * 0.5 ** (seconds / _HALF_LIFE)
        if limit_step:
            before = 0.0 if self._table is None else self._table
            target = before + np.clip(target - before, -_STEP, _STEP)
        self._table = target if np.abs(target).max() > 1e-4 else None

    def apply(self, network: Tensor, correction: tuple[float, float]) -> Tensor:
        """The network's map such that scale and shift make the corrected inverse depth of it.

        Args:
            network: (H, W) float32; what is not > 0 stays as it is.
            correction: scale and shift: inverse = scale * network + shift.
        """
        if self._table is None:
            return network
        scale, shift = correction
        inverse = network * scale + shift
        span = 2 / (self._log_near - self._log_far)
        depth = (inverse.clamp(min=1e-6).log() - self._log_far) * span - 1
        x = (torch.arange(network.shape[1], device=network.device) + 0.5) / network.shape[1]
        across = (x * 2 - 1).to(depth).expand_as(depth)
        places = torch.stack([across, depth * (1 - 1 / _DEPTHS)], -1)
        values = torch.from_numpy(self._table).to(network, non_blocking=True)
        factor = grid_sample(
            values[None, None], places[None], padding_mode="border", align_corners=False
        )[0, 0].exp()
        bent = (inverse * factor - shift) / scale
        usable = (network > 0) & (inverse > 0) & (bent > 0)
        return torch.where(usable, bent, network)
