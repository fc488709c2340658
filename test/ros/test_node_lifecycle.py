# SPDX-License-Identifier: Apache-2.0
"""The node's lifecycle as processes: configure failures, every order of transitions, every end."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time
from helpers.ros_processes import ros_domain, wait_until
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from dpt_ros.ros.messages.image import image_message


def test_configure_fails_with_a_sentence_until_the_parameters_are_right(tmp_path: Path) -> None:
    with ros_domain() as domain:
        missing = tmp_path / "missing.pt"
        dpt = domain.start_dpt(depth_weights=missing, devise="cpu")
        dpt.wait_for("The node stays unconfigured")
        assert "Cannot configure: dpt_hybrid_embedded cannot be loaded (depth" in dpt.output
        assert str(missing) in dpt.output
        assert "'devise' (did you mean 'device'?); config/dpt.yaml lists" in dpt.output
        assert "It is ignored." in dpt.output
        assert domain.state() == "unconfigured"
        status = domain.diagnostics("dpt: networks")
        assert status["level"] == "2"
        assert str(missing) in status["message"]

        assert domain.set_parameter("depth_weights", "random") == ""
        assert domain.set_parameter("device", "cuda:7") == ""
        assert not domain.change("configure")
        assert domain.state() == "unconfigured"
        dpt.wait_for("Cannot configure: device is cuda:7, but")

        assert domain.set_parameter("device", "cpu") == ""
        assert domain.change("configure")
        assert domain.state() == "inactive"
        assert "Traceback" not in dpt.output
        assert dpt.end()[0] == 0


def test_a_wrong_parameter_at_start_is_a_sentence_and_a_failed_configure() -> None:
    with ros_domain() as domain:
        qos = {
            "/image.subscription.reliability": "sometimes",
            "/image.subscription.depth": -3,
            "/odom.subscription.history": "auto",
            "/depth/image.publisher.depth": "many",
        }
        qos = {f"qos_overrides.{name}": value for name, value in qos.items()}
        dpt = domain.start_dpt(precision="fp8", max_range=-3, **qos)
        dpt.wait_for("The node stays unconfigured")
        assert "precision is 'fp8', but must be one of auto, fp32, fp16, bf16." in dpt.output
        assert "max_range is -3.0, but must be at least 0." in dpt.output
        image = "qos_overrides./image.subscription"
        assert f"{image}.reliability is 'sometimes', but must be one of auto, rel" in dpt.output
        assert f"{image}.depth is -3, but must be an integer of at least 0." in dpt.output
        assert ".history is 'auto', but must be one of system_default, keep_last, " in dpt.output
        assert ".depth is 'many', but must be an integer" in dpt.output
        assert "Traceback" not in dpt.output


def test_a_missing_parameter_file_is_a_sentence_and_exit_code_2() -> None:
    with ros_domain() as domain:
        dpt = domain.start_dpt("--params-file", "missing.yaml")
        assert dpt.wait() == 2
        assert "missing.yaml" in dpt.output
        assert "Error opening YAML file" in dpt.output
        assert "Traceback" not in dpt.output


def test_transitions_in_every_order_and_frames_flow_only_while_active() -> None:
    with ros_domain() as domain:
        used, unused = (f"qos_overrides./{name}.subscription.depth" for name in ("odom", "odo"))
        dpt = domain.start_dpt(autostart=False, **{used: 5, unused: 5})
        depths = domain.listen(Image, "depth/image")
        picture = np.zeros((64, 96, 3), np.uint8)
        camera = domain.node.create_publisher(Image, "image", 1)

        def frames_come(seconds: float) -> bool:
            depths.clear()
            deadline = time.monotonic() + seconds
            while not depths and time.monotonic() < deadline:
                camera.publish(image_message(picture, "rgb8", Header()))
                domain.spin_for(0.1)
            return bool(depths)

        assert domain.state() == "unconfigured"
        assert not domain.change("activate")
        for _ in range(2):
            assert domain.change("configure")
            assert not frames_come(0.5)
            for _ in range(2):
                assert domain.change("activate")
                assert frames_come(20)
                assert domain.change("deactivate")
            assert domain.state() == "inactive"
            assert domain.change("cleanup")
            assert domain.state() == "unconfigured"
        assert domain.change("configure")
        assert domain.change("activate")
        assert domain.change("shutdown")
        assert domain.state() == "finalized"
        assert dpt.output.count("is not used: with these settings") == 3  # per configure
        assert f"{unused} is not used" in dpt.output
        assert "Traceback" not in dpt.output
        code, seconds = dpt.end()
        assert (code, seconds < 2.0) == (0, True)


def test_a_signal_ends_the_node_within_two_seconds_in_every_state() -> None:
    with ros_domain() as domain:
        unconfigured = domain.start_dpt(autostart=False)
        assert domain.state() == "unconfigured"
        ends = [unconfigured.end(signal.SIGTERM)]

        inactive = domain.start_dpt(autostart=False)
        assert domain.change("configure")
        ends.append(inactive.end(signal.SIGINT))

        active = domain.start_dpt()
        camera = domain.publisher(Image, "image")
        depths = domain.listen(Image, "depth/image")
        picture = np.zeros((480, 640, 3), np.uint8)
        while len(depths) < 2:  # the third frame is on its way when the signal comes
            camera.publish(image_message(picture, "rgb8", Header()))
            domain.spin_for(0.05)
        ends.append(active.end(signal.SIGTERM))

        for process, (code, seconds) in zip((unconfigured, inactive, active), ends, strict=True):
            assert "Traceback" not in process.output, process.output
            assert code == 0
            assert seconds < 2.0


def test_a_signal_breaks_into_loading_the_networks() -> None:
    with ros_domain() as domain:
        dpt = domain.start_dpt(depth_network="dpt_large_midas", label_network="none")
        # The log is silent while a large network is made; that the node is there is the sign.
        wait_until(lambda: "dpt" in domain.node.get_node_names())
        assert "dpt" in domain.node.get_node_names()
        code, seconds = dpt.end()
        assert "Traceback" not in dpt.output, dpt.output
        assert (code, seconds < 2.0) == (0, True)


LOSES_ITS_DEVICE = """
import sys
from dpt_ros.engine.faults import DeviceLostError
from dpt_ros.engine.runner.host import HostRunner
from dpt_ros.ros.dpt_node import main

start = HostRunner.start

def start_or_lose(runner, frames, outputs, settings):
    if frames[0].stamp_ns:
        raise DeviceLostError("cuda:0 is lost (unspecified launch failure)")
    return start(runner, frames, outputs, settings)

HostRunner.start = start_or_lose
sys.exit(main(sys.argv[1:]))
"""


def test_a_node_that_loses_its_device_goes_back_to_unconfigured_and_says_why() -> None:
    with ros_domain() as domain:
        dpt = domain.start_dpt(command=("-c", LOSES_ITS_DEVICE))
        camera = domain.publisher(Image, "image")
        depths = domain.listen(Image, "depth/image")
        picture = np.zeros((64, 96, 3), np.uint8)
        while not depths:
            camera.publish(image_message(picture, "rgb8", Header()))
            domain.spin_for(0.1)
        camera.publish(image_message(picture, "rgb8", Header(stamp=Time(sec=1))))
        domain.wait_for_state("unconfigured")
        status = domain.diagnostics("dpt: networks")
        assert status["level"] == "2"
        assert "cuda:0 is lost (unspecified launch failure)" in status["message"]
        assert "Traceback" not in dpt.output
        assert domain.change("configure")
        assert domain.change("activate")
        assert dpt.end()[0] == 0
