# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs/CameraInfo with any numbers: to intrinsics, scaled ones, and a message again."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.input.rectify import places
from dpt_ros.engine.scale.ground import floor_inverse_depth
from dpt_ros.engine.scale.plan import focal_factor
from dpt_ros.ros.camera.calibration import Calibration
from dpt_ros.ros.messages.camera_info import camera_info_message, camera_model, scaled_camera_info
from dpt_ros.ros.messages.image import MessageError
from fuzz.choices import Choices
from fuzz.properties import Broken, bounded, refusal, sentence

_MODELS = ("plumb_bob", "rational_polynomial", "equidistant")


def seeds() -> list[bytes]:
    """A usual camera, an uncalibrated one, one with binning and a region of interest."""
    usual = b"\x60\x64" + b"\0" * 5
    numbers = bytes([150, 0, 8, 150, 0, 8, 150, 0, 2, 150, 0, 2])
    return [
        usual + numbers * 2,
        usual,
        b"\x60\x64\x02\x02\x20\x20\x03" + numbers * 2 + b"\x05\x60",
    ]


def camera_info(choices: Choices) -> CameraInfo:
    """A message with any values that its types can hold."""
    most = 2**32 - 1
    info = CameraInfo(width=choices.integer(0, most), height=choices.integer(0, most))
    info.binning_x, info.binning_y = choices.integer(0, most), choices.integer(0, most)
    info.roi = RegionOfInterest(
        width=choices.integer(0, most),
        height=choices.integer(0, most),
        x_offset=choices.integer(0, most),
    )
    fx, cx, fy, cy = (choices.real() for _ in range(4))
    info.k = np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1], np.float64)
    fx, cx, fy, cy = (choices.real() for _ in range(4))
    info.p = np.array([fx, 0, cx, choices.real(), 0, fy, cy, 0, 0, 0, 1, 0], np.float64)
    info.d = [choices.real() for _ in range(choices.integer(0, 8))]
    info.distortion_model = choices.text()
    return info


def one_input(data: bytes) -> None:
    choices = Choices(data)
    info = camera_info(choices)
    with bounded(len(data)), refusal(MessageError), np.errstate(all="ignore"):
        camera, warning = camera_model(info)
        if warning:
            sentence(f"{warning}.")  # it may end with a command, which a full stop would spoil
        for width, height in ((160, 120), (1, 1)):
            scaled_camera_info(info, width, height, Header())
        if camera is not None:
            _see(camera)
        info.d, info.distortion_model = info.d or [0.1] * 4, choices.pick(_MODELS)
        _rectify(info)


def _rectify(info: CameraInfo) -> None:
    """Any lens is rectified, or used as it is with a sentence."""
    said: list[str] = []
    calibration = Calibration(lambda: "", said.append, rectify=True)
    calibration.take(info)
    for text in said:
        sentence(f"{text}.")
    if calibration.lens is not None and calibration.camera is not None:
        table, _ = places(calibration.lens, calibration.camera.scaled(32, 24))
        if not (np.isfinite(table).all() and (table >= 0).all()):
            raise Broken(f"{calibration.lens} is sampled outside of the picture.")


def _see(camera: CameraModel) -> None:
    """What the engine does with intrinsics must give numbers."""
    small = camera.scaled(64, 48)
    focal = focal_factor(518.86, camera, 640)
    found = [small.matrix(), np.linalg.inv(small.matrix()), np.array(focal)]
    found.append(floor_inverse_depth(camera, np.array([0.0, 1.0, 0.0]), 0.5))
    if not all(np.isfinite(part).all() for part in found) or small.fx <= 0 or focal <= 0:
        raise Broken(f"{camera} leads to what is not finite.")
    camera_info_message(small, Header())
