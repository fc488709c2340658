# SPDX-License-Identifier: Apache-2.0
"""The node as a real process over real DDS: frames in, outputs out, whatever comes in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rclpy")

from helpers.ros_processes import Domain, ros_domain
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger

from dpt_ros.data import class_names
from dpt_ros.engine.frame import Frame, Prediction
from dpt_ros.engine.loading import load_networks
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.camera_topics import CameraTopics
from dpt_ros.ros.messages.image import image_message, image_pixels, jpeg_message
from dpt_ros.ros.messages.prediction import Arrival, LabelInfo

IMAGES = {
    "depth/image": "32FC1",
    "depth/color": "rgb8",
    "semantic/labels": "mono8",
    "semantic/confidence": "mono8",
    "semantic/color": "rgb8",
}


@pytest.fixture(scope="module")
def domain() -> Iterator[Domain]:
    """One node for all tests of this file, with a camera that publishes when a test says so."""
    with ros_domain() as domain:
        domain.dpt = domain.start_dpt(diagnostics_period=0.2)
        for topic in IMAGES:
            domain.listen(Image, topic)
        domain.listen(CameraInfo, "depth/camera_info")
        domain.wait_for_state("active")
        domain.camera = domain.publisher(Image, "image")
        domain.camera_info = domain.publisher(CameraInfo, "camera_info")
        domain.spin_for(0.5)  # the node must have found the publishers too
        domain.stamp = 1000
        yield domain
        code, seconds = domain.dpt.end()
        assert "Traceback" not in domain.dpt.output, domain.dpt.output
        assert (code, seconds < 2.0) == (0, True)


def picture(width: int = 96, height: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def send(domain: Domain, msg: Image | None = None) -> int:
    """Publish an image with a new stamp; the stamp's seconds."""
    domain.stamp += 1
    msg = image_message(picture(), "rgb8", Header(frame_id="cam")) if msg is None else msg
    msg.header.stamp.sec = domain.stamp
    msg.header.stamp.nanosec = 123456789
    domain.camera.publish(msg)
    return domain.stamp


def tell(domain: Domain, info: CameraInfo) -> None:
    """Publish a camera_info until it was surely received, best effort as it is."""
    for _ in range(4):
        domain.camera_info.publish(info)
        domain.spin_for(0.1)


def arrived(domain: Domain, topic: str, stamp: int) -> list[Image]:
    return [m for m in domain.received[topic] if m.header.stamp.sec == stamp]


def test_every_output_has_the_header_of_its_frame(domain: Domain) -> None:
    info = CameraInfo(width=96, height=64)
    info.k = [80.0, 0.0, 48.0, 0.0, 80.0, 32.0, 0.0, 0.0, 1.0]
    tell(domain, info)
    stamp = send(domain)
    topics = [*IMAGES, "depth/camera_info"]
    domain.spin_until(lambda: all(arrived(domain, topic, stamp) for topic in topics), 20)
    for topic in topics:
        (msg,) = arrived(domain, topic, stamp)
        assert (msg.header.stamp.nanosec, msg.header.frame_id) == (123456789, "cam")
        assert (msg.width, msg.height) == (96, 64)
    for topic, encoding in IMAGES.items():
        (msg,) = arrived(domain, topic, stamp)
        assert msg.encoding == encoding
        assert image_pixels(msg).shape[:2] == (64, 96)
    (info_out,) = arrived(domain, "depth/camera_info", stamp)
    assert list(info_out.k) == list(info.k)
    (depth,) = arrived(domain, "depth/image", stamp)
    assert np.isfinite(image_pixels(depth)).any()


def test_a_camera_info_of_another_size_is_not_used(domain: Domain) -> None:
    tell(domain, CameraInfo(width=32, height=32, k=[9.0, 0.0, 9.0, 0.0, 9.0, 9.0, 0.0, 0.0, 1.0]))
    stamp = send(domain)
    domain.spin_until(lambda: arrived(domain, "depth/image", stamp), 20)
    domain.spin_for(0.3)
    assert not arrived(domain, "depth/camera_info", stamp)
    assert "camera_info is for 32x32 pixels, but the image has 96x64" in domain.dpt.output


def test_the_latest_frame_wins_and_the_others_are_counted(domain: Domain) -> None:
    before = domain.diagnostics("dpt: image")
    large = [image_message(picture(640, 480, k), "rgb8", Header()) for k in range(8)]
    stamps = []
    for msg in large:
        stamps.append(send(domain, msg))
        domain.spin_for(0.01)
    domain.spin_until(lambda: arrived(domain, "depth/image", stamps[-1]), 30)
    seen = [m.header.stamp.sec for m in domain.received["depth/image"]]
    assert seen == sorted(seen)
    assert len([s for s in seen if s in stamps]) < len(stamps)
    domain.spin_for(0.5)
    after = domain.diagnostics("dpt: image")

    def grown(name: str) -> int:
        return int(after.get(name, 0)) - int(before.get(name, 0))

    # On a busy machine a frame gives way before the node could even take it.
    replaced = grown("dropped: replaced by a newer frame")
    missed = grown("missed: not taken in time")
    assert replaced + missed > 0
    assert grown("frames received") == grown("frames published") + replaced
    assert grown("frames received") + missed == len(stamps)


