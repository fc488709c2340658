# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs CameraInfo <-> the pinhole camera of an image."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.text import one_line
from dpt_ros.ros.messages.types import base_topic
from dpt_ros.ros.plausibility import calibration_doubt, calibration_fault

# sensor_msgs/distortion_models calls it equidistant, some drivers fisheye. Such a lens is no
# pinhole even where D is zero.
_FISHEYE = ("equidistant", "fisheye")
_RECTIFIED = re.compile(r"(?<![a-z])(rect(ified)?|undistorted)(?![a-z])")


def camera_model(info: CameraInfo, topic: str = "") -> tuple[CameraModel | None, str]:
    """The rectified pinhole camera of ``info``, and a warning ("" when there is none).

    It is the left 3x3 of ``P``, or ``K`` where ``P`` is empty, moved by the region of interest
    and divided by the binning, so that it is for the pixels of the published image.
    None when the camera is not calibrated, or when no camera can have such a calibration.

    Args:
        info: the calibration.
        topic: of the image that it belongs to; whose name shows whether the image is rectified.
    """
    camera = pinhole(info, info.p if info.p[0] else info.k)
    if camera is None:
        return None, (
            "camera_info has no calibration (no size, or no focal length that a lens can have), so"
            " depth is published without intrinsics; calibrate the camera with camera_calibration."
        )
    if fault := calibration_fault(camera):
        return None, one_line(f"camera_info: {fault}.")
    doubt = calibration_doubt(camera)
    words = [f"camera_info: {doubt}." if doubt else "", unrectified(info, topic)]
    return camera, one_line(" ".join(word for word in words if word))


def camera_info_message(camera: CameraModel, header: Header) -> CameraInfo:
    """The CameraInfo of a rectified camera without distortion."""
    info = CameraInfo(header=header, width=camera.width, height=camera.height)
    info.distortion_model = "plumb_bob"
    info.d = [0.0] * 5
    info.k = camera.matrix().ravel()
    info.r = np.eye(3).ravel()
    info.p = np.column_stack([camera.matrix(), np.zeros(3)]).ravel()
    return info


def scaled_camera_info(info: CameraInfo, width: int, height: int, header: Header) -> CameraInfo:
    """``info`` for the same view resized to ``width`` x ``height``: K and P scaled, D zero.

    The baseline term of a stereo camera's ``P`` is kept in metres. ``R`` is the identity where it
    is empty.
    """
    out = CameraInfo(header=header, width=width, height=height, distortion_model="plumb_bob")
    out.d = [0.0] * 5
    out.r = info.r if any(info.r) else np.eye(3).ravel()
    raw, rectified = pinhole(info, info.k), pinhole(info, info.p)
    if raw := raw or rectified:
        out.k = raw.scaled(width, height).matrix().ravel()
    if camera := rectified or raw:
        camera = camera.scaled(width, height)
        baseline = float(info.p[3]) / float(info.p[0]) if rectified else 0.0
        shift = [camera.fx * baseline, 0.0, 0.0]
        out.p = np.column_stack([camera.matrix(), shift]).ravel()
    return out


def pinhole(info: CameraInfo, matrix: Sequence[float]) -> CameraModel | None:
    """The camera of ``K`` or ``P``, row by row, of the full sensor, brought to the image that its
    ROI and binning give; None if no lens can have it: a focal length of 0.01 of the width is 178.9
    degrees, 1e4 is 0.006."""
    row = len(matrix) // 3
    fx, cx, fy, cy = matrix[0], matrix[2], matrix[row + 1], matrix[row + 2]
    bin_x, bin_y, roi = max(info.binning_x, 1), max(info.binning_y, 1), info.roi
    camera = CameraModel(
        (roi.width or info.width) // bin_x,
        (roi.height or info.height) // bin_y,
        float(fx) / bin_x,
        float(fy) / bin_y,
        (float(cx) - roi.x_offset) / bin_x,
        (float(cy) - roi.y_offset) / bin_y,
    )
    sides = ((camera.width, camera.fx, camera.cx), (camera.height, camera.fy, camera.cy))
    there_is = all(
        side > 0 and 0.01 <= focal / side <= 1e4 and abs(center) <= 1e4 * side
        for side, focal, center in sides
    )
    return camera if there_is else None


def unrectified(info: CameraInfo, topic: str, why: str = "") -> str:
    """A warning on an image that is not rectified, "" for one that is.

    A camera_info describes the lens, not whether its distortion was removed from the image:
    image_raw and image_rect share one. So where there is distortion, the image's name decides.

    Args:
        info: of the image.
        topic: of the image, "" if it is not known.
        why: the node does not rectify it, which is meant to; "" if it is not.
    """
    fisheye = info.distortion_model in _FISHEYE
    if not (fisheye or any(info.d)) or _RECTIFIED.search(topic):
        return ""
    what = "a fisheye lens" if fisheye else "lens distortion"
    d = "not zero" if any(info.d) else "zero"
    camera = [*info.p[:3], *info.p[4:7]]
    no_p = ", and P is no rectified camera" if camera in ([*info.k[:6]], [0.0] * 6) else ""
    remedy = f"The node cannot rectify it: {why}. Run" if why else "Set rectify to auto, or run"
    return (
        f"camera_info has {what} ('{info.distortion_model}', D {d}{no_p}), and by its name"
        f" {topic or 'the image'} is not rectified: depth is published, but its metres and"
        f" points are wrong, mostly towards the edges. {remedy} rectify_node of image_proc and"
        f" subscribe to its output: -r image:={_rectified(topic)}"
    )


def _rectified(topic: str) -> str:
    """The topic on which image_proc publishes what comes in on ``topic``, rectified."""
    *folder, name = base_topic(topic).split("/")
    return "/".join([*folder, "image_rect_color" if name.endswith("_color") else "image_rect"])
