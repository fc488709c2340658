# SPDX-License-Identifier: Apache-2.0
"""Poses as seven numbers, x y z qx qy qz qw, and as matrices; interpolation between two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# How far beyond the last pose its motion is extrapolated; nanoseconds.
LONGEST_GUESS = 150_000_000


def between(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Linear position and spherical linear rotation (Shoemake 1985); share may exceed 1."""
    p, q = one[3:], other[3:]
    cosine = float(p @ q)
    if cosine < 0:
        q, cosine = -q, -cosine
    angle = np.arccos(min(cosine, 1.0))
    if angle < 1e-6:
        rotation = p + share * (q - p)
    else:
        rotation = (np.sin((1 - share) * angle) * p + np.sin(share * angle) * q) / np.sin(angle)
    position = one[:3] + share * (other[:3] - one[:3])
    return np.concatenate([position, rotation / np.linalg.norm(rotation)])


def pose_matrix(pose: Sequence[float]) -> np.ndarray | None:
    """(4, 4) of a pose given as x y z qx qy qz qw; None for an empty one."""
    return pose_to_matrix(np.array(pose, np.float64)) if pose else None


def pose_to_matrix(pose: np.ndarray) -> np.ndarray:
    """(4, 4) of (7,) x y z qx qy qz qw with a quaternion of length 1."""
    x, y, z, qx, qy, qz, qw = pose
    return np.array(
        [
            [1 - 2 * (qy * qy + qz * qz), 2 * (qx * qy - qz * qw), 2 * (qx * qz + qy * qw), x],
            [2 * (qx * qy + qz * qw), 1 - 2 * (qx * qx + qz * qz), 2 * (qy * qz - qx * qw), y],
            [2 * (qx * qz - qy * qw), 2 * (qy * qz + qx * qw), 1 - 2 * (qx * qx + qy * qy), z],
            [0, 0, 0, 1],
        ]
    )
