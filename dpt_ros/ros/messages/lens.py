# SPDX-License-Identifier: Apache-2.0
"""From a CameraInfo with distortion to the rectification of its image."""

from __future__ import annotations

import math

import numpy as np
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from dpt_ros.engine.frame import CameraModel, Lens
from dpt_ros.engine.input.rectify import places
from dpt_ros.ros.messages.camera_info import camera_info_message, pinhole

# Coefficients of each model; others than the usual names of equidistant are from drivers.
_MODELS = {
    "plumb_bob": ("plumb_bob", 5),
    "rational_polynomial": ("rational_polynomial", 8),
    "equidistant": ("equidistant", 4),
    "fisheye": ("equidistant", 4),
}
_FEWEST = 4  # coefficients of any model
_WIDEST = 120.0  # degrees; a pinhole image of more consists mostly of magnified border
_SHOWN = (0.25, 0.5)  # shares of a rectified picture that show something: needed, and usual
_SIZE = (96, 72)  # at which the share is looked at


def lens_of(info: CameraInfo) -> Lens:
    """The lens of an image, for the pixels that ROI and binning leave of it.

    Raises:
        ValueError: why it is not usable, in words that continue a sentence.
    """
    raw = pinhole(info, info.k)
    if raw is None:
        raise ValueError("K is no calibration (no focal length that a lens can have)")
    if info.distortion_model not in _MODELS:
        raise ValueError(
            f"the distortion model is '{info.distortion_model}', but must be one of"
            f" {', '.join(_MODELS)}"
        )
    model, most = _MODELS[info.distortion_model]
    if len(info.d) < _FEWEST or any(info.d[most:]):
        raise ValueError(
            f"D has {len(info.d)} coefficients, but {info.distortion_model} has {_FEWEST}"
            + (f" to {most}" if most > _FEWEST else "")
        )
    given = [float(value) for value in info.d[:most]]
    if not np.isfinite(given).all():
        raise ValueError(f"D is {given}, but must be finite numbers")
    rotation = np.array(info.r, np.float64).reshape(3, 3)
    if not rotation.any():
        rotation = np.eye(3)
    if not np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-2:  # false for NaN, too
        raise ValueError("R is no rotation")
    coefficients = tuple((given + [0.0] * most)[:most])
    return Lens(model, coefficients, raw, tuple(rotation.ravel().tolist()))


def rectified_camera(lens: Lens, camera: CameraModel, fov: float) -> tuple[CameraModel, str]:
    """The camera of the rectified image, of the raw one's size, and a warning, "" for none.

    Args:
        lens: of the raw image.
        camera: the one that camera_info has for the rectified image.
        fov: the horizontal field of view to keep, degrees; 0 for that of ``camera``.

    Raises:
        ValueError: why there is none, in words that continue a sentence.
    """
    if fov:
        focal = camera.width / 2 / math.tan(math.radians(fov) / 2)
        center = (camera.width - 1) / 2, (camera.height - 1) / 2
        camera = CameraModel(camera.width, camera.height, focal, focal, *center)
    _, seen = places(lens, camera.scaled(*_SIZE))
    shown = f"only {100 * seen.mean():.0f} % of the rectified image would show something"
    if seen.mean() < _SHOWN[0]:
        cure = "decrease rectify_fov" if fov else "D and P do not belong together; set rectify_fov"
        raise ValueError(f"{shown} ({cure})")
    width = _degrees(camera.cx, camera.fx) + _degrees(camera.width - 1 - camera.cx, camera.fx)
    if width > _WIDEST and not fov:
        return camera, (
            f"camera_info: the rectified image spans {width:.0f} degrees, most of it magnified"
            " border, where depth is poor: set rectify_fov, for instance to 100."
        )
    if seen.mean() < _SHOWN[1]:
        cure = "decrease" if fov else "set"
        return camera, f"camera_info: {shown}, the rest is NaN: {cure} rectify_fov."
    return camera, ""


def rectified_info(info: CameraInfo, camera: CameraModel) -> CameraInfo:
    """The CameraInfo of the rectified image: K and P of ``camera``, D zero, R the identity. The
    baseline of a stereo camera's P is kept in metres."""
    rectified = camera_info_message(camera, Header())
    if info.p[0]:
        rectified.p[3] = camera.fx * float(info.p[3]) / float(info.p[0])
    return rectified


def _degrees(side: float, focal: float) -> float:
    return math.degrees(math.atan2(side + 0.5, focal))
