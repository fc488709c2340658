# SPDX-License-Identifier: Apache-2.0
"""Images on their way: stock publishers, both reliabilities, and what is said of losses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy")

from rclpy.qos import QoSProfile
from ros_processes import (
    BEST_EFFORT,
    RELIABLE,
    ROOT,
    Domain,
    camera_picture,
    ros_domain,
)
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from dpt_ros.ros.messages import image_message, image_pixels
from dpt_ros.ros.transport import ImageInput, ImageTopic

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
    watched.spin_for(0.5)
    after = watched.diagnostics("dpt: image")
    camera.end()

    def grown(name: str) -> int:
        return int(after[name]) - int(before[name])

    received, lost = grown("frames received"), grown("missed: lost on the way")
    overtaken = grown("missed: not taken in time")
    output = watched.dpt.output[said:]
    assert after["reliability"] == ("reliable" if reliable else "best_effort")
    assert received + lost + overtaken <= FRAMES
    if received < FRAMES:
        words = ("lost on the way", "gave way to newer ones", "no frame has come")
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
    topic = ImageTopic("/image", Image, reliability)
    found = ImageInput(domain.node, topic, domain.taken.append)
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
            domain.spin_until(lambda: "it carries std_msgs/msg/String" in found.silence, 10)
        domain.spin_until(lambda: not found.silence, 10)
        other = domain.node.create_publisher(Image, "image", BEST_EFFORT)
        domain.spin_until(lambda: "offers best effort only" in found.silence, 10)
        domain.node.destroy_publisher(other)
        quiet = domain.publisher(Image, "image", QoSProfile(depth=1))
        domain.spin_until(lambda: "may be paused" in found.silence, 10)
        domain.spin_until(lambda: quiet.publish(small_image()) or domain.taken, 10)
        assert found.silence == ""
