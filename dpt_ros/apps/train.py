# SPDX-License-Identifier: Apache-2.0
"""dpt_train: train a network of the zoo on the synthetic world."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from dpt_ros.apps.trainer import Recipe, Trainer
from dpt_ros.model import list_models
from dpt_ros.world.dataset import render_set

HELD_OUT = 1_000_000  # seeds from here on are never trained on

EXAMPLES = """examples:
  the embedded network, an hour and twenty minutes on two CPU cores:
    dpt_train --out runs/embedded --minutes 80
  a quick look at whether it learns:
    dpt_train --out runs/quick --worlds 60 --minutes 5
  go on after an interruption:
    dpt_train --out runs/embedded --minutes 80 --resume
  fine-tune published weights with the paper's two learning rates, on a GPU:
    dpt_train --out runs/nyu --model dpt_hybrid_nyu --weights download --lr 1e-4 \\
      --backbone-lr 1e-5 --coarse 0 --width 640 --height 480 --device cuda
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dpt_train",
        description="Train a network on frames of the synthetic world and measure it on worlds "
        "that it has not seen.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, kind: type, help: str, default: object = None) -> None:
        shown = help if default is None else f"{help} (default: {default})"
        parser.add_argument(name, type=kind, default=default, help=shown)

    out = "folder for checkpoint, log and the trained network"
    parser.add_argument("--out", type=Path, required=True, help=out)
    add("--model", str, "a name of the zoo", Recipe.model)
    add("--weights", str, "where to start: a file, 'download' or 'random'", Recipe.weights)
    add("--cache", Path, "folder for rendered frames, kept between runs (default: OUT/frames)")
    add("--worlds", int, "training worlds", 1800)
    add("--frames", int, "frames of each world", 8)
    add("--width", int, "of the frames, pixels", 320)
    add("--height", int, "of the frames, pixels", 240)
    add("--held-out", int, "worlds to measure on, five frames of each", 60)
    add("--minutes", float, "how long to train; the schedule fills it", Recipe.minutes)
    add("--steps", int, "train this many steps instead of for a time")
    add("--batch", int, "images per step", Recipe.batch)
    add("--lr", float, "peak learning rate of decoder and heads", Recipe.lr)
    add("--backbone-lr", float, "that of the encoder; the paper: a tenth (default: that of --lr)")
    add(
        "--coarse",
        float,
        "first part of the run, on pictures of 0.6 times the size",
        Recipe.coarse,
    )
    add("--seed", int, "of weights, batches and augmentation", Recipe.seed)
    add("--threads", int, "CPU threads, and processes that render", os.cpu_count() or 1)
    add("--device", str, "torch device", Recipe.device)
    parser.add_argument(
        "--precision",
        choices=("bf16", "fp32"),
        default=Recipe.precision,
        help=f"arithmetic of the forward pass (default: {Recipe.precision})",
    )
    resume = "go on from the checkpoint in OUT"
    parser.add_argument("--resume", action="store_true", help=resume)
    return parser


def _complaint(args: argparse.Namespace, checkpoint: Path) -> str | None:
    """What is wrong with the arguments, as a sentence."""
    if args.model not in list_models():
        return f"There is no model {args.model!r}: choose one of {', '.join(list_models())}."
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        return "There is no CUDA device on this machine: leave --device out to train on the CPU."
    if args.resume and not checkpoint.exists():
        return f"There is nothing to resume, {checkpoint} does not exist: start without --resume."
    if checkpoint.exists() and not args.resume:
        return f"{args.out} holds a run: give --resume to go on with it, or another folder."
    for name in ("worlds", "frames", "held_out", "minutes", "steps", "batch", "lr", "threads"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            return f"--{name.replace('_', '-')} must be positive, but it is {value}."
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_train``. Returns the exit code."""
    args = _parser().parse_args(argv)
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    complaint = _complaint(args, recipe.checkpoint)
    if complaint is not None:
        print(complaint, file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    cache = args.cache or args.out / "frames"
    try:
        size = (args.width, args.height)
        held_out = range(HELD_OUT, HELD_OUT + args.held_out)
        train = render_set(cache, range(args.worlds), args.frames, *size, args.threads)
        test = render_set(cache, held_out, 5, *size, args.threads)
        trainer = Trainer(recipe, train, test)
        if args.resume:
            trainer.load()
        trainer.log(arguments={name: str(value) for name, value in vars(args).items()})
        report = trainer.run()
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: --resume goes on from the last checkpoint.", file=sys.stderr)
        return 130
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
