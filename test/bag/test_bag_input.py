# SPDX-License-Identifier: Apache-2.0
"""dpt_bag: what belongs to a frame, damaged bags, and the command line."""

import shutil
import signal
import sqlite3
from pathlib import Path
from time import sleep

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from helpers import bags
from helpers.bags import arguments, expected, goes_on_to_the_same, job
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag2 import CompressionMode, StoragePlugin
from sensor_msgs.msg import Image
from std_msgs.msg import String

from dpt_ros.apps.bag import command as bag_command
from dpt_ros.apps.bag import main
from dpt_ros.bag.reader import BagError, BagReader, Message
from dpt_ros.bag.run import convert
from dpt_ros.bag.salvage import Channel
from dpt_ros.bag.sensors import SensorBuffer, StaticFrames
from dpt_ros.bag.topics import Camera, ChosenTopics, choose_cameras
from dpt_ros.bag.types import serialised
from dpt_ros.bag.writer import saved_frames
from dpt_ros.engine.output.point_cloud import POINT
from dpt_ros.engine.parameter_file import read_settings
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.messages.camera_info import camera_info_message
from dpt_ros.ros.messages.image import image_message, image_pixels
from dpt_ros.ros.messages.point_cloud import cloud_message

MCAP, SQLITE = StoragePlugin.MCAP, StoragePlugin.SQLITE3


# What belongs to a frame


def test_messages_are_serialised_as_the_middleware_does_but_for_padding() -> None:
    pixels = np.arange(12, dtype=np.float32).reshape(3, 4)
    for message in (
        image_message(pixels, "32FC1", bags.header(7)),
        camera_info_message(bags.CAMERA, bags.header(7)),
        cloud_message(np.zeros((2, 3), POINT), bags.header(7)),
        String(data="{}"),
    ):
        data = bytes(serialised(message))
        assert len(data) == len(serialize_message(message))
        again = deserialize_message(data, type(message))
        assert again == deserialize_message(serialize_message(message), type(message))


def test_odometry_is_that_of_the_stamp_whenever_it_was_recorded(tmp_path) -> None:
    """Two bags with the same stamps, one with odometry a fifth of a second late."""
    found = []
    for name, late in (("early", 0), ("late", bags.STEP * 2)):
        shifted = [
            (time + late if topic == "/odom" else time, topic, message)
            for time, topic, message in bags.records(8)
        ]
        source = bags.write(tmp_path / name, iter(sorted(shifted, key=lambda one: one[0])))
        convert(job(source, tmp_path / f"of_{name}"))
        depths = bags.messages(tmp_path / f"of_{name}", "/depth/image", Image)
        found.append([image_pixels(message).tobytes() for _, message in depths])
    assert found[0] == found[1]
    convert(job(source, tmp_path / "without", "pose_source:=none"))
    depths = bags.messages(tmp_path / "without", "/depth/image", Image)
    assert [image_pixels(message).tobytes() for _, message in depths] != found[0]


def test_anchors_are_those_nearest_in_time_and_change_the_depth(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(8, scans=True))
    convert(job(source, tmp_path / "with"))
    convert(job(source, tmp_path / "without", "scale.source:=network"))
    depths = [
        image_pixels(bags.messages(tmp_path / name, "/depth/image", Image)[-1][1])
        for name in ("with", "without")
    ]
    row = bags.HEIGHT // 2
    left = 1.5 * 2.07
    error = [np.abs(depth[row, 5:25] / left - 1).mean() for depth in depths]
    assert error[0] < 0.5 * error[1]


