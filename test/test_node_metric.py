# SPDX-License-Identifier: Apache-2.0
"""Metres from other sensors, points and label groups, over real topics."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ros_processes import Domain, ros_domain
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2, PointField
from std_msgs.msg import Header

from dpt_ros.engine.cloud import POINT
from dpt_ros.engine.frame import CameraModel
from dpt_ros.ros.clouds import cloud_message, cloud_points
from dpt_ros.ros.messages import (
    MessageError,
    camera_info_message,
    image_message,
    image_pixels,
)

WIDTH, HEIGHT = 96, 64
CAMERA = CameraModel(WIDTH, HEIGHT, 83.0, 83.0, 47.5, 31.5)
PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


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
        domain.wait_for_state("active")
        domain.camera = domain.publisher(Image, "image")
        domain.camera_info = domain.publisher(CameraInfo, "camera_info")
        domain.scan = domain.publisher(LaserScan, "anchors/scan")
        domain.spin_for(0.5)
        domain.stamp = 1000
        yield domain


def see(domain: Domain, scan: LaserScan | None = None) -> dict[str, object]:
    """What the node says of one more picture, by topic, all of one stamp."""
    domain.stamp += 1
    header = Header(frame_id="eye")
    header.stamp.sec = domain.stamp
    for _ in range(3):  # best effort, as camera_info is
        domain.camera_info.publish(camera_info_message(CAMERA, header))
        domain.spin_for(0.05)
    if scan is not None:
        scan.header.stamp = header.stamp
        for _ in range(3):
            domain.scan.publish(scan)
            domain.spin_for(0.05)
    domain.camera.publish(image_message(PICTURE, "rgb8", header))
    found: dict[str, object] = {}

    def complete() -> bool:
        for topic in ("depth/image", "depth/points", "semantic/labels"):
            for msg in domain.received[topic]:
                if msg.header.stamp.sec == domain.stamp:
                    found[topic] = msg
        return len(found) == 3

    domain.spin_until(complete, 20)
    return found


def wall(metres: float) -> LaserScan:
    """A straight wall across the view of a scanner 0.2 m below the camera that looks ahead."""
    angles = np.linspace(-0.5, 0.5, 101)
    scan = LaserScan(header=Header(frame_id="laser"))
    scan.angle_min, scan.angle_max, scan.angle_increment = -0.5, 0.5, 0.01
    scan.range_min, scan.range_max = 0.1, 30.0
    scan.ranges = (metres / np.cos(angles)).astype(np.float32).tolist()
    return scan


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
