# SPDX-License-Identifier: Apache-2.0
"""The topics of one camera: its image and camera_info in, everything predicted out."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diagnostic_msgs.msg import DiagnosticStatus
from nav_msgs.msg import Odometry
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from dpt_ros.engine.faults import DeviceLostError
from dpt_ros.engine.frame import Frame, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.anchor_projector import ANCHOR_TYPES, AnchorProjector
from dpt_ros.ros.camera.calibration import Calibration, CalibrationSubscription
from dpt_ros.ros.camera.frame_builder import FrameBuilder
from dpt_ros.ros.camera.frame_order import FrameOrder
from dpt_ros.ros.camera.image_subscription import ImageInput
from dpt_ros.ros.camera.inputs import InputRecord, TopicInput
from dpt_ros.ros.camera.poses import OdometryPoses, TfPoses
from dpt_ros.ros.camera.publishers import create_publishers, far_warning, starved_warning
from dpt_ros.ros.camera.tf import TfTree
from dpt_ros.ros.diagnostics import Statistics, camera_status
from dpt_ros.ros.messages.cdr import VIDEO_READERS
from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.messages.prediction import LABEL_INFO, Arrival, PredictionMessages
from dpt_ros.ros.messages.types import VIDEOS, video_classes
from dpt_ros.ros.plausibility import stamps_apart
from dpt_ros.ros.video.decoder import WAITING, Picture, VideoDecoder
from dpt_ros.ros.video.receiver import QUEUE, VideoReceiver

_UNWANTED = "nobody subscribes"
_REPEAT = 5.0  # seconds
_REPEAT_WARNING = 30.0
_CALIBRATED = ("depth/points", "depth/camera_info", "depth/fused")  # outputs that need camera_info
# Room for all odometry that arrives while the node is busy with an image.
_ODOMETRY_QOS = QoSProfile(depth=100, reliability=qos_profile_sensor_data.reliability)


class CameraTopics:
    """Subscriptions, publishers and counts of one camera.

    Publishers live from construction to ``destroy``, subscriptions from ``open`` to ``close``.
    ``name`` is the prefix of the topics, "" for none; ``tree`` the node's tf.
    """

    def __init__(
        self,
        node: LifecycleNode,
        name: str,
        networks: Networks,
        settings: Callable[[], Settings],
        tree: TfTree | None = None,
    ) -> None:
        self.name = name
        self._tree = tree or TfTree(node)
        self._node = node
        self._networks = networks
        self._settings = settings
        self._log = node.get_logger()
        self._prefix = f"{name}/" if name else ""
        self._statistics = Statistics()
        self._logged: dict[str, float] = {}  # by subject, when; time.monotonic()
        self._missed = self._lost = 0  # by the subscriptions before this one
        self._input: ImageInput | None = None
        self._video: VideoReceiver | None = None
        self._missed_before = 0  # packets of the video
        self._calibration: CalibrationSubscription | None = None
        self._inputs: list[TopicInput] = []  # these and all others
        self._builder: FrameBuilder | None = None
        self._submit: Callable[[Frame, OutputRequest], None] | None = None
        self._record = InputRecord("image")
        self._order = FrameOrder("")
        self._no_age = ""
        self._described: dict[str, str] = {}  # of the last prediction
        self._messages = PredictionMessages(networks, settings)
        if self._messages.depth_note:
            self._log.info(self._of_camera(self._messages.depth_note))
        self._publishers = create_publishers(node, self._prefix, self._messages.topics)
        self._sizes: dict[str, int] = {}  # of the last message of a topic, bytes
        self._starved = ""

    def open(self, submit: Callable[[Frame, OutputRequest], None]) -> None:
        """Publish the class map and subscribe; frames go to ``submit``."""
        self._submit = submit
        if LABEL_INFO in self._publishers:
            if self._messages.label_note:
                self._log.warning(self._of_camera(self._messages.label_note))
            self._publishers[LABEL_INFO].publish(self._messages.label_info())
        settings = self._settings()
        self._builder = builder = FrameBuilder(
            self.name,
            self._settings,
            settings.image_transport == "compressed",
            Calibration(
                lambda: self._input.topic_name if self._input else "",
                self._warn,
                lambda text: self._log.info(self._prefix + text),
                settings.rectify == "auto",
                settings.rectify_fov,
            ),
            self._open_poses(settings),
            self._open_anchors(settings),
            self._warn_once,
            partial(self._statistics.count, "encoding"),
            live=True,
        )
        self._calibration = CalibrationSubscription(
            self._node, self._prefix + "camera_info", builder.calibration
        )
        self._input = self._open_images(settings)
        self._inputs[:0] = [self._input, self._calibration]
        self._order = FrameOrder(self._input.topic_name)

    def _open_images(self, settings: Settings) -> ImageInput:
        topic = self._node.resolve_topic_name(self._prefix + "image")
        reliability = settings.image_reliability
        if settings.image_transport == "raw":
            return ImageInput(self._node, topic, Image, self._take_image, reliability)
        if settings.image_transport == "compressed":
            topic += "/compressed"
            return ImageInput(self._node, topic, CompressedImage, self._take_image, reliability)
        hardware = settings.video_decoder == "hardware"
        decoder = VideoDecoder(self._warn, self._record.count, hardware)
        self._missed_before = 0
        self._video = VideoReceiver(self._node, decoder, self._take_image, self.drop, self.fail)
        topics = {topic + VIDEOS[name]: kind for name, kind in video_classes().items()}
        first, *_ = topics.items()
        return ImageInput(self._node, *first, self._take_packet, reliability, QUEUE, topics)

    def _open_poses(self, settings: Settings) -> OdometryPoses | TfPoses | None:
        """The source of poses that ``pose_source`` names."""
        warn = partial(self._warn_of, "pose")
        if settings.pose_source == "odom":
            odometry = OdometryPoses(settings.camera_in_base, warn)
            self._subscribe(Odometry, "odom", odometry.take, _ODOMETRY_QOS)
            return odometry
        if settings.pose_source == "tf":
            return TfPoses(self._tree, settings.odom_frame, warn)
        return None

    def _open_anchors(self, settings: Settings) -> AnchorProjector | None:
        """What scale.source needs of anchors."""
        if not self._networks.depth_name or settings.scale_source not in ("auto", "anchors"):
            return None
        warn = partial(self._warn_of, "anchors")
        anchors = AnchorProjector(settings, self._tree.sensor_pose, warn)
        for topic, kind in ANCHOR_TYPES.items():
            take = partial(anchors.take, topic)
            self._subscribe(kind, topic, take, qos_profile_sensor_data)
        topic = f"{self._prefix}anchors/camera_info"
        self._inputs.append(CalibrationSubscription(self._node, topic, anchors.calibration))
        return anchors

    def _subscribe(
        self, kind: type, topic: str, take: Callable[[Any], None], profile: QoSProfile
    ) -> None:
        subscription = self._node.create_subscription(
            kind,
            self._prefix + topic,
            take,
            profile,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._inputs.append(TopicInput(self._node, subscription))

    @property
    def subscribed(self) -> list[str]:
        """The full names of the topics that it subscribes to."""
        return [one.topic_name for one in self._inputs]

    @property
    def published(self) -> list[str]:
        """The full names of the topics that it publishes."""
        return [str(publisher.topic_name) for publisher in self._publishers.values()]

    def close(self) -> None:
        """Unsubscribe; publishers stay."""
        if self._input is not None:
            self._missed += self._input.missed
            self._lost += self._input.lost
        for one in self._inputs:
            one.close()
        self._inputs.clear()
        if self._video is not None:
            self._video.close()
        self._input = self._calibration = self._video = None
        self._builder = self._submit = None

    def destroy(self) -> None:
        """Remove all topics."""
        self.close()
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()

    def review(self) -> None:
        """Check that messages arrive and what QoS is offered; call it twice a second."""
        for one in self._inputs:
            one.review()
        self._starved = starved_warning(self._node, self._publishers, self._sizes)
        for warning in self._warnings():
            self._warn(warning)

    def _take_image(self, image: bytes | Picture) -> None:
        """Build the frame of an image, or of a picture of a video, and hand it in."""
        received_ns = time.monotonic_ns()
        if isinstance(image, Picture):
            received_ns = image.received_ns  # and it was counted when its packet came
        else:
            self._count_received()
        request = self._wanted()
        if request is None or self._builder is None or self._submit is None:
            return
        try:
            frame = self._builder.build(image, received_ns)
        except MessageError as error:
            self.fail(error)
            self._record.unused(error.reason)
            return
        self._record.used()
        sender = self._input.sender if self._input is not None else b""
        self._order.add(frame.stamp_ns, frame.frame_id, frame.context.size, sender)
        self._submit(frame, request)

    def _take_packet(self, serialised: bytes) -> None:
        """Give a packet of the video to its decoder, if a picture may be needed."""
        received_ns = time.monotonic_ns()
        if self._video is None or self._input is None:
            return
        self._count_received()
        if not self._wanted():
            self._video.pause()
            return
        missed, self._missed_before = self._missed_before, self._input.missed
        try:
            packet = VIDEO_READERS[self._input.message_type](serialised)
        except MessageError as error:
            self.fail(error)
            self._video.pause()
            return
        self._video.take(packet, received_ns, self._input.missed > missed)

    def _count_received(self) -> None:
        self._statistics.received()
        self._record.received()

    def _wanted(self) -> OutputRequest | None:
        """What is to be computed of an image that is there; None for nothing."""
        request = self._request()
        if request is None or request.any:
            return request
        self._statistics.count("dropped:", _UNWANTED)
        self._record.idle("no output is subscribed to")
        return None

    def _request(self) -> OutputRequest | None:
        """What somebody subscribes to; None while it takes no images."""
        if self._builder is None:
            return None
        calibrated = self._builder.calibration.camera is not None
        return self._messages.request(self._subscribed, calibrated)

    def _subscribed(self, topic: str) -> bool:
        publisher = self._publishers.get(topic)
        return publisher is not None and bool(publisher.get_subscription_count())

    def publish(self, prediction: Prediction) -> None:
        """Publish a prediction, each output with the header of its frame."""
        arrival: Arrival = prediction.frame.context
        start = time.monotonic_ns()
        for topic, message in self._messages.messages(prediction, self._subscribed):
            if not isinstance(message, CameraInfo):
                self._sizes[topic] = message._data.nbytes
            self._publishers[topic].publish(message)
        end = time.monotonic_ns()
        self._described = dict(prediction.scale)
        if prediction.uncertain is not None:
            self._described["points: uncertain pixels"] = f"{prediction.uncertain:.0f}"
        builder = self._builder
        if arrival.anchors and builder is not None and builder.anchors is not None:
            builder.anchors.report(arrival.anchors, prediction.scale)
        self._order.published(prediction.reset if self._settings().smoothing_strength else "")
        if prediction.reset:
            self._statistics.count("reset:", prediction.reset)
        latency = (end - arrival.received_ns) * 1e-9
        self._statistics.published(
            {
                "latency from receipt": latency,
                **self._age(prediction.frame.stamp_ns),
                "all but the network": latency - prediction.seconds.get("network", 0.0),
                **{f"step {name}": spent for name, spent in prediction.seconds.items()},
                "step publish": (end - start) * 1e-9,
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
        self._statistics.count("dropped:", reason)
        if reason == WAITING:
            self._record.unused(reason)

    def fail(self, error: Exception) -> None:
        """Count and report an image that could not be read or a frame that failed."""
        if isinstance(error, MessageError):
            reason, text = error.reason, str(error)
        elif isinstance(error, ValueError | DeviceLostError | torch.OutOfMemoryError):
            reason, text = type(error).__name__, f"a frame failed: {error}"
        else:
            reason = type(error).__name__
            text = f"a frame failed: {''.join(traceback.format_exception(error))}"
        self._statistics.count("error:", reason)
        # Once a signal has ended the ROS context every call of rclpy fails; that is no fault.
        if self._node.context.ok() and self._is_due(reason, _REPEAT):
            self._log.error(f"{self._prefix}image: {text}")

    def status(self) -> DiagnosticStatus:
        """The status of this camera on /diagnostics."""
        more: dict[str, str] = {}
        missed, lost, silence = self._missed, self._lost, ""
        if self._input is not None:
            more = {"topic": self._input.topic_name, "reliability": self._input.reliability}
            missed, lost = missed + self._input.missed, lost + self._input.lost
            silence = self._input.silence
        more["missed: not taken in time"] = str(max(missed - lost, 0))
        more["missed: lost on the way"] = str(lost)
        more |= self._described
        if self._no_age:
            more["age since stamp"] = f"not known ({self._no_age})"
        for record in self._records():
            more |= record.values()
        name = f"{self._node.get_fully_qualified_name().lstrip('/')}: {self.name or 'image'}"
        warnings = [text for text in (silence, *self._warnings()) if text]
        return camera_status(name, self._statistics, more, warnings)

    def _records(self) -> list[InputRecord]:
        """Those of all inputs."""
        records, builder = [self._record], self._builder
        if builder is not None:
            records.append(builder.calibration.record)
            records += [builder.poses.record] if builder.poses is not None else []
            records += builder.anchors.records.values() if builder.anchors is not None else []
        return records

    def _warnings(self) -> list[str]:
        """What is wrong with this camera, for the log and /diagnostics."""
        found: list[str] = []
        if self._builder is not None and self._calibration is not None:
            needing = filter(self._subscribed, _CALIBRATED if self._record.connected else ())
            needed_by = " and ".join(self._prefix + topic for topic in needing)
            found = [*self._builder.calibration.warnings, self._calibration.missing(needed_by)]
        if self._input is not None:
            found.append(self._order.warning(self._input.publisher_names))
        # The warnings above have more detail than the record of camera_info.
        found += [one.warning() for one in self._records() if one.name != "camera_info"]
        found += [self._starved, far_warning(self._networks, self._settings())]
        found.append(self._fused_warning())
        return [text for text in found if text]

    def _fused_warning(self) -> str:
        """Fused depth without a depth camera is the network's."""
        request = self._request() if self._record.connected else None
        if self._builder is None or request is None or not request.fused:
            return ""
        anchors = self._builder.anchors
        if anchors is not None and not anchors.records["anchors/depth"].missing:
            return ""
        why = (
            f"nothing arrives on {self._prefix}anchors/depth. Remap it to the depth camera's image"
            if anchors is not None
            else f"scale.source is {self._settings().scale_source}. Set it to auto or anchors"
        )
        return f"Fused depth is the network's everywhere, because {why}."

    def _of_camera(self, text: str) -> str:
        return f"{self.name}: {text}" if self.name else text

    def _warn(self, text: str) -> None:
        """Log a warning, and again after a while as long as it holds; numbers in it may change."""
        self._warn_of("".join(c for c in text if not c.isdigit()), text, _REPEAT_WARNING)

    def _warn_once(self, text: str) -> None:
        """Log a warning about the images of this camera."""
        self._warn_of(text, f"image: {text}", float("inf"))

    def _warn_of(self, subject: str, text: str, period: float = _REPEAT) -> None:
        """Log a warning at most every few seconds per subject."""
        if self._is_due(subject, period):
            self._log.warning(self._prefix + text)

    def _is_due(self, subject: str, period: float) -> bool:
        """Whether a subject was not logged within so many seconds."""
        now = time.monotonic()
        due = now - self._logged.get(subject, -float("inf")) >= period
        if due:
            self._logged[subject] = now
        return due
