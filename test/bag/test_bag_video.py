# SPDX-License-Identifier: Apache-2.0
"""dpt_bag on recorded video: every picture with its stamp, the same as from raw images."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

from helpers import bags
from helpers.bags import FIRST, STEP, TYPES, expected, goes_on_to_the_same, header, job
from helpers.videos import encode, packets
from nav_msgs.msg import Odometry
from rosbags.rosbag2 import StoragePlugin
from sensor_msgs.msg import Image

from dpt_ros.bag.reader import BagError, BagReader
from dpt_ros.bag.run import convert
from dpt_ros.bag.salvage import Channel
from dpt_ros.bag.topics import ChosenTopics, choose_cameras
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.messages.image import image_message, image_pixels
from dpt_ros.ros.messages.types import FFMPEG, FOXGLOVE, VIDEOS
from dpt_ros.ros.video.decoder import VideoDecoder

GOP = 5


def _header(number: int) -> Any:
    seconds, nanoseconds = divmod(FIRST + number * STEP, 10**9)
    stamp = TYPES.types["builtin_interfaces/msg/Time"](seconds, nanoseconds)
    return TYPES.types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")


def video_message(kind: str, one: Any, codec: str = "h264") -> Any:
    """A message of rosbags."""
    data, head = np.frombuffer(one.data, np.uint8), _header(one.number)
    if kind == FOXGLOVE:
        return TYPES.types[kind](head.stamp, head.frame_id, data, codec)
    size = (bags.WIDTH, bags.HEIGHT)
    return TYPES.types[kind](head, *size, codec, one.number, int(one.keyframe), False, data)


def records(
    encoded: list[Any], kind: str = FFMPEG, topic: str = "", lost: Collection[int] = ()
) -> Iterator[tuple[int, str, Any]]:
    """The packets of a video in the order of encoding, odometry and camera_info."""
    for place, one in enumerate(encoded):
        stamp = FIRST + place * STEP
        odom = Odometry(header=header(stamp, "odom"), child_frame_id="camera")
        odom.pose.pose.position.x = 0.02 * place
        odom.pose.pose.orientation.w = 1.0
        yield stamp + STEP // 4, "/odom", odom
        info = bags.camera_info_message(bags.CAMERA, header(stamp))
        yield stamp + STEP // 2, "/camera_info", info
        if place not in lost:
            name = topic or f"/image{VIDEOS[kind]}"
            yield stamp + STEP // 2, name, video_message(kind, one)


def as_raw(encoded: list[Any]) -> Iterator[tuple[int, str, Any]]:
    """What ``records`` gives, with the decoded pictures as images."""
    decoder = VideoDecoder([].append)
    outcomes = [one for packet in packets(encoded) for one in decoder.decode(packet, 0)]
    decoded = iter([*outcomes, *decoder.restart()])
    for time, topic, message in records(encoded):
        if topic == "/image/ffmpeg":
            picture = next(decoded).converted()
            stamp = FIRST + picture.packet.number * STEP
            message = image_message(picture.pixels, picture.encoding, header(stamp))
            yield time, "/image", message
        else:
            yield time, topic, message


def depths(path: Path) -> list[np.ndarray]:
    return [image_pixels(msg) for _, msg in bags.messages(path, "/depth/image", Image)]


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("kind", [FFMPEG, FOXGLOVE])
def test_depth_of_a_video_is_that_of_its_pictures_with_their_stamps(
    tmp_path, kind: str, b_frames: int
) -> None:
    encoded = encode([bags.picture(k) for k in range(12)], "h264", GOP, b_frames)
    source = bags.write(tmp_path / "in", records(encoded, kind))
    warnings: list[str] = []
    result = convert(job(source, tmp_path / "out"), warnings.append)
    assert (result.frames, result.failed) == (12, 0)
    assert bags.stamps(tmp_path / "out", "/depth/image", Image) == expected(12)
    convert(job(bags.write(tmp_path / "raw", as_raw(encoded)), tmp_path / "of_raw"))
    for one, other in zip(depths(tmp_path / "out"), depths(tmp_path / "of_raw"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert any("B-frames" in text for text in warnings) == bool(b_frames)


def test_lost_packets_cost_a_group_of_pictures_and_are_told(tmp_path) -> None:
    encoded = encode([bags.picture(k) for k in range(20)], "h264", GOP)[2:]
    source = bags.write(tmp_path / "in", records(encoded, lost={6, 16}), StoragePlugin.SQLITE3)
    result = convert(job(source, tmp_path / "out"))
    shown = [*range(5, 8), *range(10, 18)]
    assert bags.stamps(tmp_path / "out", "/depth/image", Image) == [
        FIRST + k * STEP for k in shown
    ]
    assert (result.frames, result.failed) == (len(shown), 16 - len(shown))


def test_an_interrupted_run_over_a_video_goes_on_to_the_same_bytes(tmp_path) -> None:
    encoded = encode([bags.picture(k) for k in range(12)], "h264", GOP, 2)
    source = bags.write(tmp_path / "in", records(encoded, lost={6}))
    made = job(source, tmp_path / "a" / "out", file_frames=3)
    convert(made)
    goes_on_to_the_same(made, tmp_path / "b" / "out", 7)


def test_the_packets_are_copied_with_the_input(tmp_path) -> None:
    encoded = encode([bags.picture(k) for k in range(4)], "h264", GOP)
    source = bags.write(tmp_path / "in", records(encoded), StoragePlugin.SQLITE3)
    convert(job(source, tmp_path / "out", with_input=True))
    copied = BagReader(tmp_path / "out")
    assert copied.channels["/image/ffmpeg"].msgtype == FFMPEG
    assert [one.data for one in copied.messages(["/image/ffmpeg"])] == [
        one.data for one in BagReader(source).messages(["/image/ffmpeg"])
    ]
    assert "uint64 pts" in copied.channels["/image/ffmpeg"].definition


def test_a_video_without_a_keyframe_ends_with_a_message(tmp_path) -> None:
    encoded = encode([bags.picture(k) for k in range(5)], "h264", 50)[1:]
    source = bags.write(tmp_path / "in", records(encoded))
    with pytest.raises(BagError, match="no pictures until its next keyframe"):
        convert(job(source, tmp_path / "out"))


def test_of_one_cameras_topics_the_transport_that_is_set_is_taken(tmp_path) -> None:
    kinds = {
        "/eye/image_raw": "sensor_msgs/msg/Image",
        "/eye/image_raw/ffmpeg": FFMPEG,
        "/eye/image_raw/foxglove": FOXGLOVE,
        "/eye/camera_info": "sensor_msgs/msg/CameraInfo",
    }
    channels = {topic: Channel(topic, kind, 3) for topic, kind in kinds.items()}
    for transport, end in (("raw", ""), ("compressed", ""), ("video", "/ffmpeg")):
        settings = Settings(image_transport=transport)
        [camera], _ = choose_cameras(channels, ChosenTopics(), settings)
        assert camera.image == f"/eye/image_raw{end}"
        assert camera.info == "/eye/camera_info"
    chosen = ChosenTopics(images=("/eye/image_raw/foxglove",))
    [camera], _ = choose_cameras(channels, chosen, Settings())
    assert camera.kind == FOXGLOVE
    del channels["/eye/image_raw"]
    [camera], _ = choose_cameras(channels, ChosenTopics(), Settings())
    assert camera.kind == FFMPEG


def test_without_pyav_a_video_is_refused_with_what_to_install(tmp_path, monkeypatch) -> None:
    encoded = encode([bags.picture(0)], "h264")
    source = bags.write(tmp_path / "in", records(encoded))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BagError, match=r"/image/ffmpeg is a video.*pip install av"):
        convert(job(source, tmp_path / "out"))
