# SPDX-License-Identifier: Apache-2.0
"""The network to train: a row of the zoo, changed as the recipe asks, with its first weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dpt_ros.apps.train.pictures import Augmentation
from dpt_ros.apps.train.recipe import Recipe
from dpt_ros.data import class_names, voc_colors
from dpt_ros.datasets import Dataset, Sample
from dpt_ros.engine.inference.predict import predict_image
from dpt_ros.model import DPT, model_spec
from dpt_ros.model.checkpoint import load_parts, read_tensors
from dpt_ros.model.describe import described_spec
from dpt_ros.model.factory import weights_path
from dpt_ros.model.losses import robust_alignment
from dpt_ros.model.zoo import BASE, EMBEDDED_NAME, GEOMETRIES, HYBRID, LARGE, Geometry, ModelSpec

# The "ImageNet-pretrained weights" of section 4.1, by the names of timm.
_IMAGENET = (
    (HYBRID, "vit_base_r50_s16_384"),
    (LARGE, "vit_large_patch16_384"),
    (BASE, "vit_base_patch16_384"),
)
_FAR = 50.0  # metres; the largest depth that a new metric head can predict
_ALIGNED = 200  # images whose alignments are averaged; the paper takes the whole training set


def starting_network(
    recipe: Recipe, sources: Sequence[Dataset], align: bool = True
) -> tuple[DPT, list[str]]:
    """The network that a recipe trains, with its first weights: on the CPU, in eval mode, its spec
    with the size it is trained at; and messages about what was chosen.

    Args:
        align: fit a relative network that becomes metric to the images, which reads many of them;
            without it only the recipe is checked.

    Raises:
        ValueError: a name, tap or file is wrong, or the datasets lack the ground truth.
    """
    path = _file(recipe)
    described = described_spec(path) if path else None
    name = recipe.model or (described.name if described else EMBEDDED_NAME)
    if described is not None and described.name != name:
        raise ValueError(f"{path} is a {described.name}, not a {name}: leave --model out.")
    base = described or model_spec(name)
    notes: list[str] = []
    spec = _shaped(recipe, base, path)
    if spec.geometry != base.geometry or spec.batch_norm != base.batch_norm:
        changed = "; the reassembling convolutions that do not fit start from random weights"
        notes.append(f"The network differs from {name} in its geometry" + (changed * bool(path)))
    spec = _with_classes(recipe, spec, base, sources, notes)
    augmentation = Augmentation.of(recipe, spec, sources)
    spec = _with_depth(recipe, spec, base, sources, augmentation)
    width, height = augmentation.net_size(sources[0][0].rgb.shape)
    spec = replace(spec, net_width=width, net_height=height)
    torch.manual_seed(recipe.seed)
    model = DPT(spec)
    if path is not None:
        fresh = tuple(f"{head}_head." for head in ("depth", "label", "auxiliary"))
        if spec.geometry != base.geometry or spec.readout != base.readout:
            fresh = (*fresh, "reassemble.")
        kept = load_parts(model, read_tensors(path), fresh, str(path))
        parts = dict.fromkeys(key.split(".weight")[0].split(".bias")[0] for key in kept)
        if parts:
            notes.append(f"These start from random weights: {', '.join(parts)}.")
    elif recipe.weights != "random":
        notes.append(_encoder_from_timm(model, recipe.weights))
    if spec.auxiliary is False and recipe.auxiliary:
        notes.append("The network is not trained for labels, so it has no auxiliary head.")
    was_relative = path is not None and "depth" in base.tasks and not base.invert
    if spec.invert and was_relative and align:
        notes.append(_align(model, sources[0], recipe.max_depth))
    set_dropout(model, recipe.dropout)
    return model.eval(), notes


def set_dropout(model: nn.Module, share: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


def _file(recipe: Recipe) -> Path | None:
    """The weights as a file, None for random ones and for encoders of timm."""
    if recipe.weights in ("random", "imagenet") or recipe.weights.startswith("timm:"):
        return None
    weights = None if recipe.weights == "cached" else recipe.weights
    return weights_path(model_spec(recipe.model or EMBEDDED_NAME), weights)


def _shaped(recipe: Recipe, base: ModelSpec, path: Path | None) -> ModelSpec:
    """Tasks, backbone, taps, readout and batch norm."""
    geometry = GEOMETRIES[recipe.backbone] if recipe.backbone else base.geometry
    if recipe.taps:
        geometry = with_taps(geometry, recipe.taps)
    batch_norm = base.batch_norm if recipe.batch_norm is None else recipe.batch_norm
    if path is not None and (recipe.backbone or batch_norm != base.batch_norm):
        raise ValueError(
            "A file's weights do not fit another backbone, or a decoder with or without batch "
            "norm: give --weights random or imagenet."
        )
    chosen = ("depth", "labels") if recipe.train == "both" else (recipe.train,)
    return replace(
        base,
        tasks=chosen if recipe.train else base.tasks,
        geometry=geometry,
        readout=recipe.readout or base.readout,
        batch_norm=batch_norm,
        auxiliary=False,
    )


def with_taps(geometry: Geometry, taps: str) -> Geometry:
    """The geometry tapped elsewhere: "R0,R1,9,12" or "3,6,9,12", layers counted from 1 as in the
    paper's Table 6, R0 and R1 the first stages of the ResNet. Raises ValueError if there are not
    four, or the network has no such layer."""
    stages, blocks = [], []
    for tap in taps.replace(" ", "").split(","):
        if match := re.fullmatch(r"R(\d)", tap):
            stages.append(int(match[1]))
        elif tap.isdecimal():
            blocks.append(int(tap) - 1)
        else:
            raise ValueError(f"{tap!r} is not a tap: give R0, R1 or the number of a block.")
    total = len(stages) + len(blocks)
    if total != 4 or stages != list(range(len(stages))) or blocks != sorted(set(blocks)):
        raise ValueError(
            f"The taps {taps} must be four, from shallow to deep, R0 and R1 before the blocks."
        )
    if len(stages) > 2 or (stages and geometry.resnet is None):
        raise ValueError(
            f"The taps {taps} name a stage that cannot be tapped: a hybrid backbone has R0 and R1."
        )
    if blocks and not 0 <= blocks[0] <= blocks[-1] < geometry.depth:
        raise ValueError(f"The taps {taps} must lie within the blocks 1 to {geometry.depth}.")
    channels = list(geometry.reassemble_channels)
    if geometry.resnet is not None:
        channels[: len(stages)] = geometry.resnet.widths[: len(stages)]
    first, second, third, fourth = channels
    return replace(
        geometry,
        stage_taps=tuple(stages),
        block_taps=tuple(blocks),
        reassemble_channels=(first, second, third, fourth),
    )


def _with_classes(
    recipe: Recipe, spec: ModelSpec, base: ModelSpec, sources: Sequence[Dataset], notes: list[str]
) -> ModelSpec:
    """Keep the label head if it has every class, else use the dataset's classes."""
    if "labels" not in spec.tasks:
        return replace(spec, num_classes=0, class_names="")
    spec = replace(spec, auxiliary=recipe.auxiliary > 0)
    theirs = [source.class_names for source in sources if source.class_names]
    if not theirs:
        raise ValueError(
            f"--train is for labels, but {', '.join(s.name for s in sources)} has none: give "
            "--train depth, or a dataset with labels."
        )
    if "labels" in base.tasks:
        ours = class_names(base.class_names)
        if all(set(names) <= set(ours) for names in theirs):
            return spec
    names = max(theirs, key=len)
    if any(not set(other) <= set(names) for other in theirs):
        raise ValueError(
            "The datasets have different classes: one label head cannot predict them all."
        )
    if not 1 <= len(names) <= 254:
        raise ValueError(f"There are {len(names)} classes, but a label head can have 1 to 254.")
    recipe.out.mkdir(parents=True, exist_ok=True)
    file = recipe.out.resolve() / "classes.json"
    colors = voc_colors()[1 : len(names) + 1].tolist()
    classes = [{"name": n, "color": c} for n, c in zip(names, colors, strict=True)]
    part = file.with_name(f"{file.name}.{os.getpid()}.part")  # every process writes the same
    part.write_text(json.dumps({"classes": classes}, indent=1), encoding="utf-8")
    os.replace(part, file)
    before = f", in place of {base.num_classes}" if base.num_classes else ""
    notes.append(f"The label head is new: {len(names)} classes{before}.")
    return replace(spec, num_classes=len(names), class_names=str(file))


