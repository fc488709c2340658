# SPDX-License-Identifier: Apache-2.0
"""Odometry as robots send it: twice, out of order, with a stray stamp, without frame ids."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("rclpy")

from helpers.ros_processes import Domain, ros_domain
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from dpt_ros.engine.frame import CameraModel
from dpt_ros.ros.camera.poses import OdometryPoses, Trajectory
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.image import image_message, image_pixels

MS = 1_000_000
CAMERA = CameraModel(96, 64, 83.0, 83.0, 47.5, 31.5)
START = 1_000_000  # milliseconds
PERIOD = 20  # milliseconds between two messages


def pose_at(t: int) -> tuple[float, ...]:
    """A drive ahead that sways."""
    turn = 0.2 * np.sin(t / 300)
    return (0.0, 0.0, t / 1e3, 0.0, float(np.sin(turn / 2)), 0.0, float(np.cos(turn / 2)))


def trajectory(times: list[int]) -> Trajectory:
    made = Trajectory()
    for t in times:
        made.add(t * MS, pose_at(t))
    return made


def disorder(times: list[int]) -> list[int]:
    """Blocks of ten, each backwards: messages overtake each other by 180 ms."""
    return [t for k in range(0, len(times), 10) for t in times[k : k + 10][::-1]]


@pytest.fixture
def domain() -> Iterator[Domain]:
    with ros_domain() as domain:
        yield domain


TIMES = list(range(START, START + 1000, PERIOD))


@pytest.mark.parametrize(
    "order",
    [
        [t for t in TIMES for _ in range(2)],
        disorder(TIMES),
        TIMES[:25] + TIMES[40:] + TIMES[25:40],
        TIMES[:3] + TIMES[46:] + TIMES[3:46],
        [*TIMES[:30], 0, *TIMES[30:]],
        [*TIMES[:30], START + 10**9, *TIMES[30:]],
    ],
    ids=[
        "twice",
        "out of order",
        "late in one piece",
        "late by 0.9 s",
        "one stamp of 0",
        "one stamp far ahead",
    ],
)
def test_the_poses_are_those_of_clean_odometry_bit_for_bit(order: list[int]) -> None:
    clean, found = trajectory(TIMES), trajectory(order)
    for t in range(START, START + 1100, 7):
        expected, pose = clean.find(t * MS)[0], found.find(t * MS)[0]
        assert (expected is None) == (pose is None)
        if pose is not None:
            np.testing.assert_array_equal(pose, expected)


def test_a_repeated_stamp_takes_the_later_message() -> None:
    made = trajectory(TIMES)
    assert made.add(TIMES[-1] * MS, (9.0, *pose_at(0)[1:])) == "repeated stamps"
    assert made.find(TIMES[-1] * MS)[0][0, 3] == 9.0


def test_a_jump_back_of_time_starts_anew_also_when_every_message_comes_twice() -> None:
    made = trajectory(TIMES)
    for t in (0, 0, 20, 20):
        made.add(t * MS, pose_at(t))
    assert made.find(TIMES[-1] * MS)[0] is None
    np.testing.assert_allclose(made.find(10 * MS)[0][2, 3], 0.01, atol=1e-9)


@pytest.mark.parametrize(
    ("times", "moment", "why"),
    [
        ([], START, "no pose has arrived"),
        (TIMES, START + 1500, "the newest pose is 520 ms older than the image"),
        (TIMES, START - 100, "100 ms older than the oldest pose"),
        ([*TIMES[:10], *TIMES[30:]], START + 400, "a gap of 420 ms between poses"),
        (TIMES, START + 10**9, "another clock"),
    ],
)
def test_where_there_is_no_pose_the_reason_is_given(
    times: list[int], moment: int, why: str
) -> None:
    pose, words = trajectory(times).find(moment * MS)
    assert pose is None
    assert why in words


def message(t: int, child: str = "eye") -> Odometry:
    msg = Odometry(header=header(t, "odom"), child_frame_id=child)
    p, q = msg.pose.pose.position, msg.pose.pose.orientation
    p.x, p.y, p.z, q.x, q.y, q.z, q.w = pose_at(t)
    return msg


def header(t: int, frame_id: str = "eye") -> Header:
    made = Header(frame_id=frame_id)
    made.stamp.sec, made.stamp.nanosec = t // 1000, t % 1000 * MS
    return made


def test_frames_with_odometry_in_any_order_equal_those_with_clean_odometry(
    domain: Domain,
) -> None:
    """Four cameras of one node see the same; their odometry comes in different orders."""
    orders = {
        "clean": lambda times: times,
        "twice": lambda times: [t for t in times for _ in range(2)],
        "mixed": disorder,
        "none": lambda times: [],
    }
    dpt = domain.start_dpt(
        cameras=f"[{', '.join(orders)}]", diagnostics_period=0.2, label_network="none"
    )
    domain.wait_for_state("active")
    kinds = {"camera_info": CameraInfo, "odom": Odometry, "image": Image}
    publishers = {
        name: {topic: domain.publisher(kind, f"{name}/{topic}") for topic, kind in kinds.items()}
        for name in orders
    }
    depths = {name: domain.listen(Image, f"{name}/depth/image") for name in orders}
    domain.spin_for(1.0)
    for one in publishers.values():
        one["camera_info"].publish(camera_info_message(CAMERA, header(START)))
    domain.spin_for(0.5)
    wall = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    frames = list(range(START, START + 2000, 200))
    for number, (before, now) in enumerate(pairwise(frames), 1):
        for name, order in orders.items():
            # 45 ms late, so that the image's moment lies between two messages.
            for t in order(list(range(before + 40, now + 40, PERIOD))):
                publishers[name]["odom"].publish(message(t))
                domain.spin_for(0.002)
        domain.spin_for(0.1)
        for one in publishers.values():
            picture = np.roll(wall, -number, 1)
            one["image"].publish(image_message(picture, "rgb8", header(now - 5)))
        domain.spin_until(
            lambda number=number: all(len(found) == number for found in depths.values()), 30
        )
    domain.spin_for(0.5)
    clean = [image_pixels(msg) for msg in depths["clean"]]
    for name in ("twice", "mixed"):
        for one, other in zip(depths[name], clean, strict=True):
            np.testing.assert_array_equal(image_pixels(one), other)
    without = [image_pixels(msg) for msg in depths["none"]]
    assert not np.array_equal(without[-1], clean[-1], equal_nan=True)  # odometry matters here
    status = {name: domain.diagnostics(f"dpt: {name}") for name in orders}
    assert {name: s["odom"] for name, s in status.items()} == {
        "clean": "used", "twice": "used", "mixed": "used", "none": "none"
    }  # fmt: skip
    assert int(status["twice"]["odom: repeated stamps"]) == int(status["clean"]["odom: messages"])
    assert int(status["mixed"]["odom: out of order, sorted in"]) > 50
    assert status["mixed"]["odom: frames with it"] == "9"
    assert "odom" not in dpt.output.replace("/odom", "")


def test_odometry_that_is_received_and_unused_for_two_seconds_is_a_warning(domain: Domain) -> None:
    dpt = domain.start_dpt(diagnostics_period=0.2)
    domain.wait_for_state("active")
    odom, image = domain.publisher(Odometry, "odom"), domain.publisher(Image, "image")
    depths = domain.listen(Image, "depth/image")
    domain.spin_for(0.5)
    picture = image_message(np.zeros((64, 96, 3), np.uint8), "rgb8", Header())
    said: dict[str, str] = {}
    now = START

    def warned(words: str) -> bool:
        nonlocal said, now
        now += 100
        odom.publish(message(now, "base_link"))
        picture.header = header(now)
        image.publish(picture)
        domain.spin_for(0.1)
        said = domain.diagnostics("dpt: image")
        return words in said["message"]

    domain.spin_until(lambda: warned("set camera_in_base"), 20)
    assert "the pose of 'base_link', but images come from 'eye'" in said["message"]
    assert said["level"] == "1"
    assert said["odom"].startswith("not used: it has the pose of 'base_link'")
    dpt.wait_for("frames could not use odom: ", 10)
    assert depths


def test_empty_frame_ids_name_no_frame(domain: Domain) -> None:
    said: list[str] = []
    poses = OdometryPoses((), said.append)
    for t in TIMES[:5]:
        poses.take(message(t, ""))
    assert poses.pose("", TIMES[2] * MS) is None
    assert "an empty frame id names no frame: set camera_in_base" in said[-1]
    placed = OdometryPoses((0, 0, 0, 0, 0, 0, 1), said.append)
    for t in TIMES[:5]:
        placed.take(message(t, ""))
    assert placed.pose("", TIMES[2] * MS) is not None


def test_a_leading_slash_is_part_of_no_name(domain: Domain) -> None:
    poses = OdometryPoses((), [].append)
    for t in TIMES[:5]:
        poses.take(message(t, "/eye"))
    assert poses.pose("eye", TIMES[2] * MS) is not None
