# SPDX-License-Identifier: Apache-2.0
"""Messages of the node's topics, as rclpy or rosbags read them, to what a viewer shows."""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from dpt_ros.apps.view.topics import BY_NAME
from dpt_ros.engine.input.preprocess import to_rgb
from dpt_ros.engine.output.point_cloud import points
from dpt_ros.ros.camera.poses import pose_matrix
from dpt_ros.ros.messages.camera_info import camera_model
from dpt_ros.ros.messages.image import MessageError, compressed_file, image_pixels

if TYPE_CHECKING:
    from dpt_ros.apps.view.scene import CameraScene
    from dpt_ros.engine.frame import CameraModel

_WAITING = 32  # frames that wait for the rest of their messages
_RATE_OVER = 10  # frames


@dataclass
class _Parts:
    """What has come of one frame that points are to be made of."""

    rgb: np.ndarray | None = None
    labels: np.ndarray | None = None
    depth: np.ndarray | None = None


@dataclass
class _Pace:
    """When the last frames came; nanoseconds."""

    times: deque[int] = field(default_factory=lambda: deque(maxlen=_RATE_OVER))

    def rate(self, now: int) -> float | None:
        self.times.append(now)
        span = now - self.times[0]
        return (len(self.times) - 1) * 1e9 / span if span > 0 else None


