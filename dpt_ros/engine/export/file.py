# SPDX-License-Identifier: Apache-2.0
"""ONNX files: written from a module, checked, and with metadata that can be read without onnx."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dpt_ros import __version__
from dpt_ros.data.onnx_metadata import SPEC as SPEC
from dpt_ros.data.onnx_metadata import read_metadata as read_metadata
from dpt_ros.engine.faults import first_line

if TYPE_CHECKING:
    from onnx_ir import Model

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

PACKAGES = ("onnx", "onnxscript")
"""What writing needs beside PyTorch."""
OPSET = 18

# A protobuf message has less than 2 GiB; the graph itself takes a few MB.
_MOST_BYTES_INSIDE = 2**31 - 2**27


class ExportError(ValueError):
    """A module cannot be exported, or a file is not one of dpt_ros; the message says why."""


def metadata_of(
    kind: str, network: str | list[str], spec: Any, source: Mapping[str, str] | None, **more: Any
) -> dict[str, str]:
    """The metadata of a file: by the keys above, JSON each; ``more`` is added."""
    versions = {"dpt_ros": __version__, "torch": torch.__version__}
    values = {KIND: kind, NETWORK: network, SPEC: spec, SOURCE: dict(source or {})}
    values |= {VERSION: versions, **more}
    return {key: json.dumps(value) for key, value in values.items()}


def write(
    module: nn.Module,
    args: tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: Any = None,
    metadata: dict[str, str],
    external_data: bool = False,
    rewrite: bool = True,
) -> None:
    """Write a module as an ONNX file (opset 18), checked by onnx, complete or not at all.

    Args:
        module: in eval mode; takes tensors and gives a tensor, a tuple or a dict of them. It is
            exported in the number formats that it has.
        args: example inputs.
        path: of the file; an existing one is replaced once the new one is complete.
        inputs, outputs: names, in the order of ``args`` and of what ``module`` gives.
        dynamic_shapes: as torch.export.export takes it; None for the shapes of ``args``.
        metadata: key to JSON; see the keys above. The precision is added.
        external_data: put the weights into a second file, PATH.data. Done without asking where
            they exceed the 2 GiB that an ONNX file may have.
        rewrite: let onnxscript look for patterns to rewrite, as runtimes do when they load the
            file; its time grows with the square of the number of operations.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        OSError: the file cannot be written.
    """
    path = Path(path).expanduser()
    check_target(path)
    half = any(p.dtype == torch.float16 for p in module.parameters())

    import onnx
    import onnx_ir

    with _folder_beside(path) as folder:
        model = _converted(module, args, inputs, outputs, dynamic_shapes, rewrite)
        model.graph.name = path.stem
        model.metadata_props.update(metadata | {PRECISION: json.dumps("fp16" if half else "fp32")})
        weights = [value.const_value for value in model.graph.initializers.values()]
        size = sum(weight.nbytes for weight in weights if weight is not None)
        data = f"{path.name}.data" if external_data or size > _MOST_BYTES_INSIDE else None
        onnx_ir.save(model, folder / path.name, external_data=data)
        onnx.checker.check_model(str(folder / path.name), full_check=True)
        if data:
            (folder / data).replace(path.with_name(data))
        (folder / path.name).replace(path)


def open_session(
    path: str | os.PathLike[str],
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    threads: int = 0,
) -> Any:
    """An ONNX file in ONNX Runtime.

    Args:
        path: of the file.
        providers: by preference.
        threads: for one operation; 0 leaves the choice to ONNX Runtime.

    Raises:
        ImportError: onnxruntime is not installed.
        ExportError: it does not load the file.
    """
    if find_spec("onnxruntime") is None:
        raise ImportError(not_installed(["onnxruntime"]))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    path = str(Path(path).expanduser())
    try:
        return onnxruntime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # each of ONNX Runtime's kinds derives from Exception alone
        raise ExportError(f"ONNX Runtime does not load {path}: {first_line(error)}") from error


def check_target(path: Path) -> None:
    """Find out before the work whether a file can be written to ``path``.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        OSError: the folder does not exist or cannot be written to, or the path is a folder.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ImportError(not_installed(missing))
    with _folder_beside(path):
        pass


def not_installed(packages: Sequence[str]) -> str:
    """The message that packages for ONNX are missing."""
    verb = "is" if len(packages) == 1 else "are"
    return f"{' and '.join(packages)} {verb} not installed: pip install {' '.join(packages)}."


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A folder that is gone afterwards, on the file system of ``path``."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        folder = TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror}.") from error
    with folder as name:
        yield Path(name)


def _converted(
    module: nn.Module,
    args: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: Any,
    rewrite: bool,
) -> Model:
    """The module as a model of onnx_ir, without traces of this machine."""
    with torch.no_grad(), _quiet():
        exported = torch.export.export(module, args, dynamic_shapes=dynamic_shapes)
        program = torch.onnx.export(
            exported,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes,
            optimize=rewrite,
            verbose=False,
        )
    assert program is not None  # only the exporter before torch.export gives None
    model = program.model
    if not rewrite:
        _simplify(model)
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        values += node.outputs
        node.metadata_props.clear()  # stack traces, with paths
        node.doc_string = None
    symbols = _symbols(exported, model)
    for value in values:
        value.metadata_props.clear()
        shape = value.shape
        for axis, side in enumerate(shape or ()):
            if shape is not None and not isinstance(side, int) and side.value:
                shape[axis] = re.sub(r"\w+", lambda it: symbols.get(it[0], it[0]), side.value)
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.doc_string = None
    model.producer_name, model.producer_version = "dpt_ros", __version__
    return model


def _symbols(exported: torch.export.ExportedProgram, model: Model) -> dict[str, str]:
    """What PyTorch calls the open sizes, s77, and what the inputs call them."""
    mine = [node for node in exported.graph.nodes if node.op == "placeholder"]
    mine = [node for node in mine if node.name in exported.graph_signature.user_inputs]
    return {
        str(own).rpartition("*")[2]: str(given).rpartition("*")[2]
        for node, value in zip(mine, model.graph.inputs, strict=True)
        for own, given in zip(node.meta["val"].shape, value.shape or (), strict=True)
        if not isinstance(own, int)
    }


def _simplify(model: Model) -> None:
    """What onnxscript.optimizer does, without its patterns."""
    import onnx_ir.passes.common as common
    from onnxscript.optimizer import fold_constants

    common.InlinePass()(model)
    fold_constants(model)
    for once in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        once(model)


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
