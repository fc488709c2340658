# SPDX-License-Identifier: Apache-2.0
"""How a network is trained, and the paper's protocols."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

Size = tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The defaults are those of the embedded network.

    Args:
        out: folder of checkpoint, log and the trained network.
        model: a name of the zoo; "" for the one that the weights file names, or the embedded.
        weights: a file, "download", "cached" (what is at hand), "random", "imagenet" (the encoder
            as timm has it, the rest random) or "timm:NAME" (another encoder of the same shape).
        train: "depth", "labels" or "both"; "" for what the network does.
        backbone: another geometry out of ``GEOMETRIES``, "" for the model's own.
        taps: four layers as the paper counts them, "3,6,9,12" or "R0,R1,9,12"; "" for the
            backbone's own.
        readout: "ignore", "add" or "project"; "" for the model's own.
        batch_norm: in the decoder; None for the model's own.
        metric: metres or relative inverse depth; None for what the network does, and for a new
            head what the truth is.
        minutes: how long, by the clock; the schedule fills it.
        steps: how many steps, instead of a time; 0 measures without training.
        epochs: how often every picture is seen, instead of a time.
        epoch_steps: steps of an epoch; 0 for as many as it takes to see every picture.
        batch: images per step, of all processes together.
        optimizer: "adam" or "sgd" (momentum 0.9).
        weight_decay: of the optimizer.
        lr: peak learning rate of decoder and heads.
        backbone_lr: peak learning rate of the encoder; None for the same.
        schedule: "cosine" (with a linear warm-up), "poly" (power 0.9) or "constant".
        clip: largest norm of the gradient.
        average: decay of the moving average of the weights that is measured and exported; 0
            exports the weights themselves.
        coarse: part of the run, at its start, on pictures of 0.6 times the size.
        depth_loss: "log" (L1), "silog" or "ssi"; "" for "log" in metres and "ssi" without.
        gradient: weight of gradient matching in the depth loss.
        max_depth: metres; truth beyond it counts as unknown. 0 for no limit.
        auxiliary: weight of the auxiliary label head's loss; 0 for no such head.
        class_weights: mild weights for rare classes.
        dropout: in the label heads.
        longer: pictures are scaled until their longer side has this many pixels; 0 leaves them.
        size: width and height to which pictures are scaled instead, None to leave them.
        scaling: range of random scaling on top, log-uniform.
        crop: width and height of a training picture, padded where the picture is smaller; None
            for all of it, at most 384 pixels a side. Where neither ``longer`` nor ``size`` nor
            ``crop`` is given, pictures of datasets are taken at the network's own size.
        bottom: crop at the bottom centre instead of anywhere.
        jitter: random changes of light.
        seed: of weights, batches and augmentation.
        device: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:N".
        precision: "bf16", "fp16" or "fp32", of the forward pass.
    """

    out: Path
    model: str = ""
    weights: str = "random"
    train: str = ""
    backbone: str = ""
    taps: str = ""
    readout: str = ""
    batch_norm: bool | None = None
    metric: bool | None = None
    minutes: float = 60.0
    steps: int | None = None
    epochs: float | None = None
    epoch_steps: int = 0
    batch: int = 8
    optimizer: str = "adam"
    weight_decay: float = 0.0
    lr: float = 1e-3
    backbone_lr: float | None = None
    schedule: str = "cosine"
    clip: float = 100.0
    average: float = 0.998
    coarse: float = 0.4
    depth_loss: str = ""
    gradient: float = 0.5
    max_depth: float = 0.0
    auxiliary: float = 0.0
    class_weights: bool = True
    dropout: float = 0.0
    longer: int = 0
    size: Size | None = None
    scaling: tuple[float, float] = (1.0, 1.0)
    crop: Size | None = None
    bottom: bool = False
    jitter: bool = True
    seed: int = 0
    device: str = "auto"
    precision: str = "bf16"

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def what_matters(self) -> dict[str, Any]:
        """What a resumed run must have in common with its start."""
        return {k: v for k, v in asdict(self).items() if k not in _MAY_CHANGE}


_MAY_CHANGE = ("out", "minutes", "steps", "epochs", "device", "weights", "model")
CHOICES = {
    "train": ("depth", "labels", "both"),
    "optimizer": ("adam", "sgd"),
    "schedule": ("cosine", "poly", "constant"),
    "depth_loss": ("log", "silog", "ssi"),
    "readout": ("ignore", "add", "project"),
    "precision": ("bf16", "fp16", "fp32"),
}


