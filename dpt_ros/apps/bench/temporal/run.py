# SPDX-License-Identifier: Apache-2.0
"""Runs the temporal filter and its baselines over one video and measures them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from dpt_ros.apps.bench.temporal.baselines import Baseline, baselines
from dpt_ros.apps.bench.temporal.noise import NoisyNetwork, NoisyOdometry, scan, theil_sen
from dpt_ros.apps.bench.temporal.shots import STEP, Shot, make_shot
from dpt_ros.engine.input.preprocess import network_input, network_size
from dpt_ros.engine.smoothing.filter import TemporalFilter, TemporalSettings
from dpt_ros.metrics.temporal import (
    DepthStability,
    LabelStability,
    Reference,
    Tracker,
    frames_to_90,
)
from dpt_ros.world import CLASSES, View
from dpt_ros.world.classes import PERSON

FILTER = "temporal filter"
SOURCES = ("anchored", "noise", "network")
_SETTLE = 15  # frames before the standard deviation of a standing picture is taken
# condition: its video, and what odometry says
CONDITIONS = {
    "moving": ("moving", "normal"),
    "turning": ("turning", "normal"),
    "standing": ("standing", "normal"),
    "exposure": ("exposure", "normal"),
    "15 fps": ("15 fps", "normal"),
    "7.5 fps": ("7.5 fps", "normal"),
    "cut": ("cut", "normal"),
    "step": ("step", "normal"),
    "odometry x5": ("moving", "x5"),
    "odometry jumps": ("moving", "jumps"),
    "no odometry": ("moving", "none"),
    "minute": ("minute", "normal"),
}


@dataclass(frozen=True)
class Input:
    """What a smoother gets of a frame.

    Args:
        inverse: (H, W) float32, 1/m, as the network says it.
        anchored: the same through the frame's own anchors, which is what everybody but the filter
            sees; ``inverse`` itself where there are none.
        anchors: (scale, shift) of the frame, None where there are none.
        logits: (C, h, w) float32, None where labels are not looked at.
    """

    inverse: np.ndarray
    anchored: np.ndarray
    anchors: tuple[float, float] | None
    logits: np.ndarray | None


@dataclass
class Measured:
    """One method on one video.

    Args:
        source, condition, method, seed: what was run.
        values: the measures of ``DepthStability`` and ``LabelStability``; "near" and "far": frames
            to 90 % of a step, median; "cut": AbsRel of the first frame after a cut.
        ms: of a frame, median, one thread.
        resets: reasons of the filter, with the frame.
    """

    source: str
    condition: str
    method: str
    seed: int
    values: dict[str, float]
    ms: float
    resets: list[str] = field(default_factory=list)


Smoother = Callable[[int, View, Input], tuple[np.ndarray, np.ndarray | None]]


class _Run:
    """A method, its measures and its stopwatch."""

    def __init__(self, smooth: Smoother, labels: bool, tae: bool, keep: bool) -> None:
        self._smooth, self._keep = smooth, keep
        self.depth = DepthStability(stride=2, tae=tae, settle=_SETTLE)
        self.labels = LabelStability(len(CLASSES), (PERSON,)) if labels else None
        self.kept: list[np.ndarray] = []
        self.seconds: list[float] = []

    def update(self, index: int, reference: Reference, given: Input, view: View) -> None:
        start = time.perf_counter()
        inverse, labels = self._smooth(index, view, given)
        self.seconds.append(time.perf_counter() - start)
        self.depth.update(reference, inverse)
        if self.labels is not None and labels is not None:
            size = inverse.shape
            chosen = labels if labels.ndim == 2 else label_image(labels, (size[0], size[1]))
            self.labels.update(reference, chosen)
        else:
            self.labels = None
        if self._keep:
            self.kept.append(inverse.copy())


def label_image(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 ids of (C, h, w) logits, resized as DPT's head does."""
    full = F.interpolate(
        torch.from_numpy(np.ascontiguousarray(logits))[None], size, mode="bilinear",
        align_corners=True,
    )  # fmt: skip
    return (full[0].max(0).indices + 1).to(torch.uint8).numpy()


