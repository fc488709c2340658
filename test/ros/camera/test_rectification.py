# SPDX-License-Identifier: Apache-2.0
"""From camera_info to the rectification of its images, or to why there is none."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy")

from helpers.lenses import COEFFICIENTS, lens, pinhole
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from dpt_ros.engine.input.rectify import places
from dpt_ros.ros.camera.calibration import Calibration
from dpt_ros.ros.messages.camera_info import camera_info_message, unrectified

WIDTH, HEIGHT = 640, 480
MODELS = sorted(COEFFICIENTS)


def raw_info(model: str, wider: float = 1.0, **changes: object) -> CameraInfo:
    """The camera_info of a raw image."""
    taken, camera = lens(model, WIDTH, HEIGHT), pinhole(model, WIDTH, HEIGHT, wider)
    info = camera_info_message(camera, Header())
    info.k, info.d = taken.raw.matrix().ravel(), list(taken.coefficients)
    info.distortion_model = model
    for name, value in changes.items():
        setattr(info, name, value)
    return info


class Taken:
    """What a calibration makes of a camera_info, and says."""

    def __init__(self, info: CameraInfo, topic: str = "/cam/image_raw", **how: object) -> None:
        self.warned: list[str] = []
        self.informed: list[str] = []
        how = {"rectify": True} | how
        self.calibration = Calibration(
            lambda: topic, self.warned.append, self.informed.append, **how
        )
        self.calibration.take(info)
        self.lens = self.calibration.lens
        self.camera, self.info = self.calibration.of(WIDTH, HEIGHT)

    @property
    def state(self) -> str:
        return self.calibration.record.state


@pytest.mark.parametrize("model", MODELS)
def test_lens_and_camera_are_those_of_camera_info(model):
    found = Taken(raw_info(model))
    assert found.lens == lens(model, WIDTH, HEIGHT)
    assert found.camera == pinhole(model, WIDTH, HEIGHT)
    assert (found.warned, found.calibration.warnings) == ([], [])
    assert found.state == "used, rectified in the node to P"
    assert "/cam/image_raw are rectified in the node" in found.informed[0]
    assert not any(found.info.d)


def test_drivers_other_names_and_lengths_are_understood():
    assert Taken(raw_info("equidistant", distortion_model="fisheye")).lens.model == "equidistant"
    longer = raw_info("plumb_bob", d=[*COEFFICIENTS["plumb_bob"], 0.0, 0.0, 0.0])
    assert Taken(longer).lens == lens("plumb_bob", WIDTH, HEIGHT)
    shorter = Taken(raw_info("plumb_bob", d=[-0.2, 0.1, 0.0, 0.0]))
    assert shorter.lens.coefficients == (-0.2, 0.1, 0.0, 0.0, 0.0)
    assert Taken(raw_info("plumb_bob", r=[0.0] * 9)).lens == lens("plumb_bob", WIDTH, HEIGHT)


def test_k_takes_the_place_of_an_empty_p():
    found = Taken(raw_info("plumb_bob", p=[0.0] * 12))
    assert found.camera == lens("plumb_bob", WIDTH, HEIGHT).raw
    assert found.state == "used, rectified in the node to K, as P is empty"


def test_a_crop_of_binned_pixels_is_rectified_as_the_part_of_the_whole_that_it_is():
    whole = raw_info("plumb_bob")
    crop = raw_info("plumb_bob", binning_x=2, binning_y=2)
    crop.roi.x_offset, crop.roi.y_offset, crop.roi.width, crop.roi.height = 160, 120, 400, 300
    parts = [Calibration(lambda: "", [].append, rectify=True) for _ in range(2)]
    for calibration, info in zip(parts, (whole, crop), strict=True):
        calibration.take(info)
    full, _ = places(parts[0].lens, parts[0].camera)
    small, _ = places(parts[1].lens, parts[1].camera)
    assert small.shape == (150, 200, 2)
    expected = (full[120:420:2, 160:560:2] - [160, 120]) / 2
    inside = ((expected > 0) & (expected < [199, 149])).all(-1)
    np.testing.assert_allclose(small[inside], expected[inside], atol=1e-3)
    info = parts[1].of(200, 150)[1]
    assert (info.width, info.height, info.roi.width, info.binning_x) == (200, 150, 0, 0)


@pytest.mark.parametrize(
    ("topic", "raw"),
    [
        ("/cam/image_raw", True),
        ("/direct/image", True),
        ("/cam/image_corrected", True),
        ("", True),
        ("/cam/image_rect", False),
        ("/cam/image_rect_color/compressed", False),
        ("/rgb/rect/image", False),
        ("/left/image_undistorted", False),
        ("/rectified/image", False),
    ],
)
def test_the_name_of_the_topic_decides_whether_an_image_is_raw(topic, raw):
    assert (Taken(raw_info("plumb_bob"), topic).lens is not None) == raw
    assert bool(unrectified(raw_info("plumb_bob"), topic)) == raw


def test_an_image_without_distortion_is_not_touched():
    info = camera_info_message(pinhole("plumb_bob", WIDTH, HEIGHT), Header())
    found = Taken(info)
    assert (found.lens, found.state, found.informed) == (None, "used", [])
    assert found.info is info


def test_off_leaves_the_image_as_it_is_and_warns():
    info = raw_info("plumb_bob")
    found = Taken(info, rectify=False)
    assert found.lens is None
    assert found.info is info
    assert found.state == "used, but the image is not rectified"
    assert "Set rectify to auto, or run rectify_node" in found.warned[0]
    assert found.warned[0].endswith("-r image:=/cam/image_rect")


@pytest.mark.parametrize(
    ("model", "changes", "why"),
    [
        ("plumb_bob", {"distortion_model": "omni"}, "distortion model is 'omni', but must be one"),
        ("plumb_bob", {"d": [0.1, 0.1]}, "D has 2 coefficients, but plumb_bob has 4 to 5"),
        ("equidistant", {"d": [0.1] * 5}, "D has 5 coefficients, but equidistant has 4."),
        ("plumb_bob", {"d": [0.1] * 8}, "D has 8 coefficients, but plumb_bob has 4 to 5"),
        ("plumb_bob", {"d": [float("nan")] * 5}, "must be finite numbers"),
        ("plumb_bob", {"d": [-40.0, 0.0, 0.0, 0.0, 0.0]}, "% of the rectified image would show"),
        ("plumb_bob", {"d": [500.0, 0.0, 0.0, 0.0, 0.0]}, "% of the rectified image would show"),
        ("plumb_bob", {"k": [0.0] * 9}, "K is no calibration"),
        ("plumb_bob", {"r": [1.0] * 9}, "R is no rotation"),
        ("plumb_bob", {"r": [float("nan")] * 9}, "R is no rotation"),
    ],
)
def test_a_lens_that_cannot_be_rectified_is_used_as_before_with_the_reason(model, changes, why):
    info = raw_info(model, **changes)
    found = Taken(info)
    assert found.lens is None
    assert found.camera == pinhole(model, WIDTH, HEIGHT)
    assert found.info is info
    (warning,) = found.warned
    assert why in warning
    assert "The node cannot rectify it: " in warning
    assert warning.endswith("-r image:=/cam/image_rect")
    assert found.calibration.warnings == [warning]
    assert found.state == "used, but the image is not rectified"


def test_the_field_of_view_can_be_chosen():
    found = Taken(raw_info("equidistant"), fov=90.0)
    assert (found.camera.cx, found.camera.cy) == (319.5, 239.5)
    assert found.camera.fx == found.camera.fy == pytest.approx(320.0)
    assert found.state == "used, rectified in the node to rectify_fov"
    assert found.warned == []
    assert found.info.p[0] == found.info.k[0] == pytest.approx(320.0)


def test_a_rectified_image_of_mostly_magnified_border_is_a_warning():
    found = Taken(raw_info("equidistant", wider=2.5))
    assert found.lens is not None
    assert "spans 125 degrees, most of it magnified border" in found.warned[0]
    assert "set rectify_fov, for instance to 100" in found.warned[0]
    assert Taken(raw_info("equidistant", wider=2.5), fov=100.0).warned == []


def test_a_rectified_image_that_is_mostly_empty_is_a_warning():
    found = Taken(raw_info("plumb_bob", wider=1.8))
    assert found.lens is not None
    assert "% of the rectified image would show something, the rest is NaN" in found.warned[0]
    much = Taken(raw_info("plumb_bob"), fov=100.0)
    assert "decrease rectify_fov" in much.warned[0]
    assert "decrease rectify_fov" in Taken(raw_info("plumb_bob"), fov=160.0).warned[0]


def test_another_calibration_takes_the_place_of_the_last():
    found = Taken(raw_info("plumb_bob"))
    calibration = found.calibration
    calibration.take(raw_info("plumb_bob"))
    assert calibration.of(WIDTH, HEIGHT)[1] is found.info
    calibration.take(camera_info_message(found.camera, Header()))
    assert calibration.lens is None
    calibration.take(raw_info("rational_polynomial"))
    assert calibration.lens == lens("rational_polynomial", WIDTH, HEIGHT)
    assert len(found.informed) == 1
    assert calibration.of(32, 32) == (None, None)
