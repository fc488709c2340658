# SPDX-License-Identifier: Apache-2.0
"""Legends: the colours in them are those of the pictures that they explain."""

import numpy as np
import pytest

from dpt_ros.data import class_names, palette
from dpt_ros.engine.output.color import (
    ROW,
    bar_legend,
    class_legend,
    depth_legend,
    depth_to_color,
    title,
)

BAR = 5 + 6  # a row through the middle of bars and squares


@pytest.mark.parametrize("width", [40, 120, 480, 1610])
def test_every_legend_is_as_wide_as_asked_for(width: int) -> None:
    names = dict(enumerate(class_names("labels_ade20k.json"), start=1))
    assert title("depth", width).shape == (ROW, width, 3)
    assert depth_legend(width, 10.0).shape == (ROW, width, 3)
    assert bar_legend(width, "0 m", "1 m", np.zeros((5, 3), np.uint8)).shape == (ROW, width, 3)
    assert class_legend(width, names, palette("labels_ade20k.json")).shape[1] == width


def test_the_depth_bar_runs_from_bright_and_near_to_dark_and_far() -> None:
    row = depth_legend(1000, 10.0)[BAR].astype(int)
    bar = row[(row != 32).any(1) & (row.max(1) - row.min(1) > 20)]  # not background, not text
    colors = depth_to_color(np.linspace(0, 10, 2000, dtype=np.float32)[None], 10.0)[0].astype(int)
    nearest = [np.abs(colors - color).sum(1).argmin() for color in bar]
    assert np.all(np.diff(nearest) >= 0)
    assert nearest[0] < 20
    assert bar[0].sum() > bar[-1].sum()


def test_every_class_has_a_square_of_its_colour_and_a_line_break_where_the_width_ends() -> None:
    names, colors = {1: "wall", 7: "box", 9: "door"}, palette("labels_world.json")
    wide = class_legend(400, names, colors)
    assert len(wide) == ROW
    for number in names:
        assert (wide[BAR] == colors[number]).all(1).sum() >= 12
    narrow = class_legend(90, names, colors)
    assert len(narrow) == 3 * ROW
    for k, number in enumerate(names):
        assert (narrow[k * ROW + BAR, 4:16] == colors[number]).all()
