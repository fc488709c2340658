# SPDX-License-Identifier: Apache-2.0
"""What depth sensors send as anchors: one test per kind, with real messages."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from helpers import bags
from rclpy.serialization import serialize_message
from sensor_msgs.msg import LaserScan, PointCloud2, PointField
from std_msgs.msg import Header

from dpt_ros.bag.sensors import StaticFrames
from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.parameter_file import read_settings
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.anchor_projector import AnchorProjector
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.image import MessageError, image_message
from dpt_ros.ros.messages.point_cloud import cloud_points

POINTS = np.random.default_rng(0).uniform(1, 9, (12, 3)).astype(np.float32)


def cloud(kind: type = np.float32, more: int = 4, height: int = 1) -> PointCloud2:
    """POINTS with other bytes behind each, in so many rows."""
    size = np.dtype(kind).itemsize
    rows = np.zeros((len(POINTS), 3 * size + more), np.uint8)
    rows[:, : 3 * size] = POINTS.astype(kind).view(np.uint8)
    number = {np.float32: PointField.FLOAT32, np.float64: PointField.FLOAT64}[kind]
    msg = PointCloud2(height=height, width=len(POINTS) // height, point_step=rows.shape[1])
    msg.row_step = msg.width * msg.point_step
    msg.fields = [
        PointField(name=name, offset=k * size, datatype=number, count=1)
        for k, name in enumerate("xyz")
    ]
    msg.data = rows.tobytes()
    return msg


@pytest.mark.parametrize("height", [1, 3])
@pytest.mark.parametrize("row_step", [0, 7, 10_000])
def test_row_step_does_not_matter_where_the_size_fits(height, row_step) -> None:
    msg = cloud(height=height)
    msg.row_step = row_step
    np.testing.assert_array_equal(cloud_points(msg), POINTS)


@pytest.mark.parametrize("change", [{"point_step": 0}, {"height": 0}, {"is_dense": True}])
def test_other_redundant_fields_do_not_matter_either(change) -> None:
    msg = cloud()
    for name, value in change.items():
        setattr(msg, name, value)
    np.testing.assert_array_equal(cloud_points(msg), POINTS)


def test_padded_rows_are_read_and_a_row_step_that_cannot_be_is_named() -> None:
    msg = cloud(height=3)
    rows = np.frombuffer(msg.data, np.uint8).reshape(3, -1)
    msg.data, msg.row_step = np.pad(rows, ((0, 0), (0, 8))).tobytes(), rows.shape[1] + 8
    np.testing.assert_array_equal(cloud_points(msg), POINTS)
    msg.row_step = 10_000
    with pytest.raises(MessageError, match=r"in 3 rows of 10000 bytes \(row_step\)"):
        cloud_points(msg)


def test_points_of_float64_are_read() -> None:
    np.testing.assert_array_equal(cloud_points(cloud(np.float64)), POINTS)


def test_a_cloud_without_coordinates_names_its_fields() -> None:
    msg = cloud()
    msg.fields = [PointField(name="range", offset=0, datatype=PointField.FLOAT32, count=1)]
    with pytest.raises(MessageError, match="float64 fields x, y and z; it has range"):
        cloud_points(msg)


@pytest.mark.parametrize("encoding", ["mono16", "16UC1", "32FC1"])
def test_a_depth_image_of_millimetres_may_be_called_mono16(encoding) -> None:
    camera = CameraModel(64, 48, 55.0, 55.0, 31.5, 23.5)
    said: list[str] = []
    settings, _ = read_settings(None, ["sensor_in_camera:=[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]"])
    anchors = AnchorProjector(settings, StaticFrames().sensor_pose, said.append)
    metres = encoding == "32FC1"
    depth = np.full((48, 64), 2.5 if metres else 2500, np.float32 if metres else np.uint16)
    header = Header(frame_id="depth")
    anchors.calibration.take(camera_info_message(camera, header))
    anchors.take("anchors/depth", image_message(depth, encoding, header))
    found = anchors.anchors(camera, "camera")
    assert said == []
    assert found is not None
    np.testing.assert_allclose(found.metres, 2.5, atol=1e-3)


def test_a_frame_is_the_same_with_a_slash_in_front() -> None:
    mounted = TransformStamped(header=bags.header(0, "/base"), child_frame_id="/laser")
    mounted.transform.translation.x = 1.0
    mounted.transform.rotation.w = 1.0
    one = bags.TYPES.deserialize_cdr(
        serialize_message(mounted), "geometry_msgs/msg/TransformStamped"
    )
    tree = bags.TYPES.types["tf2_msgs/msg/TFMessage"]([one])
    frames = StaticFrames()
    frames.take(bytes(bags.TYPES.serialize_cdr(tree, "tf2_msgs/msg/TFMessage")))
    for child in ("laser", "/laser"):
        for parent in ("base", "/base"):
            pose = frames.pose(child, parent)
            assert pose is not None
            assert pose[0, 3] == 1.0


def test_a_cloud_that_cannot_be_used_is_named_with_its_values_on_diagnostics() -> None:
    said: list[str] = []
    anchors = AnchorProjector(Settings(), lambda camera, sensor: np.eye(4), said.append)
    cloud = PointCloud2(header=Header(frame_id="lidar"), width=2, height=1)
    anchors.take("anchors/points", cloud)
    assert anchors.anchors(CameraModel(64, 48, 50.0, 50.0, 32.0, 24.0), "eye") is None
    state = anchors.records["anchors/points"].state
    assert state == (
        "not used: The cloud has no float32 or float64 fields x, y and z; it has none"
    )
    assert said == [f"anchors/points: {state.removeprefix('not used: ')}."]


def test_a_depth_image_that_is_fused_counts_as_used_while_a_scan_gives_the_scale() -> None:
    camera = CameraModel(64, 48, 55.0, 55.0, 31.5, 23.5)
    said: list[str] = []
    anchors = AnchorProjector(Settings(), lambda camera, sensor: np.eye(4), said.append)
    header = Header(frame_id="camera")
    anchors.calibration.take(camera_info_message(camera, header))
    for stamp in range(9):  # of which the nearest counts
        header = Header(frame_id="camera")
        header.stamp.nanosec = stamp * 30_000_000
        depth = np.full((48, 64), 1.0 + stamp, np.float32)
        anchors.take("anchors/depth", image_message(depth, "32FC1", header))
    scan = LaserScan(header=header, angle_min=-0.1, angle_increment=0.1, range_max=9.0)
    scan.ranges = [2.0, 2.0, 2.0]
    anchors.take("anchors/scan", scan)
    sense = anchors.sense("camera", 215_000_000, later=False)
    anchors.anchors(camera, "camera")
    found = sense(camera)
    assert found is not None
    assert (found == 8.0).all()
    assert anchors.records["anchors/depth"].state == "used for fused depth"
    assert anchors.sense("camera", 900_000_000, later=False)(camera) is None
    assert "0.66 s from the frame" in anchors.records["anchors/depth"].state
    assert said == []
