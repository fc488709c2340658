# SPDX-License-Identifier: Apache-2.0
"""Readers such as Nav2's: best effort, large messages, a node that was started by hand."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import pytest

pytest.importorskip("rclpy")

from helpers.places import ROOT
from helpers.ros_processes import BEST_EFFORT, Domain, ros_domain
from helpers.stock_camera import camera_picture
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from dpt_ros.engine.frame import CameraModel
from dpt_ros.ros import share
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.image import image_message

CAMERA = CameraModel(320, 240, 277.0, 277.0, 159.5, 119.5)
TOPICS = {
    "depth/camera_info": CameraInfo,
    "depth/image": Image,
    "semantic/labels": Image,
    "semantic/confidence": Image,
    "depth/points": PointCloud2,  # 1.5 MB, three times what Fast DDS has room for by default
}
SETTINGS = {"input_width": 96, "input_height": 64, "smoothing.strength": 0.0}


def watch(domain: Domain, seconds: float) -> tuple[dict[str, list[int]], list[str]]:
    """10 Hz for a while: the stamps that arrived per topic, and the topics in order of arrival."""
    found: dict[str, list[int]] = defaultdict(list)
    order: list[str] = []
    for topic, kind in TOPICS.items():

        def take(msg: object, topic: str = topic) -> None:
            stamp = msg.header.stamp
            found[topic].append(stamp.sec * 10**9 + stamp.nanosec)
            order.append(topic)

        domain.node.create_subscription(kind, topic, take, BEST_EFFORT)
    camera, info = domain.publisher(Image, "image"), domain.publisher(CameraInfo, "camera_info")
    domain.wait_for_state("active")
    end = time.monotonic() + 2.0 + seconds
    while (left := end - time.monotonic()) > 0:
        if left > seconds:
            found.clear()  # who has not found whom yet
        header = Header(frame_id="eye")
        header.stamp.sec, header.stamp.nanosec = divmod(time.time_ns(), 10**9)
        info.publish(camera_info_message(CAMERA, header))
        camera.publish(image_message(camera_picture(320, 240), "rgb8", header))
        domain.spin_for(0.1)
    domain.spin_for(1.0)
    return found, order


def test_best_effort_readers_get_every_set_from_a_node_that_was_started_by_hand() -> None:
    with ros_domain() as domain:
        dpt = domain.start_dpt(**SETTINGS)
        found, order = watch(domain, 8.0)
        stamps = [set(found[topic]) for topic in TOPICS]
        last = max(set.union(*stamps), default=0)
        assert len(set.intersection(*stamps)) > 10
        assert set.union(*stamps) - set.intersection(*stamps) <= {last, min(set.union(*stamps))}
        assert order.index("depth/camera_info") < order.index("depth/image")
        assert "will miss most messages" not in dpt.output


def test_best_effort_readers_that_the_user_s_transport_starves_are_warned_of() -> None:
    with ros_domain() as domain:
        domain.env["FASTDDS_BUILTIN_TRANSPORTS"] = "DEFAULT"
        dpt = domain.start_dpt(diagnostics_period=0.2, **SETTINGS)
        watch(domain, 3.0)
        dpt.wait_for(
            "Best-effort subscribers of /depth/points (1.5 MB) will miss most messages", 10
        )
        assert "fastdds.xml" in domain.diagnostics("dpt: image")["message"]


KILTED, JAZZY = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"
OURS = str(ROOT / "config" / "fastdds.xml")


@pytest.mark.parametrize(
    ("major", "given", "expected"),
    [
        (9, {}, {KILTED: OURS}),
        (7, {}, {JAZZY: OURS}),
        (9, {KILTED: "mine.xml"}, {}),
        (9, {JAZZY: "mine.xml"}, {}),
        (7, {JAZZY: "mine.xml"}, {}),
        (7, {KILTED: "mine.xml"}, {JAZZY: "mine.xml"}),  # which Jazzy does not read itself
        (9, {"FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"}, {}),
    ],
)
def test_the_node_s_profile_gives_way_to_the_user_s(
    monkeypatch: pytest.MonkeyPatch, major: int, given: dict[str, str], expected: dict[str, str]
) -> None:
    for name in (KILTED, JAZZY, "FASTDDS_BUILTIN_TRANSPORTS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(share, "_rclpy_major", lambda: major)
    assert share.transport_environment() == expected


def test_the_room_of_a_profile_is_read_from_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (KILTED, JAZZY, "FASTDDS_BUILTIN_TRANSPORTS"):
        monkeypatch.delenv(name, raising=False)
    assert share.shared_memory_size() == 512 * 1024
    monkeypatch.setenv(KILTED, OURS)
    assert share.shared_memory_size() == 64 * 2**20
    monkeypatch.setenv(KILTED, str(tmp_path / "missing.xml"))
    assert share.shared_memory_size() == 512 * 1024
