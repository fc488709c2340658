# SPDX-License-Identifier: Apache-2.0
"""A training run: network, optimizer, schedule, checkpoints, log."""

from __future__ import annotations

import argparse
import copy
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dpt_ros.apps.train.measure import Board, evaluate, loss_of, weights_of
from dpt_ros.apps.train.networks import set_dropout, starting_network
from dpt_ros.apps.train.pictures import Augmentation, Batch, Batches, reduced, stream
from dpt_ros.apps.train.processes import Processes
from dpt_ros.apps.train.recipe import Recipe
from dpt_ros.data import class_names
from dpt_ros.datasets import Dataset
from dpt_ros.files import move_file
from dpt_ros.model import DPT, save_checkpoint
from dpt_ros.model.describe import describe, spec_of
from dpt_ros.model.losses import alone, mean_over_processes

LOST_STEPS = 50  # so many in a row without a finite gradient abort the run
_LOSSES = ("depth", "labels", "auxiliary")
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Average:
    """The exponential moving average of a network's weights, which is evaluated and exported;
    with a decay of 0 the weights themselves."""

    def __init__(self, model: DPT, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: DPT, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        mine, theirs = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)
        torch._foreach_lerp_(mine, theirs, 1 - decay)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary path)`` and rename the result to ``path``."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.chmod(0o644)  # safetensors makes files that only their owner can read
    move_file(part, path)


