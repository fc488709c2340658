# SPDX-License-Identifier: Apache-2.0
"""dpt_train: train or fine-tune a network on the synthetic world or on published datasets."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpt_ros.apps.train.recipe import CHOICES, FIELDS, PRESETS, Recipe
from dpt_ros.datasets import list_datasets, unknown_dataset
from dpt_ros.engine.settings import check
from dpt_ros.model.zoo import GEOMETRIES, list_models, unknown_model

EXAMPLES = """examples:
  the embedded network, an hour and twenty minutes on two CPU cores:
    dpt_train --out runs/embedded --minutes 80
  a quick look at whether it learns:
    dpt_train --out runs/quick --worlds 60 --minutes 5
  resume after an interruption:
    dpt_train --out runs/embedded --minutes 80 --resume
  the paper's fine-tuning on NYUv2, from the published relative network, on a GPU:
    dpt_train --out runs/nyu --preset nyu --weights download --dataset nyu --root ~/nyu
  the paper's ADE20K protocol on four GPUs:
    torchrun --standalone --nproc-per-node 4 -m dpt_ros.apps.train --out runs/ade \\
      --preset ade20k --dataset ade20k --root ~/ade20k --precision bf16
  a second head for labels on a depth network, from a file:
    dpt_train --out runs/both --weights mine.safetensors --train both --lr 1e-4
  one row of the paper's Table 7, on the synthetic world:
    dpt_train --out runs/add --backbone small --readout add --relative --train depth --steps 2000
  what another inference resolution costs (Figure 4), without training:
    dpt_train --out runs/sizes --weights cached --steps 0 --test-sizes 240x176 480x352

