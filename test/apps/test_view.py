# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from helpers.ros_processes import RELIABLE, Domain, Process, ros_domain
from nav_msgs.msg import Odometry
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from dpt_ros.apps.view import main
from dpt_ros.data import class_names, palette
from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.output.color import depth_legend, depth_to_color
from dpt_ros.ros.camera_sim import odometry_message
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.image import image_message

chunks = pytest.importorskip("rerun.chunk")

H, W, FRAMES = 12, 16, 5
START, STEP, LATE = 1_700_000_000_000_000_000, 100_000_000, 40_000_000
CAMERA = CameraModel(W, H, 15.0, 15.0, 7.5, 5.5)
NAMES = {1: "wall", 2: "floor", 3: "zebra", 300: "beyond a byte"}
TYPES = get_typestore(Stores.ROS2_KILTED)


def _header(number: int) -> Header:
    sec, nanosec = divmod(START + number * STEP, 10**9)
    return Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id="optical")


def _depth(number: int) -> np.ndarray:
    depth = np.full((H, W), 2.0 + number, np.float32)
    depth[0, :3] = np.nan, np.inf, 0.0
    return depth


def _labels() -> np.ndarray:
    return np.arange(H * W, dtype=np.uint8).reshape(H, W) % 4


def _rgb(number: int) -> np.ndarray:
    return np.full((H, W, 3), (200, 10 * number, 30), np.uint8)


def _messages(number: int) -> dict[str, object]:
    """What the node and its camera send of one frame."""
    header = _header(number)
    pose = np.eye(4)
    pose[0, 3] = 0.1 * number
    names = [{"class_id": k, "class_name": name} for k, name in NAMES.items()]
    return {
        "odom": odometry_message(pose, header),
        "camera_info": camera_info_message(CAMERA, header),
        "image": image_message(_rgb(number), "rgb8", header),
        "depth/image": image_message(_depth(number), "32FC1", header),
        "depth/camera_info": camera_info_message(CAMERA, header),
        "depth/confidence": image_message(_depth(number) / 10, "32FC1", header),
        "semantic/labels": image_message(_labels(), "mono8", header),
        "semantic/confidence": image_message(_labels(), "mono8", header),
        "semantic/label_info": String(data=json.dumps({"class_map": names})),
    }


def _write(path: Path, topics: dict[str, str], late: int = LATE, frames: int = FRAMES) -> Path:
    """A bag with some of ``_messages`` under other names."""
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for number in range(frames):
            for name, message in _messages(number).items():
                if name not in topics:
                    continue
                kind = type(message)
                full = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
                if name not in connections:
                    connections[name] = writer.add_connection(topics[name], full, typestore=TYPES)
                time = START + number * STEP + late
                writer.write(connections[name], time, serialize_message(message))
    return path


ALL = {name: f"/{name}" for name in _messages(0)}


class Recording:
    """A .rrd file, read back by rerun."""

    def __init__(self, path: Path) -> None:
        self._rows: dict[str, list[dict[str, Any]]] = {}
        for chunk in chunks.RrdReader(path).stream().to_chunks():
            rows = chunk.to_record_batch().to_pylist()
            self._rows.setdefault(str(chunk.entity_path).lstrip("/"), []).extend(rows)

    @property
    def entities(self) -> set[str]:
        return {entity for entity in self._rows if not entity.startswith("__")}

    def rows(self, entity: str, component: str) -> dict[int | None, Any]:
        """The first value of a component by stamp in nanoseconds, None for all times."""
        found = {}
        for row in self._rows.get(entity, []):
            if row.get(component) is not None:
                stamp = row.get("stamp")
                when = None if stamp is None else np.datetime64(stamp, "ns").astype(int).item()
                found[when] = row[component]
        return found

    def plotted(self, entity: str) -> list[float]:
        return [value[0] for value in self.rows(entity, "Scalars:scalars").values()]


STAMPS = {START + number * STEP for number in range(FRAMES)}


def test_a_bag_of_the_nodes_topics_becomes_a_recording_with_every_frame_at_its_stamp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = _write(tmp_path / "bag", ALL)
    assert main([str(bag), "--save", str(tmp_path / "out.rrd")]) == 0
    assert "depth/image 5" in capsys.readouterr().out
    recording = Recording(tmp_path / "out.rrd")
    for entity, component in (
        ("world/camera/image", "Image:buffer"),
        ("world/camera/image", "Pinhole:image_from_camera"),
        ("world/camera", "Transform3D:translation"),
        ("world/camera/points", "Points3D:positions"),
        ("world/camera/points_by_class", "Points3D:class_ids"),
        ("camera/depth", "DepthImage:buffer"),
        ("camera/deviation", "DepthImage:buffer"),
        ("camera/labels", "SegmentationImage:buffer"),
        ("camera/confidence", "Image:buffer"),
    ):
        assert set(recording.rows(entity, component)) == STAMPS, (entity, component)


