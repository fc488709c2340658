# SPDX-License-Identifier: Apache-2.0
"""The topics of one camera: its image and camera_info in, everything predicted out."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String

from dpt_ros.engine.color import depth_to_color, inverse_to_color, labels_to_color, with_words
from dpt_ros.engine.frame import CameraModel, Frame, Outputs, Prediction
from dpt_ros.engine.network import Networks
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.cdr import read_compressed_image, read_image
from dpt_ros.ros.diagnostics import Statistics, camera_status
from dpt_ros.ros.messages import (
    MessageError,
    camera_model,
    compressed_file,
    image_message,
    image_pixels,
    millimetres,
    scaled_camera_info,
)
from dpt_ros.ros.transport import ImageInput, ImageTopic, say

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # not on PyPI; the class map then goes out as JSON
    LabelInfo = None

_REPEAT = 5.0
_OUTPUT_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
_LATCHED_QOS = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


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
        self._read: Callable[[Any, float], Frame] = self._read_image
        self._info_subscription: Any = None
        self._submit: Callable[[Frame, Outputs], None] | None = None
        self._info: CameraInfo | None = None
        self._camera: CameraModel | None = None
        self._camera_warning = ""
        self._scaled: tuple[CameraInfo | None, CameraInfo] = (None, CameraInfo())
        self._inverse_near = 0.0
        self._publishers: dict[str, LifecyclePublisher[Any]] = {}
        if networks.depth_name:
            self._create_depth_publishers()
        if networks.label_name:
            self._create_label_publishers()

    def _create_depth_publishers(self) -> None:
        if self._networks.metric:
            self._advertise("depth/image", Image)
            self._advertise("depth/camera_info", CameraInfo)
        else:
            self._log.info(
                f"{self._networks.depth_name} predicts relative inverse depth, which has no unit:"
                f" {self._prefix}depth/inverse is published and {self._prefix}depth/image is not."
            )
        if not self._networks.metric or self._settings().publish_inverse:
            self._advertise("depth/inverse", Image)
        self._advertise("depth/color", Image)

    def _create_label_publishers(self) -> None:
        self._advertise("semantic/labels", Image)
        self._advertise("semantic/confidence", Image)
        self._advertise("semantic/color", Image)
        self._advertise("semantic/label_info", LabelInfo or String, _LATCHED_QOS)

    def _advertise(self, topic: str, kind: type, qos: QoSProfile = _OUTPUT_QOS) -> None:
        self._publishers[topic] = self._node.create_lifecycle_publisher(
            kind,
            self._prefix + topic,
            # A copy, because qos_overrides are written into the profile.
            QoSProfile(depth=qos.depth, reliability=qos.reliability, durability=qos.durability),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def open(self, submit: Callable[[Frame, Outputs], None]) -> None:
        """Publish the class map and subscribe; frames go to ``submit``."""
        self._submit = submit
        if "semantic/label_info" in self._publishers:
            self._publishers["semantic/label_info"].publish(self._label_info())
        settings = self._settings()
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
        self._input = ImageInput(
            self._node,
            ImageTopic(topic, kind, settings.image_reliability, self._raw),
            self._take_image,
        )

    def close(self) -> None:
        """Unsubscribe; publishers stay."""
        if self._input is not None:
            self._input.close()
            self._node.destroy_subscription(self._info_subscription)
        self._input = self._info_subscription = self._submit = None

    def destroy(self) -> None:
        """Take every topic away."""
        self.close()
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()

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
        self._camera, warning = camera_model(info)
        self._info = info
        if warning and warning != self._camera_warning:
            self._log.warning(f"{self._prefix}{warning}")
        self._camera_warning = warning

    def _take_image(self, msg: Image | CompressedImage | bytes) -> None:
        received = time.monotonic()
        self._statistics.received()
        outputs = self._wanted()
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
        pixels = image_pixels(image)
        self._statistics.accepted(image.encoding)
        about = self._about(image.header, image.width, image.height, received)
        return Frame(pixels, image.encoding, **about)

    def _read_compressed(self, msg: CompressedImage | bytes, received: float) -> Frame:
        """A frame to be decoded by who computes it: here that would hold up every callback."""
        image = read_compressed_image(msg) if isinstance(msg, bytes) else msg
        file = compressed_file(image)

        def decode() -> tuple[np.ndarray, str]:
            pixels, encoding = file.decode()
            self._statistics.accepted(encoding)
            return pixels, encoding

        about = self._about(image.header, file.width, file.height, received)
        return Frame(file.data, file.kind, decode=decode, **about)

    def _about(self, header: Header, width: int, height: int, received: float) -> dict[str, Any]:
        """What a frame says of itself beside its pixels."""
        fits = self._info_fits(width, height)
        return {
            "stamp_ns": header.stamp.sec * 1_000_000_000 + header.stamp.nanosec,
            "frame_id": header.frame_id,
            "source": self.name,
            "camera": self._camera if fits else None,
            "context": Arrival(header, self._info if fits else None, received),
        }

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

    def _wanted(self) -> Outputs:
        """What is computed: only what somebody subscribes to."""
        metric = self._networks.metric
        color = self._watched("depth/color")
        return Outputs(
            depth=metric and (color or self._watched("depth/image", "depth/camera_info")),
            inverse=self._watched("depth/inverse") or (color and not metric),
            labels=self._watched("semantic/labels", "semantic/color"),
            confidence=self._watched("semantic/confidence"),
        )

    def _watched(self, *topics: str) -> bool:
        return any(
            topic in self._publishers and self._publishers[topic].get_subscription_count()
            for topic in topics
        )

    def publish(self, prediction: Prediction) -> None:
        """Send what was predicted, each output with the header of its frame."""
        arrival: Arrival = prediction.frame.context
        start = time.monotonic()
        if prediction.depth is not None:
            self._publish_depth(prediction.depth, arrival)
        if prediction.inverse is not None:
            self._publish_inverse(prediction.inverse, arrival.header)
        if prediction.labels is not None:
            self._send_image("semantic/labels", prediction.labels, "mono8", arrival.header)
            if self._watched("semantic/color"):
                color = labels_to_color(prediction.labels, self._networks.palette)
                self._send_picture("semantic/color", color, arrival.header)
        if prediction.confidence is not None:
            self._send_image("semantic/confidence", prediction.confidence, "mono8", arrival.header)
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

    def _publish_depth(self, depth: np.ndarray, arrival: Arrival) -> None:
        encoding = self._settings().depth_encoding
        if self._watched("depth/image"):
            values = millimetres(depth) if encoding == "16UC1" else depth
            self._send_image("depth/image", values, encoding, arrival.header)
        if arrival.info is not None and self._watched("depth/camera_info"):
            self._publishers["depth/camera_info"].publish(self._info_of(depth, arrival))
        if self._watched("depth/color"):
            color = depth_to_color(depth, self._settings().color_range)
            self._send_picture("depth/color", color, arrival.header)

    def _info_of(self, depth: np.ndarray, arrival: Arrival) -> CameraInfo:
        """The camera_info of a depth image, worked out anew when the calibration or size changed.

        The message is filled anew for every frame: publish it at once.
        """
        height, width = depth.shape
        source, scaled = self._scaled
        if source is not arrival.info or (scaled.width, scaled.height) != (width, height):
            scaled = scaled_camera_info(arrival.info, width, height, arrival.header)
            self._scaled = arrival.info, scaled
        scaled.header = arrival.header
        return scaled

    def _publish_inverse(self, inverse: np.ndarray, header: Header) -> None:
        self._send_image("depth/inverse", inverse, "32FC1", header)
        if not self._networks.metric and self._watched("depth/color"):
            # Relative depth has no unit to fix a range in, so the first frame fixes it for all.
            self._inverse_near = self._inverse_near or float(np.percentile(inverse, 99)) or 1.0
            color = inverse_to_color(inverse, self._inverse_near)
            self._send_picture("depth/color", color, header)

    def _send_picture(self, topic: str, picture: np.ndarray, header: Header) -> None:
        if self._networks.random:
            with_words(picture, "RANDOM WEIGHTS: this means nothing")
        self._send_image(topic, picture, "rgb8", header)

    def _send_image(self, topic: str, pixels: np.ndarray, encoding: str, header: Header) -> None:
        if self._watched(topic):
            self._publishers[topic].publish(image_message(pixels, encoding, header))

    def _label_info(self) -> Any:
        names = dict(enumerate(self._networks.class_names, start=1))
        if LabelInfo is not None:
            classes = [VisionClass(class_id=k, class_name=name) for k, name in names.items()]
            return LabelInfo(class_map=classes)
        self._log.warning(
            f"vision_msgs is not installed: {self._prefix}semantic/label_info is a"
            " std_msgs/String with the class map as JSON."
        )
        rows = [{"class_id": k, "class_name": name} for k, name in names.items()]
        return String(data=json.dumps({"class_map": rows}))

    def drop(self, reason: str) -> None:
        """Count a frame that was not computed."""
        self._statistics.dropped(reason)

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
        more = {}
        warnings = [self._camera_warning] if self._camera_warning else []
        if self._input is not None:
            more = {
                "topic": self._input.topic_name,
                "reliability": self._input.reliability,
                "missed: not taken in time": str(max(self._input.missed - self._input.lost, 0)),
                "missed: lost on the way": str(self._input.lost),
            }
            warnings += [self._input.silence] if self._input.silence else []
        more["camera_info"] = "used" if self._camera else "none"
        name = f"{self._node.get_name()}: {self.name or 'image'}"
        return camera_status(name, self._statistics, more, warnings)

    def _say_at_times(self, subject: str, level: str, sentence: str) -> None:
        """Log a sentence at most every few seconds per subject."""
        now = time.monotonic()
        if now - self._said.get(subject, -_REPEAT) >= _REPEAT:
            self._said[subject] = now
            say(self._log, level, sentence)
