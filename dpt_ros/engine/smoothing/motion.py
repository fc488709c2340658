# SPDX-License-Identifier: Apache-2.0
"""The motion of cameras between two frames: reprojection of static points, and refinement by flow.

Positions are in pixels of the maps. A motion is a rotation (B, 3, 3) and a shift (B, 3), metres:
what is at X in this frame's axes was at rotation @ X + shift in those of the previous frame. The
functions take tensors or numpy arrays, see ``maps``.
"""

from __future__ import annotations

import cv2
import numpy as np

from dpt_ros.engine.smoothing.maps import (
    LARGEST,
    Array,
    empty,
    identity,
    length,
    library,
    linear,
    scaled,
)

_FLOW_NOISE = 0.0015  # standard deviation of the flow, share of the focal length
_INDEPENDENT = 200.0  # samples of the flow with independent errors
_FLOW_TOLERANCE = (1.5, 0.05)  # pixels, and share of the flow, to which flow and ego-motion agree
LUMA_NOISE = 4.0  # grey levels
_ITERATIONS = 2  # of the refinement
_CROSS = np.zeros((3, 9), np.float32)  # of a unit vector along each axis
_CROSS[[0, 0, 1, 1, 2, 2], [7, 5, 2, 6, 3, 1]] = (1, -1, 1, -1, 1, -1)
_MIN_DEPTH_RATIO = 0.05  # of the two depths of one point; keeps divisions finite


