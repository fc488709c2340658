# SPDX-License-Identifier: Apache-2.0
"""What worlds there are, and what is in them: ten classes with their ADE20K names. The id of a
class counts from 1."""

KINDS = ("room", "corridor", "yard")
CLASSES = (
    "wall",
    "floor",
    "ceiling",
    "sky",
    "grass",
    "person",
    "box",
    "column",
    "door",
    "table",
)
WALL, FLOOR, CEILING, SKY, GRASS, PERSON, BOX, COLUMN, DOOR, TABLE = range(1, 11)
