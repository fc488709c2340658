# SPDX-License-Identifier: Apache-2.0
"""What is known of the scale of a frame, and the frame in 1/m."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaled:
    """What is known of a frame's scale.

    Args:
        network: (H, W) float32, what came in, corrected beside anchors (``LocalCorrection``); of
            the kind and on the device of what came in.
        metric: whether ``inverse`` is in 1/m.
        scale, shift: inverse = scale * network + shift.
        covariance: (2, 2) of scale and shift.
        sigma: relative standard deviation of the scale of the inverse depth where the pairs are;
            infinite without metres.
        residual: relative standard deviation of the network about the last fit, 0 without one.
        pairs: how many pairs of the frame were used.
        source: "network", "anchors", "ground" or "none": what the metres rest on.
        state: "fitted", "scale only" (the pairs fix one number), "held" (the last fit), "as the
            network says", "no metres yet" or "no metres asked for".
        reason: why the frame itself was not used: "no anchors", "anchors 0.40 s from the frame",
            "too few pairs", "no spread", "not plausible"; "" if it was, or need not be.
    """

    network: Any
    metric: bool
    scale: float
    shift: float
    covariance: np.ndarray
    sigma: float
    residual: float
    pairs: int
    source: str
    state: str
    reason: str

    @property
    def inverse(self) -> Any:
        """(H, W) float32, of the kind of ``network``: 1/m, 0 beyond range, NaN unknown; the
        network's own if there are no metres."""
        if not self.metric:
            return self.network
        inverse = apply_correction(torch.as_tensor(self.network), (self.scale, self.shift))
        return inverse.numpy() if isinstance(self.network, np.ndarray) else inverse

    def diagnostics(self) -> dict[str, str]:
        """Names and values for /diagnostics."""
        return {
            "scale source": self.source,
            "scale state": f"{self.state} ({self.reason})" if self.reason else self.state,
            "scale": f"{self.scale:.6g}",
            "shift": f"{self.shift:.4f} 1/m",
            "scale sigma": f"{100 * self.sigma:.1f} %",
            "scale residual": f"{100 * self.residual:.1f} %",
            "scale pairs": str(self.pairs),
        }

    def relative_variance(self, network: Tensor) -> Tensor:
        """Relative variance of the inverse depth, (H, W), that comes from scale and shift.

        It is the same for the depth. The network's own noise comes on top of it.

        Args:
            network: (H, W), that of this frame.
        """
        c = self.covariance
        variance = (float(c[0, 0]) * network + 2 * float(c[0, 1])) * network + float(c[1, 1])
        inverse = (self.scale * network + self.shift).clamp(min=1e-6)
        return variance / inverse.square()


def apply_correction(network: Tensor, correction: Tensor | tuple[float, float]) -> Tensor:
    """``scale * network + shift`` where the network says something.

    0 stays 0 (beyond range, or where a relative network is cut off), NaN stays NaN, and what
    would get negative is beyond range: 0.

    Args:
        network: (..., H, W) float32.
        correction: scale and shift; a (2,) tensor can be changed between replays of a graph.
    """
    scale, shift = correction[0], correction[1]
    return torch.where(network > 0, (network * scale + shift).clamp(min=0), network.clamp(min=0))
