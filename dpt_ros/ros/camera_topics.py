# SPDX-License-Identifier: Apache-2.0
"""The topics of one camera: its image and camera_info in, everything predicted out."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from dpt_ros.engine.chain import depth_limit
from dpt_ros.engine.frame import CameraModel, Frame, Outputs, Prediction
from dpt_ros.engine.ground import down_direction
from dpt_ros.engine.network import Networks
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.anchor_topics import AnchorTopics
from dpt_ros.ros.cdr import read_compressed_image, read_image
from dpt_ros.ros.diagnostics import Statistics, camera_status
from dpt_ros.ros.image_bits import ImageBits
from dpt_ros.ros.messages import MessageError, camera_model, compressed_file, image_pixels
from dpt_ros.ros.outputs import CameraOutputs
from dpt_ros.ros.poses import PoseSource, make_pose_source, pose_matrix
from dpt_ros.ros.transport import ImageInput, ImageTopic, say

_REPEAT = 5.0


@dataclass(frozen=True)
class Arrival:
    """What the node must remember of a frame until its prediction is there.

    Args:
        header: of the image, copied to every output.
        info: the camera_info that was current, if it fits the image.
        received: time.monotonic() at receipt.
    """

    header: Header
    info: CameraInfo | None
    received: float


class CameraTopics:
    """Subscriptions, publishers and counts of one camera.

    Publishers live from construction to ``destroy``, subscriptions from ``open`` to ``close``.

    Args:
        node: owns the topics.
        name: prefix of the topics, "" for none.
        networks: decide which outputs exist.
        settings: gives the settings of the moment.
        raw: take images serialised, which is faster; tests compare it with the plain way.
    """

    def __init__(
        self,
        node: LifecycleNode,
        name: str,
        networks: Networks,
        settings: Callable[[], Settings],
        raw: bool = True,
    ) -> None:
        self.name = name
        self._raw = raw
        self._node = node
        self._networks = networks
        self._settings = settings
        self._log = node.get_logger()
        self._prefix = f"{name}/" if name else ""
        self._statistics = Statistics()
        self._said: dict[str, float] = {}
        self._input: ImageInput | None = None
        self._missed = self._lost = 0  # by the inputs before this one
        self._read: Callable[[Any, float], Frame] = self._read_image
        self._info_subscription: Any = None
        self._submit: Callable[[Frame, Outputs], None] | None = None
        self._poses: PoseSource | None = None
        self._info: CameraInfo | None = None
        self._camera: CameraModel | None = None
        self._camera_warning = ""
        self._anchors: AnchorTopics | None = None
        self._down: np.ndarray | None = None
        self._scale_said: dict[str, str] = {}
        self._bits = ImageBits(lambda: settings().image_bits, self._say_once)
        self._outputs = CameraOutputs(node, self._prefix, networks, settings)

    def open(self, submit: Callable[[Frame, Outputs], None]) -> None:
        """Publish the class map and subscribe; frames go to ``submit``."""
        self._submit = submit
        self._outputs.publish_label_info()
        settings = self._settings()
        base_from_camera = pose_matrix(settings.camera_in_base)
        self._down = None if base_from_camera is None else down_direction(base_from_camera)
        if self._networks.depth_name and settings.scale_source in ("auto", "anchors"):
            self._anchors = AnchorTopics(
                self._node,
                self._prefix,
                settings,
                lambda sentence: self._say_at_times("anchors", "warning", self._prefix + sentence),
            )
        topic = self._node.resolve_topic_name(self._prefix + "image")
        kind: type = Image
        self._read = self._read_image
        if settings.image_transport == "compressed":
            topic, kind = topic + "/compressed", CompressedImage
            self._read = self._read_compressed
        self._info_subscription = self._node.create_subscription(
            CameraInfo,
            self._prefix + "camera_info",
            self._take_info,
            QoSProfile(depth=1, reliability=qos_profile_sensor_data.reliability),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._poses = make_pose_source(
            self._node,
            self._prefix,
            settings,
            lambda sentence: self._say_at_times("pose", "warning", self._prefix + sentence),
        )
        self._input = ImageInput(
            self._node,
            ImageTopic(topic, kind, settings.image_reliability, self._raw),
            self._take_image,
        )

    def close(self) -> None:
        """Unsubscribe; publishers stay."""
        if self._input is not None:
            self._input.close()
            self._missed += self._input.missed
            self._lost += self._input.lost
            self._node.destroy_subscription(self._info_subscription)
        for source in (self._poses, self._anchors):
            if source is not None:
                source.close()
        self._input = self._info_subscription = self._submit = None
        self._poses = self._anchors = None

    def destroy(self) -> None:
        """Take every topic away."""
        self.close()
        self._outputs.destroy()

    def review(self) -> None:
        """Look whether frames come and how they are offered; call it twice a second."""
        if self._input is not None:
            self._input.review()

    def _take_info(self, info: CameraInfo) -> None:
        # The header is the image's. Without it, those of one calibration are equal, and what was
        # worked out for the first holds for all.
        info.header = Header()
        if info == self._info:
            return
        topic = self._input.topic_name if self._input is not None else ""
        self._camera, warning = camera_model(info, topic)
        self._info = info
        if warning and warning != self._camera_warning:
            self._log.warning(f"{self._prefix}{warning}")
        self._camera_warning = warning

    def _take_image(self, msg: Image | CompressedImage | bytes) -> None:
        received = time.monotonic()
        self._statistics.received()
        outputs = self._outputs.wanted(self._camera is not None)
        if self._submit is None or not outputs.any:
            self._statistics.dropped("nobody subscribes")
            return
        try:
            frame = self._read(msg, received)
        except MessageError as error:
            self.fail(error)
            return
        self._submit(frame, outputs)

    def _read_image(self, msg: Image | bytes, received: float) -> Frame:
        image = read_image(msg) if isinstance(msg, bytes) else msg
        pixels = self._bits(image_pixels(image))
        self._statistics.accepted(image.encoding)
        about = self._about(image.header, image.width, image.height, received)
        return Frame(pixels, image.encoding, **about)

    def _read_compressed(self, msg: CompressedImage | bytes, received: float) -> Frame:
        """A frame to be decoded by who computes it: here that would hold up every callback."""
        image = read_compressed_image(msg) if isinstance(msg, bytes) else msg
        file = compressed_file(image)
        if file.oddity:
            self._say_once(file.oddity)

        def decode() -> tuple[np.ndarray, str]:
            pixels, encoding = file.decode()
            self._statistics.accepted(encoding)
            return self._bits(pixels), encoding

        about = self._about(image.header, file.width, file.height, received)
        return Frame(file.data, file.kind, decode=decode, **about)

    def _about(self, header: Header, width: int, height: int, received: float) -> dict[str, Any]:
        """What a frame says of itself beside its pixels."""
        fits = self._info_fits(width, height)
        stamp_ns = header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
        return {
            "stamp_ns": stamp_ns,
            "frame_id": header.frame_id,
            "source": self.name,
            "camera": self._camera if fits else None,
            "odom_from_camera": self._pose(header.frame_id, stamp_ns),
            "anchors": self._anchors.anchors(self._camera, header.frame_id)
            if self._anchors is not None and fits
            else None,
            "down": self._down,
            "context": Arrival(header, self._info if fits else None, received),
        }

    def _pose(self, frame_id: str, stamp_ns: int) -> np.ndarray | None:
        if self._poses is None or not self._settings().smoothing_strength:
            return None
        return self._poses.pose(frame_id, stamp_ns)

    def _info_fits(self, width: int, height: int) -> bool:
        camera = self._camera
        if camera is None or (camera.width, camera.height) == (width, height):
            return camera is not None
        self._say_at_times(
            "camera_info size",
            "warning",
            f"{self._prefix}camera_info speaks of {camera.width}x{camera.height} pixels, but the"
            f" image has {width}x{height}, so it is not used; publish that of this image.",
        )
        return False

    def publish(self, prediction: Prediction) -> None:
        """Send what was predicted, each output with the header of its frame."""
        arrival: Arrival = prediction.frame.context
        start = time.monotonic()
        self._outputs.publish(prediction, arrival.header, arrival.info)
        self._scale_said = prediction.scale
        if prediction.reset:
            self._statistics.reset(prediction.reset)
        end, now = time.monotonic(), self._node.get_clock().now().nanoseconds
        latency = end - arrival.received
        self._statistics.published(
            {
                "latency from receipt": latency,
                "age since stamp": (now - prediction.frame.stamp_ns) * 1e-9,
                "all but the network": latency - prediction.seconds.get("network", 0.0),
                **{f"step {name}": spent for name, spent in prediction.seconds.items()},
                "step publish": end - start,
            }
        )

    def drop(self, reason: str) -> None:
        """Count a frame that was not computed."""
        self._statistics.dropped(reason)

    def _say_once(self, sentence: str) -> None:
        """Log a sentence about what does not change with the camera."""
        if sentence not in self._said:
            self._said[sentence] = time.monotonic()
            self._log.warning(f"{self._prefix}image: {sentence}")

    def fail(self, error: Exception) -> None:
        """Count and report an image that could not be read or a frame that failed."""
        if isinstance(error, MessageError):
            reason, sentence = error.reason, str(error)
        elif isinstance(error, ValueError):
            reason, sentence = type(error).__name__, f"a frame failed: {error}"
        else:
            reason = type(error).__name__
            sentence = f"a frame failed: {''.join(traceback.format_exception(error))}"
        self._statistics.failed(reason)
        self._say_at_times(reason, "error", f"{self._prefix}image: {sentence}")

    def status(self) -> DiagnosticStatus:
        """What /diagnostics says of this camera."""
        more: dict[str, str] = {}
        missed, lost = self._missed, self._lost
        warnings = [self._camera_warning] if self._camera_warning else []
        warnings += self._far_warning()
        if self._input is not None:
            more = {
                "topic": self._input.topic_name,
                "reliability": self._input.reliability,
            }
            missed, lost = missed + self._input.missed, lost + self._input.lost
            warnings += [self._input.silence] if self._input.silence else []
        more["missed: not taken in time"] = str(max(missed - lost, 0))
        more["missed: lost on the way"] = str(lost)
        more |= self._scale_said
        more["camera_info"] = self._camera_words()
        name = f"{self._node.get_fully_qualified_name().lstrip('/')}: {self.name or 'image'}"
        return camera_status(name, self._statistics, more, warnings)

    def _camera_words(self) -> str:
        if self._camera is None:
            return "none"
        return "used, but the image is not rectified" if self._camera_warning else "used"

    def _far_warning(self) -> list[str]:
        """Points beyond range claim free space; nobody has looked farther than the limit."""
        settings = self._settings()
        limit = depth_limit(self._networks, settings)
        if settings.points_far <= limit:
            return []
        return [
            f"points.far is {settings.points_far:g} m, but depth ends at {limit:.3g} m (max_range"
            " or the network): what stands between is cleared from a costmap. Set points.far lower"
            " or max_range higher."
        ]

    def _say_at_times(self, subject: str, level: str, sentence: str) -> None:
        """Log a sentence at most every few seconds per subject."""
        now = time.monotonic()
        if now - self._said.get(subject, -_REPEAT) >= _REPEAT:
            self._said[subject] = now
            say(self._log, level, sentence)
