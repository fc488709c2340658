# SPDX-License-Identifier: Apache-2.0
"""The kinds of worlds and their ten classes, with ADE20K names; class ids count from 1."""

KINDS = ("room", "corridor", "yard")
CLASSES = (
    "wall", "floor", "ceiling", "sky", "grass", "person", "box", "column", "door", "table",
)  # fmt: skip
WALL, FLOOR, CEILING, SKY, GRASS, PERSON, BOX, COLUMN, DOOR, TABLE = range(1, 11)
