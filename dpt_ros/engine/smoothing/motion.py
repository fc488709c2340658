# SPDX-License-Identifier: Apache-2.0
"""The motion of cameras between two frames: reprojection of static points, and refinement by flow.

Positions are in normalised coordinates, see ``normalisation``. A motion is a rotation (B, 3, 3)
and a shift (B, 3), metres: what is at X in this frame's axes was at rotation @ X + shift in those
of the previous frame.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.output import postprocess

_FLOW_NOISE = 0.0015  # standard deviation of the flow, share of the focal length
_INDEPENDENT = 200.0  # samples of the flow with independent errors
_ITERATIONS = 2  # of the refinement
_MIN_DEPTH_RATIO = 0.05  # of the two depths of one point; keeps divisions finite


def normalisation(width: int, height: int) -> np.ndarray:
    """(3, 3): homogeneous pixels -> -1 at the centre of the first pixel, 1 at the last one's."""
    return np.array([[2 / max(width - 1, 1), 0, -1], [0, 2 / max(height - 1, 1), -1], [0, 0, 1.0]])


def relative_pose(previous: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (3, 3) and shift (3,), metres, from the current axes to the previous ones, float64.

    Args:
        previous, current: (4, 4) poses of the optical frame in any fixed frame, metres.
    """
    previous_from_current = np.linalg.inv(previous) @ current
    return previous_from_current[:3, :3], previous_from_current[:3, 3]


def warp(
    rotation: Tensor, shift: Tensor, to_grid: Tensor, from_grid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A motion as ``project`` and ``advance`` take it.

    Args:
        rotation, shift: (B, 3, 3) and (B, 3).
        to_grid: (B, 3, 3), rays (X/Z, Y/Z, 1) -> normalised coordinates; from_grid: its inverse.

    Returns:
        turn (B, 3, 3): to_grid @ rotation @ from_grid; shift (B, 3): to_grid @ shift; and form
        (B, 4): axis @ from_grid and -(axis @ shift), where axis is the rotation's third column.
    """
    axis, shift = rotation[:, None, :, 2], shift[:, :, None]
    form = torch.cat([axis @ from_grid, -(axis @ shift)], 2)[:, 0]
    return to_grid @ rotation @ from_grid, (to_grid @ shift)[:, :, 0], form


def project(turn: Tensor, shift: Tensor, grid: Tensor, inverse_depth: Tensor) -> Tensor:
    """Positions of pixels in the previous frame.

    Args:
        turn, shift: (B, 3, 3) and (B, 3), from ``warp``.
        grid: (3, ...) normalised x, y and 1.
        inverse_depth: (B, ...) 1/m.

    Returns:
        (B, 2, ...) normalised x, y.
    """
    moved = (turn @ grid.flatten(1)).view(len(turn), *grid.shape)
    moved = torch.addcmul(moved, shift.view(-1, 3, *[1] * (grid.ndim - 1)), inverse_depth[:, None])
    return moved[:, :2] / moved[:, 2:].clamp(min=_MIN_DEPTH_RATIO)


def advance(form: Tensor, position: Tensor, inverse_depth: Tensor) -> Tensor:
    """Inverse depth (B, ...), 1/m, of static points in this frame.

    Args:
        form: (B, 4), from ``warp``: the ratio of the depths is linear in position and inverse
            depth.
        position: (B, 2, ...) in the previous frame, normalised.
        inverse_depth: (B, ...) in the previous frame, 1/m.
    """
    a, b, c, d = form.view(-1, 4, *[1] * (inverse_depth.ndim - 1)).unbind(1)
    ratio = torch.addcmul(c, a, position[:, 0])
    ratio = torch.addcmul(ratio, b, position[:, 1])
    ratio = torch.addcmul(ratio, d, inverse_depth)
    return inverse_depth / ratio.clamp(min=_MIN_DEPTH_RATIO)


def refine(
    rotation: Tensor,
    shift: Tensor,
    from_grid: Tensor,
    grid: Tensor,
    inverse_depth: Tensor,
    flow_position: Tensor,
    weight: Tensor,
    prior_sigma: Tensor,
) -> tuple[Tensor, Tensor]:
    """Refine a camera's motion by optical flow.

    The equations of Longuet-Higgins and Prazdny (1980), linear in a small rotation and shift,
    solved by iteratively reweighted least squares, with the given motion as the prior. Removes
    the jitter of odometry, and estimates the motion where there is none.

    Args:
        rotation, shift: (B, 3, 3) and (B, 3) by odometry; no motion if there is none.
        from_grid: (B, 3, 3) normalised coordinates -> rays (X/Z, Y/Z, 1).
        grid: (3, N) normalised x, y and 1.
        inverse_depth: (B, N) 1/m.
        flow_position: (B, 2, N) in the previous frame by optical flow, normalised.
        weight: (B, 2, N) of the flow along x and y, 0..1.
        prior_sigma: (B, 6) standard deviations of the prior: rotation, radians; shift, metres.

    Returns:
        rotation and shift.
    """
    target = torch.baddbmm(from_grid[:, :2, 2:], from_grid[:, :2, :2], flow_position)
    rays = from_grid @ grid
    sigma, total = prior_sigma[:, :, None], torch.zeros_like(prior_sigma)[:, :, None]
    identity = torch.eye(6, device=grid.device)
    zero = torch.zeros_like(inverse_depth)
    one = torch.ones_like(inverse_depth)
    for _ in range(_ITERATIONS):
        point = torch.addcmul(rotation @ rays, shift[:, :, None], inverse_depth[:, None])
        near = 1.0 / point[:, 2].clamp(min=_MIN_DEPTH_RATIO)
        x, y, q = point[:, 0] * near, point[:, 1] * near, inverse_depth * near
        along_x = torch.stack([-x * y, one + x * x, -y, q, zero, -x * q], 1)
        along_y = torch.stack([-one - y * y, x * y, x, zero, q, -y * q], 1)
        error = target - torch.stack([x, y], 1)
        length = error.square().sum(1).sqrt()
        robust = _FLOW_NOISE / length.clamp(min=_FLOW_NOISE) / _FLOW_NOISE**2
        robust = robust * _INDEPENDENT / grid.shape[1]
        jacobian = torch.cat([along_x, along_y], 2) * sigma
        weighted = jacobian * (weight * robust[:, None]).flatten(1)[:, None]
        normal = weighted @ jacobian.transpose(1, 2) + identity
        step = solve(normal, weighted @ error.flatten(1)[:, :, None] - total)
        total = total + step
        twist = (step * sigma)[:, :, 0]
        cross = _cross(twist[:, :3])
        turn = identity[:3, :3] + cross + 0.5 * cross @ cross
        rotation = turn @ rotation
        shift = (turn @ shift[:, :, None])[:, :, 0] + twist[:, 3:]
    return rotation, shift


def solve(matrix: Tensor, side: Tensor) -> Tensor:
    """x (B, n, 1) with matrix @ x = side, by elimination without pivots.

    Args:
        matrix: (B, n, n), symmetric and positive definite.
        side: (B, n, 1).
    """
    if postprocess.on_host(matrix):
        return torch.linalg.solve_ex(matrix, side)[0]
    rows = torch.cat([matrix, side], 2)
    for k in range(matrix.shape[1]):
        row = rows[:, k : k + 1] / rows[:, k : k + 1, k : k + 1]
        others = rows - rows[:, :, k : k + 1] * row
        rows = torch.cat([others[:, :k], row, others[:, k + 1 :]], 1)
    return rows[:, :, -1:]


def _cross(w: Tensor) -> Tensor:
    """(B, 3) -> (B, 3, 3): the matrix of the cross product."""
    x, y, z = w.unbind(1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)