def test_what_is_shown_is_what_the_messages_say(tmp_path: Path) -> None:
    bag = _write(tmp_path / "bag", ALL)
    assert main([str(bag), "--save", str(tmp_path / "out.rrd")]) == 0
    recording = Recording(tmp_path / "out.rrd")
    second = START + 1 * STEP
    depth = recording.rows("camera/depth", "DepthImage:buffer")[second][0]
    np.testing.assert_array_equal(np.array(depth, np.uint8).tobytes(), _depth(1).tobytes())
    assert recording.rows("camera/depth", "DepthImage:meter")[second] == [1.0]
    image = recording.rows("world/camera/image", "Image:buffer")[second][0]
    assert np.array(image, np.uint8).tobytes() == _rgb(1).tobytes()
    places = np.array(recording.rows("world/camera/points", "Points3D:positions")[second])
    assert len(places) == H * W - 3  # the unknown ones are left out
    np.testing.assert_allclose(places[:, 2], 3.0)
    np.testing.assert_allclose(places[-1], [(15 - 7.5) / 15 * 3, (11 - 5.5) / 15 * 3, 3], 1e-5)
    ids = recording.rows("world/camera/points_by_class", "Points3D:class_ids")[second]
    assert ids == _labels().ravel()[3:].tolist()
    moved = recording.rows("world/camera", "Transform3D:translation")[second][0]
    np.testing.assert_allclose(moved, [0.1, 0, 0], atol=1e-6)
    steps = recording.rows("world/path/camera", "LineStrips3D:strips")
    assert len(steps) == FRAMES - 2  # odometry before the first image has no frame to fit


def test_class_names_come_with_the_colours_of_the_label_list_that_knows_them(
    tmp_path: Path,
) -> None:
    bag = _write(tmp_path / "bag", ALL)
    assert main([str(bag), "--save", str(tmp_path / "out.rrd"), "--only", "labels"]) == 0
    recording = Recording(tmp_path / "out.rrd")
    context = recording.rows("camera/labels", "AnnotationContext:context")[None][0]
    shown = {
        row["class_description"]["info"]["id"]: row["class_description"]["info"] for row in context
    }
    assert [shown[k]["label"] for k in (0, 1, 2, 3, 255)] == [
        "none",
        "wall",
        "floor",
        "zebra",
        "unlabelled",
    ]
    assert shown[2]["color"] >> 8 == 0x503232  # of ADE20K and of the synthetic world
    assert shown[3]["color"] >> 8 not in (0, shown[2]["color"] >> 8)


def test_only_what_is_asked_for_is_in_the_recording(tmp_path: Path) -> None:
    bag = _write(tmp_path / "bag", ALL)
    assert main([str(bag), "--save", str(tmp_path / "out.rrd"), "--only", "depth,labels"]) == 0
    assert Recording(tmp_path / "out.rrd").entities == {
        "camera/depth",
        "camera/depth/color",
        "camera/depth_legend",
        "camera/labels",
        "camera/labels_legend",
        "world",
        "world/camera/points_by_class",  # names of classes
    }


def test_rate_and_latency_of_a_bag_are_those_of_its_times_of_recording(tmp_path: Path) -> None:
    bag = _write(tmp_path / "bag", ALL)
    assert main([str(bag), "--save", str(tmp_path / "out.rrd")]) == 0
    recording = Recording(tmp_path / "out.rrd")
    np.testing.assert_allclose(recording.plotted("plots/camera/latency/depth_image"), 40.0)
    assert recording.plotted("plots/camera/rate/depth_image") == [10.0] * (FRAMES - 1)


def test_a_bag_recorded_at_its_stamps_has_no_latency_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = _write(tmp_path / "bag", ALL, late=0)
    assert main([str(bag), "--save", str(tmp_path / "out.rrd")]) == 0
    assert "Latency is not plotted" in capsys.readouterr().out
    assert not any("latency" in entity for entity in Recording(tmp_path / "out.rrd").entities)


