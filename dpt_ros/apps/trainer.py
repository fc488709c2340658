# SPDX-License-Identifier: Apache-2.0
"""Training a network on rendered frames: batches, losses, schedule, checkpoints, measures."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dpt_ros.data import class_names
from dpt_ros.engine.metrics import Confusion, depth_metrics
from dpt_ros.engine.predict import predict_image
from dpt_ros.model import create_model, save_checkpoint
from dpt_ros.model.dpt import DPT
from dpt_ros.model.losses import least_squares_align, metric_loss, scale_shift_invariant_loss
from dpt_ros.model.zoo import ModelSpec
from dpt_ros.world.classes import CLASSES
from dpt_ros.world.dataset import FrameSet

CROP = 384  # pixels; the paper's training crop


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        out: folder of checkpoint, log and the trained network.
        model: a name of the zoo.
        weights: where to start, as for ``create_model``.
        minutes: how long; the schedule fills it.
        steps: how many steps, instead of a time.
        batch: images per step.
        lr: peak learning rate of decoder and heads.
        backbone_lr: peak learning rate of the encoder; None for the same.
        coarse: part of the run, at its start, on pictures of 0.6 times the size.
        seed: of weights, batches and augmentation.
        device: torch device.
        precision: "bf16" or "fp32", of the forward pass.
    """

    out: Path
    model: str = "dpt_hybrid_embedded"
    weights: str = "random"
    minutes: float = 60.0
    steps: int | None = None
    batch: int = 8
    lr: float = 1e-3
    backbone_lr: float | None = None
    coarse: float = 0.4
    seed: int = 0
    device: str = "cpu"
    precision: str = "bf16"

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"


@dataclass
class Batch:
    """One step's images and truth.

    Args:
        images: (B, 3, H, W) float32, normalised for the network.
        inverse: (B, H, W) float32 inverse depth, 1/m, 0 for sky.
        labels: (B, H, W) int64 class indices from 0, -1 where there is no class.
    """

    images: Tensor
    inverse: Tensor
    labels: Tensor


def batches(
    frames: FrameSet,
    size: int,
    rng: np.random.Generator,
    spec: ModelSpec,
) -> Iterator[Batch]:
    """Endless shuffled batches with flips, changes of light, and crops.

    A crop is as large as the network takes, up to 384 pixels a side. The epoch's last, incomplete
    batch is left out.

    Raises:
        ValueError: if there are fewer frames than a batch takes.
    """
    if len(frames) < size:
        raise ValueError(
            f"A batch of {size} images needs at least as many frames, but there are "
            f"{len(frames)}: render more or take a smaller batch."
        )
    height, width = frames.labels.shape[1:]
    crop_h, crop_w = (min(n, CROP) // spec.multiple_of * spec.multiple_of for n in (height, width))
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (spec.mean, spec.std))
    class_ids = world_to_model_ids(spec)

    def draw(low: float, high: float, channels: int) -> Tensor:
        values = rng.uniform(low, high, (size, channels, 1, 1))
        return torch.from_numpy(values.astype(np.float32))

    while True:
        order = rng.permutation(len(frames))
        for start in range(0, len(order) - size + 1, size):
            chosen = np.sort(order[start : start + size])
            top, left = rng.integers(height - crop_h + 1), rng.integers(width - crop_w + 1)
            window = np.s_[:, top : top + crop_h, left : left + crop_w]
            rgb = torch.from_numpy(frames.rgb[chosen][window]).permute(0, 3, 1, 2).float() / 255
            inverse = torch.from_numpy(frames.inverse[chosen][window]).float()
            labels = torch.from_numpy(class_ids[frames.labels[chosen][window]]).long() - 1
            flip = torch.from_numpy(rng.random(size) < 0.5)[:, None, None]
            rgb = torch.where(flip[:, None], rgb.flip(3), rgb)
            inverse, labels = (torch.where(flip, x.flip(2), x) for x in (inverse, labels))
            # contrast around mid grey, gain, tint, gamma
            rgb = (rgb - 0.45) * draw(0.75, 1.25, 1) + 0.45 * draw(0.8, 1.2, 1)
            rgb = (rgb * draw(0.92, 1.08, 3)).clamp_(0, 1) ** draw(0.75, 1.33, 1)
            images = ((rgb - mean) / std).contiguous(memory_format=torch.channels_last)
            yield Batch(images, inverse, labels)


def world_to_model_ids(spec: ModelSpec) -> np.ndarray:
    """The network's id of every class of the world, by name: (11,) uint8, 0 where it has none."""
    names = class_names(spec.class_names) if spec.class_names else CLASSES
    ids = [names.index(name) + 1 if name in names else 0 for name in CLASSES]
    return np.array([0, *ids], np.uint8)


