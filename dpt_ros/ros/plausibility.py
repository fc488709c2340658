# SPDX-License-Identifier: Apache-2.0
"""Plausibility checks of input data: calibrations, poses, scans, frame ids, stamps.

Each check returns a message for the log and /diagnostics, "" if it passes. Impossible data is not
used; unlikely data is used, with a warning.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sensor_msgs.msg import LaserScan

from dpt_ros.engine.frame import CameraModel

FARTHEST = 1e9  # metres from the origin; beyond 1e154 squares overflow
# Principal point over the side. Calibrated cameras have 0.39 to 0.58; a calibration of half or
# twice the image size, of binned pixels or of a simulator's default has 0.25 or 1. A crop has any.
_CENTER = (0.27, 0.73)
# Focal length over the side: 0.2 is a field of view of 136 degrees, 20 one of 3 degrees.
_FOCAL = (0.2, 20.0)
_ASPECT = 2.0  # largest ratio of fx and fy
_OTHER_CLOCK = 10.0  # seconds


def calibration_fault(camera: CameraModel) -> str:
    """Why these intrinsics are impossible."""
    for axis, side, center in _sides(camera):
        if not -0.5 <= center <= side - 0.5:
            return (
                f"the principal point is at {axis} = {center:.1f}, outside the image of"
                f" {camera.width}x{camera.height} pixels, so this calibration is not used:"
                " it belongs to an image of another size, or binning_x, binning_y and roi lack"
                " its binning or crop"
            )
    return ""


def calibration_doubt(camera: CameraModel) -> str:
    """Why these intrinsics are unlikely; they are used all the same."""
    shares = [(center + 0.5) / side for _, side, center in _sides(camera)]
    if not all(_CENTER[0] <= share <= _CENTER[1] for share in shares):
        return (
            f"the principal point ({camera.cx:.1f}, {camera.cy:.1f}) is far from the centre of"
            f" {camera.width}x{camera.height} pixels ({100 * shares[0]:.0f} % of the width,"
            f" {100 * shares[1]:.0f} % of the height). Unless the image is a crop, this is the"
            " calibration of another image size, of binned pixels (binning_x, binning_y), or a"
            " simulator's default, and depth and points are wrong by the same factor"
        )
    focals = ((camera.fx, camera.width), (camera.fy, camera.height))
    if not all(_FOCAL[0] <= focal / side <= _FOCAL[1] for focal, side in focals):
        return (
            f"the focal lengths {camera.fx:.4g} and {camera.fy:.4g} are unlikely for"
            f" {camera.width}x{camera.height} pixels; they are expected in pixels, not in"
            " millimetres, and for this image size"
        )
    if not 1 / _ASPECT <= camera.fx / camera.fy <= _ASPECT:
        return (
            f"the focal lengths {camera.fx:.4g} and {camera.fy:.4g} differ by more than a factor"
            f" of {_ASPECT:g}; those of one camera are nearly equal"
        )
    return ""


def _sides(camera: CameraModel) -> tuple[tuple[str, int, float], tuple[str, int, float]]:
    return ("cx", camera.width, camera.cx), ("cy", camera.height, camera.cy)


def pose_values(pose: Sequence[float]) -> np.ndarray | None:
    """A pose, x y z (metres) qx qy qz qw, with its quaternion normalised.

    Returns:
        (7,) float64; None if a value is not finite or beyond `FARTHEST`, or the norm of the
        quaternion is not between 0.5 and 2.
    """
    values = np.array(pose, np.float64)
    if not (np.abs(values) <= FARTHEST).all():  # false for NaN, too
        return None
    length = np.linalg.norm(values[3:])
    if not 0.5 < length < 2.0:
        return None
    values[3:] /= length
    return values


def scan_fault(scan: LaserScan) -> str:
    """Why this scan is impossible."""
    numbers = (scan.angle_min, scan.angle_increment, scan.range_min, scan.range_max)
    if np.isnan(numbers).any() or not np.isfinite(numbers[:2]).all():
        return "angle_min, angle_increment, range_min or range_max is not a number"
    if len(scan.ranges) > 1 and not scan.angle_increment:
        return f"angle_increment is 0 for {len(scan.ranges)} ranges"
    if scan.range_max <= scan.range_min:
        return (
            f"range_max is {scan.range_max:g} m, but must be more than range_min,"
            f" {scan.range_min:g} m"
        )
    return ""


def same_frame(one: str, other: str) -> bool:
    """Whether two ids name one frame. An empty id names none; a leading slash is ignored."""
    return bool(one) and one.lstrip("/") == other.lstrip("/")


def stamps_apart(stamp_ns: int, other_ns: int, what: str) -> str:
    """Why the stamps of an image and of other data, a plural noun, cannot be of one clock."""
    seconds = (other_ns - stamp_ns) * 1e-9
    if abs(seconds) < _OTHER_CLOCK:
        return ""
    return f"{what} are stamped {seconds:+.6g} s from the image: another clock"
