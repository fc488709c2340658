# SPDX-License-Identifier: Apache-2.0
"""A network alone as an ONNX file: normalised images in, inverse depth and logits out.

For backends that run files, it is exported once and kept in the cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from dpt_ros import __version__
from dpt_ros.data import class_names
from dpt_ros.engine.export.file import (
    KIND,
    NETWORK,
    SPEC,
    ExportError,
    check_target,
    metadata_of,
    read_metadata,
    write,
)
from dpt_ros.engine.inference.fold import NAMES, Outputs, fold
from dpt_ros.model import describe
from dpt_ros.model.download import cache_folder
from dpt_ros.model.dpt import DPT
from dpt_ros.model.zoo import ModelSpec

_log = logging.getLogger(__name__)


def export_network(
    model: DPT,
    path: str | os.PathLike[str],
    *,
    batch: int | None = None,
    size: tuple[int, int] | None = None,
    precision: str = "fp32",
    external_data: bool = False,
    source: Mapping[str, str] | None = None,
) -> None:
    """Write a network as an ONNX file.

    Input: "images" (B, 3, H, W) float32, RGB, normalised with the spec's mean and std; H and W
    multiples of ``spec.multiple_of``. Outputs, as far as the network has them: "inverse_depth"
    (B, H, W) float32, 1/m from a metric network, else relative; "logits" (B, C, H / 2, W / 2)
    float32, before the last upsampling.

    Args:
        model: from ``create_model``, float32; it is folded, and for fp16 halved, in place.
        path: of the file.
        batch: B; None leaves it open.
        size: (H, W); None leaves them open.
        precision: "fp32", or "fp16" for weights and activations in half precision, from the last
            convolution of the depth head on in float32.
        external_data: put the weights into PATH.data.
        source: where the weights are from, for the metadata.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        OSError: the file cannot be written.
        ExportError: a wrong size or precision.
    """
    check_target(Path(path).expanduser())
    spec = model.spec
    check_shape(spec, batch, size)
    module = outputs_of(model, precision)
    step = spec.multiple_of
    # An open size is a symbol, and the numbers of its example must differ from one another.
    shape: tuple[int, int, int, int] = (batch or 2, 3, *(size or (6 * step, 10 * step)))
    dims: dict[int, Any] = {} if batch else {0: Dim("batch")}
    if not size:
        dims |= {2: step * Dim("height"), 3: step * Dim("width")}
    write(
        module,
        (torch.zeros(shape),),
        path,
        inputs=["images"],
        outputs=[NAMES[task] for task in spec.tasks],
        dynamic_shapes={"images": dims} if dims else None,
        metadata=network_metadata(spec, source),
        external_data=external_data,
    )


def check_shape(spec: ModelSpec, batch: int | None, size: tuple[int, int] | None) -> None:
    """Raises ExportError if a network cannot have this batch or (height, width)."""
    if batch is not None and batch < 1:
        raise ExportError(f"The batch is {batch}, but must be at least 1.")
    step = spec.multiple_of
    if size is not None and any(side < step or side % step for side in size):
        raise ExportError(
            f"The size is {size[0]}x{size[1]}, but height and width of the input of {spec.name}"
            f" must be multiples of {step}; the nearest size is"
            f" {'x'.join(str(max(round(side / step), 1) * step) for side in size)}."
        )


def outputs_of(model: DPT, precision: str) -> Outputs:
    """The module to export; it folds the model, and for fp16 halves its weights, in place.

    Raises:
        ExportError: the model is not a float32 one on the CPU, as ``create_model`` gives it; or a
            wrong precision.
    """
    if model.training or {(p.dtype, p.device.type) for p in model.parameters()} != {
        (torch.float32, "cpu")
    }:
        raise ExportError("The network to export must be float32, on the CPU, in eval mode.")
    if precision not in ("fp32", "fp16"):
        raise ExportError(f"precision is {precision!r}, but must be fp32 or fp16.")
    fold(model)
    if precision == "fp16":
        model.half()
        if model.depth_head is not None:
            model.depth_head.conv3.float()
    return Outputs(model).eval()


def network_metadata(spec: ModelSpec, source: Mapping[str, str] | None) -> dict[str, str]:
    described = describe.describe(spec)
    content = json.loads(described["network"]) | {"mean": spec.mean, "std": spec.std}
    content |= {"metric": spec.invert, "classes": json.loads(described.get("classes", "[]"))}
    return metadata_of("network", spec.name, content, source)


def spec_of(path: str | os.PathLike[str]) -> ModelSpec:
    """The network in a file of :func:`export_network`; its class names are read from the file.

    Raises:
        OSError: the file cannot be read.
        ExportError: it is no such file.
    """
    path = Path(path).expanduser()
    try:
        metadata = read_metadata(path)
        kind = json.loads(metadata.get(KIND, "null"))
        if kind != "network":
            what = f"a {kind}" if kind else "not written by dpt_export"
            raise ExportError(
                f"{path} cannot be used as a network: it is {what}. Write one with dpt_export"
                " NETWORK FILE.onnx."
            )
        content = json.loads(metadata[SPEC])
        mean, std = (tuple(map(float, content.pop(name))) for name in ("mean", "std"))
        del content["metric"]
        described = {
            "model": json.loads(metadata[NETWORK]),
            "classes": json.dumps(content.pop("classes")),
            "network": json.dumps(content),
        }
        spec = describe.spec_of(described, path)
    except ExportError:
        raise
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ExportError(f"{path} cannot be used as a network: {error}") from error
    if len(mean) != 3 or len(std) != 3 or not all(std):
        raise ExportError(f"{path} cannot be used as a network: its mean is {mean}, std {std}.")
    return replace(spec, mean=mean, std=std)


def exported(model: DPT, precision: str, random: bool = False) -> Path:
    """The ONNX file of a network, any batch and size, which is written unless it is there.

    Processes that want the same file wait for the first one.

    Args:
        model: from ``create_model``; it is rewritten if the file is.
        precision: "fp32" or "fp16".
        random: weights that will not come again; the next file of such replaces this one.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        OSError: the cache folder cannot be written.
    """
    folder = cache_folder() / "onnx"
    folder.mkdir(parents=True, exist_ok=True)
    check_target(folder / "any.onnx")
    digest = _digest(model)
    versions = (__version__, torch.__version__, version("onnx"))
    key = "random" if random else hashlib.sha256(repr((digest, versions)).encode()).hexdigest()
    name = f"{model.spec.name.replace('/', '_')}-{precision}"
    path = folder / f"{name}-{key[:16]}.onnx"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if random or not path.exists():
            _log.warning("Exporting %s to %s, once; it takes up to minutes.", name, path)
            export_network(model, path, precision=precision, source={"sha256": digest})
    return path


def _digest(model: DPT) -> str:
    """The sha256 of the weights, and of all that is not in them and makes another network."""
    spec = model.spec
    names = class_names(spec.class_names) if spec.class_names else ()
    digest = hashlib.sha256(repr((replace(spec, class_names=""), names)).encode())
    for key, value in model.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
