# SPDX-License-Identifier: Apache-2.0
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpt_ros.engine.settings import Settings, check, parameter_name

ATTRIBUTES = {parameter_name(field): field.name for field in fields(Settings)}
NAMES = list(ATTRIBUTES)
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.one_of(st.text(max_size=4), st.integers()), max_size=3),
)


def test_the_defaults_pass_their_own_checks():
    defaults = Settings()
    values = {name: getattr(defaults, attribute) for name, attribute in ATTRIBUTES.items()}
    assert Settings.parse(values) == defaults


def test_a_parameter_of_a_group_is_named_with_a_dot():
    assert ATTRIBUTES["smoothing.strength"] == "smoothing_strength"
    assert Settings.parse({"smoothing.strength": 0.25}).smoothing_strength == 0.25
    given = {"openvino.device": "NPU", "onnxruntime.providers": "cuda,cpu"}
    assert Settings.parse(given).onnxruntime_providers == "cuda,cpu"


def test_every_parameter_says_what_it_does_and_when_to_change_it():
    for field in fields(Settings):
        assert field.metadata["text"].endswith("."), field.name
        assert field.metadata["when"].endswith("."), field.name


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("precision", "int4", "precision is 'int4', but must be one of auto, fp32, fp16, bf16."),
        ("max_age", -1.0, "max_age is -1.0, but must be at least 0."),
        ("diagnostics_period", 0.0, "must be between 0.1 and 60."),
        ("max_range", float("nan"), "max_range is nan, but must be at least 0."),
        ("threads", True, "threads is True, but must be of type int."),
        ("device", "gpu", "device is 'gpu', but must be auto, cpu, cuda or cuda:N."),
        ("openvino.device", "gpu", "must be one of CPU, GPU, NPU, AUTO."),
        ("onnxruntime.providers", "cuda,rocm", "must be auto, or of tensorrt, cuda, cpu"),
        ("cameras", ["a", "a"], "each name must be unique."),
        ("cameras", ["front/left"], "letters, digits and underscores"),
        ("cameras", "front", "must be a list of strings."),
        ("camera_in_base", [0.0, 1.0], "must be 7 numbers, x y z qx qy qz qw"),
        ("camera_in_base", [0.0] * 7, "must be a unit quaternion"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(name, value, sentence):
    with pytest.raises(ValueError) as refusal:
        check(name, value)
    assert sentence in str(refusal.value)


def test_all_problems_of_a_file_are_named_at_once():
    with pytest.raises(ValueError) as refusal:
        Settings.parse({"max_rnage": 3.0, "device": "tpu"})
    assert "'max_rnage' is not a parameter" in str(refusal.value)
    assert "device is 'tpu'" in str(refusal.value)


def test_a_whole_number_is_a_valid_number_of_seconds():
    assert Settings.parse({"max_age": 2}).max_age == 2.0


@given(st.sampled_from(NAMES), ANYTHING)
def test_any_value_is_either_taken_or_refused_with_a_sentence(name, value):
    try:
        taken = check(name, value)
    except ValueError as refusal:
        assert name in str(refusal)
        assert str(refusal).endswith(".")
    else:
        assert type(taken) in (str, int, float, bool, tuple)
