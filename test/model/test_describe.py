# SPDX-License-Identifier: Apache-2.0
"""The description of a network in its file: it comes back whole, and wrong ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dpt_ros.model.describe import DescriptionError, describe, described_spec, spec_of
from dpt_ros.model.zoo import EMBEDDED_NAME, ZOO

PATH = Path("mine.safetensors")


def refusal(part: str, key: str, value: Any) -> str:
    """What is said of the embedded network's description with one value changed."""
    metadata = describe(ZOO[EMBEDDED_NAME])
    content = json.loads(metadata["network"])
    inside = {"network": content, "geometry": content["geometry"]}
    (inside.get(part) or content["geometry"]["resnet"])[key] = value
    with pytest.raises(DescriptionError) as refused:
        spec_of(metadata | {"network": json.dumps(content)}, PATH)
    return str(refused.value)


@pytest.mark.parametrize("name", ZOO)
def test_every_network_comes_back_from_its_description(name: str) -> None:
    spec = spec_of(describe(ZOO[name]), PATH)
    # The classes are read from the file itself, if it has labels.
    assert replace(spec, class_names=ZOO[name].class_names) == ZOO[name]


@pytest.mark.parametrize(
    ("part", "key", "value", "reason"),
    [
        ("network", "colour", 1, "it has colour, which are no fields of a network"),
        ("network", "tasks", ["smell"], "its tasks are ('smell',)"),
        ("network", "net_width", 0, "net_width is 0"),
        ("network", "multiple_of", "32", "multiple_of is '32'"),
        ("network", "readout", "guess", "readout is 'guess'"),
        ("network", "weight_std", "mine", "weight_std is 'mine'"),
        ("network", "invert", 1, "invert is 1"),
        ("network", "batch_norm", "yes", "batch_norm is 'yes'"),
        ("network", "scale", "large", "could not convert string to float: 'large'"),
        ("network", "num_classes", 2.5, "num_classes is 2.5"),
        ("geometry", "width", 10**6, "width is 1000000"),
        ("geometry", "block_taps", [1, 99], "its sizes do not fit together"),
        ("resnet", "bottle_ratio", 1.5, "bottle_ratio is 1.5"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(
    part: str, key: str, value: Any, reason: str
) -> None:
    said = refusal(part, key, value)
    assert said.startswith("mine.safetensors describes its network wrongly: ")
    assert reason in said


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda classes: classes.pop(), "it lists 9 classes, but its head has 10"),
        (lambda classes: classes[0].update(name=3), "a class is {'name': 3"),
        (lambda classes: classes[0].update(color=[1, 2]), "a class is {'name': 'wall'"),
        (lambda classes: classes[0].update(color=[1, 2, 256]), "the colour of wall is"),
    ],
)
def test_wrong_classes_are_refused_with_their_names(change: Any, reason: str) -> None:
    metadata = describe(ZOO[EMBEDDED_NAME])
    classes = json.loads(metadata["classes"])
    change(classes)
    with pytest.raises(DescriptionError) as refused:
        spec_of(metadata | {"classes": json.dumps(classes)}, PATH)
    assert reason in str(refused.value)


def test_a_network_of_another_version_is_named() -> None:
    with pytest.raises(DescriptionError, match=r"names the network 'dpt_new', which this version"):
        spec_of({"model": "dpt_new", "network": "{}"}, PATH)


def test_files_without_a_description_have_none(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(1)}, path)
    assert described_spec(path) is None
    path.write_bytes(path.read_bytes()[:20])
    assert described_spec(path) is None
    path.write_bytes(b"words")
    assert described_spec(path) is None