@contextmanager
def _deferred_sigint() -> Iterator[threading.Event]:
    """Set an event on the first SIGINT, so that the current step is completed; a second one
    interrupts at once."""
    event = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def read_checkpoint(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """The checkpoint that a run continues from. Raises ValueError if it is none, or of a run with
    another recipe."""
    path = recipe.checkpoint
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        before = json.loads(state["recipe"])
    except (RuntimeError, LookupError, TypeError, EOFError, UnpicklingError) as error:
        why = str(error) or type(error).__name__
        raise ValueError(f"{path} is not a checkpoint of dpt_train: {why}") from error
    now = json.loads(json.dumps(recipe.fixed_values()))
    for name, value in before.items():
        if now.get(name) != value:
            option = name.replace("_", "-")
            raise ValueError(
                f"The run in {path.parent} was started with --{option} {value}, but now it is "
                f"{now.get(name)}: give the same value, or another --out."
            )
    return state


class Trainer:
    """One run, with the arguments of dpt_train, on training datasets and a held-out one. Raises
    ValueError if the recipe, the weights and the datasets do not go together."""

    def __init__(
        self,
        recipe: Recipe,
        args: argparse.Namespace,
        train: Sequence[Dataset],
        test: Dataset,
        processes: Processes,
    ) -> None:
        self.recipe, self.args, self.train, self.test = recipe, args, train, test
        self.processes, self.device = processes, processes.device
        state = read_checkpoint(recipe, self.device) if args.resume else None
        model, self.notes = self._resumed(state) if state else starting_network(recipe, train)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).train()
        self.spec = spec = model.spec
        self.names = class_names(spec.class_names) if "labels" in spec.tasks else ()
        self.average = Average(self.model, recipe.average)
        self.step, self.seconds, self.lost = 0, 0.0, 0
        self.steps = self._length()
        self.weight: Tensor | None = None
        if "labels" in self.spec.tasks and recipe.class_weights:
            self.weight = weights_of(train, self.names).to(self.device)
        self._prepare()
        if state:
            self._load(state)
        board = args.tensorboard and processes.first
        self.board = Board(recipe.out / "tensorboard", self.step) if board else None

    def _length(self) -> int | None:
        """Steps of the whole run, None where it is given in minutes."""
        recipe = self.recipe
        if recipe.epochs is None:
            return recipe.steps
        per_epoch = recipe.epoch_steps or max(sum(map(len, self.train)) // recipe.batch, 1)
        return max(round(recipe.epochs * per_epoch), 1)

    def _prepare(self) -> None:
        """Set up the optimizer and, for several processes, DistributedDataParallel."""
        recipe = self.recipe
        encoder = list(self.model.encoder.parameters())
        rest = [p for name, p in self.model.named_parameters() if not name.startswith("encoder.")]
        encoder_lr = recipe.lr if recipe.backbone_lr is None else recipe.backbone_lr
        self.peaks = [encoder_lr, recipe.lr]
        groups = [{"params": encoder}, {"params": rest}]
        more: dict[str, Any] = {"weight_decay": recipe.weight_decay, "fused": True}
        kind: Any = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.SGD
        more |= {"momentum": 0.9} if kind is torch.optim.SGD else {}
        self.optimizer: torch.optim.Optimizer = kind(groups, recipe.lr, **more)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.network: nn.Module = self.model
        self.share, ids = alone, None
        if self.processes.count > 1:
            self.share = mean_over_processes
            if self.device.type == "cuda":
                ids = [self.device.index]
                self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            elif any(isinstance(m, nn.BatchNorm2d) for m in self.model.modules()):
                own = "On CPUs batch norm is computed over each process's own part of a batch."
                self.notes.append(own)
            self.network = DistributedDataParallel(self.network, device_ids=ids)

    def progress(self) -> float:
        """Completed part of the run, 0..1."""
        if self.steps is not None:
            return self.step / self.steps if self.steps else 1.0
        return self.seconds / (60 * self.recipe.minutes)

    def schedule(self) -> None:
        """Set the learning rates of the next step. The cosine has a linear warm-up over the
        first 3 % and ends at 1 % of the peak."""
        done, kind = self.progress(), self.recipe.schedule
        if kind == "cosine":
            cosine = 0.5 * (1 + math.cos(math.pi * min((done - 0.03) / 0.97, 1)))
            factor = max(done / 0.03, 1e-3) if done < 0.03 else 0.01 + 0.99 * cosine
        else:
            factor = max(1 - done, 0) ** 0.9 if kind == "poly" else 1.0
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor

    @property
    def exported(self) -> Path:
        """The trained network, which ``create_model`` and the node load by its path."""
        return self.recipe.out / f"{self.spec.name.replace('/', '_')}.safetensors"

    def save(self) -> None:
        """Write the trained network and the checkpoint, each atomically."""
        if not self.processes.first:
            return
        write_atomically(self.exported, lambda part: save_checkpoint(self.average.model, part))
        state = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "network": describe(self.spec),
            "recipe": json.dumps(self.recipe.fixed_values()),
        }
        write_atomically(self.recipe.checkpoint, lambda part: torch.save(state, part))

    def _resumed(self, state: dict[str, Any]) -> tuple[DPT, list[str]]:
        """The network of a checkpoint, without its weights."""
        metadata = state["network"]
        path = self.recipe.out / f"{metadata['model'].replace('/', '_')}.safetensors"
        spec = spec_of(metadata, path)
        auxiliary = "labels" in spec.tasks and self.recipe.auxiliary > 0
        model = DPT(replace(spec, auxiliary=auxiliary))
        set_dropout(model, self.recipe.dropout)
        return model.eval(), [f"Resumed at step {state['step']}."]

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds = state["step"], state["seconds"]

    def log(self, **entry: Any) -> None:
        """Append an entry to log.jsonl."""
        if not self.processes.first:
            return
        line = {"step": self.step, "minutes": round(self.seconds / 60, 2)} | entry
        with (self.recipe.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One step on a batch, or on this process's part of it. Returns the loss by its terms and
        the norm of the gradient. Raises ValueError if that was not finite for many steps."""
        self.schedule()
        # Dropout: the same after resuming, different in every process.
        torch.manual_seed(hash((self.recipe.seed, self.step, self.processes.rank)))
        if self.progress() < self.recipe.coarse:
            batch = reduced(batch, self.spec.multiple_of)
        batch = Batch(*(x.to(self.device, non_blocking=True) for x in batch))
        dtype = _PRECISIONS.get(self.recipe.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            outputs = self.network(batch.images)
        terms = loss_of(outputs, batch, self.spec, self.recipe, self.weight, self.share)
        total = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.lost = 0 if torch.isfinite(norm) else self.lost + 1
        if not self.lost:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.lost >= LOST_STEPS:
            raise ValueError(
                f"The gradient was not finite for {LOST_STEPS} steps: use a smaller --lr, or "
                "--precision fp32."
            )
        self.step += 1
        self.average.update(self.model, self.step)
        values = {name: float(term.detach()) for name, term in terms.items()}
        return values | {"grad_norm": float(norm), "lost": float(self.lost > 0)}

    def run(self) -> dict[str, Any]:
        """Train to the end, saving checkpoints. Returns the report of the last evaluation.

        Raises:
            KeyboardInterrupt: SIGINT; the current step was completed and saved. The message names
                the step to resume from.
        """
        recipe, first, on_gpu = self.recipe, self.processes.first, self.device.type == "cuda"
        workers = (4 if on_gpu else 0) if self.args.workers is None else self.args.workers
        save_seconds = 60 * self.args.save_minutes
        batches = Batches(
            self.train, self.spec, self.names, Augmentation.of(recipe, self.spec, self.train),
            recipe.batch, recipe.seed, recipe.jitter, self.processes.rank, self.processes.count,
        )  # fmt: skip
        coming = stream(batches, self.step, workers, on_gpu)
        recent: list[dict[str, float]] = []
        next_save, next_test = self.seconds + save_seconds, self.seconds + 600
        layout = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        with (
            _deferred_sigint() as interrupted,
            tqdm(total=100, desc="training", bar_format=layout, disable=not first) as bar,
        ):
            while self.progress() < 1:
                start = time.monotonic()
                recent.append(self.train_step(next(coming)))
                # All processes use the clock of the first, so that they take the same steps.
                self.seconds = self.processes.from_first(self.seconds + time.monotonic() - start)
                bar.set_postfix_str(self._postfix(recent[-1]), refresh=False)
                bar.update(min(100 * self.progress(), 100) - bar.n)
                if self.step % 50 == 0 and first:
                    self._log_losses(recent)
                    recent.clear()
                stop = bool(self.processes.from_first(float(interrupted.is_set())))
                if self.seconds >= next_save or stop:
                    self.save()
                    next_save = self.seconds + save_seconds
                if stop:
                    raise KeyboardInterrupt(
                        f"Interrupted after step {self.step}, which is saved: --resume continues "
                        f"with step {self.step + 1}."
                    )
                if self.seconds >= next_test:
                    self._evaluate(60)
                    self.processes.wait()
                    next_test = self.seconds + 600
        self.save()
        report = self._evaluate(5 * self.args.held_out, self.args.test_sizes)
        self.processes.wait()
        if self.board is not None:
            self.board.close()
        return report

    def _postfix(self, values: dict[str, float]) -> str:
        """Step and losses of the last step, for the progress bar."""
        step = f"step {self.step}" + (f"/{self.steps}" if self.steps is not None else "")
        losses = (f"{name} loss {values[name]:.3f}" for name in _LOSSES if name in values)
        return ", ".join((step, *losses))

    def _log_losses(self, recent: list[dict[str, float]]) -> None:
        means = {k: round(float(np.mean([r[k] for r in recent])), 4) for k in recent[0]}
        rate = self.optimizer.param_groups[1]["lr"]
        self.log(lr=round(rate, 7), **means)
        if self.board is not None:
            self.board.scalars("training", {"lr": rate, **means}, self.step)

    def _evaluate(self, limit: int, sizes: Sequence[tuple[int, int]] = ()) -> dict[str, Any]:
        """Evaluate the averaged network on the held-out dataset, in the first process."""
        if not self.processes.first:
            return {}
        model, far = self.average.model, self.recipe.max_depth or 40.0
        report = evaluate(model, self.test, limit, far)
        for width, height in sizes:
            model.spec = replace(self.spec, net_width=width, net_height=height)
            other = evaluate(model, self.test, limit, far)
            report.setdefault("by_size", {})[f"{width}x{height}"] = other
        model.spec = self.spec
        self.log(held_out=report)
        if self.board is not None:
            numbers = {k: v for k, v in report.items() if isinstance(v, float)}
            self.board.scalars("held out", numbers, self.step)
            self.board.pictures(self.average.model, self.test, self.step)
        return report
