# SPDX-License-Identifier: Apache-2.0
"""What dpt_train does once its arguments are parsed: datasets, checks, training, report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from dpt_ros.apps.train.networks import starting_network
from dpt_ros.apps.train.pictures import RenderedWorld, check_batch
from dpt_ros.apps.train.processes import Processes, processes
from dpt_ros.apps.train.recipe import PRESETS, Recipe
from dpt_ros.apps.train.trainer import Interrupted, Trainer, read_checkpoint
from dpt_ros.datasets import Dataset, open_dataset
from dpt_ros.datasets.world import HELD_OUT, WorldDataset
from dpt_ros.engine.inference.loading import NetworkError, choose_device
from dpt_ros.world.dataset import render_set


def run(args: argparse.Namespace, recipe: Recipe, count: int) -> int:
    """Train as the arguments say.

    Args:
        args: of ``dpt_train``.
        recipe: made from them.
        count: processes that share the work.

    Returns:
        The exit code of ``dpt_train``.
    """
    try:
        recipe = replace(recipe, device=str(choose_device(recipe.device)))
    except NetworkError as error:
        print(f"dpt_train: --{error}", file=sys.stderr)
        return 2
    torch.set_num_threads(max(args.threads // count, 1))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with processes(recipe.device) as process:
            return _train(args, recipe, process)
    except (OSError, ValueError) as error:
        print(f"dpt_train: {error}", file=sys.stderr)
        return 1
    except Interrupted as interruption:
        print(f"dpt_train: {interruption}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"dpt_train: {_what_is_kept(recipe)}", file=sys.stderr)
        return 130


def _what_is_kept(recipe: Recipe) -> str:
    """What a run that is interrupted outside its training loop leaves behind."""
    try:
        step = int(read_checkpoint(recipe, torch.device("cpu"))["step"])
    except (OSError, ValueError):
        return "Interrupted before the first checkpoint: repeat the command to start again."
    return f"Interrupted. The checkpoint is of step {step}: --resume continues from there."


def _open(args: argparse.Namespace) -> list[tuple[Dataset, Dataset | None]]:
    """Datasets to learn from, each with its held-out pictures if it is the first one. Worlds are
    not rendered yet: a picture of these is rendered when it is read.

    Raises:
        ValueError, OSError: a folder does not hold what was expected.
    """
    found: list[tuple[Dataset, Dataset | None]] = []
    roots = iter(args.root)
    size = {"width": args.width, "height": args.height}
    for name in args.dataset or ["world"]:
        train: Dataset
        test: Dataset | None = None
        if name == "world":
            train = WorldDataset("train", args.worlds, args.frames, **size)
            if not found:
                test = WorldDataset("test", args.held_out, 5, **size)
        else:
            root = next(roots)
            train = open_dataset(name, root, "train")
            if not found:
                test = open_dataset(name, root, "test")
        found.append((train, test))
    return found


def _check(args: argparse.Namespace, recipe: Recipe, train: Sequence[Dataset]) -> None:
    """Refuse what can be refused before worlds are rendered, which takes many minutes.

    Raises:
        ValueError, OSError: the checkpoint, the weights, the recipe and the datasets do not go
            together.
    """
    for source in train:
        check_batch(source.name, len(source), recipe.batch)
    if args.resume:
        read_checkpoint(recipe, torch.device("cpu"))
    elif any(isinstance(source, WorldDataset) for source in train):
        starting_network(recipe, train, align=False)


def _rendered(
    args: argparse.Namespace, opened: Sequence[tuple[Dataset, Dataset | None]], process: Processes
) -> tuple[list[Dataset], Dataset]:
    """The datasets with their worlds rendered, and the held-out pictures of the first."""
    cache = args.cache or args.out / "frames"
    size = (args.width, args.height)
    train: list[Dataset] = []
    test: Dataset | None = None
    for source, held_out in opened:
        if isinstance(source, WorldDataset):
            for turn in (True, False):  # one process renders, the others read
                if process.first is turn:
                    seeds = range(args.worlds)
                    frames = render_set(cache, seeds, args.frames, *size, args.threads)
                    unseen = range(HELD_OUT, HELD_OUT + args.held_out)
                    others = render_set(cache, unseen, 5, *size, args.threads)
                process.wait()
            source = RenderedWorld(frames)
            held_out = RenderedWorld(others) if held_out is not None else None
        train.append(source)
        test = test or held_out
    assert test is not None
    return train, test


def _train(args: argparse.Namespace, recipe: Recipe, process: Processes) -> int:
    opened = _open(args)
    _check(args, recipe, [train for train, _ in opened])
    train, test = _rendered(args, opened, process)
    workers = args.workers
    if workers is None:
        workers = 4 if process.device.type == "cuda" else 0
    trainer = Trainer(
        recipe,
        train,
        test,
        process,
        save_minutes=args.save_minutes,
        workers=workers,
        board=args.tensorboard and process.first,
        test_limit=5 * args.held_out,
        test_sizes=args.test_sizes,
        resume=args.resume,
    )
    notes = list(trainer.notes)
    if args.preset:
        preset = PRESETS[args.preset]
        notes = [f"From the paper, {preset.says}.", f"Ours: {preset.ours}.", *notes]
    if process.first:
        for note in notes:
            print(note, file=sys.stderr)
    trainer.log(arguments={name: str(value) for name, value in vars(args).items()}, notes=notes)
    report = trainer.run()
    if process.first:
        print(json.dumps(report, indent=2))
        name = trainer.spec.name
        tasks = [t for t in ("depth", "labels") if t in trainer.spec.tasks]
        words = {"depth": "depth", "labels": "label"}
        given = " ".join(
            f"-p {words[t]}_network:={name} -p {words[t]}_weights:={trainer.exported}"
            for t in tasks
        )
        print(
            f"Trained network: {trainer.exported}\nRun it: dpt_node --ros-args {given}",
            file=sys.stderr,
        )
    return 0
