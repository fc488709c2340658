# SPDX-License-Identifier: Apache-2.0
"""Bags of raw images: rectified as in the node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import bags
from helpers.bags import job
from helpers.lenses import lens, pinhole
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from dpt_ros.bag.run import convert
from dpt_ros.engine.input.rectify import places
from dpt_ros.engine.output.point_cloud import POINT
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.image import image_pixels

LENS = lens("plumb_bob", bags.WIDTH, bags.HEIGHT)
CAMERA = pinhole("plumb_bob", bags.WIDTH, bags.HEIGHT, wider=1.3)


def raw_records(jpeg: bool) -> Iterator[tuple[int, str, Any]]:
    for time, topic, message in bags.records(3, jpeg=jpeg):
        if topic == "/camera_info":
            message = camera_info_message(CAMERA, message.header)
            message.k, message.d = LENS.raw.matrix().ravel(), list(LENS.coefficients)
        yield time, topic, message


@pytest.mark.parametrize("jpeg", [False, True])
def test_a_bag_of_raw_images_gives_outputs_of_the_rectified_camera(tmp_path: Path, jpeg) -> None:
    source, out = bags.write(tmp_path / "in", raw_records(jpeg)), tmp_path / "out"
    outputs = ("depth/image", "depth/camera_info", "depth/points")
    said: list[str] = []
    result = convert(job(source, out, outputs=outputs), said.append)
    assert (result.computed, result.outcome) == (3, "done")
    assert not any("rectif" in text for text in said)
    _, info = bags.messages(out, "/depth/camera_info", CameraInfo)[-1]
    assert not any(info.d)
    np.testing.assert_allclose(np.array(info.k).reshape(3, 3), CAMERA.matrix())
    _, depth = bags.messages(out, "/depth/image", Image)[-1]
    _, seen = places(LENS, CAMERA)
    assert 0.5 < seen.mean() < 1
    np.testing.assert_array_equal(np.isnan(image_pixels(depth)), ~seen)
    _, cloud = bags.messages(out, "/depth/points", PointCloud2)[-1]
    points = np.frombuffer(cloud.data, POINT).reshape(seen.shape)
    x = np.broadcast_to((np.arange(bags.WIDTH) - CAMERA.cx) / CAMERA.fx, seen.shape)
    there = np.isfinite(points["z"])
    assert there.any()
    np.testing.assert_allclose(points["x"][there], (x * points["z"])[there], rtol=1e-4, atol=1e-5)


def test_off_takes_raw_images_as_they_are_with_a_warning(tmp_path: Path) -> None:
    source, out = bags.write(tmp_path / "in", raw_records(False)), tmp_path / "out"
    said: list[str] = []
    convert(job(source, out, "rectify:=off", outputs=("depth/image",)), said.append)
    assert any("Set rectify to auto" in text for text in said)
    _, depth = bags.messages(out, "/depth/image", Image)[-1]
    assert not np.isnan(image_pixels(depth)).any()
