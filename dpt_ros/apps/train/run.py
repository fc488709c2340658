# SPDX-License-Identifier: Apache-2.0
"""A run of dpt_train: datasets, checks, training, report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dpt_ros.apps.command_line import fail
from dpt_ros.apps.train.networks import starting_network
from dpt_ros.apps.train.pictures import check_batch
from dpt_ros.apps.train.processes import Processes, processes
from dpt_ros.apps.train.recipe import PRESETS, Recipe
from dpt_ros.apps.train.trainer import Trainer, read_checkpoint
from dpt_ros.datasets import Dataset, open_dataset
from dpt_ros.datasets.world import WorldDataset
from dpt_ros.engine.loading import NetworkError, choose_device


def run(args: argparse.Namespace, recipe: Recipe) -> int:
    """Run ``dpt_train`` with parsed arguments. Returns the exit code."""
    try:
        recipe = replace(recipe, device=str(choose_device(recipe.device)))
    except NetworkError as error:
        return fail("dpt_train", f"--{error}", 2)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with processes(recipe.device) as process:
            torch.set_num_threads(max(args.threads // process.count, 1))
            return _train(args, recipe, process)
    except (OSError, ValueError) as error:
        return fail("dpt_train", error, 1)
    except KeyboardInterrupt as interruption:
        return fail("dpt_train", str(interruption) or _interrupted(recipe), 130)


def _interrupted(recipe: Recipe) -> str:
    """Message for a run that is interrupted outside its training loop."""
    try:
        step = int(read_checkpoint(recipe, torch.device("cpu"))["step"])
    except (OSError, ValueError):
        return "Interrupted before the first checkpoint: repeat the command to start again."
    return f"Interrupted. The checkpoint is of step {step}: --resume continues from there."


def _open(args: argparse.Namespace) -> tuple[list[Dataset], Dataset]:
    """The training datasets, and the held-out one of the first; worlds are not rendered yet.
    Raises ValueError and OSError for a folder that does not hold what was expected."""
    size = {"width": args.width, "height": args.height}
    roots = iter(args.root)

    def open_split(name: str, root: Path | None, split: str) -> Dataset:
        if name != "world":
            return open_dataset(name, root, split)
        counts = (args.worlds, args.frames) if split == "train" else (args.held_out, 5)
        return WorldDataset(split, *counts, **size)

    chosen = [(n, None if n == "world" else next(roots)) for n in args.dataset or ["world"]]
    return [open_split(*one, "train") for one in chosen], open_split(*chosen[0], "test")


def _check(args: argparse.Namespace, recipe: Recipe, train: Sequence[Dataset]) -> None:
    """Check, before worlds are rendered for many minutes, whether checkpoint, weights, recipe and
    datasets go together. Raises ValueError and OSError if they do not."""
    for source in train:
        check_batch(source.name, len(source), recipe.batch)
    if args.resume:
        read_checkpoint(recipe, torch.device("cpu"))
    elif any(isinstance(source, WorldDataset) for source in train):
        starting_network(recipe, train, align=False)


def _rendered(dataset: Dataset, args: argparse.Namespace, process: Processes) -> Dataset:
    """The dataset, rendered by the first process if it is the world."""
    if not isinstance(dataset, WorldDataset):
        return dataset
    for turn in (True, False):  # one process renders, the others read
        if process.first is turn:
            frames = dataset.rendered(args.cache or args.out / "frames", args.threads)
        process.wait()
    return frames


def _train(args: argparse.Namespace, recipe: Recipe, process: Processes) -> int:
    train, test = _open(args)
    _check(args, recipe, train)
    train = [_rendered(dataset, args, process) for dataset in train]
    test = _rendered(test, args, process)
    trainer = Trainer(recipe, args, train, test, process)
    notes = trainer.notes
    if args.preset:
        preset = PRESETS[args.preset]
        notes = [f"From the paper, {preset.paper}.", f"Chosen: {preset.chosen}.", *notes]
    if process.first and notes:
        print(*notes, sep="\n", file=sys.stderr)
    trainer.log(arguments={name: str(value) for name, value in vars(args).items()}, notes=notes)
    report = trainer.run()
    if process.first:
        print(json.dumps(report, indent=2))
        name = trainer.spec.name
        parameters = " ".join(
            f"-p {prefix}_network:={name} -p {prefix}_weights:={trainer.exported}"
            for task, prefix in (("depth", "depth"), ("labels", "label"))
            if task in trainer.spec.tasks
        )
        then = f"Run it: dpt_node --ros-args {parameters}"
        print(f"Trained network: {trainer.exported}", then, sep="\n", file=sys.stderr)
    return 0
