# SPDX-License-Identifier: Apache-2.0
"""An image subscription that finds the right reliability and reports when nothing arrives."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.topic_endpoint_info import TopicEndpointInfo

from dpt_ros.ros.camera.inputs import TopicInput
from dpt_ros.ros.compatibility import UnsupportedEventTypeError, subscribe, subscription_events
from dpt_ros.ros.messages.types import TRANSPORTS, type_name

SILENCE = 2.0
_LONGEST_SILENCE = 60.0  # seconds; a slower camera is warned of all the same
REPEAT = 10.0
_HOW_TO_ENLARGE = (
    "start it with FASTDDS_DEFAULT_PROFILES_FILE and FASTRTPS_DEFAULT_PROFILES_FILE naming"
    " share/dpt_ros/config/fastdds.xml, or have it offer reliable"
)
_MOST = 8  # names of topics in one message
_BEHIND_A_NETWORK = (
    "if the publisher is on another machine, behind a link that loses packets, start it with"
    " share/dpt_ros/config/fastdds_network.xml"
)


class ImageInput(TopicInput):
    """Subscription to an image topic: keep last, reliable when every publisher offers that.

    Fast DDS by default has 0.5 MB of shared memory per publisher, and silently drops a larger
    best-effort image; a reliable one arrives in pieces. So reliable is requested unless a
    publisher does not offer it. Messages arrive serialised, for ``cdr`` to read in place: a
    deserialised one costs one more copy.

    Attributes:
        reliability: "reliable" or "best_effort", as subscribed now.
        silence: a warning while no image arrives or the topic has no publisher; else "".
        sender: identifies the publisher of the last message; empty where that is not known.
        publisher_names: of the nodes that publish the topic.
        missed: messages that were published and not taken, by their sequence numbers.
        lost: those of them that the middleware reports as lost in transport.

    Args:
        topic: resolved name, before remapping.
        on_message: takes each serialised message.
        reliability: "auto", "reliable" or "best_effort".
        depth: messages that the middleware keeps; more than one for packets of a video.
        others: types of more topics, by name; one is subscribed to while only that has publishers.
    """

    def __init__(
        self,
        node: Node,
        topic: str,
        msg_type: type,
        on_message: Callable[[bytes], None],
        reliability: str = "auto",
        depth: int = 1,
        others: Mapping[str, type] | None = None,
    ) -> None:
        self._node = node
        self._topic, self._msg_type = topic, msg_type
        self._topics = {topic: msg_type, **(others or {})}
        self._on_message = on_message
        self._depth = depth
        self._log = node.get_logger()
        self._given_reliability = reliability
        self._forced = self._forced_reliability()
        self._silent_since = time.monotonic()
        self._without_publisher_since = self._silent_since
        self._no_publisher = ""
        self._periods: deque[float] = deque(maxlen=5)  # between messages
        self._last_message = -math.inf
        self._last_number: dict[bytes, int] = {}
        self._publishers = 0
        self._logged_reliability = ""
        self.reliability = self._forced or "reliable"
        self.silence = ""
        self.sender = b""
        self.publisher_names: list[str] = []
        self.missed = 0
        self.lost = 0
        super().__init__(node, self._subscribe())

    def review(self) -> None:
        """Choose the reliability by the publishers; warn when nothing arrives."""
        self._choose_topic()
        publishers = self._node.get_publishers_info_by_topic(self.topic_name)
        self.publisher_names = sorted(
            f"{one.node_namespace.rstrip('/')}/{one.node_name}" for one in publishers
        )
        if len(publishers) != self._publishers:
            self._publishers = len(publishers)
            self._last_number.pop(b"", None)  # its publisher is not known
        wanted = self._forced or _reliability_for(publishers)
        if wanted != self.reliability:
            self.close()
            self.reliability = wanted
            self._subscription = self._subscribe()
        if publishers and self._logged_reliability != wanted:
            self._logged_reliability = wanted
            every = wanted == "reliable"
            why = "every publisher offers it" if every else "a publisher offers best effort only"
            why = "it is set so" if self._forced else why
            self._log.info(f"{self.topic_name}: subscribed as {_spoken(wanted)}, because {why}.")
        self._watch(publishers)

    @property
    def message_type(self) -> str:
        """The type of the messages, such as "sensor_msgs/msg/Image"."""
        return type_name(self._msg_type)

    def _choose_topic(self) -> None:
        """Change to another of the topics if only that one has a publisher."""
        if len(self._topics) < 2 or self._node.count_publishers(self.topic_name):
            return
        for topic, kind in self._topics.items():
            if self._node.count_publishers(self._node.resolve_topic_name(topic)):
                self.close()
                self._topic, self._msg_type = topic, kind
                self._forced = self._forced_reliability()
                self._subscription = self._subscribe()
                return

    def _subscribe(self) -> Any:
        self._losses_logged = self._warned_at = -math.inf
        profile = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=self._depth,
            reliability=ReliabilityPolicy[self.reliability.upper()],
        )
        # Without reliability: its parameter is declared below with the value "auto".
        overriding = QoSOverridingOptions((QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH))
        events = subscription_events(
            incompatible_qos=lambda _: self.review(),
            matched=lambda _: self.review(),
            message_lost=self._take_loss,
        )
        where = (self._node, self._msg_type, self._topic, self._take, profile)
        options = {"qos_overriding_options": overriding, "raw": True}
        try:
            return subscribe(*where, **options, event_callbacks=events)
        except UnsupportedEventTypeError:  # of this middleware; review() polls anyway
            return subscribe(*where, **options)

    def _take(self, msg: bytes, message_info: Mapping[str, Any]) -> None:
        self._silent_since = now = time.monotonic()
        if now - self._last_message < _LONGEST_SILENCE:
            self._periods.append(now - self._last_message)
        self._last_message = now
        self.silence = ""
        number = message_info.get("publication_sequence_number")
        publisher = (message_info.get("publisher_gid") or {}).get("data", b"")
        self.sender = bytes(publisher)
        # Jazzy does not give the publisher, so the numbers of several publishers are mixed there.
        # Humble gives neither.
        if number and (publisher or self._publishers < 2):
            gap = number - self._last_number.get(publisher, number - 1) - 1
            if gap == -1:
                return  # the same message: a publisher that was lost and found again repeats it
            self._last_number[publisher] = number
            if gap > 0:
                self.missed += gap
                self._log_losses()
        self._on_message(msg)

    def _take_loss(self, event: Any) -> None:
        self.lost += event.total_count_change
        self._log_losses()

    def _log_losses(self) -> None:
        now = time.monotonic()
        if now - self._losses_logged < REPEAT:
            return
        self._losses_logged = now
        if not self.lost:
            self._log.info(
                f"{self.topic_name}: {_count(self.missed, 'image')} so far replaced by newer ones"
                " before the node could take them."
            )
            return
        memory = ""
        if self.reliability == "best_effort":
            memory = "with best effort, default Fast DDS has 0.5 MB of shared memory:"
            memory = f" {memory} {_HOW_TO_ENLARGE};"
        self._log.warning(
            f"{self.topic_name}: {_count(self.lost, 'image')} lost in transport so far, with"
            f" {_spoken(self.reliability)} QoS;{memory} {_BEHIND_A_NETWORK}."
        )

    def _forced_reliability(self) -> str:
        """What the user set by qos_overrides or image_reliability; "" for auto."""
        resolved = self._node.resolve_topic_name(self._topic)
        name = f"qos_overrides.{resolved}.subscription.reliability"
        if not self._node.has_parameter(name):
            self._node.declare_parameter(name, "auto")
        for asked in (self._node.get_parameter(name).value, self._given_reliability):
            if asked in ("reliable", "best_effort"):
                return str(asked)
        return ""

    def _watch(self, publishers: list[TopicEndpointInfo]) -> None:
        now = time.monotonic()
        if not publishers:
            self.silence = ""
            if now - self._without_publisher_since > SILENCE:
                self.silence = _no_publisher(self._node, self.topic_name, self.message_type)
                if self.silence != self._no_publisher:  # again when other topics exist
                    self._no_publisher = self.silence
                    self._log.warning(self.silence)
            # A new publisher has two seconds before its silence is a warning.
            self._silent_since = now
            return
        if self._no_publisher:
            self.silence = self._no_publisher = ""
        self._without_publisher_since = now
        if now - self._silent_since < self._patience():
            return
        self.silence = (
            f"No frames received on {self.topic_name} for {now - self._silent_since:.0f} s,"
            f" although it has {_count(len(publishers), 'publisher')}:"
            f" {self._likely_cause(publishers)}."
        )
        if now - self._warned_at > REPEAT:
            self._warned_at = now
            self._log.warning(self.silence)

    def _patience(self) -> float:
        """Seconds without a frame that are normal: a few of the camera's periods."""
        usual = 3.0 * median(self._periods) if self._periods else 0.0
        return min(max(SILENCE, usual), _LONGEST_SILENCE)

    def _likely_cause(self, publishers: list[TopicEndpointInfo]) -> str:
        expected = self.message_type
        types = {str(publisher.topic_type) for publisher in publishers}
        if expected not in types:
            return (
                f"its type is {', '.join(sorted(types))}, but {expected} is expected; set"
                " image_transport or the remapping of image"
            )
        if self.reliability == "reliable" and _reliability_for(publishers) == "best_effort":
            return (
                "a publisher offers best effort only, but reliable is requested; set"
                " image_reliability to auto or best_effort"
            )
        if self.reliability == "best_effort":
            return (
                "best-effort images larger than the publisher's shared memory (0.5 MB in default"
                f" Fast DDS) are dropped silently; {_HOW_TO_ENLARGE}"
            )
        return (
            "the publisher may be paused, or the network to it loses packets or passes discovery"
            f" only; {_BEHIND_A_NETWORK}"
        )


