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
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from dpt_ros.engine.frame import Frame, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.runner.chain import depth_limit
from dpt_ros.engine.scale.ground import down_direction
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.anchor_topics import AnchorTopics
from dpt_ros.ros.camera.frame_order import FrameOrder
from dpt_ros.ros.camera.geometry import pose_matrix
from dpt_ros.ros.camera.image_subscription import ImageInput, ImageTopic, say
from dpt_ros.ros.camera.inputs import InputRecord
from dpt_ros.ros.camera.poses import OdometryPoses, PoseSource, make_pose_source
from dpt_ros.ros.camera.publishers import CameraPublishers
from dpt_ros.ros.camera.tf import TfTree
from dpt_ros.ros.diagnostics import Statistics, camera_status
from dpt_ros.ros.messages.camera_info import CameraInfoInput
from dpt_ros.ros.messages.cdr import read_compressed_image, read_image
from dpt_ros.ros.messages.image import MessageError, compressed_file, image_pixels
from dpt_ros.ros.messages.image_bits import ImageBits
from dpt_ros.ros.plausibility import stamps_apart

_REPEAT = 5.0  # seconds
_REPEAT_WARNING = 30.0


@dataclass(frozen=True)
class Arrival:
    """What the node must remember of a frame until its prediction is there.

    Args:
        header: of the image, copied to every output.
        info: the camera_info that was current, if it fits the image.
        received: time.monotonic() at receipt.
        anchors: the topic that its anchors came from, "" without any.
    """

    header: Header
    info: CameraInfo | None
    received: float
    anchors: str = ""


