# SPDX-License-Identifier: Apache-2.0
"""Calibrations as drivers and simulators send them: impossible, unlikely, once, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy")

from helpers.ros_processes import Domain, ros_domain
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from dpt_ros.engine.frame import CameraModel
from dpt_ros.ros.camera.calibration import Calibration, CalibrationSubscription
from dpt_ros.ros.messages.camera_info import camera_info_message, camera_model
from dpt_ros.ros.messages.image import image_message

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
GOOD = CameraModel(96, 64, 83.0, 83.0, 47.5, 31.5)


@pytest.fixture
def domain() -> Iterator[Domain]:
    with ros_domain() as domain:
        yield domain


def info(width: int, height: int, fx: float, fy: float, cx: float, cy: float) -> CameraInfo:
    return camera_info_message(CameraModel(width, height, fx, fy, cx, cy), Header())


@pytest.mark.parametrize(
    "intrinsics",
    [
        (1242, 375, 721.5, 721.5, 609.6, 172.9),  # KITTI
        (640, 480, 518.9, 519.5, 325.6, 253.7),  # NYU
        (640, 480, 384.0, 384.0, 250.0, 276.0),  # the ends of what real files have: 0.39, 0.58
        (1920, 1200, 400.0, 400.0, 960.0, 600.0),  # very wide
    ],
)
def test_a_real_calibration_is_taken_without_a_word(intrinsics: tuple[float, ...]) -> None:
    camera, warning = camera_model(info(*intrinsics))
    assert camera is not None
    assert warning == ""


@pytest.mark.parametrize(
    ("intrinsics", "words"),
    [
        ((640, 480, 277.0, 277.0, 160.0, 120.0), "a simulator's default"),
        ((640, 480, 277.0, 277.0, 160.5, 120.5), "binning_x"),
        ((640, 480, 260.0, 260.0, 319.5, 30.0), "Unless the image is a crop"),
        ((640, 480, 8.0, 8.0, 320.0, 240.0), "not in millimetres"),
        ((640, 480, 500.0, 200.0, 320.0, 240.0), "differ by more than a factor of 2"),
    ],
)
def test_an_unlikely_calibration_is_used_with_a_warning(
    intrinsics: tuple[float, ...], words: str
) -> None:
    camera, warning = camera_model(info(*intrinsics))
    assert camera is not None
    assert words in warning


@pytest.mark.parametrize(
    ("cx", "cy"), [(640.0, 240.0), (320.0, 480.0), (-1.0, 240.0), (1920.0, 240.0)]
)
def test_a_principal_point_outside_of_the_picture_is_no_calibration(cx: float, cy: float) -> None:
    camera, warning = camera_model(info(640, 480, 500.0, 500.0, cx, cy))
    assert camera is None
    assert "outside the image of 640x480 pixels, so this calibration is not used" in warning


def test_a_crop_that_is_told_by_roi_is_no_reason_for_a_warning() -> None:
    msg = info(640, 480, 500.0, 500.0, 320.0, 240.0)
    msg.roi.x_offset, msg.roi.y_offset, msg.roi.width, msg.roi.height = 160, 120, 320, 240
    camera, warning = camera_model(msg)
    assert (camera.cx, camera.cy, warning) == (160.0, 120.0, "")


def test_a_calibration_that_was_published_once_is_taken(domain: Domain) -> None:
    with domain.another_node() as driver:
        driver.create_publisher(CameraInfo, "camera_info", LATCHED).publish(
            camera_info_message(GOOD, Header())
        )
        domain.spin_for(0.5)
        calibration = Calibration(lambda: "", [].append)
        found = CalibrationSubscription(domain.node, "camera_info", calibration)
        domain.spin_until(lambda: found.review() or calibration.camera is not None, 10)
        assert calibration.camera == GOOD
        # A second driver that keeps nothing: volatile again, so that both are heard.
        other = domain.node.create_publisher(CameraInfo, "camera_info", 1)
        domain.spin_until(lambda: found.review() or other.get_subscription_count(), 10)
        found.close()


def test_status_and_log_tell_one_truth(domain: Domain) -> None:
    """One node: no camera_info at first, then one of another size, a simulator's, a good one."""
    dpt = domain.start_dpt(diagnostics_period=0.2, label_network="none")
    domain.wait_for_state("active")
    clouds = domain.listen(PointCloud2, "depth/points")
    domain.listen(Image, "depth/image")
    camera = domain.publisher(Image, "image")
    picture = image_message(np.zeros((64, 96, 3), np.uint8), "rgb8", Header(frame_id="eye"))
    stamp = 1000

    def status() -> dict[str, str]:
        nonlocal stamp
        for _ in range(3):
            stamp += 1
            picture.header.stamp.sec = stamp
            camera.publish(picture)
            domain.spin_for(0.2)
        return domain.diagnostics("dpt: image")

    domain.spin_until(lambda: "no camera_info has arrived" in status()["message"], 30)
    assert "depth/points is subscribed to" in status()["message"]
    assert status()["camera_info"] == "none"
    dpt.wait_for("set the remapping of camera_info")
    publisher = domain.publisher(CameraInfo, "camera_info")

    def tell(msg: CameraInfo, words: str) -> dict[str, str]:
        domain.spin_until(
            lambda: publisher.publish(msg) or status()["camera_info"].startswith(words), 30
        )
        return status()

    said = tell(info(32, 32, 30.0, 30.0, 15.5, 15.5), "not used: 32x32, but the image 96x64")
    assert "camera_info is for 32x32 pixels" in said["message"]
    assert (
        "camera_info is for 32x32 pixels, but the image has 96x64, so it is not used" in dpt.output
    )
    said = tell(
        info(96, 64, 83.0, 83.0, 300.0, 31.5), "not used: no calibration, or an impossible"
    )
    assert "outside the image" in said["message"]
    said = tell(info(96, 64, 41.0, 41.0, 24.0, 16.0), "used, but unlikely")
    assert "a simulator's default" in said["message"]
    assert "a simulator's default" in dpt.output
    clouds.clear()
    said = tell(camera_info_message(GOOD, Header()), "used")
    assert said["camera_info"] == "used"
    assert "camera_info" not in said["message"]
    assert clouds
