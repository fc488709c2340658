# SPDX-License-Identifier: Apache-2.0
"""dpt_train: train or fine-tune a network on the synthetic world or on published datasets."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpt_ros.apps.command_line import fail, new_parser
from dpt_ros.apps.train import recipe as recipes
from dpt_ros.apps.train.recipe import FULFIL, PRESETS, Recipe
from dpt_ros.datasets import list_datasets, unknown_dataset
from dpt_ros.engine.settings import check
from dpt_ros.model.zoo import list_models, unknown_model

EXAMPLES = """examples:
  the embedded network, an hour and twenty minutes on two CPU cores:
    dpt_train --out runs/embedded --minutes 80
  a short trial:
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
  the accuracy at other inference resolutions (Figure 4), without training:
    dpt_train --out runs/sizes --weights cached --steps 0 --test-sizes 240x176 480x352

run on the node:  -p depth_network:=MODEL -p depth_weights:=OUT/MODEL.safetensors
"""


_LENGTHS = ("minutes", "steps", "epochs")
_COUNTS = ("worlds", "frames", "held_out", "threads", "width", "height")


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "dpt_train",
        "Train or fine-tune a network for depth, labels or both, on frames of the "
        "synthetic world or on published datasets, and evaluate it on held-out images.",
        EXAMPLES,
    )
    start = parser.add_argument_group("output and presets").add_argument
    out = "folder for checkpoint, log and the trained network"
    start("--out", type=Path, required=True, help=out)
    presets = "a protocol of the paper; other options change it"
    start("--preset", choices=tuple(PRESETS), help=presets)

    data = parser.add_argument_group("training data").add_argument
    names = "published dataset, may be repeated: " + ", ".join(list_datasets())
    data("--dataset", action="append", default=[], help=names, metavar="NAME")
    root = "folder of each published dataset, in the same order"
    data("--root", action="append", default=[], type=Path, help=root, metavar="DIR")
    cache = "folder for rendered frames, kept (default: OUT/frames)"
    data("--cache", type=Path, help=cache, metavar="DIR")
    for option, default, text in (
        ("worlds", 1800, "training worlds"),
        ("frames", 8, "frames of each world"),
        ("width", 320, "of the frames, pixels"),
        ("height", 240, "of the frames, pixels"),
        ("held-out", 60, "held-out worlds, five frames of each; of datasets five times as many "
         "images"),
    ):  # fmt: skip
        text += f" (default: {default})"
        data(f"--{option}", type=int, default=default, help=text, metavar="N")
    sizes = "further input sizes to evaluate at"
    data("--test-sizes", type=recipes.parse_size, nargs="+", default=(), help=sizes, metavar="WxH")

    # Without defaults, because a preset may have other ones.
    groups: dict[str, Any] = {}
    for field in fields(Recipe):
        argument = dict(field.metadata)
        if not argument:
            continue
        title, help_text, _ = (argument.pop(key) for key in ("group", "help", "must"))
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        group = groups[title]
        if "(default" not in help_text and field.default not in (None, "", 0):
            help_text += f" (default: {field.default})"
        group.add_argument(_flag(field.name), default=None, help=help_text, **argument)
        if field.name == "train":
            unit = group.add_mutually_exclusive_group()
            metres, relative = "train for metres", "train for relative inverse depth"
            unit.add_argument("--metric", action="store_true", default=None, help=metres)
            unit.add_argument("--relative", dest="metric", action="store_false", help=relative)

    running = groups[recipes.RUNNING].add_argument
    threads = "CPU threads of all processes, and processes that render (default: all cores)"
    running("--threads", type=int, default=os.cpu_count() or 1, help=threads, metavar="N")
    workers = "processes that prepare images (default: 0; 4 on a GPU)"
    running("--workers", type=int, help=workers, metavar="N")
    minutes = "time between two checkpoints (default: 2)"
    running("--save-minutes", type=float, default=2.0, help=minutes, metavar="MINUTES")
    board = "write curves and images to OUT/tensorboard"
    running("--tensorboard", action="store_true", help=board)
    resume = "continue from the checkpoint in OUT"
    running("--resume", action="store_true", help=resume)
    return parser


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _recipe(args: argparse.Namespace) -> Recipe:
    """The preset, changed by the options given."""
    values = dict(PRESETS[args.preset].values) if args.preset else {}
    options = {field.name: getattr(args, field.name, None) for field in fields(Recipe)}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    for exclusive in (_LENGTHS, ("size", "longer")):
        if any(name in given for name in exclusive):
            values = {name: v for name, v in values.items() if name not in exclusive}
    if "scaling" in given:
        given["scaling"] = tuple(given["scaling"])
    return Recipe(**(values | given))


def _mistakes(args: argparse.Namespace, recipe: Recipe) -> Iterator[str]:
    """The error messages on wrong arguments."""
    if recipe.model and recipe.model not in list_models():
        yield unknown_model(recipe.model)
    try:
        check("device", recipe.device)
    except ValueError as error:
        yield f"--{error}"
    checkpoint = recipe.checkpoint
    if args.resume and not checkpoint.exists():
        yield f"Nothing to resume: {checkpoint} does not exist. Start without --resume."
    if checkpoint.exists() and not args.resume:
        yield f"{args.out} holds a run: give --resume to continue it, or another --out."
    lengths = [_flag(name) for name in _LENGTHS if getattr(args, name) is not None]
    if len(lengths) > 1:
        yield f"Give one length of the run, not {' and '.join(lengths)}."
    weights = recipe.weights
    named = weights in ("download", "cached", "random", "imagenet") or weights.startswith("timm:")
    if not named and not args.resume and not Path(weights).expanduser().is_file():
        known = "a file, download, cached, random, imagenet or timm:NAME"
        yield f"--weights: the file {weights} does not exist. Give {known}."
    if args.tensorboard and find_spec("tensorboard") is None:
        yield "--tensorboard: TensorBoard is not installed: pip install tensorboard."
    yield from _number_mistakes(args, recipe)
    yield from _data_mistakes(args, recipe)


def _number_mistakes(args: argparse.Namespace, recipe: Recipe) -> Iterator[str]:
    numbers = [(field.name, field.metadata["must"]) for field in fields(Recipe) if field.metadata]
    numbers += [(name, recipes.POSITIVE) for name in _COUNTS]
    numbers += [(name, recipes.NOT_NEGATIVE) for name in ("save_minutes", "workers")]
    for name, must in numbers:
        value = getattr(recipe, name, getattr(args, name, None))
        if must and value is not None and not FULFIL[must](value):
            yield f"{_flag(name)} is {value}, but must be {must}."
    low, high = recipe.scaling
    if not 0 < low <= high:
        yield f"--scaling is {low:g} {high:g}, but takes a smallest and a largest positive factor."
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # that torchrun started
    if recipe.batch % processes:
        yield (
            f"--batch is {recipe.batch}, but must be a multiple of {processes}, the number of"
            " processes."
        )


def _data_mistakes(args: argparse.Namespace, recipe: Recipe) -> Iterator[str]:
    for name in args.dataset:
        if name not in list_datasets():
            yield unknown_dataset(name)
    published = [name for name in args.dataset if name != "world"]
    if len(published) != len(args.root):
        yield (
            f"Each --dataset needs its --root: there are {len(published)} published datasets and"
            f" {len(args.root)} folders."
        )
    for root in args.root:
        if not root.expanduser().is_dir():
            yield f"--root: the folder {root} does not exist."
    if args.preset and not args.dataset:
        example = args.preset if args.preset in list_datasets() else "NAME"
        yield (
            f"--preset {args.preset} is a protocol for a published dataset: give --dataset"
            f" {example} --root DIR, or --dataset world to use it on the synthetic world."
        )
    if not published and (frames := args.worlds * args.frames) < recipe.batch:
        yield f"--batch is {recipe.batch}, but there are only {frames} frames to train on."


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_train``. Returns the exit code."""
    args = _parser().parse_args(argv)
    recipe = _recipe(args)
    if mistake := next(_mistakes(args, recipe), ""):
        return fail("dpt_train", mistake, 2)
    from dpt_ros.apps.train.run import run

    return run(args, recipe)
