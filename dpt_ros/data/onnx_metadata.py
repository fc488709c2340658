# SPDX-License-Identifier: Apache-2.0
"""The metadata of an ONNX file, read without a package and without its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

SPEC = "dpt_ros.spec"
"""Key of the JSON object that describes the network; "classes" of it are names and colours."""


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of an ONNX file; the values of dpt_ros are JSON.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no ONNX file, or is cut off.
    """
    found = {}
    with Path(path).expanduser().open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        try:
            for number, size in _fields(file, end):
                stop = file.tell() + size
                if number == 14:  # ModelProto.metadata_props: StringStringEntryProto
                    entry = {}
                    for key, length in _fields(file, stop):
                        entry[key] = file.read(length).decode()
                    found[entry[1]] = entry.get(2, "")
                file.seek(stop)
        except (EOFError, KeyError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a complete ONNX file.") from error
    return found


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Number and length of each field of a protobuf message, the file at its start."""
    while file.tell() < end:
        tag = _varint(file)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _varint(file)
            size = 0
        elif wire == 2:
            size = _varint(file)
        else:
            raise EOFError  # ONNX's messages at this level have nothing else
        if not number or file.tell() + size > end:
            raise EOFError
        yield number, size


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise EOFError