class CameraMessages:
    """Shows the messages of one camera.

    Args:
        scene: draws.
        name: prefix of the camera's topics without slashes at its ends, "" for none.
        kinds: what is shown, names of ``view_topics.KINDS``.
        complain: called with the reason when a message cannot be shown, each time.
        joined: the parts of a frame ("depth", "rgb", "labels") that points are made of, where no
            depth/points comes; empty where it does.
        camera_in_base: (4, 4) pose of the optical frame in the odometry's child frame; None where
            the odometry is the optical frame's own.
        rate: frames per second that are shown at most, by their stamps; 0 for all.

    Attributes:
        shown: number of messages by topic.
    """

    def __init__(
        self,
        scene: CameraScene,
        name: str,
        kinds: frozenset[str],
        complain: Callable[[str], None],
        joined: frozenset[str] = frozenset(),
        camera_in_base: np.ndarray | None = None,
        rate: float = 0.0,
    ) -> None:
        self._scene = scene
        self._name = name
        self._kinds = kinds
        self._complain = complain
        self._joined = joined
        self._camera_in_base = camera_in_base
        self._rate = rate
        self._camera: CameraModel | None = None
        self._depth_camera = False
        self._newest = 0
        self._frame_id = ""
        self._waiting: OrderedDict[int, _Parts] = OrderedDict()
        self._paces: dict[str, _Pace] = {}
        self._slots: dict[str, int] = {}
        self.shown: dict[str, int] = {}
        self._takers: dict[str, Callable[[int, Any], None]] = {
            "image": self._take_image,
            "image/compressed": self._take_compressed,
            "camera_info": self._take_camera_info,
            "odom": self._take_odom,
            "depth/image": self._take_depth,
            "depth/camera_info": self._take_depth_camera_info,
            "depth/confidence": lambda stamp, msg: scene.deviation(stamp, image_pixels(msg)),
            "depth/inverse": lambda stamp, msg: scene.inverse(stamp, image_pixels(msg)),
            "depth/points": self._take_points,
            "semantic/labels": self._take_labels,
            "semantic/confidence": lambda stamp, msg: scene.confidence(stamp, image_pixels(msg)),
        }

    def take(self, topic: str, msg: Any, recorded_ns: int | None = None) -> None:
        """Show a message.

        Args:
            topic: relative name, of ``view_topics.TOPICS``.
            msg: of one of the topic's types.
            recorded_ns: when it was recorded, in a bag.
        """
        try:
            if topic == "semantic/label_info":
                self._scene.classes(class_map(msg))
            elif topic == "/diagnostics":
                self._take_diagnostics(msg)
            else:
                stamp = stamp_ns(msg)
                if topic != "odom":
                    self._frame_id = msg.header.frame_id.lstrip("/")
                if BY_NAME[topic].frames:
                    self._newest = stamp
                    if recorded_ns is not None and "plots" in self._kinds:
                        self._plot(topic, stamp, recorded_ns)
                if self._left_out(topic, stamp):
                    return
                self._takers[topic](stamp, msg)
        except (ValueError, cv2.error) as error:  # a MessageError is a ValueError
            self._complain(f"{self._name}/{topic}".lstrip("/") + f": {error}")
        else:
            self.shown[topic] = self.shown.get(topic, 0) + 1

    def _left_out(self, topic: str, stamp: int) -> bool:
        """Whether a frame comes too soon after the last one shown: the same for every topic."""
        if not self._rate or topic == "odom":
            return False
        slot = stamp // max(int(1e9 / self._rate), 1)
        early = self._slots.get(topic) == slot
        self._slots[topic] = slot
        return early

    def _take_image(self, stamp: int, msg: Any) -> None:
        rgb = to_rgb(image_pixels(msg), msg.encoding)
        if "image" in self._kinds:
            self._scene.image(stamp, rgb)
        self._join(stamp, "rgb", rgb)

    def _take_compressed(self, stamp: int, msg: Any) -> None:
        file = compressed_file(msg)
        as_it_is = file.kind in ("JPEG", "PNG") and "bayer" not in file.stored_as
        rgb = None
        if "rgb" in self._joined or not as_it_is:
            rgb = to_rgb(*file.decode())
            self._join(stamp, "rgb", rgb)
        if "image" not in self._kinds:
            return
        if as_it_is:
            shape = (file.height, file.width)
            self._scene.image_file(stamp, file.data.tobytes(), file.kind, shape)
        elif rgb is not None:
            self._scene.image(stamp, rgb)

    def _take_camera_info(self, stamp: int, msg: Any) -> None:
        if not self._depth_camera:
            self._use_camera(stamp, msg)

    def _take_depth_camera_info(self, stamp: int, msg: Any) -> None:
        self._depth_camera = True
        self._use_camera(stamp, msg)

    def _use_camera(self, stamp: int, msg: Any) -> None:
        camera, _ = camera_model(msg)
        if camera is not None:
            self._camera = camera
            self._scene.camera(stamp, camera)
            self._make_points(stamp)

    def _take_odom(self, stamp: int, msg: Any) -> None:
        if self._camera_in_base is None and msg.child_frame_id.lstrip("/") != self._frame_id:
            if self._frame_id:
                raise MessageError(
                    "frame",
                    f"The pose is of '{msg.child_frame_id}', but the images are of"
                    f" '{self._frame_id}': give --camera-in-base.",
                )
            return  # nobody knows yet where images come from
        p, q = msg.pose.pose.position, msg.pose.pose.orientation
        numbers = (p.x, p.y, p.z, q.x, q.y, q.z, q.w)
        length = np.linalg.norm(numbers[3:])
        if not np.isfinite(numbers).all() or not 0.5 < length < 2.0:
            raise MessageError("bad pose", f"The pose {numbers} is not valid and was skipped.")
        pose = pose_matrix([*numbers[:3], *(np.array(numbers[3:]) / length)])
        assert pose is not None
        if self._camera_in_base is not None:
            pose = pose @ self._camera_in_base
        self._scene.pose(stamp, pose)

    def _take_depth(self, stamp: int, msg: Any) -> None:
        depth = image_pixels(msg)
        if depth.dtype == np.uint16:  # millimetres, 0 unknown (REP 118)
            depth = np.where(depth == 0, np.float32(np.nan), depth * np.float32(0.001))
        if depth.ndim != 2 or depth.dtype != np.float32:
            raise MessageError(
                "bad encoding", f"The encoding is {msg.encoding}, but must be 32FC1 or 16UC1."
            )
        if "depth" in self._kinds:
            self._scene.depth(stamp, depth)
        self._join(stamp, "depth", depth)

    def _take_labels(self, stamp: int, msg: Any) -> None:
        labels = image_pixels(msg)
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise MessageError(
                "bad encoding", f"The encoding is {msg.encoding}, but must be mono8."
            )
        if "labels" in self._kinds:
            self._scene.labels(stamp, labels)
        self._join(stamp, "labels", labels)

    def _take_points(self, stamp: int, msg: Any) -> None:
        self._scene.points(stamp, *cloud_columns(msg))

    def _join(self, stamp: int, part: str, pixels: np.ndarray) -> None:
        if part not in self._joined:
            return
        setattr(self._waiting.setdefault(stamp, _Parts()), part, pixels)
        while len(self._waiting) > _WAITING:
            self._waiting.popitem(last=False)
        self._make_points(stamp)

    def _make_points(self, stamp: int) -> None:
        """Points of a frame, when all of it is there."""
        parts = self._waiting.get(stamp)
        if parts is None or self._camera is None or parts.depth is None:
            return
        if any(getattr(parts, name) is None for name in self._joined):
            return
        del self._waiting[stamp]
        size = parts.depth.shape
        rgb, labels = (_resized(part, size) for part in (parts.rgb, parts.labels))
        # torch warns of an array that it could write to and must not.
        cloud = points(parts.depth.copy(), None, None, self._camera)
        xyz = np.stack([cloud[axis] for axis in "xyz"], axis=-1)
        self._scene.points(stamp, xyz, _grey(size) if rgb is None else rgb, labels)

    def _take_diagnostics(self, msg: Any) -> None:
        # On the frames' own time: a bag that is replayed without its clock has frames of another
        # year than the node's clock.
        stamp = self._newest
        if not stamp:
            return
        for status in msg.status:
            values = {pair.key: pair.value for pair in status.values}
            # The node calls a camera without a name "image".
            if status.name.rpartition(": ")[2] not in ("image", self._name.rpartition("/")[2]):
                continue
            for chart, series, key in (
                ("rate", "camera to node", "input rate (Hz)"),
                ("rate", "node", "output rate (Hz)"),
                ("latency", "in the node, p50", "latency from receipt p50 (ms)"),
                ("latency", "in the node, p99", "latency from receipt p99 (ms)"),
                ("latency", "since the stamp, p50", "age since stamp p50 (ms)"),
            ):
                if key in values:
                    self._scene.plot(stamp, chart, series, float(values[key]))

    def _plot(self, topic: str, stamp: int, recorded_ns: int) -> None:
        rate = self._paces.setdefault(topic, _Pace()).rate(recorded_ns)
        if rate is not None:
            self._scene.plot(stamp, "rate", topic, rate)
        if recorded_ns != stamp:
            self._scene.plot(stamp, "latency", topic, (recorded_ns - stamp) / 1e6)


