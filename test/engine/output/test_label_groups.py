# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpt_ros.data import class_names, palette
from dpt_ros.engine.output.label_groups import LabelGroups, load_groups, of_logits, parse_groups

NAMES = ("wall", "floor", "person", "chair", "sky")
PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[1:6] = np.arange(15).reshape(5, 3) + 1
ADE20K = class_names("labels_ade20k.json")


def make(groups):
    return LabelGroups.create(groups, NAMES, PALETTE)


def test_classes_go_to_their_groups_and_the_rest_to_other():
    groups = make({"free": ["floor"], "blocked": ["chair", "wall"]})
    assert groups.names == ("free", "blocked", "other")
    assert groups.table[[0, 1, 2, 3, 4, 5, 6, 255]].tolist() == [0, 2, 1, 3, 2, 3, 0, 255]
    assert groups.table.dtype == np.uint8
    # a group takes the colour of its first class
    assert groups.palette[1].tolist() == PALETTE[2].tolist()
    assert groups.palette[2].tolist() == PALETTE[1].tolist()


def test_a_group_called_other_takes_the_rest_and_keeps_its_place():
    groups = make({"other": [], "people": ["person"]})
    assert groups.names == ("other", "people")
    assert groups.table[:6].tolist() == [0, 1, 1, 2, 1, 1]
    everything = make({"all": list(NAMES)})
    assert everything.names == ("all",)


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 150), count=st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_a_group_s_probability_is_the_sum_of_its_classes(seed, classes, count):
    rng = np.random.default_rng(seed)
    names = [f"c{k}" for k in range(classes)]
    of = rng.integers(0, min(count, classes), classes)
    of[: min(count, classes)] = range(min(count, classes))
    mapping = {f"g{g}": [names[k] for k in np.flatnonzero(of == g)] for g in np.unique(of)}
    groups = LabelGroups.create(mapping, names, PALETTE)
    logits = torch.from_numpy(rng.normal(0, 10, (2, classes, 3, 4)).astype(np.float32))
    grouped = of_logits(logits, groups.matrix(classes))
    expected = torch.stack(
        [logits[:, torch.from_numpy(of == g)].logsumexp(1) for g in np.unique(of)], 1
    )
    assert grouped.shape == (2, len(mapping), 3, 4)
    low = logits.amax(1, keepdim=True) - 60
    torch.testing.assert_close(grouped.maximum(low), expected.maximum(low), rtol=1e-4, atol=1e-4)
    total = logits.softmax(1).sum(1)
    torch.testing.assert_close(grouped.softmax(1).sum(1), total)


def test_two_halves_of_a_group_beat_a_larger_stranger():
    groups = make({"building": ["wall", "floor"], "person": ["person"]})
    logits = torch.tensor([2.0, 2.0, 2.3, -9.0, -9.0]).view(1, 5, 1, 1)
    assert logits.argmax(1).item() == 2
    assert of_logits(logits, groups.matrix(5)).argmax(1).item() == 0


def test_far_apart_and_half_precision_logits_stay_finite():
    logits = torch.tensor([60000.0, -60000.0, 0, 0, 0]).view(1, 5, 1, 1).half()
    logits = logits.to(memory_format=torch.channels_last)
    grouped = of_logits(logits, make({"a": ["wall"], "b": ["floor"]}).matrix(5))
    assert torch.isfinite(grouped).all()
    assert grouped.argmax(1).item() == 0
    big = torch.randn(1, 5, 6, 8).to(memory_format=torch.channels_last)
    grouped = of_logits(big, make({"a": ["wall"], "b": ["floor"]}).matrix(5))
    assert grouped.is_contiguous(memory_format=torch.channels_last)


def test_mistakes_are_named_all_at_once_with_what_was_meant():
    with pytest.raises(ValueError) as caught:
        make({"a": ["flor", "wall"], "b": ["wall", "zebra"], "c": []})
    text = str(caught.value)
    assert "did you mean 'floor'?" in text
    assert "'wall' is in the label groups 'a' and 'b'." in text
    assert "'zebra', which is not a class of this network: known are wall, floor" in text
    assert "'c' has no classes" in text


def test_a_table_holds_at_most_253_groups():
    names = [f"c{k}" for k in range(254)]
    with pytest.raises(ValueError, match="at most 253"):
        LabelGroups.create({name: [name] for name in names}, names, PALETTE)


def test_the_shipped_groups_hold_every_class_of_ade20k_once():
    groups, colors = load_groups()
    members = [name for names in groups.values() for name in names]
    assert sorted(members) == sorted(ADE20K)
    made = LabelGroups.create(groups, ADE20K, palette("labels_ade20k.json"), colors)
    assert made.names == tuple(groups)
    assert 8 <= len(made.names) <= 15
    assert (made.table[1:151] > 0).all()
    assert len({tuple(color) for color in made.palette[1 : len(made.names) + 1]}) == len(groups)
    for name, group in (("rug", "floor"), ("person", "person"), ("stairway", "stairs")):
        assert made.names[made.table[ADE20K.index(name) + 1] - 1] == group


def test_the_shipped_groups_serve_the_embedded_network_too():
    names = class_names("labels_world.json")
    groups, colors = load_groups()
    made = LabelGroups.create(groups, names, palette("labels_world.json"), colors, known=ADE20K)
    assert made.names == tuple(groups)
    assert made.names[made.table[names.index("table") + 1] - 1] == "furniture"
    with pytest.raises(ValueError, match="not a class of this network"):
        LabelGroups.create(groups, names, palette("labels_world.json"), colors)


def test_the_groups_of_navigation_are_asked_for_by_name():
    names, colors = class_names("labels_world.json"), palette("labels_world.json")
    made = LabelGroups.parse(["navigation"], names, colors)
    assert made.names == tuple(load_groups()[0])
    lines = LabelGroups.parse(["ground: floor, grass"], names, colors)
    assert lines.names == ("ground", "other")
    with pytest.raises(ValueError, match=r"'grsas', which is not a class .* mean 'grass'"):
        LabelGroups.parse(["ground: floor, grsas"], names, colors)
    with pytest.raises(ValueError, match="or 'navigation' alone"):
        LabelGroups.parse(["navigaton"], names, colors)


def test_a_typo_in_groups_of_ade20k_is_found_with_any_network():
    groups = {"floor": ["floor", "runng track"]}
    with pytest.raises(ValueError, match="'runng track', which is not a class"):
        LabelGroups.create(groups, NAMES, PALETTE, known=ADE20K)


def test_groups_can_be_written_as_a_list_of_lines():
    assert parse_groups(["free: floor, rug", "people :person"]) == {
        "free": ["floor", "rug"],
        "people": ["person"],
    }
    with pytest.raises(ValueError, match="must be 'group: class"):
        parse_groups(["floor"])
    with pytest.raises(ValueError, match="is defined twice"):
        parse_groups(["a: floor", "a: wall"])