def _with_depth(
    recipe: Recipe,
    spec: ModelSpec,
    base: ModelSpec,
    sources: Sequence[Dataset],
    augmentation: Augmentation,
) -> ModelSpec:
    """Metres or relative inverse depth."""
    if "depth" not in spec.tasks:
        return replace(spec, scale=1.0, shift=0.0, invert=False, focal=0.0)
    samples = [source[0] for source in sources]
    metric_truth = any(sample.depth is not None for sample in samples)
    if not metric_truth and all(sample.inverse is None for sample in samples):
        raise ValueError(
            f"--train is for depth, but {', '.join(s.name for s in sources)} has none: give "
            "--train labels, or a dataset with depth."
        )
    metric = recipe.metric
    if metric is None:
        metric = base.invert if "depth" in base.tasks else metric_truth
    if metric and not metric_truth:
        raise ValueError("The datasets have no depth in metres: give --relative.")
    if not metric:
        return replace(spec, scale=1.0, shift=0.0, invert=False, focal=0.0)
    spec = replace(spec, focal=_focal(augmentation, samples) or spec.focal)
    if base.invert and "depth" in base.tasks:
        return spec
    return replace(spec, scale=1.0, shift=1 / (recipe.max_depth or _FAR), invert=True)


def _focal(augmentation: Augmentation, samples: Sequence[Sample]) -> float:
    """The mean focal length of the training images, pixels of the network's input."""
    shapes = [(s.camera.fx, s.rgb.shape) for s in samples if s.camera is not None]
    lengths = [fx * augmentation.target_size(shape)[0] / shape[1] for fx, shape in shapes]
    return float(np.mean(lengths)) if lengths else 0.0


