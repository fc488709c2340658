# SPDX-License-Identifier: Apache-2.0
"""A depth camera beside the camera, over real topics: depth/fused and points made of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from helpers.ros_processes import Domain, ros_domain, wait_until
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.output.point_cloud import POINT
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.image import image_message, image_pixels

WIDTH, HEIGHT = 96, 64
CAMERA = CameraModel(WIDTH, HEIGHT, 83.0, 83.0, 47.5, 31.5)
PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
TOPICS = {
    "depth/fused": Image,
    "depth/fused_origin": Image,
    "depth/fused_sigma": Image,
    "depth/points": PointCloud2,
}


@pytest.fixture(scope="module")
def domain() -> Iterator[Domain]:
    with ros_domain() as domain:
        domain.start_dpt(**{"diagnostics_period": 0.2, "points.source": "fused"})
        for topic, kind in TOPICS.items():
            domain.listen(kind, topic)
        domain.wait_for_state("active")
        domain.camera = domain.publisher(Image, "image")
        domain.camera_info = domain.publisher(CameraInfo, "camera_info")
        domain.depth = domain.publisher(Image, "anchors/depth")
        domain.depth_info = domain.publisher(CameraInfo, "anchors/camera_info")
        domain.spin_for(0.5)
        domain.stamp = 1000
        yield domain


def see(domain: Domain, measured: np.ndarray | None) -> dict[str, object]:
    """What the node publishes of one more picture, with what the depth camera measured."""
    domain.stamp += 1
    header = Header(frame_id="eye")
    header.stamp.sec = domain.stamp
    for _ in range(3):  # best effort
        domain.camera_info.publish(camera_info_message(CAMERA, header))
        domain.depth_info.publish(camera_info_message(CAMERA, header))
        domain.spin_for(0.05)
        if measured is not None:
            domain.depth.publish(image_message(measured, "32FC1", header))
            domain.spin_for(0.05)
    domain.camera.publish(image_message(PICTURE, "rgb8", header))
    return domain.of_stamp(TOPICS, domain.stamp)


def test_a_wall_that_the_depth_camera_sees_is_kept_bit_for_bit_and_the_rest_filled(
    domain: Domain,
) -> None:
    alone = {topic: msg for topic, msg in see(domain, None).items() if topic != "depth/points"}
    assert (image_pixels(alone["depth/fused_origin"]) == 2).all()
    measured = np.full((HEIGHT, WIDTH), np.nan, np.float32)
    measured[:, : WIDTH // 2] = 0.7531
    found = see(domain, measured)
    fused, origin, sigma = (image_pixels(found[topic]) for topic in list(TOPICS)[:3])
    assert len({msg.header.stamp.sec for msg in found.values()}) == 1
    left = origin[:, : WIDTH // 2]
    assert (left == 1).mean() > 0.9
    assert not (origin[:, WIDTH // 2 :] == 1).any()
    kept = origin == 1
    np.testing.assert_array_equal(fused[kept], measured[kept])
    assert (fused[~kept] > 0).all()
    assert (sigma > 0).all()
    points = np.frombuffer(found["depth/points"].data, POINT).reshape(HEIGHT, WIDTH)
    there = ~np.isnan(points["z"])
    assert there[kept].mean() > 0.8
    np.testing.assert_array_equal(points["z"][there], fused[there])


def test_without_a_depth_image_of_the_frames_time_the_network_fills_all(domain: Domain) -> None:
    see(domain, np.full((HEIGHT, WIDTH), 0.7531, np.float32))
    found = see(domain, None)  # a second later
    assert (image_pixels(found["depth/fused_origin"]) == 2).all()


def test_a_depth_camera_that_is_wanted_and_silent_is_a_warning(domain: Domain) -> None:
    see(domain, np.full((HEIGHT, WIDTH), 0.7531, np.float32))
    warning = "nothing arrives on anchors/depth"
    assert warning not in domain.diagnostics("dpt: image")["message"]

    def warned() -> bool:
        see(domain, None)
        return warning in domain.diagnostics("dpt: image")["message"]

    wait_until(warned)