run on the node:  -p depth_network:=MODEL -p depth_weights:=OUT/MODEL.safetensors
"""


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = map(int, text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT") from None
    return width, height


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dpt_train",
        description="Train or fine-tune a network for depth, labels or both, on frames of the "
        "synthetic world or on published datasets, and measure it on pictures that it has not "
        "seen.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    start = parser.add_argument_group("where it starts")
    data = parser.add_argument_group("what it learns from")
    recipe = parser.add_argument_group("how it learns")
    views = parser.add_argument_group("what it sees of a picture")
    shape = parser.add_argument_group("another network (the paper's ablations)")
    running = parser.add_argument_group("running")

    def add(group: Any, name: str, kind: Any, help: str, default: object = None) -> None:
        """An option. Those of the recipe have no default here, because a preset may have one."""
        field = name.strip("-").replace("-", "_")
        shown = getattr(Recipe, field, None) if default is None else default
        if shown not in (None, "", 0):
            help += f" (default: {shown})"
        group.add_argument(name, type=kind, default=default, help=help, choices=CHOICES.get(field))

    out = "folder for checkpoint, log and the trained network"
    start.add_argument("--out", type=Path, required=True, help=out)
    presets = "a protocol of the paper; other options change it"
    start.add_argument("--preset", choices=tuple(PRESETS), help=presets)
    add(
        start,
        "--model",
        str,
        "a name of the zoo (default: that of the weights file, else the embedded)",
    )
    weights = "a file, download, cached, random, imagenet (its encoder), or timm:NAME (encoder)"
    add(start, "--weights", str, weights)
    add(start, "--train", str, "depth, labels or both (default: what the network does)")
    metres = start.add_mutually_exclusive_group()
    metres.add_argument("--metric", action="store_true", default=None, help="learn metres")
    metres.add_argument(
        "--relative",
        dest="metric",
        action="store_false",
        default=None,
        help="learn relative inverse depth",
    )

    names = "of published pictures, may be repeated: " + ", ".join(list_datasets())
    data.add_argument("--dataset", action="append", default=[], help=names, metavar="NAME")
    data.add_argument(
        "--root", action="append", default=[], type=Path, help="folder of each dataset"
    )
    add(data, "--cache", Path, "folder for rendered frames, kept (default: OUT/frames)")
    add(data, "--worlds", int, "training worlds", 1800)
    add(data, "--frames", int, "frames of each world", 8)
    add(data, "--width", int, "of the frames, pixels", 320)
    add(data, "--height", int, "of the frames, pixels", 240)
    held_out = "worlds to measure on, five frames of each; of datasets five times as many pictures"
    add(data, "--held-out", int, held_out, 60)
    sizes = "further input sizes to measure at, WIDTHxHEIGHT"
    data.add_argument("--test-sizes", type=_size, nargs="+", default=(), help=sizes)

    add(recipe, "--minutes", float, "how long to train; the schedule fills it")
    add(recipe, "--steps", int, "train this many steps instead; 0 only measures")
    add(recipe, "--epochs", float, "train this many epochs instead")
    add(recipe, "--batch", int, "images per step, of all processes together")
    add(recipe, "--optimizer", str, "of the weights")
    add(recipe, "--weight-decay", float, "of the optimizer (default: 0)")
    add(recipe, "--lr", float, "peak learning rate of decoder and heads")
    add(recipe, "--backbone-lr", float, "that of the encoder (default: that of --lr)")
    add(recipe, "--schedule", str, "of the learning rates")
    add(recipe, "--clip", float, "largest norm of the gradient")
    add(recipe, "--average", float, "decay of the averaged weights that are exported; 0: none")
    coarse = "first part of the run, on pictures of 0.6 times the size"
    add(recipe, "--coarse", float, coarse)
    add(recipe, "--depth-loss", str, "of depth (default: log for metres, else ssi)")
    add(recipe, "--gradient", float, "weight of gradient matching")
    add(recipe, "--auxiliary", float, "weight of an auxiliary label head (default: none)")
    add(recipe, "--dropout", float, "in the label heads (default: 0)")
    recipe.add_argument(
        "--class-weights",
        action=argparse.BooleanOptionalAction,
        help="mild weights for rare classes (default: yes)",
    )
    add(recipe, "--seed", int, "of weights, batches and augmentation (default: 0)")
    add(recipe, "--precision", str, "arithmetic of the forward pass")

    add(views, "--longer", int, "scale to this longer side, pixels")
    add(views, "--size", _size, "scale to WIDTHxHEIGHT instead")
    views.add_argument(
        "--scaling", type=float, nargs=2, help="random scaling (default: 1 1)", metavar="FACTOR"
    )
    add(views, "--crop", _size, "WIDTHxHEIGHT (default: the picture, at most 384x384)")
    views.add_argument(
        "--jitter",
        action=argparse.BooleanOptionalAction,
        help="random changes of light (default: yes)",
    )
    add(views, "--max-depth", float, "metres; truth beyond it is unknown (default: no limit)")

    shape.add_argument("--backbone", choices=tuple(GEOMETRIES), help="of random or timm weights")
    add(shape, "--taps", str, "four layers, counted from 1: 3,6,9,12 or R0,R1,9,12")
    add(shape, "--readout", str, "what becomes of the readout token")
    shape.add_argument(
        "--batch-norm", action=argparse.BooleanOptionalAction, help="in the decoder"
    )

    add(running, "--device", str, "auto (the GPU if there is one), cpu, cuda or cuda:N")
    threads = "CPU threads of all processes, and processes that render"
    add(running, "--threads", int, threads, os.cpu_count() or 1)
    add(running, "--workers", int, "processes that prepare pictures (default: 0; 4 on a GPU)")
    add(running, "--save-minutes", float, "time between two checkpoints", 2.0)
    board = "write curves and pictures to OUT/tensorboard"
    running.add_argument("--tensorboard", action="store_true", help=board)
    resume = "continue from the checkpoint in OUT"
    running.add_argument("--resume", action="store_true", help=resume)
    return parser


def _recipe(args: argparse.Namespace) -> Recipe:
    """The preset, changed by what was given."""
    values = dict(PRESETS[args.preset].values) if args.preset else {}
    given = {k: getattr(args, k) for k in FIELDS if getattr(args, k, None) is not None}
    lengths = ("minutes", "steps", "epochs")
    if any(name in given for name in lengths):
        values = {k: v for k, v in values.items() if k not in lengths}
    if "longer" in given or "size" in given:
        values.pop("size", None)
        values.pop("longer", None)
    if "scaling" in given:
        given["scaling"] = tuple(given["scaling"])
    return Recipe(**(values | given))


def _processes() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _complaint(args: argparse.Namespace, recipe: Recipe) -> str | None:
    """What is wrong with the arguments, None if nothing is."""
    if recipe.model and recipe.model not in list_models():
        return unknown_model(recipe.model)
    try:
        check("device", recipe.device)
    except ValueError as error:
        return f"--{error}"
    complaint = _run_complaint(args, recipe) or _number_complaint(args, recipe)
    return complaint or _data_complaint(args, recipe)


def _run_complaint(args: argparse.Namespace, recipe: Recipe) -> str | None:
    checkpoint = recipe.checkpoint
    if args.resume and not checkpoint.exists():
        return f"Nothing to resume: {checkpoint} does not exist. Start without --resume."
    if checkpoint.exists() and not args.resume:
        return f"{args.out} holds a run: give --resume to continue it, or another --out."
    lengths = [name for name in ("minutes", "steps", "epochs") if getattr(args, name) is not None]
    if len(lengths) > 1:
        return f"Give one length of the run, not --{' and --'.join(lengths)}."
    weights = recipe.weights
    named = weights in ("download", "cached", "random", "imagenet") or weights.startswith("timm:")
    if not named and not args.resume and not Path(weights).expanduser().is_file():
        return (
            f"--weights: the file {weights} does not exist. Give a file, download, cached, random,"
            " imagenet or timm:NAME."
        )
    if args.tensorboard and find_spec("tensorboard") is None:
        return "--tensorboard: TensorBoard is not installed: pip install tensorboard."
    return None


def _number_complaint(args: argparse.Namespace, recipe: Recipe) -> str | None:
    positive = ("worlds", "frames", "held_out", "threads", "width", "height")
    for owner, keys in (
        (args, positive),
        (recipe, ("minutes", "epochs", "batch", "lr", "backbone_lr", "clip")),
    ):
        for key in keys:
            value = getattr(owner, key)
            if value is not None and not value > 0:
                return f"--{key.replace('_', '-')} is {value}, but must be positive."
    for key in ("steps", "gradient", "auxiliary", "weight_decay", "max_depth", "longer",
                "save_minutes", "workers"):  # fmt: skip
        value = getattr(recipe, key, getattr(args, key, None))
        if value is not None and not value >= 0:
            return f"--{key.replace('_', '-')} is {value}, but must not be negative."
    for key in ("average", "coarse", "dropout"):
        if not 0 <= getattr(recipe, key) < 1:
            return f"--{key} is {getattr(recipe, key)}, but must be at least 0 and below 1."
    if not 0 < recipe.scaling[0] <= recipe.scaling[1]:
        return "--scaling takes a smallest and a largest factor, both positive."
    if recipe.batch % _processes():
        return (
            f"--batch is {recipe.batch}, but must be a multiple of {_processes()}, the number of"
            " processes."
        )
    return None


def _data_complaint(args: argparse.Namespace, recipe: Recipe) -> str | None:
    for name in args.dataset:
        if name not in list_datasets():
            return unknown_dataset(name)
    needing = [name for name in args.dataset if name != "world"]
    if len(needing) != len(args.root):
        return (
            f"Each --dataset needs its --root: there are {len(needing)} published datasets and"
            f" {len(args.root)} folders."
        )
    for root in args.root:
        if not root.expanduser().is_dir():
            return f"--root: the folder {root} does not exist."
    if args.preset and not args.dataset:
        published = args.preset if args.preset in list_datasets() else "NAME"
        return (
            f"--preset {args.preset} is a protocol for a published dataset: give --dataset"
            f" {published} --root DIR, or --dataset world to use it on the synthetic world."
        )
    if not needing and (pictures := args.worlds * args.frames) < recipe.batch:
        return f"--batch is {recipe.batch}, but {pictures} frames are all there are to train on."
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_train``. Returns the exit code."""
    args = _parser().parse_args(argv)
    recipe = _recipe(args)
    complaint = _complaint(args, recipe)
    if complaint is not None:
        print(f"dpt_train: {complaint}", file=sys.stderr)
        return 2
    from dpt_ros.apps.train.run import run

    return run(args, recipe, _processes())


if __name__ == "__main__":
    sys.exit(main())
