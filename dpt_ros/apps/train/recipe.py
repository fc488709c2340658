# SPDX-License-Identifier: Apache-2.0
"""How a network is trained: the options of dpt_train with their defaults, and the paper's
protocols."""

from __future__ import annotations

from argparse import BooleanOptionalAction
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dpt_ros.apps.command_line import size_of
from dpt_ros.model.zoo import GEOMETRIES

RUNNING = "device, processes, checkpoints and log"
# Conditions that a number must fulfil, as the error message names them.
POSITIVE, NOT_NEGATIVE, FRACTION = "positive", "not negative", "at least 0 and below 1"
FULFIL = {
    POSITIVE: lambda value: value > 0,
    NOT_NEGATIVE: lambda value: value >= 0,
    FRACTION: lambda value: 0 <= value < 1,
}
parse_size = partial(size_of, expected="not WIDTHxHEIGHT", least=0)


def _option(group: str, default: Any, help: str, must: str = "", **argument: Any) -> Any:
    """A field of the recipe that is an option of dpt_train under the heading ``group``; it must
    be one of ``FULFIL``. ``argument`` is for ``add_argument``, where the type is that of
    the default if none is given."""
    if type(default) in (int, float, str):
        argument.setdefault("type", type(default))
    metadata = {"group": group, "help": help, "must": must, **argument}
    return field(default=default, metadata=metadata)