def baseline_smoother(method: Baseline) -> Smoother:
    """A baseline as a ``Smoother``."""

    def smooth(index: int, view: View, given: Input) -> tuple[np.ndarray, np.ndarray | None]:
        return method.update(given.anchored, given.logits, view.rgb, view.stamp_ns)

    return smooth


def filter_smoother(
    poses: list[np.ndarray] | None,
    resets: list[str],
    settings: TemporalSettings,
    device: str = "cpu",
) -> Smoother:
    """The temporal filter as a ``Smoother``; ``poses`` is what odometry says in every frame."""
    steadier = TemporalFilter(settings)

    def smooth(index: int, view: View, given: Input) -> tuple[np.ndarray, np.ndarray | None]:
        logits = None if given.logits is None else torch.from_numpy(given.logits).to(device)
        steady = steadier.update(
            torch.from_numpy(given.inverse).to(device),
            logits,
            view.rgb,
            view.stamp_ns,
            view.camera,
            None if poses is None else poses[index],
            given.anchors,
        )
        if steady.reset:
            resets.append(f"{index}: {steady.reset}")
        labels = None if logits is None or steady.labels is None else steady.labels.cpu().numpy()
        return steady.inverse_depth.cpu().numpy(), labels

    return smooth


@dataclass(frozen=True)
class Job:
    """One video, all that is to be measured on it.

    Args:
        shot, seed, frames, width, height: of ``make_shot``.
        sources: of ``SOURCES``.
        conditions: those of ``CONDITIONS`` with this shot.
        cache: folder for the network's predictions, None for none.
        settings: of the filter.
        device: of the filter.
    """

    shot: str
    seed: int
    frames: int
    width: int
    height: int
    sources: tuple[str, ...]
    conditions: tuple[str, ...]
    cache: Path | None = None
    settings: TemporalSettings = field(default_factory=TemporalSettings)
    device: str = "cpu"


