# SPDX-License-Identifier: Apache-2.0
"""ROS parameters and the files made from them: declared once, in Settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import yaml

pytest.importorskip("rclpy")

import rclpy
from helpers import reference
from helpers.places import ROOT
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter

from dpt_ros.data import class_names
from dpt_ros.engine.parameter_file import unknown_name
from dpt_ros.engine.settings import Settings, parameter_name
from dpt_ros.ros.parameters import Parameters, is_live


class Given:
    """A node with the parameters of Settings, started with the given overrides."""

    def __init__(self, context: Context, **overrides: Any) -> None:
        self.configured = False
        self.changes: list[Settings] = []
        self.node = Node(
            "dpt",
            context=context,
            parameter_overrides=[Parameter(name, value=v) for name, v in overrides.items()],
        )
        self.parameters = Parameters(self.node, self.changes.append, lambda: self.configured)

    def set(self, name: str, value: Any) -> str:
        """The reason for refusing a change, "" when it was accepted."""
        (result,) = self.node.set_parameters([Parameter(name, value=value)])
        return "" if result.successful else str(result.reason or "no reason")


@pytest.fixture
def context() -> Iterator[Context]:
    context = Context()
    rclpy.init(context=context)
    yield context
    rclpy.shutdown(context=context)


def test_every_setting_is_declared_with_its_default_and_description(context: Context) -> None:
    given = Given(context)
    for spec in fields(Settings):
        name = parameter_name(spec)
        value = given.node.get_parameter(name).value
        assert value == ([""] if spec.default == () else spec.default)
        description = given.node.describe_parameter(name)
        assert spec.metadata["text"] in description.description
        assert spec.metadata["when"] in description.description
        for choice in spec.metadata["choices"]:
            assert choice in description.additional_constraints
    assert given.parameters.settings == Settings()


def test_a_range_is_part_of_the_description(context: Context) -> None:
    given = Given(context)
    (limits,) = given.node.describe_parameter("input_width").integer_range
    assert (limits.from_value, limits.to_value) == (0, 4096)
    (bounds,) = given.node.describe_parameter("diagnostics_period").floating_point_range
    assert (bounds.from_value, bounds.to_value) == (0.1, 60.0)


def test_overrides_become_settings(context: Context) -> None:
    given = Given(context, device="cpu", cameras=["front", "rear"], max_range=5, autostart=False)
    assert given.parameters.settings == Settings(
        device="cpu", cameras=("front", "rear"), max_range=5.0, autostart=False
    )
    assert given.node.get_parameter("cameras").value == ["front", "rear"]
    assert given.node.get_parameter("max_range").value == 5.0


EYE = [0.1, 0.0, 0.6, -0.5, 0.5, -0.5, 0.5]


def test_a_named_camera_can_have_its_own_pose(context: Context) -> None:
    common = [0.0, 0.0, 0.5, -0.5, 0.5, -0.5, 0.5]
    given = Given(
        context, cameras=["front", "rear"], camera_in_base=common, **{"front.camera_in_base": EYE}
    )
    assert given.parameters.of_camera("front").camera_in_base == tuple(EYE)
    assert given.parameters.of_camera("rear").camera_in_base == tuple(common)
    assert given.parameters.settings.camera_in_base == tuple(common)
    assert given.parameters.of_camera("front").sensor_in_camera == ()
    description = given.node.describe_parameter("rear.sensor_in_camera")
    assert "Pose of the anchor sensor" in description.description
    assert given.set("rear.sensor_in_camera", EYE) == ""
    assert given.parameters.of_camera("rear").sensor_in_camera == tuple(EYE)
    assert given.set("front.camera_in_base", [""]) == ""
    assert given.parameters.of_camera("front").camera_in_base == tuple(common)
    given.configured = True
    assert "takes effect at configure" in given.set("front.camera_in_base", EYE)


def test_off_means_off_although_yaml_reads_it_as_false(context: Context) -> None:
    given = Given(context, rectify=False)
    assert given.parameters.settings.rectify == "off"
    assert given.node.get_parameter("rectify").value == "off"
    assert given.set("rectify", "auto") == ""
    assert given.set("rectify", False) == ""
    assert given.parameters.settings.rectify == "off"


def test_each_camera_can_have_its_own_field_of_view(context: Context) -> None:
    given = Given(context, cameras=["front", "rear"], **{"front.rectify_fov": 100})
    assert given.parameters.of_camera("front").rectify_fov == 100.0
    assert given.parameters.of_camera("rear").rectify_fov == 0.0
    assert given.set("rear.rectify_fov", 90) == ""
    assert given.parameters.of_camera("rear").rectify_fov == 90.0


def test_a_wrong_pose_of_a_camera_is_a_problem_with_its_name(context: Context) -> None:
    given = Given(context, cameras=["front"], **{"front.camera_in_base": [1.0]})
    (problem,) = given.parameters.problems.values()
    assert "front.camera_in_base is [1.0], but" in problem
    assert "must be 7 numbers" in given.set("front.camera_in_base", [2.0])
    assert given.set("front.camera_in_base", EYE) == ""
    assert given.parameters.problems == {}


def test_cameras_that_are_named_later_get_their_parameters_then(context: Context) -> None:
    given = Given(context, **{"left.camera_in_base": EYE})
    assert not given.node.has_parameter("left.camera_in_base")
    assert given.set("cameras", ["left", "right"]) == ""
    assert given.parameters.of_camera("left").camera_in_base == tuple(EYE)
    assert given.node.get_parameter("left.camera_in_base").value == EYE
    assert given.set("right.camera_in_base", EYE) == ""
    assert given.parameters.settings.camera_in_base == ()


def test_wrong_overrides_are_problems_until_they_are_set_right(context: Context) -> None:
    given = Given(context, device="gpu", threads=5000, depth_weights=7, cameras=["1st"])
    assert set(given.parameters.problems) == {"device", "threads", "depth_weights", "cameras"}
    assert "'gpu'" in given.parameters.problems["device"]
    assert given.parameters.settings == Settings()
    assert given.set("device", "cpu") == ""
    assert "device" not in given.parameters.problems


def test_an_unknown_name_is_told_with_the_nearest_known_one() -> None:
    assert (
        unknown_name("devise")
        == "Unknown parameter 'devise' (did you mean 'device'?); config/dpt.yaml lists them all."
    )
    assert unknown_name("quux") == "Unknown parameter 'quux'; config/dpt.yaml lists them all."


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("depth_encoding", "8UC1", "must be one of 32FC1, 16UC1"),
        ("color_range", 0.0, "must be at least 0.1"),
        ("color_range", float("nan"), "must be at least 0.1"),
        ("max_range", "far", "must be of type float"),
        ("max_range", True, "must be of type float"),
        ("input_width", -1, "out of range"),
        ("input_width", 3.5, "must be of type int"),
        ("device", "tpu", "must be auto, cpu, cuda or cuda:N"),
        ("cameras", ["a", "a"], "unique"),
        ("cameras", 3, "must be a list of strings"),
        ("device", None, "cannot be unset"),
    ],
)
def test_a_wrong_value_is_refused_with_the_reason(
    context: Context, name: str, value: Any, words: str
) -> None:
    given = Given(context)
    assert words in given.set(name, value)
    assert given.parameters.settings == Settings()
    assert given.changes == []


def test_a_live_parameter_changes_while_the_node_is_configured(context: Context) -> None:
    given = Given(context)
    given.configured = True
    assert given.set("max_range", 4) == ""
    assert [change.max_range for change in given.changes] == [4.0]
    assert given.node.get_parameter("max_range").value == 4.0


def test_the_others_change_only_while_it_is_unconfigured(context: Context) -> None:
    given = Given(context)
    given.configured = True
    assert not is_live("device")
    assert "takes effect at configure" in given.set("device", "cpu")
    assert given.set("device", "auto") == ""  # no change at all
    given.configured = False
    assert given.set("device", "cpu") == ""
    assert given.parameters.settings.device == "cpu"


def test_several_changes_at_once_are_taken_all_or_none(context: Context) -> None:
    given = Given(context)
    changes = [Parameter("max_range", value=4.0), Parameter("color_range", value=-1.0)]
    assert not given.node.set_parameters_atomically(changes).successful
    assert given.parameters.settings == Settings()


def test_the_parameter_file_is_made_from_the_settings() -> None:
    """Run scripts/reference when this fails."""
    text = (ROOT / "config" / "dpt.yaml").read_text(encoding="utf-8")
    assert text == reference.parameters_yaml()
    values = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert Settings.parse(values) == Settings()
    assert set(values) == {parameter_name(spec) for spec in fields(Settings)}


def test_ros_reads_the_parameter_file_as_the_defaults(context: Context) -> None:
    node = Node(
        "dpt",
        context=context,
        cli_args=["--ros-args", "--params-file", str(ROOT / "config" / "dpt.yaml")],
    )
    parameters = Parameters(node, lambda _: None, lambda: False)
    assert parameters.problems == {}
    assert parameters.settings == Settings()


def test_the_parameter_table_of_the_docs_is_made_from_the_settings() -> None:
    """Run scripts/reference when this fails."""
    text = (ROOT / "docs" / "topics.md").read_text(encoding="utf-8")
    assert text == reference.with_table(text)


@pytest.mark.parametrize("classes", ["ade20k", "world"])
def test_the_label_files_are_made_from_the_class_lists(classes: str) -> None:
    """Run scripts/reference when this fails."""
    text = (ROOT / "config" / f"labels_{classes}.yaml").read_text(encoding="utf-8")
    assert text == reference.labels_yaml(f"labels_{classes}.json")
    ids = yaml.safe_load(text)
    names = class_names(f"labels_{classes}.json")
    assert [ids[k] for k in range(1, len(names) + 1)] == list(names)
