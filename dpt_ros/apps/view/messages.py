# SPDX-License-Identifier: Apache-2.0
"""From the messages of the node's topics, as rclpy or rosbags read them, to a scene."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from dpt_ros.apps.view.topics import BY_NAME, DIAGNOSTICS
from dpt_ros.engine.input.preprocess import to_rgb
from dpt_ros.engine.output.point_cloud import points
from dpt_ros.ros.camera.geometry import pose_to_matrix
from dpt_ros.ros.messages.camera_info import camera_model
from dpt_ros.ros.messages.image import MessageError, compressed_file, image_pixels
from dpt_ros.ros.messages.point_cloud import cloud_rows
from dpt_ros.ros.messages.types import nanoseconds
from dpt_ros.ros.plausibility import pose_values

if TYPE_CHECKING:
    from dpt_ros.apps.view.scene import CameraScene
    from dpt_ros.engine.frame import CameraModel

_INCOMPLETE = 32  # frames that are kept until all their parts have arrived
_WINDOW = 10  # frames over which a rate is taken
# Values on /diagnostics that are plotted: chart, series, key.
_CHARTS = (
    ("rate", "camera to node", "input rate (Hz)"),
    ("rate", "node", "output rate (Hz)"),
    ("latency", "in the node, p50", "latency from receipt p50 (ms)"),
    ("latency", "in the node, p99", "latency from receipt p99 (ms)"),
    ("latency", "since the stamp, p50", "age since stamp p50 (ms)"),
)


class CameraMessages:
    """Shows the messages of one camera in ``scene``.

    Args:
        name: prefix of the camera's topics without slashes at its ends, "" for none.
        kinds: what is shown, of ``topics.KINDS``.
        warn: called with an error message for each message that cannot be shown.
        joined: the parts of a frame ("depth", "rgb", "labels") from which points are computed,
            where depth/points is not published; else empty.
        camera_in_base: (4, 4) pose of the optical frame in the odometry's child frame; None where
            the child frame is the optical frame.
        rate: maximum number of frames per second, by their stamps; 0 for all.

    Attributes:
        shown: number of messages by topic.
    """

    def __init__(
        self,
        scene: CameraScene,
        name: str,
        kinds: frozenset[str],
        warn: Callable[[str], None],
        joined: frozenset[str] = frozenset(),
        camera_in_base: np.ndarray | None = None,
        rate: float = 0.0,
    ) -> None:
        self._scene, self._name, self._kinds, self._warn = scene, name, kinds, warn
        self._joined, self._camera_in_base, self._rate = joined, camera_in_base, rate
        self._camera: CameraModel | None = None
        self._has_depth_info = False
        self._stamp = 0  # of the message that is shown
        self._newest_ns = 0
        self._frame_id = ""
        self._parts: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()  # by stamp
        self._recorded: dict[str, deque[int]] = {}  # times of the last messages, nanoseconds
        self._slots: dict[str, int] = {}
        self.shown: Counter[str] = Counter()
        self._handlers: dict[str, Callable[[Any], None]] = {
            "image": self._image,
            "image/compressed": self._compressed,
            "camera_info": partial(self._camera_info, False),
            "odom": self._odom,
            "depth/image": self._depth,
            "depth/camera_info": partial(self._camera_info, True),
            "depth/confidence": lambda msg: scene.deviation(image_pixels(msg)),
            "depth/inverse": lambda msg: scene.inverse(image_pixels(msg)),
            "depth/points": lambda msg: scene.points(*cloud_columns(msg)),
            "semantic/labels": self._labels,
            "semantic/confidence": lambda msg: scene.confidence(image_pixels(msg)),
        }

    def show(self, topic: str, msg: Any, recorded_ns: int | None = None) -> None:
        """Show a message of a topic of ``topics.TOPICS``, in a bag with the time of recording."""
        try:
            if topic == "semantic/label_info":
                self._scene.classes(class_map(msg))
            elif topic == DIAGNOSTICS:
                self._diagnostics(msg)
            else:
                self._stamp = stamp = nanoseconds(msg.header.stamp)
                self._scene.time(stamp)
                if topic != "odom":
                    self._frame_id = msg.header.frame_id.lstrip("/")
                if BY_NAME[topic].part:
                    self._newest_ns = stamp
                    if recorded_ns is not None and "plots" in self._kinds:
                        self._plot(topic, recorded_ns)
                if self._is_too_early(topic):
                    return
                self._handlers[topic](msg)
        except (ValueError, cv2.error) as error:  # a MessageError is a ValueError
            self._warn(f"{self._name}/{topic}".lstrip("/") + f": {error}")
        else:
            self.shown[topic] += 1

    def _is_too_early(self, topic: str) -> bool:
        """Whether ``rate`` excludes a frame; by its stamp, hence the same for every topic."""
        if not self._rate or topic == "odom":
            return False
        slot = self._stamp // max(int(1e9 / self._rate), 1)
        early = self._slots.get(topic) == slot
        self._slots[topic] = slot
        return early

    def _image(self, msg: Any) -> None:
        rgb = to_rgb(image_pixels(msg), msg.encoding)
        if "image" in self._kinds:
            self._scene.image(rgb)
        self._join("rgb", rgb)

    def _compressed(self, msg: Any) -> None:
        file = compressed_file(msg)
        viewable = file.kind in ("JPEG", "PNG") and "bayer" not in file.stored_as
        rgb = None
        if "rgb" in self._joined or not viewable:
            rgb = to_rgb(*file.decode())
            self._join("rgb", rgb)
        if "image" not in self._kinds:
            return
        if viewable:
            self._scene.image_file(file.data.tobytes(), file.kind, (file.height, file.width))
        elif rgb is not None:
            self._scene.image(rgb)

    def _camera_info(self, of_depth: bool, msg: Any) -> None:
        if self._has_depth_info and not of_depth:
            return
        self._has_depth_info = of_depth
        if (camera := camera_model(msg)[0]) is not None:
            self._camera = camera
            self._scene.camera(camera)
            self._make_points()

    def _odom(self, msg: Any) -> None:
        if self._camera_in_base is None and msg.child_frame_id.lstrip("/") != self._frame_id:
            if self._frame_id:
                raise MessageError(
                    "frame",
                    f"The pose is of '{msg.child_frame_id}', but the images are of"
                    f" '{self._frame_id}': give --camera-in-base.",
                )
            return  # the frame of the images is not known yet
        p, q = msg.pose.pose.position, msg.pose.pose.orientation
        numbers = (p.x, p.y, p.z, q.x, q.y, q.z, q.w)
        values = pose_values(numbers)
        if values is None:
            raise MessageError("bad pose", f"The pose {numbers} is not valid and was skipped.")
        pose = pose_to_matrix(values)
        if self._camera_in_base is not None:
            pose = pose @ self._camera_in_base
        self._scene.pose(pose)

    def _depth(self, msg: Any) -> None:
        depth = image_pixels(msg)
        if depth.dtype == np.uint16:  # millimetres, 0 unknown (REP 118)
            depth = np.where(depth == 0, np.float32(np.nan), depth * np.float32(0.001))
        _check(depth, np.float32, msg.encoding, "32FC1 or 16UC1")
        if "depth" in self._kinds:
            self._scene.depth(depth)
        self._join("depth", depth)

    def _labels(self, msg: Any) -> None:
        labels = image_pixels(msg)
        _check(labels, np.uint8, msg.encoding, "mono8")
        if "labels" in self._kinds:
            self._scene.labels(labels)
        self._join("labels", labels)

    def _join(self, part: str, pixels: np.ndarray) -> None:
        if part in self._joined:
            self._parts.setdefault(self._stamp, {})[part] = pixels
            while len(self._parts) > _INCOMPLETE:
                self._parts.popitem(last=False)
            self._make_points()

    def _make_points(self) -> None:
        """Compute the points of a frame once all its parts have arrived."""
        parts = self._parts.get(self._stamp, {})
        if self._camera is None or not parts or not self._joined <= parts.keys():
            return
        del self._parts[self._stamp]
        size = parts["depth"].shape
        # torch warns about an array that is not writable.
        cloud = points(parts["depth"].copy(), None, None, self._camera)
        xyz = np.stack([cloud[axis] for axis in "xyz"], axis=-1)
        # output_size and points.stride give the depth another size than the image.
        fitted = {
            name: cv2.resize(parts[name], size[::-1], interpolation=cv2.INTER_NEAREST)
            for name in parts.keys() - {"depth"}
        }
        self._scene.points(xyz, fitted.get("rgb", _grey(size)), fitted.get("labels"))

    def _diagnostics(self, msg: Any) -> None:
        # Plotted at the newest frame's stamp: a bag that is replayed without its clock has frames
        # of another year than the node's clock.
        if not self._newest_ns:
            return
        self._scene.time(self._newest_ns)
        for status in msg.status:
            # The node calls a camera without a name "image".
            if status.name.rpartition(": ")[2] not in ("image", self._name.rpartition("/")[2]):
                continue
            values = {pair.key: pair.value for pair in status.values}
            for chart, series, key in _CHARTS:
                if key in values:
                    self._scene.plot(chart, series, float(values[key]))

    def _plot(self, topic: str, recorded_ns: int) -> None:
        times = self._recorded.setdefault(topic, deque(maxlen=_WINDOW))
        times.append(recorded_ns)
        if (span := recorded_ns - times[0]) > 0:
            self._scene.plot("rate", topic, (len(times) - 1) * 1e9 / span)
        if recorded_ns != self._stamp:
            self._scene.plot("latency", topic, (recorded_ns - self._stamp) / 1e6)


def _check(pixels: np.ndarray, dtype: type, encoding: str, wanted: str) -> None:
    if pixels.ndim != 2 or pixels.dtype != dtype:
        raise MessageError("bad encoding", f"The encoding is {encoding}, but must be {wanted}.")


def class_map(msg: Any) -> dict[int, str]:
    """Names by class id, of a vision_msgs/LabelInfo or the same as JSON in a std_msgs/String;
    raises MessageError for a string that is something else."""
    if hasattr(msg, "class_map"):
        return {int(row.class_id): str(row.class_name) for row in msg.class_map}
    try:
        rows = json.loads(msg.data)["class_map"]
        return {int(row["class_id"]): str(row["class_name"]) for row in rows}
    except (ValueError, TypeError, KeyError) as error:
        raise MessageError(
            "bad class map",
            'The string is not a class map, {"class_map": [{"class_id": 1, "class_name": ...}]}.',
        ) from error


def cloud_columns(msg: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Of a PointCloud2: positions, (H, W, 3) float32 metres; colours, (H, W, 3) uint8 RGB, grey
    where it has none; classes, (H, W) uint8 ids or None. Raises MessageError as ``cloud_rows``."""
    rows = cloud_rows(msg)
    names = rows.dtype.names or ()
    xyz = np.stack([rows[axis] for axis in "xyz"], axis=-1).astype(np.float32)
    rgb = _grey(rows.shape)
    if "rgb" in names:
        rgb = np.stack([rows["rgb"] >> shift & 255 for shift in (16, 8, 0)], -1).astype(np.uint8)
    return xyz, rgb, rows["label"].astype(np.uint8) if "label" in names else None


def _grey(size: tuple[int, ...]) -> np.ndarray:
    return np.full((*size, 3), 200, np.uint8)