_start = partial(_option, "initial weights and tasks")
_training = partial(_option, "training")
_view = partial(_option, "scaling, crop and augmentation")
_shape = partial(_option, "network architecture (the paper's ablations)")
_SWITCH: dict[str, Any] = {"action": BooleanOptionalAction}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The fields are options of dpt_train, with the values for the
    embedded network as defaults; None and "" leave the choice to the network and the datasets."""

    out: Path
    model: str = _start(
        "", "name of a network (default: that of the weights file, else the embedded one)"
    )
    weights: str = _start(
        "random",
        "a file, download (the published file), cached (the local one), random, imagenet (only "
        "the encoder, by timm), or timm:NAME (another encoder of the same shape)",
    )
    train: str = _start(
        "", "tasks (default: those of the network)", choices=("depth", "labels", "both")
    )
    metric: bool | None = None  # --metric, --relative
    minutes: float = _training(60.0, "length of the run; the schedule follows the clock", POSITIVE)
    steps: int | None = _training(
        None, "length in steps instead; 0 evaluates without training", NOT_NEGATIVE, type=int
    )
    epochs: float | None = _training(None, "length in epochs instead", POSITIVE, type=float)
    epoch_steps: int = 0  # steps of an epoch; 0: as many as it takes to see every image
    batch: int = _training(8, "images per step, of all processes together", POSITIVE)
    optimizer: str = _training("adam", "adam, or sgd with momentum 0.9", choices=("adam", "sgd"))
    weight_decay: float = _training(0.0, "of the optimizer (default: 0)", NOT_NEGATIVE)
    lr: float = _training(1e-3, "peak learning rate of decoder and heads", POSITIVE)
    backbone_lr: float | None = _training(
        None, "that of the encoder (default: that of --lr)", POSITIVE, type=float
    )
    schedule: str = _training(
        "cosine",
        "of the learning rates: cosine with a linear warm-up, polynomial with power 0.9, constant",
        choices=("cosine", "poly", "constant"),
    )
    clip: float = _training(100.0, "largest norm of the gradient", POSITIVE)
    average: float = _training(
        0.998,
        "decay of the moving average of the weights, which is exported; 0 exports the weights",
        FRACTION,
    )
    coarse: float = _training(
        0.4, "first part of the run, in which images have 0.6 times the size", FRACTION
    )
    depth_loss: str = _training(
        "",
        "of depth: L1 of the logarithm, scale-invariant logarithmic, or scale-and-shift-invariant "
        "(default: log for metres, else ssi)",
        choices=("log", "silog", "ssi"),
    )
    gradient: float = _training(0.5, "weight of gradient matching in the depth loss", NOT_NEGATIVE)
    auxiliary: float = _training(
        0.0, "weight of the loss of an auxiliary label head (default: no such head)", NOT_NEGATIVE
    )
    dropout: float = _training(0.0, "in the label heads (default: 0)", FRACTION)
    class_weights: bool = _training(
        True, "mild weights for rare classes (default: yes)", **_SWITCH
    )
    seed: int = _training(0, "of weights, batches and augmentation (default: 0)")
    precision: str = _training("bf16", "of the forward pass", choices=("bf16", "fp16", "fp32"))
    longer: int = _view(0, "scale images to this longer side, pixels", NOT_NEGATIVE)
    size: tuple[int, int] | None = _view(
        None, "scale images to this size instead", type=parse_size, metavar="WxH"
    )
    scaling: tuple[float, float] = _view(
        (1.0, 1.0),
        "range of random scaling on top, log-uniform (default: 1 1)",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
    )
    crop: tuple[int, int] | None = _view(
        None,
        "size of a training image, padded where the image is smaller (default: the whole image, "
        "at most 384x384; of datasets without --longer and --size the network's own size)",
        type=parse_size,
        metavar="WxH",
    )
    bottom: bool = False  # crop at the bottom centre instead of at a random place
    jitter: bool = _view(True, "random changes of brightness and colour (default: yes)", **_SWITCH)
    max_depth: float = _view(
        0.0, "metres; ground truth beyond it counts as unknown (default: no limit)", NOT_NEGATIVE
    )
    backbone: str = _shape("", "of random or timm weights", choices=tuple(GEOMETRIES))
    taps: str = _shape("", "four layers, counted from 1: 3,6,9,12 or R0,R1,9,12")
    readout: str = _shape("", "use of the readout token", choices=("ignore", "add", "project"))
    batch_norm: bool | None = _shape(None, "in the decoder", **_SWITCH)
    device: str = _option(RUNNING, "auto", "auto (the GPU if there is one), cpu, cuda or cuda:N")

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def fixed_values(self) -> dict[str, Any]:
        """The values that a resumed run must have in common with its start."""
        return {k: v for k, v in asdict(self).items() if k not in _MAY_CHANGE}


_MAY_CHANGE = ("out", "minutes", "steps", "epochs", "device", "weights", "model")


@dataclass(frozen=True)
class Preset:
    """A protocol of the paper."""

    paper: str  # what it specifies, with its section
    chosen: str  # what it does not specify, and what was chosen here
    values: dict[str, Any]  # fields of the recipe


# fmt: off
# Learning rates, batch and flips of section 4.1, which it does not repeat for fine-tuning.
_DEPTH = {
    "optimizer": "adam", "lr": 1e-4, "backbone_lr": 1e-5, "batch": 16, "schedule": "constant",
    "average": 0.0, "coarse": 0.0, "jitter": False, "precision": "fp32",
    "model": "dpt_hybrid_midas", "train": "depth",
}
_METRIC = _DEPTH | {"weights": "cached", "metric": True, "depth_loss": "silog", "epochs": 20}
_LABELS = {
    "model": "dpt_hybrid_ade20k", "train": "labels", "optimizer": "sgd", "lr": 2e-3, "batch": 48,
    "schedule": "poly", "weight_decay": 1e-4, "average": 0.0, "coarse": 0.0, "auxiliary": 0.2,
    "class_weights": False, "dropout": 0.1, "longer": 520, "scaling": (0.5, 2.0),
    "crop": (480, 480), "jitter": False, "precision": "fp32",
}
# fmt: on
_LABELS_PAPER = (
    "4.2: cross-entropy, an auxiliary head with weight 0.2, dropout 0.1, SGD with momentum 0.9, "
    "polynomial decay 0.9, batch norm in the decoder, batch 48, images of 520 pixels, flips, "
    "scaling by 0.5 to 2, crops of 480, learning rate 0.002, "
)
_LABELS_CHOSEN = (
    "weight decay 1e-4; 520 pixels are the longer side; the auxiliary head has the input of the "
    "label head, not that of the stage before it"
)

PRESETS = {
    "midas": Preset(
        "4.1: Adam, 1e-5 for the encoder and 1e-4 for the rest, encoder from ImageNet, "
        "longer side 384, crops of 384, flips, batch 16, 60 epochs of 72,000 steps, the loss of "
        "arXiv 1907.01341, the datasets of a batch drawn evenly",
        "a constant learning rate; the plain sum of the datasets' losses instead of "
        "multi-objective optimization; no first 60 epochs on a part of the data",
        _DEPTH
        | {"weights": "imagenet", "metric": False, "depth_loss": "ssi", "epochs": 60}
        | {"epoch_steps": 72_000, "longer": 384, "crop": (384, 384)},
    ),
    "nyu": Preset(
        "4.1: from the relative network, scaled and shifted by the average of the robust "
        "alignments with the training images; the loss of Eigen et al. with gradient matching",
        "optimizer, learning rates and batch as for the relative network; 20 epochs; whole "
        "images at 640x480, the published checkpoint's size; truth up to 10 m; gradient "
        "matching of the logarithm, weight 0.5",
        _METRIC | {"size": (640, 480), "crop": (640, 480), "max_depth": 10.0},
    ),
    "kitti": Preset(
        "4.1: as for NYUv2, but without gradient matching, because the truth is sparse",
        "optimizer, learning rates and batch as for the relative network; 20 epochs; the "
        "bottom centre 1216x352, the published checkpoint's size; truth up to 80 m",
        _METRIC | {"gradient": 0.0, "crop": (1216, 352), "bottom": True, "max_depth": 80.0},
    ),
    "ade20k": Preset(
        _LABELS_PAPER + "240 epochs; encoder from ImageNet",
        _LABELS_CHOSEN,
        _LABELS | {"weights": "imagenet", "epochs": 240},
    ),
    "pascal_context": Preset(
        _LABELS_PAPER + "50 epochs of fine-tuning",
        "it starts from the ADE20K network; " + _LABELS_CHOSEN,
        _LABELS | {"weights": "cached", "epochs": 50},
    ),
}