def measure(job: Job) -> list[Measured]:
    """Render, predict, smooth and measure; the same numbers every time but for the times."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    shot = make_shot(job.shot, job.seed, job.frames, job.width, job.height)
    minute = job.shot == "minute"
    found: list[Measured] = []
    for source in job.sources:
        labels = source != "anchored" and not minute
        inputs = list(predict(source, shot, job.seed, labels, job.cache))
        resets: dict[str, list[str]] = {name: [] for name in job.conditions}
        runs: dict[tuple[str, str], _Run] = {}
        plain = baselines()
        if minute:
            plain = {"raw": plain["raw"]}
        smoothers = {("", name): baseline_smoother(method) for name, method in plain.items()}
        for name in job.conditions:
            poses = odometry(CONDITIONS[name][1], shot, job.seed)
            smoothers[name, FILTER] = filter_smoother(
                poses, resets[name], job.settings, job.device
            )
        for key, smooth in smoothers.items():
            runs[key] = _Run(smooth, labels, not minute, bool(shot.steps))
        tracker, references = Tracker(), []
        for k, (view, given) in enumerate(zip(shot.views, inputs, strict=True)):
            reference = tracker.update(view, k in shot.cuts)
            for run in runs.values():
                run.update(k, reference, given, view)
            if shot.steps:
                references.append((reference.inverse, reference.edge | view.movers))
        raw = runs["", "raw"]
        for name in job.conditions:
            for (condition, method), run in runs.items():
                if condition in ("", name):
                    values = run.depth.result()
                    values |= run.labels.result() if run.labels is not None else {}
                    if shot.cuts:
                        values["cut"] = float(run.depth.per_frame("abs_rel")[shot.cuts[0]])
                    if shot.steps:
                        values["std"] = float("nan")  # things come and go
                        values |= _steps(shot, references, run.kept, raw.kept)
                    found.append(
                        Measured(
                            source, name, method, job.seed, values,
                            1e3 * float(np.median(run.seconds)),
                            resets[name] if method == FILTER else [],
                        )
                    )  # fmt: skip
    return found


def _steps(
    shot: Shot,
    references: list[tuple[np.ndarray, np.ndarray]],
    values: list[np.ndarray],
    raw: list[np.ndarray],
) -> dict[str, float]:
    """Frames to 90 % of each step, between the levels of raw 6 frames before and STEP after."""
    needed: dict[bool, list[float]] = {True: [], False: []}
    for k, appears in shot.steps:
        (old, hidden), (new, shown) = references[k - 1], references[k]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = new / old if appears else old / new
        place = (ratio > 1.5) & np.isfinite(ratio) & ~(shown if appears else hidden)
        if place.sum() < 50:
            continue
        span = range(max(k - 6, 0), min(k + STEP, len(values)))
        level = np.array([np.median(raw[i][place]) for i in span])
        reached = np.array([np.median(values[i][place]) for i in span])
        at = k - span[0]
        needed[appears].append(
            frames_to_90(reached.tolist(), at, float(level[:at].mean()), float(level[at:].mean()))
        )
    return {
        name: float(np.median(np.nan_to_num(frames, nan=STEP))) if frames else float("nan")
        for name, frames in (("near", needed[True]), ("far", needed[False]))
    }


def odometry(kind: str, shot: Shot, seed: int) -> list[np.ndarray] | None:
    """What odometry says in every frame: "normal", "x5", "jumps" or "none"."""
    if kind == "none":
        return None
    noisy = NoisyOdometry(seed, 5.0 if kind == "x5" else 1.0, 15 if kind == "jumps" else 0)
    return [noisy.pose(view.odom_from_camera) for view in shot.views]


def predict(
    source: str, shot: Shot, seed: int, labels: bool, cache: Path | None = None
) -> Iterator[Input]:
    """What the smoothers get of every frame of a video, from one of ``SOURCES``."""
    if source == "network":
        for inverse, logits in _network(shot.views, cache):
            yield Input(inverse, inverse, None, logits if labels else None)
        return
    parts = [shot.views] if not shot.cuts else [shot.views[: shot.cuts[0]],
                                               shot.views[shot.cuts[0] :]]  # fmt: skip
    for part, views in enumerate(parts):
        noisy = NoisyNetwork(2 * seed + part, len(CLASSES))
        rng = np.random.default_rng([seed, part, 13])
        for view in views:
            inverse, logits = noisy.predict(view)
            anchors, anchored = None, inverse
            if source == "anchored":
                rows, columns, depth = scan(view, rng)
                anchors = theil_sen(inverse[rows, columns].astype(np.float64), 1 / depth)
                anchored = np.maximum(anchors[0] * inverse + anchors[1], 1e-3)
                anchored = np.where(inverse > 0, anchored, 0).astype(np.float32)
            yield Input(inverse, anchored, anchors, logits if labels else None)


def _network(views: list[View], cache: Path | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The embedded network's inverse depth and logits, rounded to float16 as the cache is."""
    file = None
    if cache is not None:
        digest = hashlib.sha256()
        for view in views:
            digest.update(view.rgb.tobytes())
        file = cache / f"temporal_{digest.hexdigest()[:20]}.npz"
        if file.exists():
            with np.load(file) as kept:
                inverse, logits = kept["inverse"], kept["logits"]
            yield from zip(inverse.astype(np.float32), logits.astype(np.float32), strict=True)
            return
    inverses, classes = [], []
    from dpt_ros.model import create_model

    model = create_model("dpt_hybrid_embedded")
    model.eval()
    spec = model.spec
    for view in views:
        height, width = view.depth.shape
        size = network_size(height, width, spec.net_height, spec.net_width, spec.multiple_of)
        images = network_input(view.rgb, size, spec.mean, spec.std, torch.device("cpu"))
        with torch.inference_mode():
            features = model.features(images)
            assert model.depth_head is not None
            assert model.label_head is not None
            inverse = (1 / model.depth_head(features))[0].numpy()
            logits = model.label_head(features)[0].numpy()
        if inverse.shape != (height, width):
            inverse = cv2.resize(inverse, (width, height), interpolation=cv2.INTER_CUBIC)
        inverses.append(inverse.astype(np.float16))
        classes.append(logits.astype(np.float16))
        yield inverses[-1].astype(np.float32), classes[-1].astype(np.float32)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, inverse=np.stack(inverses), logits=np.stack(classes))
        partial.replace(file)