def stamp_ns(msg: Any) -> int:
    """The stamp of a message that has a header, nanoseconds."""
    return int(msg.header.stamp.sec) * 1_000_000_000 + int(msg.header.stamp.nanosec)


def class_map(msg: Any) -> dict[int, str]:
    """Names by class id, of a vision_msgs/LabelInfo or the same as JSON in a std_msgs/String.

    Raises:
        MessageError: the string is no class map.
    """
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
    """Places, colours and classes of a PointCloud2 that has x, y, z and may have rgb and label.

    Returns:
        (H, W, 3) float32 metres; (H, W, 3) uint8 RGB, grey where the cloud has none;
        (H, W) uint8 class ids or None.

    Raises:
        MessageError: it has no places, or too few bytes.
    """
    codes = {"x": "f4", "y": "f4", "z": "f4", "rgb": "u4", "label": "u4"}
    offsets = {f.name: f.offset for f in msg.fields if f.name in codes}
    step = msg.point_step
    if not {"x", "y", "z"} <= offsets.keys() or max(offsets.values()) + 4 > step:
        raise MessageError("bad fields", "The cloud has no float32 fields x, y and z.")
    data = np.frombuffer(msg.data, np.uint8)
    if msg.row_step < step * msg.width or data.size < msg.row_step * msg.height:
        raise MessageError("short data", f"The cloud holds only {data.size} bytes.")
    order = ">" if msg.is_bigendian else "<"
    dtype = np.dtype(
        {
            "names": list(offsets),
            "formats": [order + codes[name] for name in offsets],
            "offsets": list(offsets.values()),
            "itemsize": step,
        }
    )
    rows: np.ndarray = np.ndarray(
        (msg.height, msg.width), dtype, data, strides=(msg.row_step, step)
    )
    xyz = np.stack([rows[axis] for axis in "xyz"], axis=-1).astype(np.float32)
    rgb = _grey(rows.shape)
    if "rgb" in offsets:
        rgb = np.stack([rows["rgb"] >> shift & 255 for shift in (16, 8, 0)], -1).astype(np.uint8)
    labels = rows["label"].astype(np.uint8) if "label" in offsets else None
    return xyz, rgb, labels


def _grey(size: tuple[int, ...]) -> np.ndarray:
    return np.full((*size, 3), 200, np.uint8)


def _resized(part: np.ndarray | None, size: tuple[int, ...]) -> np.ndarray | None:
    """A picture or labels at the size of the depth, which output_size or points.stride make."""
    if part is None or part.shape[:2] == size:
        return part
    return cv2.resize(part, size[::-1], interpolation=cv2.INTER_NEAREST)
