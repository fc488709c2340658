# SPDX-License-Identifier: Apache-2.0
"""Metres from other sensors, points and label groups, over real topics."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from helpers.lenses import lens, pinhole
from helpers.ros_processes import Domain, ros_domain
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan, PointCloud2, PointField
from std_msgs.msg import Header

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.input.rectify import Rectifier, places
from dpt_ros.engine.output.point_cloud import POINT
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.image import MessageError, image_message, image_pixels
from dpt_ros.ros.messages.point_cloud import cloud_message, cloud_points

WIDTH, HEIGHT = 96, 64
CAMERA = CameraModel(WIDTH, HEIGHT, 83.0, 83.0, 47.5, 31.5)
PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)

TOPICS = ("depth/image", "depth/points", "semantic/labels", "depth/image/compressedDepth")


@pytest.fixture(scope="module")
def domain() -> Iterator[Domain]:
    with ros_domain() as domain:
        domain.dpt = domain.start_dpt(
            **{
                "diagnostics_period": 0.2,
                "smoothing.strength": 0.0,
                "sensor_in_camera": [0.0, 0.2, 0.0, 0.5, -0.5, 0.5, 0.5],
            }
        )
        for topic in ("depth/image", "semantic/labels"):
            domain.listen(Image, topic)
        domain.listen(PointCloud2, "depth/points")
        domain.listen(CompressedImage, "depth/image/compressedDepth")
        domain.wait_for_state("active")
        domain.camera = domain.publisher(Image, "image")
        domain.camera_info = domain.publisher(CameraInfo, "camera_info")
        domain.scan = domain.publisher(LaserScan, "anchors/scan")
        domain.spin_for(0.5)
        domain.stamp = 1000
        yield domain


def see(
    domain: Domain,
    scan: LaserScan | None = None,
    info: CameraInfo | None = None,
    pixels: np.ndarray = PICTURE,
) -> dict[str, object]:
    """What the node says of one more picture, by topic, all of one stamp."""
    domain.stamp += 1
    header = Header(frame_id="eye")
    header.stamp.sec = domain.stamp
    for _ in range(3):  # best effort, as camera_info is
        domain.camera_info.publish(info or camera_info_message(CAMERA, header))
        domain.spin_for(0.05)
    if scan is not None:
        scan.header.stamp = header.stamp
        for _ in range(3):
            domain.scan.publish(scan)
            domain.spin_for(0.05)
    domain.camera.publish(image_message(pixels, "rgb8", header))
    return domain.of_stamp(TOPICS, domain.stamp)


def wall(metres: float) -> LaserScan:
    """A straight wall across the view of a scanner 0.2 m below the camera that looks ahead."""
    angles = np.linspace(-0.5, 0.5, 101)
    scan = LaserScan(header=Header(frame_id="laser"))
    scan.angle_min, scan.angle_max, scan.angle_increment = -0.5, 0.5, 0.01
    scan.range_min, scan.range_max = 0.1, 30.0
    scan.ranges = (metres / np.cos(angles)).astype(np.float32).tolist()
    return scan


def test_a_compressed_depth_image_comes_with_the_stamp_and_size_of_its_frame(
    domain: Domain,
) -> None:
    found = see(domain)
    message, depth = found["depth/image/compressedDepth"], found["depth/image"]
    assert (message.header, message.format) == (depth.header, "32FC1; compressedDepth png")
    steps = cv2.imdecode(np.frombuffer(message.data, np.uint8)[12:], cv2.IMREAD_UNCHANGED)
    near = image_pixels(depth) < 10.0
    assert steps.shape == near.shape
    np.testing.assert_array_equal(steps > 0, near)


def test_points_labels_and_depth_have_one_stamp_and_belong_together(domain: Domain) -> None:
    found = see(domain)
    cloud, labels, depth = (found[k] for k in ("depth/points", "semantic/labels", "depth/image"))
    assert cloud.header == labels.header == depth.header
    assert (cloud.height, cloud.width) == (labels.height, labels.width) == (HEIGHT, WIDTH)
    points = np.frombuffer(cloud.data, POINT).reshape(HEIGHT, WIDTH)
    np.testing.assert_array_equal(points["z"], image_pixels(depth))
    np.testing.assert_array_equal(points["label"], image_pixels(labels))
    np.testing.assert_allclose(
        points["x"][:, 95], (95 - 47.5) / 83.0 * points["z"][:, 95], rtol=1e-5
    )


def test_a_laser_scan_gives_the_metres(domain: Domain) -> None:
    before = np.median(image_pixels(see(domain)["depth/image"]))
    for _ in range(4):
        after = np.median(image_pixels(see(domain, wall(2 * before))["depth/image"]))
    assert after == pytest.approx(2 * before, rel=0.2)
    domain.spin_for(0.5)
    values = domain.diagnostics("dpt: image")
    assert values["scale source"] == "anchors"
    assert int(values["scale pairs"]) >= 8
    late = see(domain)  # a second after the scan
    domain.spin_for(0.5)
    assert "held" in domain.diagnostics("dpt: image")["scale state"]
    assert np.median(image_pixels(late["depth/image"])) == pytest.approx(after, rel=0.05)


AHEAD = [0.5, -0.5, 0.5, 0.5]  # a scanner in an optical frame that looks where the camera does


class Eye:
    """One of several cameras of a node, with a scanner of its own."""

    def __init__(self, domain: Domain, name: str) -> None:
        self._domain, self._name, self._stamp = domain, name, 1000
        self.depths = domain.listen(Image, f"{name}/depth/image")
        self._publishers = [
            domain.publisher(kind, f"{name}/{topic}")
            for kind, topic in (
                (CameraInfo, "camera_info"),
                (LaserScan, "anchors/scan"),
                (Image, "image"),
            )
        ]

    def see(self, scan: LaserScan | None = None, later: int = 1) -> float:
        """The median depth of one more picture; ``later`` by so many seconds."""
        self._stamp += later
        header = Header(frame_id=f"{self._name}_eye")
        header.stamp.sec = self._stamp
        info, scans, images = self._publishers
        before = len(self.depths)
        for _ in range(3):  # best effort
            info.publish(camera_info_message(CAMERA, header))
            if scan is not None:
                scan.header.stamp = header.stamp
                scans.publish(scan)
            self._domain.spin_for(0.05)
        images.publish(image_message(PICTURE, "rgb8", header))
        self._domain.spin_until(lambda: len(self.depths) > before, 20)
        assert self.depths[-1].header == header
        return float(np.median(image_pixels(self.depths[-1])))

    def said(self, key: str) -> str | None:
        """What /diagnostics says of this camera after its last frame."""
        self._domain.spin_for(0.3)
        return self._domain.diagnostics(f"dpt: {self._name}").get(key)


def test_each_of_two_cameras_has_its_own_anchors_place_of_the_scanner_and_past() -> None:
    with ros_domain() as domain:
        domain.start_dpt(
            cameras="[front, rear]",
            diagnostics_period=0.2,
            sensor_in_camera=[0.0, 0.2, 0.0, *AHEAD],
            **{"front.sensor_in_camera": [0.0, 0.2, 2.5, *AHEAD], "smoothing.max_gap": 60.0},
            **{"points.far": 60.0},
        )
        domain.wait_for_state("active")
        front, rear = Eye(domain, "front"), Eye(domain, "rear")
        alone = front.see()
        assert rear.see() == pytest.approx(alone, rel=0.01)
        for _ in range(4):
            ahead = front.see(wall(alone))
        assert ahead == pytest.approx(alone + 2.5, rel=0.2)
        assert rear.see() == pytest.approx(alone, rel=0.01)
        assert (front.said("scale source"), rear.said("scale source")) == ("anchors", "network")
        for _ in range(4):
            behind = rear.see(wall(2 * alone))
        assert behind == pytest.approx(2 * alone, rel=0.2)
        front.see(later=-5)
        assert front.said("reset: stamp not newer") == "1"
        assert rear.said("reset: stamp not newer") is None
        warning = rear.said("message")
        assert warning is not None
        assert "points.far is 60 m, but depth ends at 49 m (max_range or the network)" in warning


def test_a_lens_that_cannot_be_rectified_is_a_warning_that_says_why_and_what_to_remap(
    domain: Domain,
) -> None:
    info = camera_info_message(CAMERA, Header())
    info.distortion_model, info.d = "thin_prism", [0.1, 0.0, 0.0, 0.0]
    for _ in range(5):
        domain.camera_info.publish(info)
        domain.spin_for(0.1)
    found = see(domain, info=info)
    assert (found["depth/points"].height, found["depth/points"].width) == (HEIGHT, WIDTH)
    warnings = [line for line in domain.dpt.output.splitlines() if "lens distortion" in line]
    assert len(warnings) == 1
    assert "/image is not rectified" in warnings[0]
    assert "cannot rectify it: the distortion model is 'thin_prism', but must be" in warnings[0]
    assert warnings[0].endswith("-r image:=/image_rect")
    status = domain.diagnostics("dpt: image")
    assert status["camera_info"] == "used, but the image is not rectified"
    assert (status["level"], "rectify_node" in status["message"]) == ("1", True)


def test_raw_images_are_rectified_and_every_output_is_of_the_rectified_camera(
    domain: Domain,
) -> None:
    taken, camera = lens("plumb_bob", WIDTH, HEIGHT), pinhole("plumb_bob", WIDTH, HEIGHT, 1.2)
    info = camera_info_message(camera, Header())
    info.d, info.k = list(taken.coefficients), taken.raw.matrix().ravel()
    info.p[3] = -0.1 * camera.fx  # the right camera of a stereo pair
    infos = domain.listen(CameraInfo, "depth/camera_info")
    before = domain.dpt.output
    raw = see(domain, info=info)
    said = domain.dpt.output.removeprefix(before)
    assert "The images of /image are rectified in the node" in said
    assert "WARN" not in said
    domain.spin_until(lambda: infos and infos[-1].header.stamp.sec == domain.stamp)
    out = infos[-1]
    assert not any(out.d)
    np.testing.assert_allclose(np.array(out.k).reshape(3, 3), camera.matrix())
    np.testing.assert_array_equal(np.array(out.r).reshape(3, 3), np.eye(3))
    np.testing.assert_allclose(np.array(out.p).reshape(3, 4)[:, :3], camera.matrix())
    assert out.p[3] == pytest.approx(-0.1 * camera.fx)
    points = np.frombuffer(raw["depth/points"].data, POINT).reshape(HEIGHT, WIDTH)
    depth, labels = (image_pixels(raw[k]) for k in ("depth/image", "semantic/labels"))
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    there = np.isfinite(points["z"])
    x, y = ((u - camera.cx) / camera.fx)[there], ((v - camera.cy) / camera.fy)[there]
    np.testing.assert_allclose(points["x"][there], x * points["z"][there], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(points["y"][there], y * points["z"][there], rtol=1e-4, atol=1e-5)
    _, seen = places(taken, camera)
    assert 0.5 < seen.mean() < 1
    np.testing.assert_array_equal(np.isnan(depth), ~seen)
    np.testing.assert_array_equal(labels == 0, ~seen)
    status = domain.diagnostics("dpt: image")
    assert status["camera_info"] == "used, rectified in the node to P"
    assert status["level"] == "0"
    # The same picture, rectified before.
    rectify = Rectifier(taken, camera, "rgb8", (HEIGHT, WIDTH), None)
    straight = see(
        domain, pixels=rectify([PICTURE])[0], info=camera_info_message(camera, Header())
    )
    expected = np.where(seen, image_pixels(straight["depth/image"]), np.nan)
    np.testing.assert_array_equal(depth, expected)


def test_a_cloud_goes_there_and_back() -> None:
    cloud = np.zeros((3, 5), POINT)
    cloud["x"], cloud["y"], cloud["z"] = np.random.default_rng(1).normal(size=(3, 3, 5))
    msg = cloud_message(cloud, Header(frame_id="eye"))
    assert (msg.height, msg.width, msg.row_step, msg.is_dense) == (3, 5, 100, False)
    expected = np.stack([cloud[k].ravel() for k in "xyz"], 1)
    np.testing.assert_array_equal(cloud_points(msg), expected)


@given(
    st.integers(0, 9), st.integers(0, 9), st.integers(0, 40), st.integers(0, 200), st.binary(),
    st.lists(st.tuples(st.sampled_from("xyzw"), st.integers(0, 60), st.integers(1, 8))),
)  # fmt: skip
def test_any_cloud_gives_points_or_a_sentence(width, height, step, row_step, data, fields):
    msg = PointCloud2(width=width, height=height, point_step=step, row_step=row_step)
    msg.fields = [PointField(name=n, offset=o, datatype=t, count=1) for n, o, t in fields]
    msg.data = data
    try:
        points = cloud_points(msg)
    except MessageError as error:
        assert str(error).endswith(".")
    else:
        assert points.shape == (width * height, 3)