def test_bad_frames_are_counted_and_the_next_good_one_is_seen(domain: Domain) -> None:
    good = image_message(picture(), "rgb8", Header(frame_id="cam"))
    wrong = {
        "unknown encoding": {"encoding": "rgb9"},
        "bad size": {"width": 0},
        "bad step": {"step": 10, "data": bytes(18431)},
        "short data": {"height": 200},
    }
    for change in wrong.values():
        bad = image_message(picture(), "rgb8", Header(frame_id="cam"))
        for field, value in change.items():
            setattr(bad, field, value)
        send(domain, bad)
        domain.spin_for(0.1)
    stamp = send(domain, good)
    domain.spin_until(lambda: arrived(domain, "depth/image", stamp), 20)
    counts = domain.diagnostics("dpt: image")
    for reason in wrong:
        assert counts[f"error: {reason}"] == "1"
    for sentence in ("'rgb9'", "0x64", "step of 10 bytes", "holds 18432 bytes"):
        assert sentence in domain.dpt.output


@pytest.mark.parametrize("encoding", ["32FC1", "mono16", "bgra8"])
def test_other_encodings_are_seen_too(domain: Domain, encoding: str) -> None:
    pixels = {
        "32FC1": np.full((64, 96), np.nan, np.float32),
        "mono16": np.zeros((64, 96), np.uint16),
        "bgra8": np.zeros((64, 96, 4), np.uint8),
    }[encoding]
    stamp = send(domain, image_message(pixels, encoding, Header()))
    domain.spin_until(lambda: arrived(domain, "depth/image", stamp), 20)
    (depth,) = arrived(domain, "depth/image", stamp)
    assert np.isfinite(image_pixels(depth)).any()


def test_parameters_change_while_running_or_are_refused_with_a_reason(domain: Domain) -> None:
    assert "takes effect at configure" in domain.set_parameter("device", "cuda")
    assert "must be one of 32FC1, 16UC1" in domain.set_parameter("depth_encoding", "8UC1")
    assert domain.set_parameter("depth_encoding", "16UC1") == ""
    stamp = send(domain)
    domain.spin_until(lambda: arrived(domain, "depth/image", stamp), 20)
    (depth,) = arrived(domain, "depth/image", stamp)
    assert depth.encoding == "16UC1"
    assert domain.set_parameter("depth_encoding", "32FC1") == ""


def test_a_frame_older_than_max_age_is_dropped_and_counted(domain: Domain) -> None:
    assert domain.set_parameter("max_age", 2) == ""
    stamp = send(domain)  # 1970
    domain.spin_until(
        lambda: "dropped: older than max_age" in domain.diagnostics("dpt: image"), 20
    )
    assert not arrived(domain, "depth/image", stamp)
    assert domain.set_parameter("max_age", 0) == ""


def test_a_late_subscriber_gets_the_class_map(domain: Domain) -> None:
    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    maps = domain.listen(LabelInfo or String, "semantic/label_info", qos)
    domain.spin_until(lambda: maps, 20)
    if LabelInfo:
        rows = [(row.class_id, row.class_name) for row in maps[0].class_map]
    else:
        rows = [(r["class_id"], r["class_name"]) for r in json.loads(maps[0].data)["class_map"]]
    assert rows == list(enumerate(class_names("labels_world.json"), 1))


def test_diagnostics_say_what_runs_and_that_random_weights_mean_nothing(domain: Domain) -> None:
    status = domain.diagnostics("dpt: networks")
    assert status["depth network"] == status["label network"] == "dpt_hybrid_embedded"
    assert (status["device"], status["precision"]) == ("cpu", "fp32")
    assert status["depth"] == "metric"
    assert status["level"] == "1"
    assert "random" in status["message"]
    camera = domain.diagnostics("dpt: image")
    assert camera["reliability"] == "reliable"
    assert camera["scale source"] == "network"
    assert "scale source" not in status
    assert float(camera["latency from receipt p50 (ms)"]) > 0


def test_the_filter_forgets_the_past_when_told_and_says_how_often(domain: Domain) -> None:
    domain.listen(Image, "depth/confidence")
    domain.stamp += 1

    def send_at(milliseconds: int) -> None:
        msg = image_message(picture(), "rgb8", Header(frame_id="cam"))
        msg.header.stamp.sec, msg.header.stamp.nanosec = domain.stamp, milliseconds * 1_000_000
        before = len(domain.received["depth/confidence"])
        domain.camera.publish(msg)
        domain.spin_until(lambda: len(domain.received["depth/confidence"]) > before, 20)

    def resets() -> dict[str, int]:
        domain.spin_for(0.5)
        found = domain.diagnostics("dpt: image")
        return {k: int(v) for k, v in found.items() if k.startswith("reset: ")}

    domain.spin_for(0.5)  # the node must have found the new subscription
    send_at(0)
    begun = resets()
    assert begun["reset: gap"] > 0
    send_at(50)
    assert resets() == begun
    answer = domain.call(Trigger, "/dpt/reset", Trigger.Request())
    assert answer.success
    send_at(100)
    assert resets()["reset: first frame"] == begun["reset: first frame"] + 1
    send_at(90)
    assert resets()["reset: stamp not newer"] == 1
    deviation = image_pixels(domain.received["depth/confidence"][-1])
    assert deviation.dtype == np.float32
    assert (deviation[np.isfinite(deviation)] > 0).all()


