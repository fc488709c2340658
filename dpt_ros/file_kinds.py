# SPDX-License-Identifier: Apache-2.0
"""What a file is that was given in the place of weights or of a bag, by its contents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_MOST_JSON = 1 << 24  # bytes; the index of the largest network has far fewer


def kind_of_file(path: Path) -> str:
    """What a file is that was given as something else, with what to do; "" where nobody knows."""
    with path.open("rb") as file:
        start = file.read(1024).lstrip()
    if not start:
        return "" if path.stat().st_size else "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in the place of the file; fetch the file with git lfs pull"
    if re.match(rb"(<!--|<!doctype\s+html|<html|<\?xml)", start, re.IGNORECASE):
        return "a web page in the place of the file; download the file itself"
    if re.match(rb"\x08[\x03-\x20][\x12\x3a\x42]", start):  # ir_version and the next field
        return "an ONNX file; the node and dpt_bag run it with -p backend:=onnxruntime"
    if start[:1] in (b"{", b"["):
        return "JSON text" if read_json(path) is not None else ""
    return ""


def read_json(path: Path) -> Any:
    """What a JSON file holds; None if it is none."""
    if path.stat().st_size > _MOST_JSON:
        return None
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
