# SPDX-License-Identifier: Apache-2.0
"""Images on their way: stock publishers, both reliabilities, and what is said of losses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from helpers.places import ROOT
from helpers.ros_processes import (
    BEST_EFFORT,
    RELIABLE,
    Domain,
    ros_domain,
)
from helpers.stock_camera import camera_picture
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String

from dpt_ros.engine.frame import CameraModel, Frame, Prediction
from dpt_ros.engine.loading import load_networks
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.camera_topics import CameraTopics
from dpt_ros.ros.camera.image_subscription import ImageInput
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.image import (
    MessageError,
    compressed_file,
    image_message,
    image_pixels,
    jpeg_message,
)
from dpt_ros.ros.messages.prediction import Arrival

PROFILE = str(ROOT / "config" / "fastdds.xml")
PROFILES = {
    "FASTDDS_DEFAULT_PROFILES_FILE": PROFILE,
    "FASTRTPS_DEFAULT_PROFILES_FILE": PROFILE,
}
FRAMES = 20


@pytest.fixture(scope="module")
def watched() -> Iterator[Domain]:
    """A node whose outputs nobody takes: every frame that reaches it is counted, none computed."""
    with ros_domain() as domain:
        domain.dpt = domain.start_dpt(diagnostics_period=0.2)
        domain.wait_for_state("active")
        yield domain


@pytest.mark.parametrize("size", [(640, 480), (1920, 1080)], ids=["vga", "1080p"])
@pytest.mark.parametrize("reliable", [True, False], ids=["reliable", "best_effort"])
def test_no_frame_of_a_stock_publisher_is_missing_without_a_word(
    watched: Domain, size: tuple[int, int], reliable: bool
) -> None:
    before = watched.diagnostics("dpt: image")
    said = len(watched.dpt.output)
    camera = watched.start_camera(*size, FRAMES, reliable)
    camera.wait_for(f"sent {FRAMES}")
    counts = ("frames received", "missed: lost on the way", "missed: not taken in time")
    deadline = time.monotonic() + 5.0
    while True:
        after = watched.diagnostics("dpt: image")
        received, lost, overtaken = (int(after[name]) - int(before[name]) for name in counts)
        unsaid = FRAMES - received - lost - overtaken
        if unsaid <= 0 or time.monotonic() > deadline:
            break
    camera.end()
    output = watched.dpt.output[said:]
    assert after["reliability"] == ("reliable" if reliable else "best_effort")
    assert unsaid >= 0
    # Gaps are counted from the first image that is taken; one or two may come before it.
    if unsaid > 2:
        words = ("lost in transport", "No frames received")
        assert any(word in output for word in words), output
    if reliable:
        assert received >= FRAMES / 2
    if lost and not reliable:
        assert "fastdds.xml" in output


def test_with_the_profile_best_effort_images_arrive_at_a_stock_subscriber() -> None:
    with ros_domain() as domain:
        frames = domain.listen(Image, "image", BEST_EFFORT)
        domain.start_camera(1920, 1080, 10, False, **PROFILES)
        domain.spin_until(lambda: len(frames) >= 8, 20)


def test_a_message_filled_by_the_fast_path_arrives_as_it_was_sent() -> None:
    with ros_domain() as domain:
        frames = domain.listen(Image, "image")
        domain.start_camera(640, 480, 3, True, fast=True)
        domain.spin_until(lambda: frames, 20)
        np.testing.assert_array_equal(image_pixels(frames[0]), camera_picture(640, 480))
        assert (frames[0].encoding, frames[0].header.frame_id) == ("rgb8", "cam")


def image_input(domain: Domain, reliability: str = "auto") -> ImageInput:
    domain.taken = []
    found = ImageInput(domain.node, "/image", Image, domain.taken.append, reliability)
    domain.node.create_timer(0.1, found.review)
    return found


def small_image() -> Image:
    return image_message(np.zeros((4, 4, 3), np.uint8), "rgb8", Header())


def test_reliability_follows_the_publishers() -> None:
    with ros_domain() as domain:
        found = image_input(domain)
        assert found.reliability == "reliable"
        best_effort = domain.node.create_publisher(Image, "image", BEST_EFFORT)
        domain.spin_until(lambda: found.reliability == "best_effort", 10)
        reliable = domain.node.create_publisher(Image, "image", RELIABLE)
        domain.spin_for(0.5)
        assert found.reliability == "best_effort"
        domain.spin_until(lambda: best_effort.publish(small_image()) or domain.taken, 10)
        domain.node.destroy_publisher(best_effort)
        domain.spin_until(lambda: found.reliability == "reliable", 10)
        domain.taken.clear()
        domain.spin_until(lambda: reliable.publish(small_image()) or domain.taken, 10)


def test_a_qos_override_beats_the_publishers() -> None:
    with ros_domain() as domain:
        domain.node.declare_parameter(
            "qos_overrides./image.subscription.reliability", "best_effort"
        )
        found = image_input(domain)
        domain.publisher(Image, "image", RELIABLE)
        domain.spin_for(0.5)
        assert found.reliability == "best_effort"


def test_silence_is_explained_by_what_the_publishers_are() -> None:
    with ros_domain() as domain:
        found = image_input(domain, "reliable")
        with domain.another_node() as another:
            another.create_publisher(String, "image", 1)
            domain.spin_until(lambda: "its type is std_msgs/msg/String" in found.silence, 10)
        domain.spin_until(lambda: not found.silence, 10)
        other = domain.node.create_publisher(Image, "image", BEST_EFFORT)
        domain.spin_until(lambda: "offers best effort only" in found.silence, 10)
        domain.node.destroy_publisher(other)
        quiet = domain.publisher(Image, "image", QoSProfile(depth=1))
        domain.spin_until(lambda: "may be paused" in found.silence, 10)
        domain.spin_until(lambda: quiet.publish(small_image()) or domain.taken, 10)
        assert found.silence == ""


def test_images_that_were_replaced_by_newer_ones_are_counted() -> None:
    with ros_domain() as domain:
        found = image_input(domain)
        publisher = domain.publisher(Image, "image", RELIABLE)
        domain.spin_until(lambda: publisher.publish(small_image()) or domain.taken, 10)
        domain.spin_for(0.3)
        before, taken = found.missed, len(domain.taken)
        for _ in range(3):
            publisher.publish(small_image())
        domain.spin_for(0.5)
        missed = found.missed - before
        assert missed > 0
        assert missed + len(domain.taken) - taken == 3
        assert isinstance(domain.taken[-1], bytes)


def test_two_cameras_on_one_topic_are_no_gap_in_each_other_s_numbers() -> None:
    with ros_domain() as domain:
        found = image_input(domain)
        publishers = [domain.publisher(Image, "image", RELIABLE) for _ in range(2)]
        domain.spin_for(0.3)
        # One is far ahead of the other in its numbers, as a camera that runs for longer is.
        for publisher in [publishers[0]] * 10 + publishers * 3:
            taken = len(domain.taken)
            publisher.publish(small_image())
            domain.spin_until(lambda taken=taken: len(domain.taken) > taken, 10)
        assert found.missed == 0


class Camera:
    """The topics of one camera in this process, and the frames that they hand in."""

    def __init__(self, domain: Domain, **given: str) -> None:
        networks = load_networks(
            Settings(depth_weights="random", label_network="none", device="cpu", threads=1)
        )
        settings = Settings(**given)
        self.node = LifecycleNode("dpt", context=domain.node.context)
        self.topics = CameraTopics(self.node, "", networks, lambda: settings)
        self.node.trigger_configure()
        self.node.trigger_activate()
        self.frames: list[Frame] = []
        domain.listen(Image, "depth/image")
        domain.spin_for(0.3)
        self.topics.open(lambda frame, _: self.frames.append(frame))
        domain.node.executor.add_node(self.node)

    def counts(self) -> dict[str, str]:
        return {pair.key: pair.value for pair in self.topics.status().values}

    def close(self, domain: Domain) -> None:
        domain.node.executor.remove_node(self.node)
        self.topics.destroy()
        self.node.destroy_node()


@contextmanager
def camera_topics(domain: Domain, **given: str) -> Iterator[Camera]:
    camera = Camera(domain, **given)
    yield camera
    camera.close(domain)


def a_header() -> Header:
    header = Header(frame_id="cam")
    header.stamp.sec, header.stamp.nanosec = 12, 34
    return header


def test_a_frame_is_the_image_that_was_sent() -> None:
    with ros_domain() as domain, camera_topics(domain) as camera:
        pixels = camera_picture(33, 20)
        domain.publisher(Image, "image").publish(image_message(pixels, "bgr8", a_header()))
        domain.spin_until(lambda: camera.frames, 10)
        (frame,) = camera.frames
        assert frame.decoded() is frame
        assert (frame.encoding, frame.stamp_ns, frame.frame_id) == ("bgr8", 12_000_000_034, "cam")
        assert frame.context.header == a_header()
        np.testing.assert_array_equal(frame.pixels, pixels)
        assert not frame.pixels.flags.writeable  # a view of the serialised message
        assert camera.counts()["encoding bgr8"] == "1"


def test_a_compressed_frame_is_decoded_when_it_is_asked_for() -> None:
    with ros_domain() as domain, camera_topics(domain, image_transport="compressed") as camera:
        info = camera_info_message(CameraModel(64, 48, 50, 50, 32, 24), a_header())
        camera.topics._builder.calibration.take(info)
        msg = jpeg_message(camera_picture(64, 48), a_header())
        domain.publisher(CompressedImage, "image/compressed").publish(msg)
        domain.spin_until(lambda: camera.frames, 10)
        (frame,) = camera.frames
        assert "encoding bgr8" not in camera.counts()
        assert (frame.encoding, frame.pixels.ndim) == ("JPEG", 1)
        assert frame.camera == CameraModel(64, 48, 50, 50, 32, 24)
        decoded = frame.decoded()
        assert camera.counts()["encoding bgr8"] == "1"
        pixels, encoding = compressed_file(msg).decode()
        np.testing.assert_array_equal(decoded.pixels, pixels)
        assert (decoded.encoding, decoded.decode) == (encoding, None)
        assert (decoded.context, decoded.camera) == (frame.context, frame.camera)


def test_a_damaged_file_is_counted_by_its_fault_when_it_is_decoded(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with ros_domain() as domain, camera_topics(domain, image_transport="compressed") as camera:
        msg = CompressedImage(header=a_header(), format="png")
        file = bytearray(cv2.imencode(".png", camera_picture(64, 48))[1].tobytes())
        file[60:200] = bytes(140)
        msg.data = bytes(file)
        domain.publisher(CompressedImage, "image/compressed").publish(msg)
        domain.spin_until(lambda: camera.frames, 10)
        with pytest.raises(MessageError) as caught:
            camera.frames[0].decoded()
        camera.topics.fail(caught.value)
        assert camera.counts()["error: undecodable"] == "1"
        assert f"image: The PNG image of {len(file)} bytes cannot be" in capfd.readouterr().err


def test_bytes_that_are_no_image_are_counted_and_the_next_image_is_seen() -> None:
    with ros_domain() as domain, camera_topics(domain) as camera:
        publisher = domain.publisher(Image, "image")
        publisher.publish(serialize_message(small_image())[:40])
        domain.spin_until(lambda: "error: malformed message" in camera.counts(), 10)
        publisher.publish(small_image())
        domain.spin_until(lambda: camera.frames, 10)


def test_camera_info_is_scaled_anew_only_when_it_or_the_size_changes() -> None:
    with ros_domain() as domain, camera_topics(domain) as camera:
        infos = domain.listen(CameraInfo, "depth/camera_info")
        domain.spin_for(0.3)

        def publish(size: int, fx: float, frame_id: str) -> CameraInfo:
            header = Header(frame_id=frame_id)
            model = CameraModel(64, 48, fx, 50, 32, 24)
            camera.topics._builder.calibration.take(camera_info_message(model, header))
            arrival = Arrival(header, camera.topics._builder.calibration.info, 0)
            frame = Frame(camera_picture(64, 48), "rgb8", 0, context=arrival)
            infos.clear()
            depth = np.ones((size, size), np.float32)
            camera.topics.publish(Prediction(frame, depth=depth))
            domain.spin_until(lambda: infos, 10)
            return infos[0]

        first = publish(32, 50.0, "a")
        assert (first.width, first.k[0], first.header.frame_id) == (32, 25.0, "a")
        known = camera.topics._messages._scaled[1]
        again = publish(32, 50.0, "b")
        assert camera.topics._messages._scaled[1] is known
        assert (again.k.tolist(), again.header.frame_id) == (first.k.tolist(), "b")
        assert publish(16, 50.0, "b").k[0] == 12.5
        assert publish(16, 60.0, "b").k[0] == 15.0


def test_a_message_that_its_publisher_repeats_is_taken_once() -> None:
    with ros_domain() as domain:
        taken: list[bytes] = []
        found = ImageInput(domain.node, "/image", Image, lambda msg, *_: taken.append(msg), "auto")
        for number in (7, 8, 8, 9, 1, 1):  # 1: the publisher was started again
            found._take(b"%d" % number, {"publication_sequence_number": number})
        assert taken == [b"7", b"8", b"9", b"1"]
        assert found.missed == 0
        found.close()
