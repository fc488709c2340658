# SPDX-License-Identifier: Apache-2.0
"""What comes with the package: class names, palettes, the embedded network."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent


def _classes(file_name: str) -> list[dict[str, Any]]:
    if file_name.endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(file_name, "numpy") as file:
            return json.loads(file.metadata()["classes"])
    return _classes_of_list(file_name)


@cache
def _classes_of_list(file_name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / file_name).read_text(encoding="utf-8"))["classes"]


def class_names(file_name: str) -> tuple[str, ...]:
    """Names of the classes; that of id k + 1 is at k.

    Args:
        file_name: a list of classes in this folder, or the path of one elsewhere or of a trained
            .safetensors file, which carries its own.
    """
    return tuple(entry["name"] for entry in _classes(file_name))


def palette(file_name: str) -> np.ndarray:
    """(256, 3) uint8 RGB, indexed by class id; ids without a class are black.

    Args:
        file_name: as for :func:`class_names`.
    """
    colors = np.zeros((256, 3), np.uint8)
    for index, entry in enumerate(_classes(file_name), start=1):
        colors[index] = entry["color"]
    return colors