class CameraTopics:
    """Subscriptions, publishers and counts of one camera.

    Publishers live from construction to ``destroy``, subscriptions from ``open`` to ``close``.

    Args:
        node: owns the topics.
        name: prefix of the topics, "" for none.
        networks: decide which outputs exist.
        settings: gives the settings of the moment.
        raw: take images serialised, which is faster; tests compare it with the plain way.
        tree: the node's tf; without, one of its own.
    """

    def __init__(
        self,
        node: LifecycleNode,
        name: str,
        networks: Networks,
        settings: Callable[[], Settings],
        raw: bool = True,
        tree: TfTree | None = None,
    ) -> None:
        self.name = name
        self._tree = tree or TfTree(node)
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
        self._info: CameraInfoInput | None = None
        self._record = InputRecord("image")
        self._order = FrameOrder("")
        self._no_age = ""
        self._submit: Callable[[Frame, OutputRequest], None] | None = None
        self._poses: PoseSource | None = None
        self._anchors: AnchorTopics | None = None
        self._down: np.ndarray | None = None
        self._scale_said: dict[str, str] = {}
        self._bits = ImageBits(lambda: settings().image_bits, self._say_once)
        self._outputs = CameraPublishers(node, self._prefix, networks, settings)

    def open(self, submit: Callable[[Frame, OutputRequest], None]) -> None:
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
                self._tree,
            )
        topic = self._node.resolve_topic_name(self._prefix + "image")
        kind: type = Image
        self._read = self._read_image
        if settings.image_transport == "compressed":
            topic, kind = topic + "/compressed", CompressedImage
            self._read = self._read_compressed
        self._info = CameraInfoInput(
            self._node,
            self._prefix + "camera_info",
            lambda: self._input.topic_name if self._input is not None else "",
            self._warn,
        )
        self._poses = make_pose_source(
            self._node,
            self._prefix,
            settings,
            lambda sentence: self._say_at_times("pose", "warning", self._prefix + sentence),
            self._tree,
        )
        self._input = ImageInput(
            self._node,
            ImageTopic(topic, kind, settings.image_reliability, self._raw),
            self._take_image,
        )
        self._order = FrameOrder(self._input.topic_name)

    @property
    def subscribed(self) -> list[str]:
        """The full names of the topics that it listens to."""
        if self._input is None or self._info is None:
            return []
        topics = [self._input.topic_name, self._info.topic]
        if isinstance(self._poses, OdometryPoses):
            topics.append(self._poses.topic)
        return topics + (self._anchors.topics if self._anchors is not None else [])

    @property
    def published(self) -> list[str]:
        """The full names of the topics that it publishes."""
        return self._outputs.topics

    def close(self) -> None:
        """Unsubscribe; publishers stay."""
        if self._input is not None:
            self._input.close()
            self._missed += self._input.missed
            self._lost += self._input.lost
        for source in (self._info, self._poses, self._anchors):
            if source is not None:
                source.close()
        self._input = self._submit = self._info = self._poses = self._anchors = None

    def destroy(self) -> None:
        """Take every topic away."""
        self.close()
        self._outputs.destroy()

    def review(self) -> None:
        """Look whether data comes and how it is offered; call it twice a second."""
        for one in (self._input, self._info, self._anchors):
            if one is not None:
                one.review()
        self._outputs.review()
        for warning in self._warnings():
            self._warn(warning)

    def _take_image(self, msg: Image | CompressedImage | bytes) -> None:
        received = time.monotonic()
        self._statistics.received()
        self._record.received()
        calibrated = self._info is not None and self._info.camera is not None
        outputs = self._outputs.wanted(calibrated)
        if self._submit is None or not outputs.any:
            self._statistics.dropped("nobody subscribes")
            self._record.idle("nobody subscribes to an output")
            return
        try:
            frame = self._read(msg, received)
        except MessageError as error:
            self.fail(error)
            self._record.unused(error.reason)
            return
        self._record.used()
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
        stamp_ns = header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
        sender = self._input.sender if self._input is not None else b""
        self._order.see(stamp_ns, header.frame_id, (width, height), sender)
        camera, info = self._info.of(width, height) if self._info is not None else (None, None)
        anchors, source = None, ""
        if self._anchors is not None:
            anchors = self._anchors.anchors(camera, header.frame_id)
            source = self._anchors.newest if anchors is not None and len(anchors) else ""
        return {
            "stamp_ns": stamp_ns,
            "frame_id": header.frame_id,
            "source": self.name,
            "camera": camera,
            "locate": self._locator(header.frame_id, stamp_ns),
            "anchors": anchors,
            "down": self._down,
            "context": Arrival(header, info, received, source),
        }

    def _locator(self, frame_id: str, stamp_ns: int) -> Callable[[], np.ndarray | None] | None:
        """What looks up the camera's pose when it is needed: until then more may have come."""
        poses = self._poses
        if poses is None or poses.record is None:
            return None
        if not self._settings().smoothing_strength:
            poses.record.idle("smoothing.strength is 0")
            return None
        return lambda: poses.pose(frame_id, stamp_ns)

    def publish(self, prediction: Prediction) -> None:
        """Send what was predicted, each output with the header of its frame."""
        arrival: Arrival = prediction.frame.context
        start = time.monotonic()
        self._outputs.publish(prediction, arrival.header, arrival.info)
        self._scale_said = prediction.scale
        anchors = self._anchors
        if arrival.anchors and anchors is not None:
            anchors.report(arrival.anchors, prediction.scale)
        self._order.published(prediction.reset if self._settings().smoothing_strength else "")
        if prediction.reset:
            self._statistics.reset(prediction.reset)
        end = time.monotonic()
        latency = end - arrival.received
        self._statistics.published(
            {
                "latency from receipt": latency,
                **self._age(prediction.frame.stamp_ns),
                "all but the network": latency - prediction.seconds.get("network", 0.0),
                **{f"step {name}": spent for name, spent in prediction.seconds.items()},
                "step publish": end - start,
            }
        )

    def _age(self, stamp_ns: int) -> dict[str, float]:
        """How old a frame is by the node's clock, if both are of one clock."""
        now = self._node.get_clock().now().nanoseconds
        self._no_age = "the node's clock stands at 0" if not now else ""
        self._no_age = self._no_age or stamps_apart(stamp_ns, now, "the node's clock")
        return {} if self._no_age else {"age since stamp": (now - stamp_ns) * 1e-9}

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
        if self._input is not None:
            more = {
                "topic": self._input.topic_name,
                "reliability": self._input.reliability,
            }
            missed, lost = missed + self._input.missed, lost + self._input.lost
        more["missed: not taken in time"] = str(max(missed - lost, 0))
        more["missed: lost on the way"] = str(lost)
        more |= self._scale_said
        if self._no_age:
            more["age since stamp"] = f"not known ({self._no_age})"
        for record in self._records():
            more |= record.values()
        name = f"{self._node.get_fully_qualified_name().lstrip('/')}: {self.name or 'image'}"
        silence = [self._input.silence] if self._input is not None else []
        warnings = [text for text in (*silence, *self._warnings()) if text]
        return camera_status(name, self._statistics, more, warnings)

    def _records(self) -> list[InputRecord]:
        """Those of all inputs."""
        records = [self._record, self._info.record if self._info is not None else None]
        records.append(self._poses.record if self._poses is not None else None)
        if self._anchors is not None:
            records += self._anchors.records.values()
        return [record for record in records if record is not None]

    def _warnings(self) -> list[str]:
        """What is not as it should be with this camera, for the log and /diagnostics."""
        found = self._info.warnings(self._needs_calibration()) if self._info is not None else []
        if self._input is not None:
            found.append(self._order.warning(self._input.publisher_names))
        # What camera_info lacks is said above, in more words.
        found += [one.warning() for one in self._records() if one.name != "camera_info"]
        found += [self._outputs.warning, *self._far_warning()]
        return [text for text in found if text]

    def _needs_calibration(self) -> str:
        """What is waiting for a camera_info while images come."""
        if not self._record.connected:
            return ""
        return self._outputs.needs_calibration

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

    def _warn(self, text: str) -> None:
        """Log a warning, and again after a while as long as it holds; numbers in it may change."""
        subject = "".join(c for c in text if not c.isdigit())
        self._say_at_times(subject, "warning", self._prefix + text, _REPEAT_WARNING)

    def _say_at_times(
        self, subject: str, level: str, sentence: str, period: float = _REPEAT
    ) -> None:
        """Log a sentence at most every few seconds per subject."""
        now = time.monotonic()
        if now - self._said.get(subject, -period) >= period:
            self._said[subject] = now
            say(self._log, level, sentence)