def _align(model: DPT, source: Dataset, max_depth: float) -> str:
    """Turn a relative network into a metric one: the average scale and shift of its robust
    alignments with the truth (paper, section 4.1), in place."""
    head, spec = model.depth_head, model.spec
    assert head is not None
    head.scale, head.shift, head.invert = 1.0, 0.0, False
    model.spec = replace(spec, scale=1.0, shift=0.0, invert=False)
    model.eval()
    found: list[Tensor] = []
    for i in np.linspace(0, len(source) - 1, min(len(source), _ALIGNED)).astype(int):
        sample = source[int(i)]
        relative = predict_image(model, sample.rgb)["depth"]
        assert sample.depth is not None
        depth = torch.from_numpy(sample.depth)[None].float()
        known = torch.isfinite(depth) & (depth > 0)
        if max_depth:
            known &= depth <= max_depth
        fit = robust_alignment(torch.from_numpy(relative)[None], 1 / depth, known)
        found.append(torch.cat(fit))
    scale, shift = torch.stack(found).nanmean(0).tolist()
    if not scale > 0:
        raise ValueError(
            f"The network's inverse depth does not correlate with the truth (scale {scale:.3g}): "
            "its weights cannot be used to start metric depth."
        )
    lowest = 1 / (max_depth or _FAR)
    note = f"Metres from the relative network: scale {scale:.4g}, shift {shift:.4g} per metre"
    if shift < lowest:
        # The shift must be that of the farthest depth; the rest is added to the last bias.
        with torch.no_grad():
            head.conv3.get_parameter("bias").add_((shift - lowest) / scale)
        note += f", {lowest - shift:.4g} of it in the last bias"
        shift = lowest
    head.scale, head.shift, head.invert = scale, shift, True
    model.spec = replace(spec, scale=scale, shift=shift, invert=True)
    return f"{note} (the mean over {len(found)} images)."


def _encoder_from_timm(model: DPT, weights: str) -> str:
    """Load the encoder that timm has under a name. Returns a message about it."""
    name = weights.removeprefix("timm:")
    if weights == "imagenet":
        shape = attrgetter("width", "depth", "heads", "grid", "resnet")
        ours = shape(model.spec.geometry)
        same = [name for geometry, name in _IMAGENET if shape(geometry) == ours]
        if not same:
            why = "timm has no ImageNet weights for this backbone"
            raise ValueError(f"{why}: use --weights random.")
        name = same[0]
    import timm

    try:
        encoder = timm.create_model(name, pretrained=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"timm cannot load the weights {name}: {error}") from error
    load_encoder(model, encoder.state_dict(), name)
    return f"The encoder starts from timm's {name}, everything else from random weights."


def load_encoder(model: DPT, tensors: dict[str, Tensor], name: str) -> None:
    """Copy the weights of a vision transformer of timm into ``model.encoder``."""
    foreign = {f"pretrained.model.{key}": value for key, value in tensors.items()}
    rest = tuple(f"{part}." for part, _ in model.named_children() if part != "encoder")
    load_parts(model, foreign, rest, name)