def test_a_sensor_that_tf_static_knows_needs_no_parameter(tmp_path) -> None:
    settings, _ = read_settings(None, ["input_width:=32"])
    said: list[str] = []
    camera = Camera("", "/image", False, "/camera_info", anchors={"anchors/scan": "/scan"})
    frames = StaticFrames()
    sensors = SensorBuffer(camera, settings, frames, said.append)
    for time, topic, message in bags.records(1, scans=True):
        topic = "/scan" if "scan" in topic else topic
        message = serialize_message(message)
        sensors.add(Message(topic, time, message))
    sensors.select(time, bags.FIRST)
    image = message  # the last one
    assert sensors.builder.build(image, time).anchors is None
    assert "/tf_static has no transform from 'laser' to 'camera'" in said[0]

    mounted = [("base", "laser", (0.5, -0.5, 0.5, 0.5)), ("base", "camera", (0.0, 0.0, 0.0, 1.0))]
    store = bags.TYPES.types
    transforms = []
    for parent, child, q in mounted:
        known = TransformStamped(header=bags.header(0, parent), child_frame_id=child)
        r = known.transform.rotation
        r.x, r.y, r.z, r.w = q
        data = serialize_message(known)
        transforms.append(bags.TYPES.deserialize_cdr(data, "geometry_msgs/msg/TransformStamped"))
    tree = store["tf2_msgs/msg/TFMessage"](transforms)
    frames.take(bytes(bags.TYPES.serialize_cdr(tree, "tf2_msgs/msg/TFMessage")))
    assert len(sensors.builder.build(image, time).anchors) > 10


# Damage


def file_and_size(path: Path) -> tuple[Path, int]:
    (file,) = path.glob("*.mcap")
    return file, file.stat().st_size