def relative_pose(previous: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (3, 3) and shift (3,), metres, from the current axes to the previous ones, float64.

    Args:
        previous, current: (4, 4) poses of the optical frame in any fixed frame, metres.
    """
    previous_from_current = np.linalg.inv(previous) @ current
    return previous_from_current[:3, :3], previous_from_current[:3, 3]


def warp(
    rotation: Array, shift: Array, to_grid: Array, from_grid: Array
) -> tuple[Array, Array, Array]:
    """A motion as ``project`` and ``advance`` take it.

    Args:
        rotation, shift: (B, 3, 3) and (B, 3).
        to_grid: (B, 3, 3), rays (X/Z, Y/Z, 1) -> pixels; from_grid: its inverse.

    Returns:
        turn (B, 3, 3): to_grid @ rotation @ from_grid; shift (B, 3): to_grid @ shift; and form
        (B, 4): axis @ from_grid and -(axis @ shift), where axis is the rotation's third column.
    """
    axis, shift = rotation[:, None, :, 2], shift[:, :, None]
    form = library(shift).concatenate([axis @ from_grid, -(axis @ shift)], 2)[:, 0]
    return to_grid @ rotation @ from_grid, (to_grid @ shift)[:, :, 0], form


def project(turn: Array, shift: Array, grid: Array, inverse_depth: Array) -> Array:
    """Positions of pixels in the previous frame.

    Args:
        turn, shift: (B, 3, 3) and (B, 3), from ``warp``.
        grid: (3, h, w) x, y and 1.
        inverse_depth: (B, h, w) 1/m.

    Returns:
        (B, 2, h, w) x and y.
    """
    factors = library(turn).concatenate([turn, shift[:, :, None]], 2)
    x, y, z = (linear(factors[:, k], grid[:1], grid[1:2], inverse_depth) for k in range(3))
    xp, position = library(z), empty(z, len(z), 2, *z.shape[1:])
    xp.clip(z, _MIN_DEPTH_RATIO, LARGEST, out=z)
    xp.divide(x, z, out=position[:, 0])
    xp.divide(y, z, out=position[:, 1])
    return position


def advance(form: Array, position: Array, inverse_depth: Array) -> Array:
    """Inverse depth (B, h, w), 1/m, of static points in this frame.

    Args:
        form: (B, 4), from ``warp``: the ratio of the depths is linear in position and inverse
            depth.
        position: (B, 2, h, w) in the previous frame.
        inverse_depth: (B, h, w) in the previous frame, 1/m.
    """
    ratio = linear(form, position[:, 0], position[:, 1], inverse_depth)
    library(ratio).clip(ratio, _MIN_DEPTH_RATIO, LARGEST, out=ratio)
    return library(ratio).divide(inverse_depth, ratio, out=ratio)


def flow_disagreement(
    seen: Array, grid: Array, position: Array, luma: Array, exposure: Array
) -> tuple[Array, Array]:
    """Where optical flow disagrees with the camera's motion.

    Args:
        seen: (B, 8, h, w), from ``look``, at the pixels of the grid.
        grid: (3, h, w), from ``pixel_grid``.
        position: (B, 2, h, w) in the previous frame by the camera's motion.
        luma: (B, h, w) grey levels of the state there.
        exposure: (B,) factor of them.

    Returns:
        (B, h, w) bool, whether the two differ; (B, h, w) by how many grey levels the camera's
        motion fits worse.
    """
    error = length(seen[:, 3] - position[:, 0], seen[:, 4] - position[:, 1])
    tolerance = length(seen[:, 3] - grid[0], seen[:, 4] - grid[1])
    tolerance = scaled(tolerance, _FLOW_TOLERANCE[1], _FLOW_TOLERANCE[0], tolerance)
    worse = luma * exposure[:, None, None]
    worse -= seen[:, 2]
    worse = library(worse).abs(worse, out=worse)
    worse -= seen[:, 5]
    return error > tolerance, worse


def outside(position: Array, size: tuple[int, int]) -> Array:
    """(B, h, w) bool, whether a position (B, 2, h, w) is outside of maps of a height and width:
    farther than half a pixel from their pixels' centres."""
    below = position < -0.5
    beyond = below[:, 0] | below[:, 1]
    beyond |= position[:, 0] > size[1] - 0.5
    beyond |= position[:, 1] > size[0] - 0.5
    return beyond


def refine(
    rotation: Array,
    shift: Array,
    from_grid: Array,
    grid: Array,
    inverse_depth: Array,
    flow_position: Array,
    weight: Array,
    prior_sigma: Array,
) -> tuple[Array, Array]:
    """Refine a camera's motion by optical flow.

    The equations of Longuet-Higgins and Prazdny (1980), linear in a small rotation and shift,
    solved by iteratively reweighted least squares, with the given motion as the prior. Removes
    the jitter of odometry, and estimates the motion where there is none.

    Args:
        rotation, shift: (B, 3, 3) and (B, 3) by odometry; no motion if there is none.
        from_grid: (B, 3, 3) pixels -> rays (X/Z, Y/Z, 1).
        grid: (3, N) x, y and 1.
        inverse_depth: (B, N) 1/m.
        flow_position: (B, 2, N) in the previous frame by optical flow.
        weight: (B, 2, N) of the flow along x and y, 0..1.
        prior_sigma: (B, 6) standard deviations of the prior: rotation, radians; shift, metres.

    Returns:
        rotation and shift.
    """
    xp = library(grid)
    target = from_grid[:, :2, :2] @ flow_position + from_grid[:, :2, 2:]
    rays, sigma, total = from_grid @ grid, prior_sigma[:, :, None], 0.0
    zero, one, count = xp.zeros_like(inverse_depth), identity(6, grid), grid.shape[1]
    weight = weight * (_INDEPENDENT / _FLOW_NOISE / count)
    for _ in range(_ITERATIONS):
        point = rotation @ rays + shift[:, :, None] * inverse_depth[:, None]
        near = 1.0 / point[:, 2].clip(_MIN_DEPTH_RATIO, LARGEST)
        at, q = point[:, :2] * near[:, None], inverse_depth * near
        x, y, error = at[:, 0], at[:, 1], target - at
        xy = x * y
        # Of x and y by each of the six.
        jacobian = xp.concatenate(
            [-xy, -1 - y * y, 1 + x * x, xy, -y, x, q, zero, zero, q, -x * q, -y * q], 1
        ).reshape(-1, 6, 2 * count)
        length = xp.sqrt(error[:, 0] ** 2 + error[:, 1] ** 2)
        robust = weight / length.clip(_FLOW_NOISE, LARGEST)[:, None]
        weighted = jacobian * robust.reshape(-1, 1, 2 * count)
        normal = one + sigma * (weighted @ jacobian.swapaxes(1, 2)) * sigma.swapaxes(1, 2)
        side = sigma * (weighted @ error.reshape(-1, 2 * count, 1)) - total
        step = solve(normal, side)
        total = total + step
        twist = (step * sigma)[:, :, 0]
        cross = _cross(twist[:, :3])
        turn = one[:3, :3] + cross + 0.5 * cross @ cross
        rotation = turn @ rotation
        shift = (turn @ shift[:, :, None])[:, :, 0] + twist[:, 3:]
    return rotation, shift


def solve(matrix: Array, side: Array) -> Array:
    """x (B, n, 1) with matrix @ x = side, by elimination without pivots.

    Args:
        matrix: (B, n, n), symmetric and positive definite.
        side: (B, n, 1).
    """
    xp = library(matrix)
    if xp is np:
        return cv2.solve(matrix[0], side[0])[1][None]
    rows = xp.concatenate([matrix, side], 2)
    for k in range(matrix.shape[1]):
        row = rows[:, k : k + 1] / rows[:, k : k + 1, k : k + 1]
        others = rows - rows[:, :, k : k + 1] * row
        rows = xp.concatenate([others[:, :k], row, others[:, k + 1 :]], 1)
    return rows[:, :, -1:]


def _cross(w: Array) -> Array:
    """(B, 3) -> (B, 3, 3): the matrix of the cross product."""
    if isinstance(w, np.ndarray):
        return (w @ _CROSS).reshape(-1, 3, 3)
    x, y, z = w[:, 0], w[:, 1], w[:, 2]
    zero = 0 * x
    return library(w).stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(-1, 3, 3)
