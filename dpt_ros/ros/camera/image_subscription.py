# SPDX-License-Identifier: Apache-2.0
"""One image subscription that finds the right reliability and says so when nothing comes."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.topic_endpoint_info import TopicEndpointInfo

from dpt_ros.ros.camera.topics_there import nobody_publishes
from dpt_ros.ros.compatibility import UnsupportedEventTypeError, subscribe, subscription_events

REVIEW_PERIOD = 0.5
SILENCE = 2.0
_LONGEST_SILENCE = 60.0  # of a camera as slow as that, too, a warning is due
REPEAT = 10.0
_RELIABILITIES = {
    "reliable": ReliabilityPolicy.RELIABLE,
    "best_effort": ReliabilityPolicy.BEST_EFFORT,
}
_HOW_TO_ENLARGE = (
    "start it with FASTDDS_DEFAULT_PROFILES_FILE and FASTRTPS_DEFAULT_PROFILES_FILE naming"
    " share/dpt_ros/config/fastdds.xml, or have it offer reliable"
)
_BEHIND_A_NETWORK = (
    "if the publisher is on another machine, behind a link that loses packets, start it with"
    " share/dpt_ros/config/fastdds_network.xml"
)


def say(logger: RcutilsLogger, level: str, sentence: str) -> None:
    """Log a sentence as "info", "warning" or "error"."""
    # rclpy remembers the severity of every line that logs, so each has a line of its own.
    if level == "error":
        logger.error(sentence)
    elif level == "warning":
        logger.warning(sentence)
    else:
        logger.info(sentence)


@dataclass(frozen=True)
class ImageTopic:
    """What to subscribe to.

    Args:
        name: the topic, resolved, before remapping.
        msg_type: Image or CompressedImage.
        reliability: "auto", "reliable" or "best_effort".
        raw: take each message as the bytes it was serialised to, for ``cdr`` to read in place;
            else as a message, which costs one more copy.
    """

    name: str
    msg_type: type
    reliability: str
    raw: bool = True


class ImageInput:
    """Subscription to an image topic: keep last 1, reliable when every publisher offers that.

    Fast DDS by default has room for 0.5 MB in a publisher's shared memory, and drops a larger
    best-effort image without a word; a reliable one arrives in pieces. So reliable is asked for
    unless a publisher cannot give it. ``review`` looks at the publishers; call it every
    `REVIEW_PERIOD` seconds.

    Attributes:
        reliability: "reliable" or "best_effort", as subscribed now.
        silence: a message while nothing comes, or nobody publishes; else "".
        sender: tells the publisher of the last message from others; empty where nobody knows.
        publisher_names: of the nodes that publish the topic.
        missed: messages that were published and not taken, by their sequence numbers.
        lost: those of them that the middleware says were lost on the way.

    Args:
        node: subscribes there.
        topic: what to subscribe to.
        on_message: takes each message, or its bytes.
    """

    def __init__(
        self,
        node: Node,
        topic: ImageTopic,
        on_message: Callable[[Any], None],
    ) -> None:
        self._node = node
        self._topic = topic
        self._on_message = on_message
        self._log = node.get_logger()
        self._forced = self._forced_reliability()
        self._silent_since = time.monotonic()
        self._alone_since = self._silent_since
        self._said_alone = ""
        self._periods: deque[float] = deque(maxlen=5)  # between messages
        self._last_message = -math.inf
        self._last_number: dict[bytes, int] = {}
        self._publishers = 0
        self._told_reliability = ""
        self.reliability = self._forced or "reliable"
        self.silence = ""
        self.sender = b""
        self.publisher_names: list[str] = []
        self.missed = 0
        self.lost = 0
        self._subscription = self._subscribe()

    def close(self) -> None:
        """End the subscription."""
        self._node.destroy_subscription(self._subscription)

    @property
    def topic_name(self) -> str:
        """The full name of the topic, after remapping."""
        return str(self._subscription.topic_name)

    def review(self) -> None:
        """Look at the publishers: choose the reliability anew, warn when nothing comes."""
        publishers = self._node.get_publishers_info_by_topic(self.topic_name)
        self.publisher_names = sorted(
            f"{one.node_namespace.rstrip('/')}/{one.node_name}" for one in publishers
        )
        if len(publishers) != self._publishers:
            self._publishers = len(publishers)
            self._last_number.pop(b"", None)  # of whom, nobody can say
        wanted = self._forced or _reliability_for(publishers)
        if wanted != self.reliability:
            self._node.destroy_subscription(self._subscription)
            self.reliability = wanted
            self._subscription = self._subscribe()
        if publishers and self._told_reliability != wanted:
            self._told_reliability = wanted
            why = (
                "every publisher offers it"
                if wanted == "reliable"
                else "a publisher offers no more"
            )
            self._log.info(
                f"{self.topic_name}: subscribed as {_spoken(wanted)}, because"
                f" {'it was asked for' if self._forced else why}."
            )
        self._watch(publishers)

    def _subscribe(self) -> Any:
        self._told_at = self._warned_at = -math.inf
        profile = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=1, reliability=_RELIABILITIES[self.reliability]
        )
        # Reliability is left out: its parameter is declared below with the value "auto".
        overriding = QoSOverridingOptions((QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH))
        events = subscription_events(
            incompatible_qos=lambda _: self.review(),
            matched=lambda _: self.review(),
            message_lost=self._take_loss,
        )
        made = partial(
            subscribe,
            self._node,
            self._topic.msg_type,
            self._topic.name,
            self._take,
            profile,
            qos_overriding_options=overriding,
            raw=self._topic.raw,
        )
        try:
            return made(event_callbacks=events)
        except UnsupportedEventTypeError:  # a middleware without these; review() polls anyway
            return made()

    def _take(self, msg: Any, about: Mapping[str, Any]) -> None:
        self._silent_since = now = time.monotonic()
        if now - self._last_message < _LONGEST_SILENCE:
            self._periods.append(now - self._last_message)
        self._last_message = now
        self.silence = ""
        number = about.get("publication_sequence_number")
        publisher = (about.get("publisher_gid") or {}).get("data", b"")
        self.sender = bytes(publisher)
        # Jazzy does not say who published: the numbers of several cannot be told apart there.
        # Humble says nothing.
        if number and (publisher or self._publishers < 2):
            gap = number - self._last_number.get(publisher, number - 1) - 1
            self._last_number[publisher] = number
            if gap > 0:
                self.missed += gap
                self._tell_of_losses()
        self._on_message(msg)

    def _take_loss(self, event: Any) -> None:
        self.lost += event.total_count_change
        self._tell_of_losses()

    def _tell_of_losses(self) -> None:
        now = time.monotonic()
        if now - self._told_at < REPEAT:
            return
        self._told_at = now
        if not self.lost:
            self._log.info(
                f"{self.topic_name}: {_count(self.missed, 'image')} so far gave way to newer ones"
                " before they could be taken."
            )
            return
        cause = (
            f"; best effort on default Fast DDS has room for 0.5 MB only: {_HOW_TO_ENLARGE};"
            f" {_BEHIND_A_NETWORK}"
            if self.reliability == "best_effort"
            else f"; {_BEHIND_A_NETWORK}"
        )
        self._log.warning(
            f"{self.topic_name}: {_count(self.lost, 'image')} lost on the way so far, as"
            f" {_spoken(self.reliability)}{cause}."
        )

    def _forced_reliability(self) -> str:
        """What the user asks for by qos_overrides or image_reliability; "" to find out."""
        resolved = self._node.resolve_topic_name(self._topic.name)
        name = f"qos_overrides.{resolved}.subscription.reliability"
        if not self._node.has_parameter(name):
            self._node.declare_parameter(name, "auto")
        for asked in (self._node.get_parameter(name).value, self._topic.reliability):
            if asked in _RELIABILITIES:
                return str(asked)
        return ""

    def _watch(self, publishers: list[TopicEndpointInfo]) -> None:
        now = time.monotonic()
        if not publishers:
            self.silence = ""
            if now - self._alone_since > SILENCE:
                self._tell_of_nobody()
            # A publisher that comes has its two seconds before its silence is remarked upon.
            self._silent_since = now
            return
        if self._said_alone:
            self.silence = self._said_alone = ""
        self._alone_since = now
        if now - self._silent_since < self._patience():
            return
        self.silence = (
            f"{self.topic_name} has {_count(len(publishers), 'publisher')}, but no frame has come"
            f" for {now - self._silent_since:.0f} s: {self._likely_cause(publishers)}."
        )
        if now - self._warned_at > REPEAT:
            self._warned_at = now
            self._log.warning(self.silence)

    def _patience(self) -> float:
        """Seconds without a frame that are no reason to worry: a few of the camera's periods."""
        usual = 3.0 * median(self._periods) if self._periods else 0.0
        return min(max(SILENCE, usual), _LONGEST_SILENCE)

    def _tell_of_nobody(self) -> None:
        kind = f"sensor_msgs/msg/{self._topic.msg_type.__name__}"
        self.silence = nobody_publishes(self._node, self.topic_name, kind)
        if self.silence != self._said_alone:  # once, and again when other topics are there
            self._said_alone = self.silence
            self._log.warning(self.silence)

    def _likely_cause(self, publishers: list[TopicEndpointInfo]) -> str:
        expected = f"sensor_msgs/msg/{self._topic.msg_type.__name__}"
        types = {str(publisher.topic_type) for publisher in publishers}
        if expected not in types:
            return (
                f"it carries {', '.join(sorted(types))}, but {expected} is expected; set"
                " image_transport or the remapping of image"
            )
        if self.reliability == "reliable" and _reliability_for(publishers) == "best_effort":
            return (
                "a publisher offers best effort only, but reliable is asked for; set"
                " image_reliability to auto or best_effort"
            )
        if self.reliability == "best_effort":
            return (
                "best-effort images that are larger than the publisher's shared memory (0.5 MB on"
                f" default Fast DDS) are dropped without a word; {_HOW_TO_ENLARGE}"
            )
        return (
            "the publisher may be paused, or sits behind a network that loses packets"
            f" or lets only discovery pass; {_BEHIND_A_NETWORK}"
        )


def _reliability_for(publishers: list[TopicEndpointInfo]) -> str:
    """Reliable when all publishers offer it (and while there are none), else best effort."""
    offers = [publisher.qos_profile.reliability for publisher in publishers]
    return "best_effort" if ReliabilityPolicy.BEST_EFFORT in offers else "reliable"


def _spoken(reliability: str) -> str:
    return reliability.replace("_", " ")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
