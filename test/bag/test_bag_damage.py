# SPDX-License-Identifier: Apache-2.0
"""dpt_bag: what the fuzzer found (see ``test/fuzz/bag_run.py``), one by one."""

import sqlite3
from dataclasses import replace
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from helpers import bags
from helpers.bags import Interrupted, interrupt, job
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from dpt_ros.bag import reader as bag_reader
from dpt_ros.bag import types
from dpt_ros.bag import writer as bag_writer
from dpt_ros.bag.frames import Frames
from dpt_ros.bag.job import Job
from dpt_ros.bag.reader import BagError, BagReader, Message
from dpt_ros.bag.run import convert
from dpt_ros.bag.salvage import Channel
from dpt_ros.bag.sensors import StaticFrames
from dpt_ros.bag.topics import ChosenTopics, choose_cameras
from dpt_ros.engine.parameter_file import read_settings
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.messages.image import MessageError

SQLITE = StoragePlugin.SQLITE3


# The input


def test_one_row_with_a_huge_number_does_not_take_for_ever(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(4), SQLITE)
    (file,) = source.glob("*.db3")
    with sqlite3.connect(file) as database:
        database.execute("UPDATE messages SET id=? WHERE id=1", (2**63 - 1,))
        database.execute("UPDATE messages SET data='text' WHERE id=2")
    start = process_time()
    reader = BagReader(source)
    assert len(list(reader.messages(["/image", "/camera_info"]))) == 7
    assert process_time() - start < 5
    assert any("the data of a message are not bytes" in note for note in reader.problems)


@pytest.mark.parametrize("time", ["noon", -1, 1.5])
def test_a_message_with_an_impossible_time_is_left_out(tmp_path, time) -> None:
    source = bags.write(tmp_path / "in", bags.records(4), SQLITE)
    (file,) = source.glob("*.db3")
    with sqlite3.connect(file) as database:
        database.execute("UPDATE messages SET timestamp=? WHERE id=3", (time,))
    result = convert(job(source, tmp_path / "out", with_input=True))
    assert result.frames == 3
    assert "1 messages have no valid time of recording and are ignored." in result.problems


def test_a_message_that_unpacks_to_more_than_any_image_is_left_out(tmp_path, monkeypatch) -> None:
    source = bags.write(tmp_path / "in", bags.records(4), packed=CompressionMode.MESSAGE)
    monkeypatch.setattr(bag_reader, "MAX_MESSAGE", 1000)  # more than a camera_info has
    reader = BagReader(source)
    topics = [message.topic for message in reader.messages(["/image", "/camera_info"])]
    assert topics == ["/camera_info"] * 4
    assert "4 compressed messages are damaged or too large and are ignored." in reader.problems


def test_a_topic_without_a_name_is_left_out(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(2), SQLITE)
    (file,) = source.glob("*.db3")
    with sqlite3.connect(file) as database:
        database.execute("UPDATE topics SET name=x'ff' WHERE name='/odom'")
    (source / "metadata.yaml").unlink()
    reader = BagReader(source)
    assert set(reader.channels) == {"/image", "/camera_info"}
    assert f"{file.name}: the description of a topic is damaged." in reader.problems


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("message_count: 2", "message_count: .inf"),
        ("message_count: 2", "message_count: -2"),
        ("name: /image", 'name: "\\ud800"'),
        ("- in.mcap", "- .."),
        ("- in.mcap", "- " + "x" * 300 + ".mcap"),
        ("version: 9", "version: " + "[" * 2000),
    ],
)
def test_metadata_that_cannot_be_right_are_not_used(tmp_path, before, after) -> None:
    source = bags.write(tmp_path / "in", bags.records(2))
    text = (source / "metadata.yaml").read_text()
    assert before in text
    (source / "metadata.yaml").write_text(text.replace(before, after))
    reader = BagReader(source)
    assert len(list(reader.messages(["/image"]))) == 2
    assert reader.problems[0].startswith("metadata.yaml is damaged")


def test_a_record_that_claims_more_than_the_file_is_not_believed(tmp_path) -> None:
    file = tmp_path / "in.mcap"
    file.write_bytes(b"\x89MCAP0\r\n\3" + b"\xff" * 8 + b"few bytes")
    with pytest.raises(BagError, match="not even its topics"):
        BagReader(file)


def test_what_a_bag_says_does_not_get_into_the_log_as_it_is(tmp_path) -> None:
    def records():
        for time, topic, message in bags.records(1):
            yield time, topic + "\n\x1b[2Jall is well" * 99, message

    source = bags.write(tmp_path / "in", records())
    with pytest.raises(BagError, match="no such topic") as caught:
        choose_cameras(BagReader(source).channels, ChosenTopics(images=("/image",)), Settings())
    assert str(caught.value).isprintable()


