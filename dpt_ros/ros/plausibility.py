# SPDX-License-Identifier: Apache-2.0
"""Whether data from outside can be true: calibrations, poses, scans, points, stamps.

Each check gives a text for the log and /diagnostics, "" where there is nothing to say. What cannot
be true is not used; what is merely unlikely is used, with a warning.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sensor_msgs.msg import LaserScan

from dpt_ros.engine.frame import CameraModel

FARTHEST = 1e9  # metres from the origin; no robot is there, and beyond 1e154 squares overflow
# Shares of a side. Calibrations of real cameras have their principal point at 0.39 to 0.58; one of
# an image of half or twice the size, of binned pixels or of a simulator's default size is at 0.25
# or 1. A crop may have it anywhere.
_CENTER = (0.27, 0.73)
# Focal length over the side: 0.2 is a view of 136 degrees, 20 one of 3 degrees.
_FOCAL = (0.2, 20.0)
_ASPECT = 2.0  # of fx and fy; pixels are square, resized images nearly so
_OTHER_CLOCK = 10.0  # seconds


def calibration_fault(camera: CameraModel) -> str:
    """Why no camera can have these intrinsics."""
    for axis, side, center in _sides(camera):
        if not -0.5 <= center <= side - 0.5:
            return (
                f"the principal point is at {axis} = {center:.1f}, outside of the picture of"
                f" {camera.width}x{camera.height} pixels, so this calibration is not used:"
                " it belongs to an image of another size, or binning or a crop is missing from"
                " binning_x, binning_y and roi"
            )
    return ""


def calibration_doubt(camera: CameraModel) -> str:
    """What is unlikely about intrinsics that are used all the same."""
    shares = [(center + 0.5) / side for _, side, center in _sides(camera)]
    if not all(_CENTER[0] <= share <= _CENTER[1] for share in shares):
        return (
            f"the principal point ({camera.cx:.1f}, {camera.cy:.1f}) is far from the middle of"
            f" {camera.width}x{camera.height} pixels ({100 * shares[0]:.0f} % of the width,"
            f" {100 * shares[1]:.0f} % of the height). Unless the image is a crop, this is the"
            " calibration of another size, of binned pixels (binning_x, binning_y), or a"
            " simulator's default, and depth and points are wrong by the same factor"
        )
    focals = ((camera.fx, camera.width), (camera.fy, camera.height))
    if not all(_FOCAL[0] <= focal / side <= _FOCAL[1] for focal, side in focals):
        return (
            f"the focal lengths {camera.fx:.4g} and {camera.fy:.4g} are unlikely for"
            f" {camera.width}x{camera.height} pixels; they are expected in pixels, not in"
            " millimetres, and for this size of image"
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
    """A pose with its quaternion at length 1; None if it is none.

    Args:
        pose: x y z (metres) qx qy qz qw.

    Returns:
        (7,) float64; None where a value is not finite or out of this world, or the quaternion has
        no direction.
    """
    values = np.array(pose, np.float64)
    if not (np.abs(values) <= FARTHEST).all():  # nor NaN
        return None
    length = np.linalg.norm(values[3:])
    if not 0.5 < length < 2.0:
        return None
    values[3:] /= length
    return values


def scan_fault(scan: LaserScan) -> str:
    """Why no scanner can have measured this."""
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
    """Whether two ids name one frame. An empty id names none; a leading slash is from ROS 1."""
    return bool(one) and one.lstrip("/") == other.lstrip("/")


def stamps_apart(stamp_ns: int, other_ns: int, what: str) -> str:
    """What two stamps say that are so far apart that they cannot be of one clock."""
    seconds = (other_ns - stamp_ns) * 1e-9
    if abs(seconds) < _OTHER_CLOCK:
        return ""
    return f"{what} are stamped {seconds:+.6g} s from the image: another clock"