@dataclass(frozen=True)
class Preset:
    """A protocol of the paper.

    Args:
        says: what the paper says, with its section.
        ours: what it does not say, and what is taken here.
        values: fields of :class:`Recipe`.
    """

    says: str
    ours: str
    values: dict[str, Any]


# Learning rates, batch and flips of section 4.1, which it does not repeat for fine-tuning.
_DEPTH = {
    "optimizer": "adam",
    "lr": 1e-4,
    "backbone_lr": 1e-5,
    "batch": 16,
    "schedule": "constant",
    "average": 0.0,
    "coarse": 0.0,
    "jitter": False,
    "precision": "fp32",
}
_LABELS = {
    "model": "dpt_hybrid_ade20k",
    "train": "labels",
    "optimizer": "sgd",
    "lr": 2e-3,
    "batch": 48,
    "schedule": "poly",
    "weight_decay": 1e-4,
    "average": 0.0,
    "coarse": 0.0,
    "auxiliary": 0.2,
    "class_weights": False,
    "dropout": 0.1,
    "longer": 520,
    "scaling": (0.5, 2.0),
    "crop": (480, 480),
    "jitter": False,
    "precision": "fp32",
}
_LABELS_SAYS = (
    "4.2: cross-entropy, an auxiliary head with weight 0.2, dropout 0.1, SGD with momentum 0.9, "
    "polynomial decay 0.9, batch norm in the decoder, batch 48, pictures of 520 pixels, flips, "
    "scaling by 0.5 to 2, crops of 480, learning rate 0.002, "
)
_LABELS_OURS = (
    "weight decay 1e-4; 520 pixels are the longer side; the auxiliary head sees what the label "
    "head sees, not the stage before it"
)

PRESETS = {
    "midas": Preset(
        says="4.1: Adam, 1e-5 for the encoder and 1e-4 for the rest, encoder from ImageNet, "
        "longer side 384, crops of 384, flips, batch 16, 60 epochs of 72,000 steps, the loss of "
        "arXiv 1907.01341, the datasets of a batch drawn evenly",
        ours="a constant learning rate; the plain sum of the datasets' losses instead of "
        "multi-objective optimization; no first 60 epochs on a part of the data",
        values=_DEPTH
        | {
            "model": "dpt_hybrid_midas",
            "weights": "imagenet",
            "train": "depth",
            "metric": False,
            "depth_loss": "ssi",
            "epochs": 60,
            "epoch_steps": 72_000,
            "longer": 384,
            "crop": (384, 384),
        },
    ),
    "nyu": Preset(
        says="4.1: from the relative network, scaled and shifted by the average of the robust "
        "alignments with the training pictures; the loss of Eigen et al. with gradient matching",
        ours="optimizer, learning rates and batch as for the relative network; 20 epochs; whole "
        "pictures at 640x480, the published checkpoint's size; truth up to 10 m; gradient "
        "matching of the logarithm, weight 0.5",
        values=_DEPTH
        | {
            "model": "dpt_hybrid_midas",
            "weights": "cached",
            "train": "depth",
            "metric": True,
            "depth_loss": "silog",
            "epochs": 20,
            "size": (640, 480),
            "crop": (640, 480),
            "max_depth": 10.0,
        },
    ),
    "kitti": Preset(
        says="4.1: as for NYUv2, but without gradient matching, because the truth is sparse",
        ours="optimizer, learning rates and batch as for the relative network; 20 epochs; the "
        "bottom centre 1216x352, the published checkpoint's size; truth up to 80 m",
        values=_DEPTH
        | {
            "model": "dpt_hybrid_midas",
            "weights": "cached",
            "train": "depth",
            "metric": True,
            "depth_loss": "silog",
            "gradient": 0.0,
            "epochs": 20,
            "crop": (1216, 352),
            "bottom": True,
            "max_depth": 80.0,
        },
    ),
    "ade20k": Preset(
        says=_LABELS_SAYS + "240 epochs; encoder from ImageNet",
        ours=_LABELS_OURS,
        values=_LABELS | {"weights": "imagenet", "epochs": 240},
    ),
    "pascal_context": Preset(
        says=_LABELS_SAYS + "50 epochs of fine-tuning",
        ours="it starts from the ADE20K network; " + _LABELS_OURS,
        values=_LABELS | {"weights": "cached", "epochs": 50},
    ),
}

FIELDS = tuple(field.name for field in fields(Recipe))
