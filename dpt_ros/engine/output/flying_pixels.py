# SPDX-License-Identifier: Apache-2.0
"""Flying pixels: depth interpolated between foreground and background at an edge."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from dpt_ros.engine.frame import CameraModel

_DETAIL = 160  # an edge is blurred over at most 2 / _DETAIL of the width
_BEYOND = 1e3  # metres, of depth beyond range


def flying_pixel_mask(depth: Tensor, camera: CameraModel, max_incidence: float) -> Tensor:
    """Pixels whose depth gradient exceeds that of a surface at the largest angle of incidence.

    On a plane at the angle of incidence a, the logarithm of depth changes by at most tan(a) / f
    from one pixel to the next, f in pixels. A larger change within the few pixels over which a
    network blurs a depth edge is an edge, as with the flying pixels of time-of-flight cameras.

    Args:
        depth: (H, W) float32, metres along optical Z; NaN (unknown) and +Inf (beyond range)
            count as far.
        camera: rectified intrinsics; those of another size are scaled.
        max_incidence: largest angle between ray and surface normal, degrees, below 90.

    Returns:
        (H, W) bool on its device.

    Raises:
        ValueError: ``max_incidence`` is not between 0 and 90.
    """
    if not 0 < max_incidence < 90:
        raise ValueError(
            f"max_incidence is {max_incidence} degrees, but must be between 0 and 90."
        )
    reach = max(1, round(depth.shape[1] / _DETAIL))
    log = depth.nan_to_num(_BEYOND, _BEYOND).clamp(1e-3, _BEYOND).log()
    steps = _over_window(torch.maximum, log, reach) - _over_window(torch.minimum, log, reach)
    focal = camera.fx * depth.shape[1] / camera.width
    return steps > 2 * reach * math.tan(math.radians(max_incidence)) / focal


def _over_window(best: Callable[[Tensor, Tensor], Tensor], values: Tensor, reach: int) -> Tensor:
    """(H, W): maximum or minimum within ``reach`` pixels, borders replicated.

    By doubling the window: few passes, where torch's max_pool2d reads every pixel of each window.
    """
    for _ in range(2):  # columns, then rows, by way of a transposition
        padded = pad(values[None], (reach, reach), mode="replicate")[0]
        span, window = 1, padded
        while span < 2 * reach + 1:
            more = min(span, 2 * reach + 1 - span)
            window = best(window[:, : window.shape[1] - more], window[:, more:])
            span += more
        values = window.T.contiguous()
    return values


def remove_flying_pixels(depth: Tensor, camera: CameraModel, max_incidence: float) -> Tensor:
    """``depth`` with NaN at flying pixels; +Inf is kept."""
    known = ~flying_pixel_mask(depth, camera, max_incidence) | (depth == torch.inf)
    return torch.where(known, depth, torch.nan)
