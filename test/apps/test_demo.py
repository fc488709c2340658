# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it: a bag, a player, the node and a recorder, each where it belongs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from helpers.places import ROOT
from rclpy.serialization import deserialize_message
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CameraInfo, Image

FRAMES = 3 * 5


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that a short demo left, and what it said."""
    out = tmp_path_factory.mktemp("demo") / "out"
    out.mkdir()
    (out / "mine.txt").write_text("not the demo's")
    done = subprocess.run(
        [sys.executable, "-m", "dpt_ros.apps.demo", "--out", out, "--seconds", "1", "--rate", "5"],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=ROOT,
        env=os.environ | {"ROS_DOMAIN_ID": "117", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_the_demo_prints_rates_latency_and_scores(demo):
    said = demo[1]
    sent, arrived = re.search(r"frames in / out +(\d+) / (\d+)", said).groups()
    assert int(sent) == FRAMES
    assert 1 <= int(arrived) <= FRAMES
    assert re.search(r"latency p50 / p99, image to depth +\d+ / \d+ ms", said)
    abs_rel = float(re.search(r"AbsRel / delta1 +([\d.]+)", said)[1])
    accuracy = float(re.search(r"mIoU / pixel accuracy +[\d.]+ / ([\d.]+)", said)[1])
    assert abs_rel < 0.2
    assert accuracy > 0.8


def test_the_demo_leaves_a_contact_sheet_and_a_film(demo):
    sheet = cv2.imread(str(demo[0] / "contact_sheet.png"))
    assert sheet.shape[0] > 1000
    assert sheet.std() > 20
    film = cv2.VideoCapture(str(demo[0] / "demo.mp4"))
    assert film.read()[0]


def test_what_else_is_in_the_folder_stays(demo):
    assert (demo[0] / "mine.txt").read_text() == "not the demo's"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["missing.mcap"], 1, "missing"),
        ([__file__], 1, "is no bag: expected a folder with metadata.yaml"),
        (
            ["{camera}", "--topics", "front/image"],
            1,
            "has no topic front/image; its topics are /camera_",
        ),
        (["{camera}", "--wait", "0.1"], 1, "/image had no subscriber within 0.1 s; start the"),
        (["{camera}", "--rate", "0"], 2, "--rate is 0, but must be positive."),
    ],
)
def test_the_player_answers_a_mistake_with_a_sentence(demo, arguments, code, sentence):
    arguments = [argument.format(camera=demo[0] / "camera") for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "dpt_ros.apps.bag_player", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=os.environ | {"ROS_DOMAIN_ID": "118", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"},
    )
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_every_output_has_the_header_of_its_image_and_the_camera_s_geometry(demo):
    headers = {}
    for folder, wanted in (("camera", ["/image"]), ("predictions", None)):
        with AnyReader([demo[0] / folder]) as reader:
            connections = [c for c in reader.connections if not wanted or c.topic in wanted]
            for connection, stamp, data in reader.messages(connections):
                kind = CameraInfo if connection.msgtype.endswith("CameraInfo") else Image
                message = deserialize_message(bytes(data), kind)
                headers.setdefault(stamp, {})[connection.topic] = message
    whole = [found for found in headers.values() if len(found) == 4]
    assert whole
    for found in whole:
        image, depth = found["/image"], found["/depth/image"]
        info, labels = found["/depth/camera_info"], found["/semantic/labels"]
        assert image.header == depth.header == info.header == labels.header
        assert (depth.encoding, labels.encoding) == ("32FC1", "mono8")
        assert (depth.width, depth.height) == (info.width, info.height) == (320, 240)
        assert info.p[0] == pytest.approx(277.13, abs=0.01)
