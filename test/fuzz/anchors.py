# SPDX-License-Identifier: Apache-2.0
"""Scans, clouds and depth images with any content: to anchors, and into the scale of the depth."""

from __future__ import annotations

import numpy as np
from helpers.scale_estimator import ScaleEstimator
from sensor_msgs.msg import Image, LaserScan, PointCloud2, PointField
from std_msgs.msg import Header

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.scale.anchors import Anchors
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.anchor_projector import AnchorProjector
from dpt_ros.ros.messages.image import MessageError, give_bytes
from fuzz.camera_info import camera_info
from fuzz.choices import Choices
from fuzz.properties import Broken, bounded, refusal, sentence

_CAMERA = CameraModel(64, 48, 50.0, 50.0, 31.5, 23.5)
_PLACES = ((0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, -0.5, 0.5, -0.5, 0.5))
_MOST = 2**32 - 1
_ROWS, _COLUMNS = np.mgrid[:48, :64].astype(np.float32)


def seeds() -> list[bytes]:
    """A scan, a cloud and a depth image that a camera sees, several of each."""
    scan = bytes([0, 1, 0, 0, 70, 51, 51, 100]) + bytes(range(55, 95))
    cloud = bytes([1, 0, 0, 0, 0, 0, 4, 8, 12, 1, 20, 240, 0])
    cloud += np.random.default_rng(0).uniform(-1, 3, (20, 3)).astype(np.float32).tobytes()
    depth = bytes([2, 0, 0, 0, 0, 8, 8, 32, 0]) + np.full(64, 2.0, np.float32).tobytes()
    return [scan, cloud, depth, scan * 3, cloud * 2, depth + scan]


def one_input(data: bytes) -> None:
    choices = Choices(data)
    kind = choices.integer(0, 2)
    settings = Settings(sensor_in_camera=choices.pick(_PLACES))
    projector = AnchorProjector(settings, lambda camera, sensor: np.eye(4), sentence)
    estimator = ScaleEstimator(Settings(), metric=choices.integer(0, 1) == 0)
    with bounded(len(data)), refusal(MessageError), np.errstate(all="ignore"):
        for stamp in range(4):
            header = Header()
            header.stamp.nanosec = stamp * 100_000_000
            projector.take(*_measurement(kind, choices, header))
            if kind == 2:
                projector.calibration.take(_intrinsics(choices))
            anchors = projector.anchors(_CAMERA, "camera")
            if anchors is not None:
                _see(anchors)
            network = 0.3 + 0.01 * _COLUMNS + 0.001 * _ROWS * choices.integer(0, 100)
            network[:: 1 + choices.integer(0, 9)] = choices.real()
            _scale(estimator, network, header.stamp.nanosec, anchors)
            if not choices.any_left:
                return


def _measurement(
    kind: int, choices: Choices, header: Header
) -> tuple[str, LaserScan | PointCloud2 | Image]:
    if kind == 0:
        scan = LaserScan(header=header)
        scan.angle_min, scan.angle_increment = _single(choices), _single(choices) / 100
        scan.range_min, scan.range_max = _single(choices), _single(choices)
        scan.ranges = [_single(choices) for _ in range(choices.integer(0, 200))]
        return "anchors/scan", scan
    if kind == 1:
        offsets = [choices.integer(0, _MOST) for _ in range(3)]
        datatypes = [7, 7, 7 + choices.integer(0, 1)]
        cloud = PointCloud2(
            header=header,
            fields=[
                PointField(name=name, offset=offset, datatype=datatype, count=1)
                for name, offset, datatype in zip("xyz", offsets, datatypes, strict=True)
            ],
            point_step=choices.integer(0, _MOST),
            height=choices.integer(0, _MOST),
            width=choices.integer(0, _MOST),
            row_step=choices.integer(0, _MOST),
            is_bigendian=choices.integer(0, 1) == 1,
        )
        give_bytes(cloud, np.frombuffer(choices.rest(), np.uint8))
        return "anchors/points", cloud
    depth = Image(
        header=header,
        encoding=choices.pick(("32FC1", "16UC1", "rgb8", "\n")),
        height=choices.integer(0, _MOST),
        width=choices.integer(0, _MOST),
        step=choices.integer(0, _MOST),
        is_bigendian=choices.integer(0, 1),
    )
    give_bytes(depth, np.frombuffer(choices.take(depth.step * depth.height % 4096), np.uint8))
    return "anchors/depth", depth


def _single(choices: Choices) -> float:
    """A float32, as rclpy takes it."""
    with np.errstate(all="ignore"):
        return float(np.float32(choices.real()))


def _intrinsics(choices: Choices) -> object:
    info = camera_info(choices)
    if choices.integer(0, 3):
        info.width = info.height = info.roi.width = info.binning_x = info.binning_y = 8
    return info


def _see(anchors: Anchors) -> None:
    inside = (anchors.u >= 0) & (anchors.u < 64) & (anchors.v >= 0) & (anchors.v < 48)
    if not inside.all() or not (anchors.metres > 0).all():
        raise Broken("Anchors lie outside of the picture or behind it.")


def _scale(
    estimator: ScaleEstimator, network: np.ndarray, stamp: int, anchors: Anchors | None
) -> None:
    scaled = estimator.update(network, stamp, _CAMERA, anchors)
    numbers = (*scaled.affine.tolist(), *scaled.covariance.tolist())
    if not np.isfinite(numbers).all() or numbers[0] <= 0:
        raise Broken(f"The scale is {numbers}.")
    if scaled.metric and (scaled.inverse_depth < 0).any():
        raise Broken("There is negative inverse depth.")