def reduced(batch: Batch, multiple_of: int, factor: float = 0.6) -> Batch:
    """The same views on smaller pictures, with sizes that the network takes."""
    full = batch.images.shape[2:]
    size = tuple(max(round(factor * n / multiple_of), 1) * multiple_of for n in full)
    images = F.interpolate(batch.images, size, mode="bilinear", antialias=True)
    inverse = F.interpolate(batch.inverse[:, None], size, mode="nearest-exact")[:, 0]
    labels = F.interpolate(batch.labels[:, None].float(), size, mode="nearest-exact")[:, 0]
    images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images, inverse, labels.long())


class Average:
    """The exponential moving average of a network's weights: what is measured and exported."""

    def __init__(self, model: DPT) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: DPT, step: int) -> None:
        decay = min(0.998, (1 + step) / (10 + step))
        pairs = zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        mine, theirs = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)
        torch._foreach_lerp_(mine, theirs, 1 - decay)


def class_weights(labels: np.ndarray, spec: ModelSpec) -> Tensor:
    """Mild weights for rare classes, frequency ** -0.3, with a mean of 1 over the pixels.

    Args:
        labels: (N, H, W) uint8, the network's ids from 1.

    Returns:
        (num_classes,) float32
    """
    count = np.bincount(labels.ravel(), minlength=spec.num_classes + 1)[1 : spec.num_classes + 1]
    share = np.maximum(count / max(count.sum(), 1), 1e-4)
    weight = share**-0.3
    return torch.from_numpy(weight / (weight * share).sum()).float()


def loss_of(
    outputs: Tensor | dict[str, Tensor], batch: Batch, model: DPT, weight: Tensor | None
) -> dict[str, Tensor]:
    """The terms of the loss by task."""
    if not isinstance(outputs, dict):
        outputs = {model.tasks[0]: outputs}
    terms = {}
    if "depth" in outputs:
        depth = outputs["depth"].float()
        if model.metric:
            # sky has no depth, but the network should say its farthest there
            floor = max(model.spec.shift, 1e-3)
            everywhere = torch.ones_like(batch.inverse, dtype=torch.bool)
            terms["depth"] = metric_loss(1 / depth, batch.inverse, everywhere, floor=floor)
        else:
            terms["depth"] = scale_shift_invariant_loss(depth, batch.inverse, batch.inverse > 0)
    if "labels" in outputs:
        logits = outputs["labels"].float()
        terms["labels"] = F.cross_entropy(logits, batch.labels, weight, ignore_index=-1)
    if "auxiliary" in outputs:
        logits, half = outputs["auxiliary"].float(), batch.labels[:, ::2, ::2]
        terms["auxiliary"] = 0.2 * F.cross_entropy(logits, half, weight, ignore_index=-1)
    return terms


def evaluate(model: DPT, frames: FrameSet, limit: int | None = None) -> dict[str, Any]:
    """Measure a network on frames with ``predict_image``, as a user runs it.

    Args:
        limit: take only this many of the frames, evenly spread.

    Returns:
        the names of ``depth_metrics`` (mean over images; true depth up to 40 m, no sky; relative
        networks are first fitted to the truth), those of ``Confusion.metrics`` (over all pixels),
        "iou" by class name, and "images".
    """
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), limit or len(frames))).astype(int)
    depth_rows: list[dict[str, float]] = []
    names = class_names(model.spec.class_names) if "labels" in model.tasks else ()
    confusion = Confusion(len(names)) if names else None
    class_ids = world_to_model_ids(model.spec)
    for i in chosen:
        result = predict_image(model, np.ascontiguousarray(frames.rgb[i]))
        if not isinstance(result, dict):
            result = {model.tasks[0]: result}
        inverse = frames.inverse[i].astype(np.float32)
        if "depth" in result:
            truth = np.divide(1, inverse, out=np.full_like(inverse, np.inf), where=inverse > 0)
            depth = result["depth"]
            if not model.metric:
                depth = aligned_depth(depth, inverse)
            depth_rows.append(depth_metrics(depth, truth))
        if confusion is not None:
            confusion.add(result["labels"], class_ids[frames.labels[i]])
    report: dict[str, Any] = {"images": len(chosen)}
    if depth_rows:
        del depth_rows[0]["pixels"]
        report |= {k: float(np.nanmean([row[k] for row in depth_rows])) for k in depth_rows[0]}
    if confusion is not None:
        report |= confusion.metrics()
        iou = confusion.iou().round(4).tolist()
        report["iou"] = {name: v for name, v in zip(names, iou, strict=True) if v == v}
    return report