def test_of_a_truncated_mcap_the_rest_is_read_and_counted(tmp_path, capsys) -> None:
    source = bags.write(tmp_path / "in", bags.records(100))
    file, size = file_and_size(source)
    with file.open("r+b") as handle:
        handle.truncate(size // 2)
    args = [str(source), str(tmp_path / "out"), *arguments("smoothing.strength:=0.0")]
    assert main(args) == 3
    output = capsys.readouterr()
    frames = bags.stamps(tmp_path / "out", "/depth/image", Image)
    assert 35 <= len(frames) <= 51
    assert frames == expected(len(frames))
    assert "ends early" in output.err
    assert f"{100 - len(frames)} of 100 messages of /image cannot be read" in output.err
    assert "damaged" in output.out


@pytest.mark.parametrize("packed", [None, CompressionMode.STORAGE])
def test_of_an_mcap_with_a_broken_chunk_the_others_are_read(tmp_path, packed) -> None:
    source = bags.write(tmp_path / "in", bags.records(400), packed=packed)
    file, size = file_and_size(source)
    with file.open("r+b") as handle:
        handle.seek(size // 2)
        handle.write(bytes(4000) if packed else b"\xff" * 40_000)
    whole = list(bags.records(400))
    reader = BagReader(source)
    found = list(reader.messages(["/image", "/odom"]))
    times = [message.time for message in found if message.topic == "/odom"]
    known = [time for time, topic, _ in whole if topic == "/odom"]
    assert times == [time for time in known if time in set(times)]
    assert 200 < len(times) < 400
    assert any("is damaged" in note for note in reader.problems)
    assert any(f"{400 - len(times)} of 400 messages of /odom" in note for note in reader.problems)


def test_of_a_broken_database_the_good_pages_are_read(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(60), SQLITE)
    (file,) = source.glob("*.db3")
    with sqlite3.connect(file) as database:
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    with file.open("r+b") as handle:
        handle.truncate(pages // 2 * size)
    reader = BagReader(source)
    found = [m.time for m in reader.messages(["/image"])]
    assert 15 < len(found) < 60
    assert found == sorted(found)
    assert any("damaged database" in note for note in reader.problems)
    assert f"{60 - len(found)} of 60 messages of /image cannot be read." in reader.problems


def test_a_bag_without_metadata_is_read_and_said_to_be(tmp_path, capsys) -> None:
    source = bags.write(tmp_path / "in", bags.records(3))
    (source / "metadata.yaml").unlink()
    assert main([str(source), str(tmp_path / "out"), *arguments()]) == 3
    assert "metadata.yaml is missing" in capsys.readouterr().err
    assert bags.stamps(tmp_path / "out", "/depth/image", Image) == expected(3)


def test_a_file_that_is_missing_is_named(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(9))
    convert(job(source, tmp_path / "split", file_frames=3, with_input=True))
    (tmp_path / "split" / "split_1.mcap").unlink()
    reader = BagReader(tmp_path / "split")
    assert len(list(reader.messages(["/image"]))) == 6
    assert "split_1.mcap, listed in metadata.yaml, is missing." in reader.problems
    assert "3 of 9 messages of /image cannot be read." in reader.problems


def test_an_image_that_cannot_be_read_is_left_out_and_counted(tmp_path, capsys) -> None:
    def records():
        for k, (time, topic, message) in enumerate(bags.records(6)):
            if topic == "/image" and k in (5, 8):
                message.encoding = "no_such_encoding"
            yield time, topic, message

    source = bags.write(tmp_path / "in", records())
    assert main([str(source), str(tmp_path / "out"), *arguments()]) == 3
    output = capsys.readouterr()
    frames = bags.stamps(tmp_path / "out", "/depth/image", Image)
    assert frames == [stamp for k, stamp in enumerate(expected(6)) if k not in (1, 2)]
    assert "2 images: The image has the encoding 'no_such_encoding'" in output.err
    assert "2 images left out" in output.out


def test_damage_does_not_keep_an_interrupted_run_from_going_on(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(60))
    file, size = file_and_size(source)
    with file.open("r+b") as handle:
        handle.truncate(size // 2)
    made = job(source, tmp_path / "a" / "out", "smoothing.strength:=0.0", file_frames=8)
    assert convert(made).outcome == "damaged"
    goes_on_to_the_same(made, tmp_path / "b" / "out", 20)


def test_a_bag_of_which_nothing_is_left_is_an_error(tmp_path, capsys) -> None:
    source = tmp_path / "in.mcap"
    source.write_bytes(b"no bag at all")
    assert main([str(source), str(tmp_path / "out"), *arguments()]) == 1
    assert "Nothing of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# The topics


def test_each_camera_finds_what_is_beside_it() -> None:
    kinds = {
        "/front/image_raw": "sensor_msgs/msg/Image",
        "/front/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
        "/front/camera_info": "sensor_msgs/msg/CameraInfo",
        "/rear/image_raw": "sensor_msgs/msg/Image",
        "/robot/odometry": "nav_msgs/msg/Odometry",
        "/rear/anchors/depth": "sensor_msgs/msg/Image",
        "/rear/anchors/camera_info": "sensor_msgs/msg/CameraInfo",
    }
    channels = {topic: Channel(topic, kind) for topic, kind in kinds.items()}
    chosen = ChosenTopics(images=("/front/image_raw", "/rear/image_raw"))
    cameras, warnings = choose_cameras(channels, chosen, Settings())
    front, rear = cameras
    assert (front.name, front.info, front.odom) == (
        "front",
        "/front/camera_info",
        "/robot/odometry",
    )
    assert (rear.name, rear.info) == ("rear", "")
    assert dict(rear.anchors) == {
        "anchors/depth": "/rear/anchors/depth",
        "anchors/camera_info": "/rear/anchors/camera_info",
    }
    assert len(warnings) == 1
    assert "No camera_info found for /rear/image_raw" in warnings[0]
    with pytest.raises(BagError, match="choose with --image: /front/image_raw, /rear/image_raw"):
        choose_cameras(channels, ChosenTopics(), Settings())
    del channels["/rear/image_raw"]
    for transport, end in (("raw", ""), ("compressed", "/compressed")):
        (camera,), _ = choose_cameras(
            channels, ChosenTopics(), Settings(image_transport=transport)
        )
        assert camera.image == f"/front/image_raw{end}"
        assert camera.compressed == bool(end)
    with pytest.raises(BagError, match="--odom /tf: the bag has no such topic"):
        choose_cameras(channels, ChosenTopics(odom="/tf"), Settings())


# The command line


def test_several_topics_of_images_are_named_to_choose_from(tmp_path, capsys) -> None:
    source = bags.write(tmp_path / "in", bags.records(2, ("front", "rear")))
    assert main([str(source), str(tmp_path / "out"), *arguments()]) == 1
    sentence = "choose with --image: /front/image, /rear/image."
    assert sentence in capsys.readouterr().err


def test_depth_and_label_images_are_not_taken_for_a_camera(tmp_path) -> None:
    def records():
        for time, topic, message in bags.records(2, ("front",)):
            yield time, topic, message
            if topic.endswith("image"):
                yield time, "/truth/depth", message
                yield time, "/front/semantic/labels", message

    source = bags.write(tmp_path / "in", records())
    assert convert(job(source, tmp_path / "out")).frames == 2


def test_many_bags_come_out_in_a_folder_with_a_table(tmp_path, capsys) -> None:
    (tmp_path / "many").mkdir()
    bags.write(tmp_path / "many" / "one", bags.records(2))
    bags.write(tmp_path / "many" / "two", bags.records(3))
    (file,) = (tmp_path / "many" / "two").glob("*.mcap")
    shutil.copy(file, tmp_path / "three.mcap")
    (tmp_path / "many" / "notes.txt").write_text("no bag")
    args = [str(tmp_path / "many"), str(tmp_path / "th*.mcap"), "--out-dir", str(tmp_path / "out")]
    assert main([*args, *arguments()]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[1], row[-1]) for row in rows[1:]] == [
        ("one", "2", "done"),
        ("two", "3", "done"),
        ("three.mcap", "3", "done"),
    ]
    assert bags.stamps(tmp_path / "out" / "three", "/depth/image", Image) == expected(3)
    assert main([*args, *arguments()]) == 0
    assert capsys.readouterr().out.count("done before") == 3


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["-p", "smothing.strength:=1"],
            "dpt_bag: Unknown parameter 'smothing.strength' (did you",
        ),
        (["-p", "smoothing.strength:=2.0"], "smoothing.strength is 2.0, but must be between"),
        (["-p", "input_width"], "expected NAME:=VALUE"),
        (["--params", "/no/such/file"], "/no/such/file does not exist"),
        (
            ["--outputs", "depth/imag"],
            "--outputs: unknown output 'depth/imag'. Available: depth/image",
        ),
        (["--cpus", "2"], "need --ray"),
        (["more", "bags"], "several bags and --out-dir"),
    ],
)
def test_a_mistake_in_the_arguments_is_answered_with_a_sentence(
    tmp_path, capsys, more, sentence
) -> None:
    source = bags.write(tmp_path / "in", bags.records(1))
    assert main([str(source), str(tmp_path / "out"), *more]) == 2
    assert sentence in capsys.readouterr().err


