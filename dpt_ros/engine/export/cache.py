# SPDX-License-Identifier: Apache-2.0
"""Networks exported once and kept in the cache folder, for backends that run files."""

from __future__ import annotations

import fcntl
import hashlib
import logging
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from dpt_ros import __version__
from dpt_ros.data import class_names
from dpt_ros.engine.export.file import check_target
from dpt_ros.engine.export.network import export_network
from dpt_ros.model.download import cache_folder
from dpt_ros.model.dpt import DPT

_log = logging.getLogger(__name__)


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