def test_a_pose_that_is_none_is_left_out_of_the_static_frames() -> None:
    store = bags.TYPES.types
    transforms = []
    for child, q in (("wrong", (0.5, 0.5, 0.0, 0.0)), ("right", (0.0, 0.0, 0.0, 1.1))):
        known = TransformStamped(header=bags.header(0, "base"), child_frame_id=child)
        known.transform.translation.x = 1.0
        r = known.transform.rotation
        r.x, r.y, r.z, r.w = q if child == "right" else (value * 0.5 for value in q)
        data = serialize_message(known)
        transforms.append(bags.TYPES.deserialize_cdr(data, "geometry_msgs/msg/TransformStamped"))
    frames = StaticFrames()
    tree = store["tf2_msgs/msg/TFMessage"](transforms)
    with pytest.raises(MessageError, match="'wrong'"):
        frames.take(bytes(bags.TYPES.serialize_cdr(tree, "tf2_msgs/msg/TFMessage")))
    assert frames.pose("wrong", "base") is None
    np.testing.assert_allclose(frames.pose("base", "right")[:3, 3], (-1, 0, 0))


def test_a_time_far_ahead_does_not_keep_the_rest_of_a_bag_waiting() -> None:
    read = []

    def messages():
        for time in (2**62, *range(0, 10**12, 10**9)):
            read.append(time)
            yield Message("/other", time, b"")

    frames = Frames([], {}, lambda camera, calibrated: None, ["/other"], None, print)
    next(frames.items(messages()))
    assert len(read) < 10


@pytest.mark.parametrize(
    "definition", ["", "=" * 80 + "\nIDL: a/msg/B", "int32", "\0[\n==", "a" * 999]
)
def test_of_a_type_whose_definition_is_damaged_nobody_knows(definition) -> None:
    assert types.with_definition(Channel("/topic", "a/msg/B", definition=definition)) is None


# What an interrupted run left


def interrupted(tmp_path: Path) -> Job:
    """A job of which the first file is done."""
    source = bags.write(tmp_path / "in", bags.records(6))
    made = job(source, tmp_path / "out", file_frames=3)
    with pytest.raises(Interrupted):
        convert(made, progress=interrupt(5))
    return made


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_state_is_refused_and_can_be_overwritten(tmp_path, damage) -> None:
    made = interrupted(tmp_path)
    file = made.out / ".dpt_bag" / "state.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flipped": content, "cut": content[:99], "empty": b""}[damage])
    with pytest.raises(BagError, match="start again with --overwrite"):
        convert(made)
    assert convert(replace(made, overwrite=True)).frames == 6


def test_a_finished_file_that_is_gone_is_noticed(tmp_path) -> None:
    made = interrupted(tmp_path)
    (made.out / "out_0.mcap").unlink()
    with pytest.raises(BagError, match=r"The complete file out_0\.mcap is missing"):
        convert(made)


def test_a_run_does_not_go_on_with_other_topics(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(6))
    made = job(source, tmp_path / "out", file_frames=3, with_input=True)
    with pytest.raises(Interrupted):
        convert(made, progress=interrupt(5))
    text = (source / "metadata.yaml").read_text()
    (source / "metadata.yaml").write_text(text.replace("name: /odom", "name: /other"))
    with pytest.raises(BagError, match="input topics"):
        convert(made)


def test_an_output_that_fails_at_its_end_ends_the_run(tmp_path, monkeypatch) -> None:
    def full(path: Path, contents: bytes) -> None:
        raise OSError("No space left on device.")

    monkeypatch.setattr(bag_writer, "replace_file", full)
    source = bags.write(tmp_path / "in", bags.records(2))
    with pytest.raises(OSError, match="No space left"):
        convert(job(source, tmp_path / "out"))


def test_metadata_of_an_output_that_say_nothing_of_its_end_are_not_believed(tmp_path) -> None:
    source = bags.write(tmp_path / "in", bags.records(1))
    made = job(source, tmp_path / "out")
    convert(made)
    text = (made.out / "metadata.yaml").read_text()
    (made.out / "metadata.yaml").write_text(text.replace('"notes": ', '"n": '))
    with pytest.raises(BagError, match="is no bag of dpt_bag"):
        convert(made)


# The parameters


@pytest.mark.parametrize(
    "text", [b"\xff", b"/**: [", b"[" * 9999, b"/**:\n  x: 1", b"- /**", b"5"]
)
def test_a_file_that_is_none_of_parameters_is_refused_on_one_line(tmp_path, text) -> None:
    file = tmp_path / "dpt.yaml"
    file.write_bytes(text)
    with pytest.raises(ValueError, match="is no parameter file for the node dpt") as caught:
        read_settings(file, [])
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith(".")