def _reliability_for(publishers: list[TopicEndpointInfo]) -> str:
    """Reliable when all publishers offer it (and while there are none), else best effort."""
    offers = [publisher.qos_profile.reliability for publisher in publishers]
    return "best_effort" if ReliabilityPolicy.BEST_EFFORT in offers else "reliable"


def _spoken(reliability: str) -> str:
    return reliability.replace("_", " ")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def image_topics(node: Node) -> list[tuple[str, str]]:
    """Names and types of the image topics that other nodes publish, sorted."""
    own = node.get_publisher_names_and_types_by_node(node.get_name(), node.get_namespace())
    ours = {name for name, _ in own}
    return sorted(
        (name, kind)
        for name, kinds in node.get_topic_names_and_types()
        for kind in kinds
        if kind in TRANSPORTS and name not in ours and node.count_publishers(name)
    )


def _no_publisher(node: Node, topic: str, kind: str) -> str:
    """The warning on an image topic that has none, of the type that is expected."""
    start = f"{topic} has no publisher; waiting."
    there = image_topics(node)
    if not there:
        return f"{start} No image topic exists: start the camera, or check ROS_DOMAIN_ID."
    names = ", ".join(f"{name} ({found.rpartition('/')[2]})" for name, found in there[:_MOST])
    more = f" and {len(there) - _MOST} more" if len(there) > _MOST else ""
    fits = [name for name, found in there if found == kind]
    if not fits:
        return (
            f"{start} Image topics that exist: {names}{more}; none has the type {kind}: set"
            " image_transport."
        )
    base = topic.rpartition("/")[2]
    like = next((name for name in fits if "image_rect" in name), fits[0])
    if (suffix := TRANSPORTS.get(kind)) and like.endswith(suffix):
        base, like = "image", like.removesuffix(suffix)
    return (
        f"{start} Image topics that exist: {names}{more}. Set the remapping, for instance"
        f" -r {base}:={like}."
    )