def test_an_interruption_names_the_frame_that_the_same_command_resumes_after(
    tmp_path, capsys, monkeypatch
) -> None:
    source = bags.write(tmp_path / "in", bags.records(8))
    words = [str(source), str(tmp_path / "out"), "--file-frames", "2", *arguments()]
    results = []

    def stopped(job, say, show):
        def ctrl_c(done: int, total: int | None) -> None:
            if done == 5:
                signal.raise_signal(signal.SIGINT)
                sleep(1)  # until the main thread has noticed

        results.append(convert(job, say, ctrl_c))
        return results[-1]

    monkeypatch.setattr(bag_command, "convert", stopped)
    assert main(words) == 130
    said = capsys.readouterr().err
    assert f"The same command resumes {tmp_path / 'out'} after frame 4." in said
    monkeypatch.setattr(bag_command, "convert", convert)
    assert main(words) == 0
    assert results == []
    assert "frames" in capsys.readouterr().out
    assert saved_frames(tmp_path / "out") == 0  # nothing is left to resume


def test_a_file_for_other_nodes_is_no_parameter_file(tmp_path) -> None:
    file = tmp_path / "dpt.yaml"
    file.write_text("other:\n  ros__parameters:\n    input_width: 64\n")
    with pytest.raises(ValueError, match="it is for other, not for dpt"):
        read_settings(file, [])


def test_the_nodes_parameter_file_is_read(tmp_path) -> None:
    file = tmp_path / "dpt.yaml"
    file.write_text(
        "/**:\n  ros__parameters:\n    use_sim_time: true\n    cameras: [front]\n"
        "    smoothing:\n      strength: 0.25\n    front:\n"
        f"      sensor_in_camera: {bags.LASER}\n"
        "dpt:\n  ros__parameters:\n    input_width: 64\n"
    )
    settings, own = read_settings(file, ["input_height:=32"])
    assert (settings.smoothing_strength, settings.cameras) == (0.25, ("front",))
    assert (settings.input_width, settings.input_height) == (64, 32)
    assert own == {"front": {"sensor_in_camera": (0.0, 0.0, 0.0, 0.5, -0.5, 0.5, 0.5)}}
