# SPDX-License-Identifier: Apache-2.0
"""What comes with the package: class names, palettes, the embedded network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dpt_ros.data.onnx_metadata import SPEC, read_metadata

FOLDER = Path(__file__).parent


def _classes(file_name: str) -> list[dict[str, Any]]:
    if file_name.endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(file_name, "numpy") as file:
            return json.loads(file.metadata()["classes"])
    if file_name.endswith(".onnx"):
        return json.loads(read_metadata(file_name)[SPEC])["classes"]
    return _classes_of_list(file_name)


@cache
def _classes_of_list(file_name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / file_name).read_text(encoding="utf-8"))["classes"]


def class_names(file_name: str) -> tuple[str, ...]:
    """Names of the classes; that of id k + 1 is at k.

    Args:
        file_name: a list of classes in this folder, or the path of one elsewhere or of a trained
            .safetensors file or an exported .onnx file, which carry their own.
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


def voc_colors() -> np.ndarray:
    """(256, 3) uint8 RGB by class id, the colour map of Pascal VOC: the bits of the id spread over
    red, green and blue."""
    ids = np.arange(256)[:, None] >> np.arange(3)
    bits = [(ids >> 3 * bit & 1) << (7 - bit) for bit in range(8)]
    return np.sum(bits, axis=0).astype(np.uint8)


def class_id_table(source: Sequence[str], target: Sequence[str]) -> np.ndarray:
    """(256,) uint8: from the class ids of one list of names to those of another, by name; 0 for a
    class that ``target`` does not have, and for 0 and 255."""
    known = {name: k for k, name in enumerate(target, start=1)}
    table = np.zeros(256, np.uint8)
    table[1 : len(source) + 1] = [known.get(name, 0) for name in source]
    return table
