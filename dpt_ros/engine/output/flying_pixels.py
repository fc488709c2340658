# SPDX-License-Identifier: Apache-2.0
"""Which pixels of a depth image are smeared between what is before and behind an edge."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from dpt_ros.engine.frame import CameraModel

_DETAIL = 160  # half the steps of depth that a network draws across a picture's width, at least
_BEYOND = 1e3  # metres, for what is beyond range


def flying_pixel_mask(depth: Tensor, camera: CameraModel, max_incidence: float) -> Tensor:
    """Pixels whose surroundings could only be one surface if it were seen at a grazing angle.

    A network cannot jump from one depth to another between two pixels; what it draws between them
    hangs in the air. Of a plane that is seen at the angle of incidence a, the logarithm of depth
    changes by at most tan(a) / f from one pixel to the next, f in pixels. Where it changes more
    in the few pixels around one, there is an edge. Time-of-flight cameras have the same trouble
    and the same cure ("flying pixels").

    Args:
        depth: (H, W) float32, metres along optical Z; NaN unknown, +Inf beyond range, which both
            are far behind everything here.
        camera: rectified intrinsics; those of another size are scaled.
        max_incidence: degrees between ray and surface normal, below 90.

    Returns:
        (H, W) bool on its device.

    Raises:
        ValueError: an angle that is not between 0 and 90.
    """
    if not 0 < max_incidence < 90:
        raise ValueError(
            f"The angle of incidence is {max_incidence} degrees, but must be between 0 and 90."
        )
    reach = max(1, round(depth.shape[1] / _DETAIL))
    log = depth.nan_to_num(_BEYOND, _BEYOND).clamp(1e-3, _BEYOND).log()
    steps = _over_window(torch.maximum, log, reach) - _over_window(torch.minimum, log, reach)
    focal = camera.fx * depth.shape[1] / camera.width
    return steps > 2 * reach * math.tan(math.radians(max_incidence)) / focal


def _over_window(best: Callable[[Tensor, Tensor], Tensor], values: Tensor, reach: int) -> Tensor:
    """(H, W): the largest or smallest within ``reach`` pixels; the border's value goes on.

    A window of twice the size is the best of two: few passes over the image, where torch's
    max_pool2d looks at every pixel of every window.
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
    """``depth`` with NaN where it is ``smeared``."""
    known = ~flying_pixel_mask(depth, camera, max_incidence) | (depth == torch.inf)
    return torch.where(known, depth, torch.nan)