def aligned_depth(relative: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Metres from relative inverse depth, by the scale and shift that fit the truth best."""
    prediction, target = (torch.from_numpy(x).double()[None] for x in (relative, inverse))
    fitted = least_squares_align(prediction, target, target > 0)[0]
    return fitted.clamp(min=1e-3).reciprocal().float().numpy()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary path)`` and put the result in place in one go."""
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)


class Trainer:
    """One run: network, optimiser, schedule, log."""

    def __init__(self, recipe: Recipe, train: FrameSet, test: FrameSet) -> None:
        self.recipe, self.train, self.test = recipe, train, test
        torch.manual_seed(recipe.seed)
        self.device = torch.device(recipe.device)
        self.model = (
            create_model(recipe.model, weights=recipe.weights, fold=False)
            .to(self.device)
            .to(memory_format=torch.channels_last)
            .train()
        )
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # a small network on this many worlds does not overfit
        self.average = Average(self.model)
        encoder = list(self.model.encoder.parameters())
        in_encoder = {id(p) for p in encoder}
        rest = [p for p in self.model.parameters() if id(p) not in in_encoder]
        encoder_lr = recipe.lr if recipe.backbone_lr is None else recipe.backbone_lr
        self.peaks = [encoder_lr, recipe.lr]
        self.optimizer = torch.optim.Adam(
            [{"params": encoder}, {"params": rest}], lr=recipe.lr, fused=True
        )
        self.step, self.seconds = 0, 0.0
        self.weight: Tensor | None = None
        if "labels" in self.model.tasks:
            ids = world_to_model_ids(self.model.spec)
            weight = class_weights(
                ids[train.labels[:: max(1, len(train) // 500)]], self.model.spec
            )
            self.weight = weight.to(self.device)

    def progress(self) -> float:
        """How much of the run is done, 0..1."""
        if self.recipe.steps is not None:
            return self.step / self.recipe.steps
        return self.seconds / (60 * self.recipe.minutes)

    def schedule(self) -> None:
        """Linear warm-up over the first 3 %, then half a cosine down to 1 % of the peak."""
        done = self.progress()
        cosine = 0.5 * (1 + math.cos(math.pi * min((done - 0.03) / 0.97, 1)))
        factor = max(done / 0.03, 1e-3) if done < 0.03 else 0.01 + 0.99 * cosine
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        write_atomically(self.recipe.checkpoint, lambda part: torch.save(state, part))
        exported = self.recipe.out / f"{self.recipe.model.replace('/', '_')}.safetensors"
        write_atomically(exported, lambda part: save_checkpoint(self.average.model, part))

    def load(self) -> None:
        state = torch.load(self.recipe.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def log(self, **entry: Any) -> None:
        """Add a line to the log."""
        line = {"step": self.step, "minutes": round(self.seconds / 60, 2)} | entry
        with (self.recipe.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One step on one batch. Returns the loss by task and the norm of the gradient."""
        self.schedule()
        if self.progress() < self.recipe.coarse:
            batch = reduced(batch, self.model.spec.multiple_of)
        batch = Batch(*(x.to(self.device) for x in (batch.images, batch.inverse, batch.labels)))
        bf16 = self.recipe.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            outputs = self.model(batch.images)
        terms = loss_of(outputs, batch, self.model, self.weight)
        total = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 100.0)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.step += 1
        self.average.update(self.model, self.step)
        values = {name: float(term.detach()) for name, term in terms.items()}
        return values | {"grad_norm": float(norm)}

    def run(self) -> dict[str, Any]:
        """Train to the end, saving every two minutes. Returns the held-out report."""
        recipe, spec = self.recipe, self.model.spec
        rng = np.random.default_rng([recipe.seed, self.step])
        stream = batches(self.train, recipe.batch, rng, spec)
        recent: list[dict[str, float]] = []
        next_save, next_test = self.seconds + 120, self.seconds + 600
        layout = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        with tqdm(total=100, desc="training", bar_format=layout) as bar:
            while self.progress() < 1:
                start = time.monotonic()
                recent.append(self.train_step(next(stream)))
                self.seconds += time.monotonic() - start
                bar.update(min(100 * self.progress(), 100) - bar.n)
                if self.step % 50 == 0:
                    means = {
                        k: round(float(np.mean([r[k] for r in recent])), 4) for k in recent[0]
                    }
                    recent.clear()
                    self.log(lr=round(self.optimizer.param_groups[1]["lr"], 7), **means)
                    bar.set_postfix(step=self.step, **means)
                if self.seconds >= next_save:
                    self.save()
                    next_save = self.seconds + 120
                if self.seconds >= next_test:
                    self.log(held_out=evaluate(self.average.model, self.test, 60))
                    next_test = self.seconds + 600
        self.save()
        report = evaluate(self.average.model, self.test)
        self.log(held_out=report)
        return report
