# SPDX-License-Identifier: Apache-2.0
"""ONNX files: written from a module, checked, and with metadata that can be read without onnx."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from dpt_ros.data.onnx_metadata import SPEC as SPEC
from dpt_ros.data.onnx_metadata import read_metadata as read_metadata

# Keys of the metadata, beside SPEC; every value is JSON.
KIND = "dpt_ros.kind"
"""network, frame or step."""
NETWORK = "dpt_ros.network"
"""Names of the networks."""
SOURCE = "dpt_ros.source"
"""Where the weights are from: file name and sha256."""
VERSION = "dpt_ros.version"
"""Of dpt_ros and of PyTorch."""
PRECISION = "dpt_ros.precision"
"""fp32 or fp16."""
FIELDS = "dpt_ros.fields"
"""Of a step: names and shapes of its numbers and state."""

PRECISIONS = ("fp32", "fp16")
OPSET = 18

# A protobuf message has less than 2 GiB; the graph itself takes a few MB.
_MOST_BYTES_INSIDE = 2**31 - 2**27


class ExportError(ValueError):
    """A module cannot be exported, or a file is not one of dpt_ros; the message says why."""


def check_target(path: Path) -> None:
    """Whether an ONNX file can be written to ``path``; costs nothing.

    Raises:
        ImportError: onnx or onnxscript is missing.
        OSError: the folder does not exist or cannot be written to, or the path is a folder.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, which "
            "writing ONNX files needs: install with pip install 'dpt_ros[onnx]'."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{path} cannot be written: the folder {path.parent} does not exist."
        )
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} cannot be written: it is a folder; give the name of a file."
        )
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(
            f"{path} cannot be written: no permission to write to the folder {path.parent}."
        )


def write(
    module: nn.Module,
    args: tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: Any = None,
    metadata: dict[str, str],
    precision: str = "fp32",
    external_data: bool = False,
) -> None:
    """Write a module as an ONNX file (opset 18), checked by onnx, complete or not at all.

    Args:
        module: in eval mode; takes tensors and gives a tensor, a tuple or a dict of them. It is
            exported in the number formats that it has.
        args: example inputs.
        path: of the file; an existing one is replaced once the new one is complete.
        inputs, outputs: names, in the order of ``args`` and of what ``module`` gives.
        dynamic_shapes: as torch.export.export takes it; None for the shapes of ``args``.
        metadata: key to JSON; see the keys above.
        precision: "fp32", or "fp16" for a module whose weights are in half precision; it is
            noted in the metadata.
        external_data: put the weights into a second file, PATH.data. Done without asking where
            they exceed the 2 GiB that an ONNX file may have.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        OSError: the file cannot be written.
        ExportError: ``precision`` is not that of the module.
    """
    path = Path(path).expanduser()
    check_target(path)
    if precision not in PRECISIONS:
        raise ExportError(f"precision is {precision!r}, but must be fp32 or fp16.")
    half = any(p.dtype == torch.float16 for p in module.parameters())
    if half != (precision == "fp16"):
        formats = sorted({str(p.dtype) for p in module.parameters()})
        raise ExportError(f"precision is {precision}, but the weights are {', '.join(formats)}.")

    import onnx
    import onnx_ir

    with torch.no_grad(), _quiet():
        exported = torch.export.export(module, args, dynamic_shapes=dynamic_shapes)
        program = torch.onnx.export(
            exported,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
    assert program is not None  # only the exporter before torch.export gives None
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with paths of this machine
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.producer_name, model.graph.name = "dpt_ros", path.stem
    model.metadata_props.clear()
    model.metadata_props.update(metadata | {PRECISION: f'"{precision}"'})
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    data = f"{path.name}.data" if external_data or size > _MOST_BYTES_INSIDE else None
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        part = Path(folder) / path.name
        onnx_ir.save(model, part, external_data=data)
        onnx.checker.check_model(str(part), full_check=True)
        if data:
            (Path(folder) / data).replace(path.parent / data)
        part.replace(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx reports its progress as warnings and logs, which tell a user nothing."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
