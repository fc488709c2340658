# SPDX-License-Identifier: Apache-2.0
"""Images and measurements as they come: no remap, stamps of 0, two cameras, no clock."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy")

from helpers.ros_processes import Domain, ros_domain
from sensor_msgs.msg import CompressedImage, Image, LaserScan
from std_msgs.msg import Header

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.anchor_projector import AnchorProjector
from dpt_ros.ros.camera.frame_order import FrameOrder
from dpt_ros.ros.camera.image_subscription import ImageInput
from dpt_ros.ros.camera.inputs import InputRecord
from dpt_ros.ros.messages.image import image_message
from dpt_ros.ros.plausibility import scan_fault

CAMERA = CameraModel(96, 64, 83.0, 83.0, 47.5, 31.5)
SIZE = (96, 64)


@pytest.fixture
def domain() -> Iterator[Domain]:
    with ros_domain() as domain:
        yield domain


def test_a_forgotten_remap_is_a_warning_that_names_the_topics_there_are(domain: Domain) -> None:
    dpt = domain.start_dpt(diagnostics_period=0.2)
    domain.node.create_publisher(Image, "/camera/image_raw", 1)
    domain.node.create_publisher(CompressedImage, "/camera/image_raw/compressed", 1)
    dpt.wait_for("-r image:=/camera/image_raw.")
    assert "Image topics that exist: /camera/image_raw (Image), /camera/image_raw/compressed" in (
        dpt.output
    )
    said = domain.diagnostics("dpt: image")
    assert said["level"] == "1"
    assert "/image has no publisher" in said["message"]
    assert "/depth/image (Image)" not in said["message"]  # its own output
    (ready,) = [line for line in dpt.output.splitlines() if "Ready on " in line]
    for words in ("Ready on cpu, fp32: depth dpt_hybrid_embedded", "Subscribed: /image, /camera_"):
        assert words in ready
    assert "/depth/points" in ready.partition("Published: ")[2]


def test_a_simulated_clock_that_does_not_come_is_a_warning_and_no_age(domain: Domain) -> None:
    dpt = domain.start_dpt(use_sim_time=True, diagnostics_period=0.2)
    dpt.wait_for("use_sim_time is true, but no message has been received on /clock")
    said = domain.diagnostics("dpt: networks")
    assert "/clock, which has no publishers:" in said["message"]
    camera, depths = domain.publisher(Image, "image"), domain.listen(Image, "depth/image")
    picture = image_message(np.zeros((64, 96, 3), np.uint8), "rgb8", Header(frame_id="eye"))
    picture.header.stamp.sec = 1_795_855_588
    domain.spin_until(lambda: camera.publish(picture) or domain.spin_for(0.2) or depths, 30)
    domain.spin_for(0.5)
    said = domain.diagnostics("dpt: image")
    assert said["age since stamp"] == "not known (the node's clock stands at 0)"
    assert "age since stamp p50 (ms)" not in said
    domain.spin_until(lambda: camera.publish(picture) or stamps_are_warned_of(domain), 30)


def stamps_are_warned_of(domain: Domain) -> bool:
    said = domain.diagnostics("dpt: image")["message"]
    return "The stamps of the images on /image are all" in said


def order(stamps: list[int], frames: str = "", senders: str = "") -> FrameOrder:
    made = FrameOrder("/image")
    for k, stamp in enumerate(stamps):
        frame = frames[k % len(frames)] if frames else "eye"
        sender = senders[k % len(senders)].encode() if senders else b""
        made.add(stamp, frame, SIZE, sender)
    return made


def test_stamps_of_0_and_mixed_cameras_are_named() -> None:
    good = list(range(1, 31))
    assert order(good).warning(["/cam"]) == ""
    assert "are all 0" in order([0] * 5).warning([])
    assert "their frame_id alternates" in order(good, "ab").warning(["/left", "/right"])
    assert "Publishers: /left, /right" in order(good, senders="ab").warning(["/left", "/right"])
    back = [k + 5 * (k % 2) for k in good]
    assert "their stamps go back and forth" in order(back).warning([])


def test_a_camera_that_is_exchanged_or_a_bag_that_starts_again_is_no_mixture() -> None:
    made = order(list(range(20)), "a" * 10 + "b" * 10, "x" * 10 + "y" * 10)
    for stamp in range(10):
        made.add(stamp, "c", (64, 48), b"z")
    assert made.warning([]) == ""


def test_frames_that_all_start_anew_are_named() -> None:
    made = order(list(range(30)))
    for _ in range(20):
        made.published("gap")
    assert "reset at 20 of the last 20 frames (gap)" in made.warning([])
    assert "smoothing.max_gap" in made.warning([])


def test_the_silence_of_a_slow_camera_is_measured_by_its_period(domain: Domain) -> None:
    found = ImageInput(domain.node, "/image", Image, [].append)
    now = 0.0
    for _ in range(4):
        found._last_message = now
        now += 3.0
        found._periods.append(3.0)
    assert found._patience() == 9.0
    found._periods.clear()
    found._periods.extend([0.033] * 4 + [50.0])  # one pause
    assert found._patience() == 2.0
    found.close()


def test_an_input_that_is_connected_and_unused_is_a_warning_after_two_seconds() -> None:
    now = 0.0
    record = InputRecord("odom", clock=lambda: now)
    assert record.values() == {"odom": "none"}
    for _ in range(30):
        now += 0.1
        record.received()
        record.unused("too old")
    assert record.warning() == "The last 30 frames could not use odom: too old."
    record.used()
    assert record.warning() == ""
    assert record.values() == {"odom": "used", "odom: messages": "30", "odom: frames with it": "1"}
    for _ in range(30):
        record.unused("too old")
    now += 10.0
    assert record.warning() == ""  # nothing is received any more


def scan(frame_id: str) -> LaserScan:
    made = LaserScan(header=Header(frame_id=frame_id), angle_min=-0.5, angle_max=0.5)
    made.angle_increment, made.range_min, made.range_max = 0.01, 0.1, 30.0
    made.ranges = [2.0] * 101
    return made


def no_pose(camera: str, sensor: str) -> np.ndarray:
    raise AssertionError("No pose is looked up.")


@pytest.mark.parametrize(("sensor", "camera"), [("", ""), ("laser", ""), ("", "eye")])
def test_anchors_without_a_frame_id_ask_for_their_place(sensor: str, camera: str) -> None:
    said: list[str] = []
    anchors = AnchorProjector(Settings(), no_pose, said.append)
    anchors.take("anchors/scan", scan(sensor))
    assert anchors.anchors(CAMERA, camera) is None
    assert "set sensor_in_camera" in said[0]
    assert "frame_id is empty, which names no frame" in anchors.records["anchors/scan"].state


def test_a_scan_that_no_scanner_can_have_made_is_refused_with_the_reason() -> None:
    made = scan("eye")
    assert scan_fault(made) == ""
    made.angle_increment = 0.0
    assert scan_fault(made) == "angle_increment is 0 for 101 ranges"
    made.angle_increment, made.range_max = 0.01, 0.0
    said: list[str] = []
    anchors = AnchorProjector(Settings(), no_pose, said.append)
    anchors.take("anchors/scan", made)
    assert anchors.anchors(CAMERA, "eye") is None
    assert "range_max is 0 m, but must be more than range_min" in said[0]