def test_two_bags_are_shown_together_and_only_as_often_as_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = {"depth/image", "depth/camera_info", "semantic/labels"}
    camera = _write(tmp_path / "a", {n: f"/cam/{n}_raw" for n in ("image",)})
    node = _write(tmp_path / "b", {name: f"/robot/{name}" for name in ours})
    arguments = [str(camera), str(node), "--save", str(tmp_path / "out.rrd"), "--rate", "5"]
    assert main([*arguments, "--remap", "image:=/cam/image_raw"]) == 0
    assert "--classes" in capsys.readouterr().out  # nobody tells names
    recording = Recording(tmp_path / "out.rrd")
    every_second = {START + number * STEP for number in (0, 2, 4)}
    colors = recording.rows("world/robot/points", "Points3D:colors")
    assert set(colors) == every_second
    assert set(recording.rows("robot/depth", "DepthImage:buffer")) == every_second
    assert colors[START + 2 * STEP][-1] >> 8 == 200 << 16 | 20 << 8 | 30


def test_odometry_of_another_frame_is_left_out_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = _write(tmp_path / "bag", {"odom": "/odom", "image": "/image"})
    save = ["--save", str(tmp_path / "out.rrd")]
    turned = ["--camera-in-base", "0", "0", "1", "0", "0", "0", "1"]
    assert main([str(bag), *save, *turned]) == 0
    moved = Recording(tmp_path / "out.rrd").rows("world/camera", "Transform3D:translation")
    np.testing.assert_allclose(moved[START + STEP][0], [0.1, 0, 1], atol=1e-6)
    with Writer(tmp_path / "robot", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        kinds = {"/odom": Odometry, "/image": Image}
        connections = {
            topic: writer.add_connection(
                topic, f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}", typestore=TYPES
            )
            for topic, kind in kinds.items()
        }
        odom = odometry_message(np.eye(4), Header(frame_id="base_link", stamp=_header(0).stamp))
        image = _messages(0)["image"]
        for topic, message in (("/image", image), ("/odom", odom)):
            writer.write(connections[topic], START, serialize_message(message))
    assert main([str(tmp_path / "robot"), *save]) == 0
    assert "The pose is of 'base_link', but the images are of 'optical'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["BAG", "--only", "depths"], "--only: unknown kind 'depths'. Available: image, depth"),
        (["BAG", "--remap", "image"], "must be NAME:=TOPIC"),
        (["BAG", "--range", "0"], "--range is 0.0, but must be positive."),
        (["BAG", "--jpeg", "101"], "--jpeg is 101, but must be 1 to 100"),
        (["BAG", "--memory", "much"], "must be a size like 2GB"),
        (["BAG", "--seconds", "3"], "apply to live topics"),
        (["nowhere"], "nowhere does not exist"),
        (["BAG", "--camera", "rear"], "Unknown camera rear. Available: one without a name"),
        (
            ["BAG", "--remap", "image:=/x"],
            "no topic /x to use as image. The bag has /image",
        ),
        (["BAG", "--only", "points"], "--only: the bag has no topic for points"),
        (["--connect", "localhost:1"], "No viewer at localhost:1"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bag = _write(tmp_path / "bag", {"image": "/image"}, frames=1)
    given = [str(bag) if argument == "BAG" else argument for argument in arguments]
    if "--connect" not in given:
        given += ["--save", str(tmp_path / "out.rrd")]
    assert main(given) in (1, 2)
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_a_bag_without_topics_of_the_node_is_refused_with_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = _write(tmp_path / "bag", {"image": "/cam/left", "camera_info": "/camera_info"})
    assert main([str(bag), "--save", str(tmp_path / "out.rrd")]) == 1
    error = capsys.readouterr().err
    assert "/cam/left (sensor_msgs/msg/Image)" in error
    assert "image:=/camera/image_raw" in error


def test_without_rerun_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main(["--save", "out.rrd"]) == 2
    assert "pip install rerun-sdk" in capsys.readouterr().err


def test_without_a_display_the_other_ways_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert main([str(_write(tmp_path / "bag", {"image": "/image"}, frames=1))]) == 1
    assert "--web (browser), --save FILE.rrd" in capsys.readouterr().err


@pytest.fixture
def domain() -> Iterator[Domain]:
    with ros_domain() as found:
        yield found


def _publish_for_a_while(domain: Domain, process: Process) -> None:
    """All of a node's topics, five frames a second, until the viewer has ended."""
    node = domain.node
    publishers = {
        name: node.create_publisher(type(message), name, RELIABLE)
        for name, message in _messages(0).items()
        if name != "semantic/label_info"
    }
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_publisher(String, "semantic/label_info", latched).publish(
        _messages(0)["semantic/label_info"]
    )
    diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", RELIABLE)
    values = {"output rate (Hz)": "4.5", "latency from receipt p50 (ms)": "12.5"}
    status = DiagnosticStatus(
        name="dpt: image", values=[KeyValue(key=k, value=v) for k, v in values.items()]
    )
    number = 0
    while process.running:
        for name, message in _messages(number).items():
            if name in publishers:
                publishers[name].publish(message)
        diagnostics.publish(DiagnosticArray(status=[status]))
        number += 1
        domain.spin_for(0.2)


def test_live_topics_become_a_recording_with_the_nodes_own_rate_and_latency(
    domain: Domain, tmp_path: Path
) -> None:
    save = ["--save", str(tmp_path / "out.rrd"), "--seconds", "3"]
    process = domain.start("-m", "dpt_ros.apps.view", *save)
    _publish_for_a_while(domain, process)
    assert process.wait() == 0, process.output
    recording = Recording(tmp_path / "out.rrd")
    for entity, component in (
        ("world/camera/image", "Image:buffer"),
        ("camera/depth", "DepthImage:buffer"),
        ("camera/labels", "SegmentationImage:buffer"),
        ("world/path/camera", "LineStrips3D:strips"),
    ):
        stamps = set(recording.rows(entity, component))
        assert len(stamps) >= 3, (entity, process.output)
        assert all((stamp - START) % STEP == 0 for stamp in stamps)
    assert "AnnotationContext:context" in str(recording._rows["camera/labels"])
    assert recording.plotted("plots/camera/rate/node")[-1] == 4.5
    assert recording.plotted("plots/camera/latency/in_the_node__p50")[-1] == 12.5


def test_silence_is_answered_with_the_topics_waited_for(domain: Domain, tmp_path: Path) -> None:
    process = domain.start(
        *("-m", "dpt_ros.apps.view", "--save", str(tmp_path / "out.rrd")),
        *("--only", "depth,path", "--namespace", "/robot", "--camera", "front"),
        *("--ros-args", "-r", "front/depth/image:=/elsewhere"),
    )
    process.wait_for("Waiting: no publisher on")
    assert "/elsewhere" in process.output
    assert "/robot/front/depth/camera_info" in process.output
    assert "/robot/front/image" not in process.output  # --only
    code, _ = process.end()
    assert code == 0, process.output


def test_the_world_has_its_own_colours_although_ade20k_knows_its_names_too() -> None:
    from dpt_ros.apps.view.scene import class_colors

    world = dict(enumerate(class_names("labels_world.json"), start=1))
    assert np.array_equal(class_colors(world)[1:11], palette("labels_world.json")[1:11])
    ade = dict(enumerate(class_names("labels_ade20k.json"), start=1))
    assert np.array_equal(class_colors(ade)[1:151], palette("labels_ade20k.json")[1:151])
    some = {k: world[k] for k in (7, 9, 5)}  # box, door, grass: all green in ADE20K
    assert len({tuple(class_colors(some)[k]) for k in some}) == 3
    assert np.array_equal(class_colors(some)[7], palette("labels_world.json")[7])


def test_depth_has_the_colours_of_the_node_and_every_picture_has_a_legend(tmp_path: Path) -> None:
    bag = _write(tmp_path / "bag", ALL, frames=1)
    assert main([str(bag), "--save", str(tmp_path / "out.rrd"), "--range", "7"]) == 0
    recording = Recording(tmp_path / "out.rrd")
    (file,) = recording.rows("camera/depth/color", "EncodedImage:blob").values()
    shown = cv2.imdecode(np.array(file[0], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    expected = depth_to_color(_depth(0), 7.0)
    assert np.abs(shown.astype(int) - expected)[8:, 8:].max() < 12  # it is a JPEG
    for name in ("depth", "deviation", "labels"):
        legends = recording.rows(f"camera/{name}_legend", "Image:buffer")
        assert list(legends) == [None], name  # for all times
    picture = np.array(recording.rows("camera/depth_legend", "Image:buffer")[None][0], np.uint8)
    assert np.array_equal(picture.reshape(22, -1, 3), depth_legend(480, 7.0))
