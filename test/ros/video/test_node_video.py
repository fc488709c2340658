# SPDX-License-Identifier: Apache-2.0
"""Video over DDS: the messages' own types, the simulated camera, the node, and its receiver."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

from helpers.places import ROOT
from helpers.ros_processes import Domain, ros_domain
from helpers.video_types import video_types
from helpers.videos import Encoded, encode, header_of, packets, pictures, stamp_of
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image

from dpt_ros.engine.frame import Frame
from dpt_ros.engine.loading import load_networks
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.camera_topics import CameraTopics
from dpt_ros.ros.dpt_node import DptNode
from dpt_ros.ros.messages import types as message_types
from dpt_ros.ros.messages.cdr import VIDEO_READERS, VideoPacket
from dpt_ros.ros.messages.error import MessageError
from dpt_ros.ros.messages.types import FFMPEG, FOXGLOVE, VIDEOS, video_classes
from dpt_ros.ros.video import receiver as receiving
from dpt_ros.ros.video.decoder import WAITING, Picture, VideoDecoder, video_problem
from dpt_ros.ros.video.receiver import QUEUE, VideoReceiver
from dpt_ros.ros.video.sender import video_message

KINDS = (FFMPEG, FOXGLOVE)


@pytest.fixture(scope="module")
def path() -> str:
    """For PYTHONPATH: the project, and the types of the messages."""
    return os.pathsep.join(filter(None, [str(ROOT), video_types()]))


@pytest.fixture(scope="module")
def classes(path: str) -> dict[str, Any]:
    found = video_classes()
    assert set(found) == set(KINDS)
    return found


@pytest.fixture(scope="module")
def encoded() -> list[Encoded]:
    return encode(pictures(30), "h264", 10)


def message(classes: dict[str, Any], kind: str, one: Encoded) -> Any:
    return video_message(one, header_of(one.number), (160, 120), classes[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_messages_are_read_as_rclpy_writes_them(classes, encoded, kind: str) -> None:
    msg = message(classes, kind, encoded[3])
    packet = VIDEO_READERS[kind](bytes(serialize_message(msg)))
    assert packet.header == header_of(3)
    assert packet.codec == "h264"
    assert packet.data.tobytes() == encoded[3].data
    if kind == FFMPEG:
        assert (packet.number, packet.keyframe, packet.size) == (3, False, (160, 120))
        msg.flags, msg.pts, msg.encoding = 3, 2**40, "hevc;a;b;c"
        packet = VIDEO_READERS[kind](bytes(serialize_message(msg)))
        assert (packet.number, packet.keyframe, packet.codec) == (2**40, True, "hevc;a;b;c")
    with pytest.raises(MessageError, match=kind.rpartition("/")[2]):
        VIDEO_READERS[kind](bytes(serialize_message(msg))[:60])


class Camera:
    """One camera of a node in this process."""

    def __init__(self, domain: Domain, **given: Any) -> None:
        networks = load_networks(
            Settings(depth_weights="random", label_network="none", device="cpu")
        )
        settings = Settings(image_transport="video", **given)
        self.domain = domain
        self.node = LifecycleNode("dpt", context=domain.node.context)
        self.topics = CameraTopics(self.node, "", networks, lambda: settings)
        self.node.trigger_configure()
        self.node.trigger_activate()
        self.frames: list[Frame] = []
        domain.listen(Image, "depth/image")
        domain.spin_until(lambda: self.topics._subscribed("depth/image"))
        self.topics.open(lambda frame, _: self.frames.append(frame))
        domain.node.executor.add_node(self.node)
        self.node.create_timer(0.1, self.topics.review)

    def counts(self) -> dict[str, str]:
        return {pair.key: pair.value for pair in self.topics.status().values}


@contextmanager
def video_camera(domain: Domain, **given: Any) -> Iterator[Camera]:
    camera = Camera(domain, **given)
    yield camera
    domain.node.executor.remove_node(camera.node)
    camera.topics.destroy()
    camera.node.destroy_node()


@pytest.mark.parametrize("kind", KINDS)
def test_the_node_decodes_what_is_published_on_either_topic(classes, encoded, kind: str) -> None:
    truth = pictures(30)
    with ros_domain() as domain, video_camera(domain) as camera:
        publisher = domain.publisher(classes[kind], f"image{VIDEOS[kind]}")
        for k, one in enumerate(encoded):
            publisher.publish(message(classes, kind, one))
            domain.spin_until(lambda k=k: len(camera.frames) == k + 1, 10)
        assert [frame.stamp_ns for frame in camera.frames] == [stamp_of(k) for k in range(30)]
        for frame, expected in zip(camera.frames, truth, strict=True):
            assert (frame.encoding, frame.frame_id) == ("rgb8", "eye")
            assert frame.context.size == (160, 120)
            assert np.abs(frame.pixels.astype(int) - expected).mean() < 6
        counts = camera.counts()
        assert counts["frames received"] == counts["encoding rgb8"] == "30"
        assert counts["topic"] == f"/image{VIDEOS[kind]}"


def test_lost_packets_and_a_late_start_are_counted_and_end_with_a_keyframe(
    classes, encoded, capfd: pytest.CaptureFixture[str]
) -> None:
    with ros_domain() as domain, video_camera(domain) as camera:
        publisher = domain.publisher(classes[FFMPEG], "image/ffmpeg")
        for one in encoded[3:]:
            if one.number == 15:
                continue
            msg = message(classes, FFMPEG, one)
            if one.number == 24:
                msg.data = bytes(50)
            publisher.publish(msg)
            domain.spin_for(0.05)
        domain.spin_until(lambda: len(camera.frames) == 9, 10)
        assert [frame.stamp_ns for frame in camera.frames] == [
            stamp_of(k) for k in (*range(10, 15), *range(20, 24))
        ]
        counts = camera.counts()
        assert counts["frames received"] == "26"
        assert counts[f"dropped: {WAITING}"] == str(7 + 4 + 5)
        assert counts["error: undecodable"] == "1"
        assert counts["image: gaps: packets missing"] == "1"
        assert counts["image"] == f"not used: {WAITING}"
        assert "and is no picture of its codec" in capfd.readouterr().err


def test_packets_that_nobody_needs_are_not_decoded_and_cost_a_group_of_pictures(
    classes, encoded
) -> None:
    with ros_domain() as domain, video_camera(domain) as camera:
        publisher = domain.publisher(classes[FOXGLOVE], "image/foxglove")
        wanted = camera.topics._subscribed
        for one in encoded[:25]:
            if one.number == 5:
                camera.topics._subscribed = lambda topic: False
            if one.number == 8:
                camera.topics._subscribed = wanted
            publisher.publish(message(classes, FOXGLOVE, one))
            domain.spin_for(0.05)
        domain.spin_until(lambda: len(camera.frames) == 20, 10)
        shown = [frame.stamp_ns for frame in camera.frames]
        assert shown == [stamp_of(k) for k in (*range(5), *range(10, 25))]
        counts = camera.counts()
        assert counts["dropped: nobody subscribes"] == "3"
        assert counts[f"dropped: {WAITING}"] == "2"


def test_the_node_runs_on_the_simulated_cameras_video(path: str) -> None:
    with ros_domain() as domain:
        domain.env["PYTHONPATH"] = path
        dpt = domain.start_dpt(image_transport="video", diagnostics_period=0.2)
        words = ("width:=64", "height:=48", "rate:=10.0")
        camera = domain.start(
            *("-m", "dpt_ros.ros.camera_sim", "--ros-args"),
            *(word for one in words for word in ("-p", one)),
        )
        depths = domain.listen(Image, "depth/image")
        domain.spin_until(lambda: len(depths) > 10)
        stamps = [(m.header.stamp.sec, m.header.stamp.nanosec) for m in depths]
        assert stamps == sorted(set(stamps))
        assert depths[0].header.frame_id == "camera_optical_frame"
        assert domain.diagnostics("dpt: image")["topic"] == "/image/ffmpeg"
        for process in (dpt, camera):
            assert process.end() == (0, pytest.approx(1.0, abs=5.0))
            assert "Traceback" not in process.output


def test_without_types_of_messages_the_node_stays_unconfigured_and_says_why(
    classes, monkeypatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert video_problem() == ""
    monkeypatch.setattr(message_types, "import_module", _not_there)
    with ros_domain() as domain:
        given = {"image_transport": "video", "autostart": False}
        overrides = [Parameter(name, value=value) for name, value in given.items()]
        node = DptNode(context=domain.node.context, parameter_overrides=overrides)
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
        node.destroy_node()
    said = capfd.readouterr().err
    assert "neither ffmpeg_image_transport_msgs nor foxglove_msgs is installed" in said
    assert "apt install" in said
    monkeypatch.setitem(sys.modules, "av", None)
    assert "Video needs PyAV" in video_problem()


def _not_there(name: str) -> None:
    raise ImportError(name)


class Received:
    """A receiver, and what became of its packets."""

    def __init__(self, domain: Domain) -> None:
        self.drops: Counter[str] = Counter()
        self.errors: list[Exception] = []
        self.pictures: list[Picture] = []
        self.decoder = VideoDecoder([].append)
        self.receiver = VideoReceiver(
            domain.node,
            self.decoder,
            self.pictures.append,
            lambda reason: self.drops.update([reason]),
            self.errors.append,
        )

    @property
    def ended(self) -> int:
        return self.drops.total() + len(self.errors) + len(self.pictures)


def test_only_the_newest_picture_is_handed_over_and_the_stamps_are_right(encoded) -> None:
    with ros_domain() as domain:
        found = Received(domain)
        for k, packet in enumerate(packets(encoded)):
            found.receiver.take(packet, k, False)  # nothing spins, so nothing is handed over
        domain.spin_until(lambda: found.ended == 30, 10)
        assert [picture.received_ns for picture in found.pictures] == [29]
        assert found.pictures[0].packet.header == header_of(29)
        assert found.drops == {"replaced by a newer frame": 29}
        found.receiver.close()


def test_a_decoder_that_is_too_slow_loses_packets_and_begins_anew_with_a_keyframe(
    encoded, monkeypatch
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(
        receiving.VideoDecoder, "decode", _slowed(receiving.VideoDecoder.decode, goes_on)
    )
    many = packets(encode(pictures(QUEUE + 20, 64, 48), "h264", 10))
    with ros_domain() as domain:
        found = Received(domain)
        for k, packet in enumerate(many):
            found.receiver.take(packet, k, False)
            time.sleep(0.1 if k == 0 else 0.0)  # the first one is being decoded
        assert len(found.receiver._waiting) <= QUEUE
        goes_on.set()
        domain.spin_until(lambda: found.ended == len(many), 10)
        assert found.drops["the decoder is too slow"] == QUEUE
        # The first packet that is left is number QUEUE + 1 = 65; 70 is a keyframe.
        assert found.drops[WAITING] == 5
        assert found.pictures[-1].received_ns == len(many) - 1
        found.receiver.close()


def _slowed(decode: Any, goes_on: threading.Event) -> Any:
    def slow(self: VideoDecoder, *arguments: Any) -> Any:
        assert goes_on.wait(20)
        return decode(self, *arguments)

    return slow


def test_at_its_end_a_receiver_accounts_for_every_packet(encoded) -> None:
    late = packets(encode(pictures(12), "h264", 10, b_frames=3))
    with ros_domain() as domain:
        found = Received(domain)
        for k, packet in enumerate(late):
            found.receiver.take(packet, k, False)
        found.receiver.close()
        assert not found.receiver._thread.is_alive()
        assert found.ended == len(late)
        assert found.drops["closed"] >= 1


def test_packets_of_any_size_wait_in_bounded_memory(encoded, monkeypatch) -> None:
    monkeypatch.setattr(receiving, "_MOST_BYTES", 10_000)
    goes_on = threading.Event()
    monkeypatch.setattr(
        receiving.VideoDecoder, "decode", _slowed(receiving.VideoDecoder.decode, goes_on)
    )
    with ros_domain() as domain:
        found = Received(domain)
        large = VideoPacket(header_of(0), "h264", np.zeros(4000, np.uint8))
        for k in range(20):
            found.receiver.take(large, k, False)
        assert sum(one.data.size for one, _, _ in found.receiver._waiting) <= 10_000
        goes_on.set()
        domain.spin_until(lambda: found.ended == 20, 10)
        assert isinstance(found.errors[0], MessageError)
        found.receiver.close()