def test_what_nobody_subscribes_to_is_not_computed() -> None:
    with ros_domain() as domain:
        domain.start_dpt(diagnostics_period=0.2)
        domain.wait_for_state("active")
        camera = domain.publisher(Image, "image")
        camera.publish(image_message(picture(), "rgb8", Header()))
        domain.spin_until(
            lambda: domain.diagnostics("dpt: image").get("dropped: nobody subscribes") == "1", 20
        )
        labels = domain.listen(Image, "semantic/labels")
        deadline = time.monotonic() + 20
        while not labels and time.monotonic() < deadline:
            camera.publish(image_message(picture(), "rgb8", Header()))
            domain.spin_for(0.2)
        assert labels


def test_two_cameras_with_compressed_images_keep_to_themselves() -> None:
    with ros_domain() as domain:
        dpt = domain.start_dpt(
            cameras="[front, rear]", image_transport="compressed", diagnostics_period=0.2
        )
        depths = {name: domain.listen(Image, f"{name}/depth/image") for name in ("front", "rear")}
        domain.wait_for_state("active")
        front = domain.publisher(CompressedImage, "front/image/compressed")
        rear = domain.publisher(CompressedImage, "rear/image/compressed")
        domain.spin_for(0.5)
        broken = jpeg_message(picture(), Header())
        broken.data = bytes(broken.data)[:500]
        rear.publish(broken)
        front.publish(jpeg_message(picture(), Header(frame_id="front_camera")))
        domain.spin_until(lambda: depths["front"], 20)
        assert depths["front"][0].header.frame_id == "front_camera"
        assert domain.diagnostics("dpt: rear")["error: truncated"] == "1"
        assert domain.diagnostics("dpt: front")["encoding bgr8"] == "1"
        assert "rear/image: The JPEG image ends early, after 500 bytes." in dpt.output
        assert not depths["rear"]


def test_age_is_measured_by_the_simulated_clock() -> None:
    with ros_domain() as domain:
        domain.start_dpt(use_sim_time=True, max_age=2.0, diagnostics_period=0.2)
        depths = domain.listen(Image, "depth/image")
        domain.wait_for_state("active")
        clock = domain.publisher(Clock, "/clock")
        camera = domain.publisher(Image, "image")
        now = Clock()
        now.clock.sec = 1000
        for _ in range(5):
            clock.publish(now)
            domain.spin_for(0.1)
        for stamp in (990, 999):
            msg = image_message(picture(), "rgb8", Header())
            msg.header.stamp.sec = stamp
            camera.publish(msg)
            domain.spin_for(0.5)
        domain.spin_until(lambda: depths, 20)
        assert [m.header.stamp.sec for m in depths] == [999]
        assert domain.diagnostics("dpt: image")["dropped: older than max_age"] == "1"


def test_a_relative_network_gives_inverse_depth_and_says_so(
    capfd: pytest.CaptureFixture[str],
) -> None:
    networks = load_networks(Settings(depth_weights="random", label_network="none", device="cpu"))
    assert networks.depth is not None
    networks.depth.spec = replace(networks.depth.spec, invert=False)
    with ros_domain() as domain:
        node = LifecycleNode("dpt", context=domain.node.context)
        settings = Settings(scale_source="none")
        camera = CameraTopics(node, "", networks, lambda: settings)
        domain.node.create_subscription(Image, "depth/color", domain.received["x"].append, 1)
        inverses = domain.listen(Image, "depth/inverse")
        node.trigger_configure()
        node.trigger_activate()
        topics = dict(node.get_publisher_names_and_types_by_node("dpt", "/"))
        assert "/depth/inverse" in topics
        assert "/depth/image" not in topics
        assert "relative inverse depth, which has no unit" in capfd.readouterr().err
        domain.spin_for(0.5)
        inverse = np.linspace(0, 900, 64, dtype=np.float32).reshape(8, 8)
        header = Header(frame_id="cam")
        frame = Frame(picture(), "rgb8", 0, context=Arrival(header, None, time.monotonic_ns()))
        camera.publish(Prediction(frame, inverse=inverse))
        domain.spin_until(lambda: inverses and domain.received["x"], 10)
        np.testing.assert_array_equal(image_pixels(inverses[0]), inverse)
        camera.destroy()
        node.destroy_node()
