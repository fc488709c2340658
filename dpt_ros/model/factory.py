# SPDX-License-Identifier: Apache-2.0
"""Networks by name."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from dpt_ros.data import FOLDER
from dpt_ros.model.checkpoint import CheckpointError, load_checkpoint
from dpt_ros.model.decoder import READOUTS
from dpt_ros.model.describe import described_spec
from dpt_ros.model.download import cache_path, download
from dpt_ros.model.dpt import DPT
from dpt_ros.model.encoder import WEIGHT_STDS, fold_weight_standardization
from dpt_ros.model.zoo import EMBEDDED_NAME, ZOO, ModelSpec, did_you_mean, unknown_model

OVERRIDES = ("auxiliary", "invert", "num_classes", "readout", "scale", "shift", "weight_std")


def model_spec(name: str, **overrides: Any) -> ModelSpec:
    """The row of the zoo for ``name``, changed by ``overrides``.

    Raises:
        ValueError: an unknown name or override, or an invalid value.
    """
    if name not in ZOO:
        raise ValueError(unknown_model(name))
    return _overridden(ZOO[name], overrides)


def _overridden(spec: ModelSpec, overrides: dict[str, Any]) -> ModelSpec:
    for key in overrides:
        if key not in OVERRIDES:
            raise ValueError(
                f"{key!r} is not an override{did_you_mean(key, OVERRIDES)}; the overrides are "
                f"{', '.join(OVERRIDES)}."
            )
    spec = replace(spec, **overrides)
    _one_of("readout", spec.readout, READOUTS)
    _one_of("weight_std", spec.weight_std, WEIGHT_STDS)
    if "labels" in spec.tasks and not 1 <= spec.num_classes <= 254:
        raise ValueError(
            f"num_classes is {spec.num_classes}, but must be 1 to 254: ids are bytes, 0 means "
            "none and 255 unlabelled."
        )
    for key in ("num_classes", "auxiliary"):
        if key in overrides and "labels" not in spec.tasks:
            raise ValueError(f"{key} is given, but {spec.name} predicts depth only; leave it out.")
    if not spec.scale > 0 or not spec.shift >= 0:
        raise ValueError(
            f"scale is {spec.scale} and shift is {spec.shift}, but inverse depth grows with the "
            "network's output from 0: give a positive scale and a shift of at least 0."
        )
    return spec


def create_model(
    name: str,
    weights: str | PathLike[str] | None = None,
    *,
    fold: bool | None = None,
    **overrides: Any,
) -> DPT:
    """A network of the zoo, float32, in eval mode, on the CPU.

    Args:
        name: one of :func:`list_models`.
        weights: the path of a checkpoint (.pt, .bin or .safetensors, or the index or folder of
            one in parts) with keys of isl-org/DPT, transformers or dpt_ros; a file of
            ``dpt_train`` describes its network (tasks, classes, metres, taps ...) itself.
            "download" for the published file, kept in the cache folder; "random" for untrained
            weights; None for the file that comes with the package, or an earlier download.
        fold: standardise the ResNet's weights once instead of at every forward, for inference
            only: training needs False. Default: True, but False for "random".
        overrides: fields of the zoo's row to change: ``readout`` "ignore", "add" or "project";
            ``weight_std`` "timm" or "timm045" (what the checkpoints' authors ran);
            ``num_classes``; ``scale``, ``shift``, ``invert`` of the depth head; ``auxiliary`` to
            keep the auxiliary label head, for training.

    Raises:
        ValueError: an unknown name or override, no weights on this machine, or
            (CheckpointError) a file whose keys are not those of the network.
        DownloadError: the published file cannot be fetched or is not the published one.
    """
    spec = model_spec(name, **overrides)
    if weights == "random":
        model = DPT(spec)
    else:
        path = weights_path(spec, weights)
        described = described_spec(path)
        if described is not None:
            if described.name != name:
                raise CheckpointError(
                    f"{path} is not a checkpoint of {name} and was not loaded: it holds a "
                    f"{described.name}. Choose the network that the file belongs to."
                )
            spec = _overridden(described, overrides)
        with torch.device("meta"):
            model = DPT(spec)
        load_checkpoint(model, path)
    if fold if fold is not None else weights != "random":
        fold_weight_standardization(model)
    return model.eval()


def cached_checkpoint(name: str) -> Path | None:
    """The weights of a network that are on this machine already, None if there are none.

    Raises:
        ValueError: an unknown name.
    """
    spec = model_spec(name)
    path = FOLDER / f"{name}.safetensors" if name == EMBEDDED_NAME else cache_path(spec)
    return path if path.is_file() else None


def weights_path(spec: ModelSpec, weights: str | PathLike[str] | None) -> Path:
    if weights == "download" and spec.name != EMBEDDED_NAME:
        return download(spec)
    if weights is not None and weights != "download":
        return Path(weights).expanduser()
    path = cached_checkpoint(spec.name)
    if path is None:
        how = '"download", ' if spec.url else ""
        raise ValueError(
            f"No weights of {spec.name} are on this machine; ask for {how}the path of a "
            'checkpoint, or "random".'
        )
    return path


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"{key} is {value!r}{did_you_mean(str(value), choices)}, but must be one of "
            f"{', '.join(choices)}."
        )
