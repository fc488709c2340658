# SPDX-License-Identifier: Apache-2.0
"""Runs the temporal filter and the usual smoothing methods over one video and measures them."""

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

from dpt_ros.apps.bench import TEMPORAL_CONDITIONS
from dpt_ros.apps.bench.temporal import noise
from dpt_ros.apps.bench.temporal.shots import STEP, Shot, make_shot
from dpt_ros.engine.input.preprocess import network_input, network_size
from dpt_ros.engine.smoothing.filter import TemporalFilter, TemporalSettings
from dpt_ros.metrics import temporal
from dpt_ros.metrics.temporal import DepthStability, LabelStability, Reference
from dpt_ros.model import DPT, create_model
from dpt_ros.world import CLASSES, View
from dpt_ros.world.classes import PERSON

FILTER = "temporal filter"
_SETTLE = 15  # frames before the standard deviation of a standing camera is taken
Maps = tuple[np.ndarray, np.ndarray | None]
# (inverse depth (H, W) float32, logits (C, h, w) or None, rgb (H, W, 3) uint8, stamp in ns) ->
# inverse depth and logits, smoothed; logits are None where the method does not handle labels.
Baseline = Callable[[np.ndarray, "np.ndarray | None", np.ndarray, int], Maps]


class Ema:
    """Exponential moving average per pixel.

    Args:
        alpha, label_alpha: weight of the new frame, for inverse depth and logits.
        threshold: relative change of inverse depth beyond which a pixel restarts, as the temporal
            filter of librealsense does with its delta; 0 for never. librealsense's 20 units of
            disparity are taken as 20 %, and logits restart with the depth.
        flow: move the history along optical flow (OpenCV DIS, ultrafast). A pixel restarts where
            its history leaves the image or its grey value differs by more than 20 levels.
    """

    def __init__(
        self, alpha: float, label_alpha: float, threshold: float = 0.0, flow: bool = False
    ) -> None:
        self._alpha, self._label_alpha = np.float32(alpha), np.float32(label_alpha)
        self._threshold, preset = threshold, cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST
        self._dis = cv2.DISOpticalFlow.create(preset) if flow else None
        self._last: Maps | None = None
        self._grey = np.zeros(0, np.uint8)

    def update(
        self, inverse: np.ndarray, logits: np.ndarray | None, rgb: np.ndarray, stamp_ns: int
    ) -> Maps:
        """The next frame, smoothed; see ``Baseline``."""
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        if self._last is not None:
            (old, old_logits), restart = self._last, None
            if self._dis is not None:
                old, old_logits, restart = self._moved(grey, old, old_logits)
            elif self._threshold:
                restart = np.abs(inverse - old) > self._threshold * np.maximum(inverse, old)
            inverse = _mix(old, inverse, self._alpha, restart)
            if logits is not None and old_logits is not None:
                logits = _mix(old_logits, logits, self._label_alpha, restart)
        self._last, self._grey = (inverse, logits), grey
        return inverse, logits

    def _moved(
        self, grey: np.ndarray, inverse: np.ndarray, logits: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """The history along the flow, and where it does not apply, (H, W) bool."""
        assert self._dis is not None
        height, width = grey.shape
        place = self._dis.calc(grey, self._grey, None)
        place[..., 0] += np.arange(width, dtype=np.float32)
        place[..., 1] += np.arange(height, dtype=np.float32)[:, None]
        x, y = place[..., 0], place[..., 1]
        restart = (x < 0) | (y < 0) | (x > width - 1) | (y > height - 1)
        restart |= cv2.absdiff(grey, _warp(self._grey, place)) > 20
        if logits is not None:
            h, w = logits.shape[1:]
            coarse = cv2.remap(place, *noise.corner_map((height, width), (h, w)), cv2.INTER_LINEAR)
            coarse *= np.array([(w - 1) / (width - 1), (h - 1) / (height - 1)], np.float32)
            logits = np.stack([_warp(one, coarse) for one in logits])
        return _warp(inverse, place), logits, restart


class OneEuro:
    """The One-Euro filter (Casiez et al., CHI 2012) on each pixel's inverse depth; no labels."""

    # Hz of a constant pixel, Hz per 1/(m s) of change, Hz of the low pass of the change itself
    _min_cutoff, _beta, _d_cutoff = 1.0, 4.0, 1.0

    def __init__(self) -> None:
        self._inverse: np.ndarray | None = None
        self._stamp = 0

    def update(
        self, inverse: np.ndarray, logits: np.ndarray | None, rgb: np.ndarray, stamp_ns: int
    ) -> Maps:
        """The next frame, smoothed; see ``Baseline``."""
        if self._inverse is None:
            self._inverse, self._slope = inverse, np.zeros_like(inverse)
        else:
            dt = np.float32((stamp_ns - self._stamp) * 1e-9)
            rate = 2 * np.pi * dt
            gain = np.float32(rate * self._d_cutoff / (1 + rate * self._d_cutoff))
            self._slope = self._slope + gain * ((inverse - self._inverse) / dt - self._slope)
            cutoff = np.float32(rate) * (self._min_cutoff + self._beta * np.abs(self._slope))
            self._inverse = self._inverse + cutoff / (1 + cutoff) * (inverse - self._inverse)
        self._stamp = stamp_ns
        return self._inverse, None


def _warp(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    return cv2.remap(image, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _mix(
    history: np.ndarray, new: np.ndarray, alpha: np.float32, restart: np.ndarray | None
) -> np.ndarray:
    mixed = history + alpha * (new - history)
    if restart is None:
        return mixed
    if new.ndim == 3:
        size = (new.shape[2], new.shape[1])
        restart = cv2.resize(restart.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    return np.where(restart, new, mixed)


def baselines() -> dict[str, Baseline]:
    """Fresh filters by name, raw first."""
    return {
        "raw": lambda inverse, logits, rgb, stamp_ns: (inverse, logits),
        "EMA 0.4": Ema(0.4, 0.4).update,
        "threshold EMA": Ema(0.4, 0.4, threshold=0.2).update,
        "One-Euro": OneEuro().update,
        "flow EMA": Ema(0.2, 0.3, flow=True).update,
    }


@dataclass(frozen=True)
class Input:
    """What a method gets of a frame."""

    inverse: np.ndarray  # (H, W) float32, 1/m, as predicted
    anchored: np.ndarray  # the same through ``anchors`` if there are any: what the baselines get
    anchors: tuple[float, float] | None  # (scale, shift) of the frame
    logits: np.ndarray | None  # (C, h, w) float32, None where labels are not measured


@dataclass
class Measured:
    """One method on one video."""

    source: str
    condition: str
    method: str
    seed: int
    # of ``DepthStability`` and ``LabelStability``; "near" and "far": frames to 90 % of a step,
    # median; "cut": AbsRel of the first frame after a cut
    values: dict[str, float]
    ms: float  # per frame, median, one thread
    resets: list[str] = field(default_factory=list)  # of the filter: frame and reason


@dataclass(frozen=True)
class Job:
    """One video, and all that is measured on it."""

    shot: str  # this and the next four: of ``make_shot``
    seed: int
    frames: int
    width: int
    height: int
    sources: tuple[str, ...]  # of ``bench.TEMPORAL_SOURCES``
    conditions: tuple[str, ...]  # those of ``bench.TEMPORAL_CONDITIONS`` with this shot
    cache: Path | None  # folder for the network's predictions
    settings: TemporalSettings
    device: str  # of the filter


# (index of the frame, the frame, what is to be smoothed) -> inverse depth (H, W) and logits
# (C, h, w) or label ids (H, W), None without
Smoother = Callable[[int, View, Input], tuple[np.ndarray, "np.ndarray | None"]]


class _Method:
    """A method, its measures and its time; ``smoothed``: its inverse depth, with ``keep``."""

    def __init__(self, smooth: Smoother, labels: bool, tae: bool, keep: bool) -> None:
        self._smooth, self._keep = smooth, keep
        self.depth = DepthStability(stride=2, tae=tae, settle=_SETTLE)
        self.labels = LabelStability(len(CLASSES), (PERSON,)) if labels else None
        self.smoothed: list[np.ndarray] = []
        self.seconds: list[float] = []

    def update(self, index: int, reference: Reference, given: Input, view: View) -> None:
        start = time.perf_counter()
        inverse, labels = self._smooth(index, view, given)
        self.seconds.append(time.perf_counter() - start)
        if self._keep:
            self.smoothed.append(inverse.copy())
        self.depth.update(reference, inverse)
        if self.labels is None or labels is None:
            self.labels = None
            return
        if labels.ndim == 3:
            labels = label_image(labels, view.depth.shape)
        self.labels.update(reference, labels)


def label_image(logits: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(H, W) uint8 ids of (C, h, w) logits, resized as DPT's head does."""
    given = torch.from_numpy(np.ascontiguousarray(logits))[None]
    full = F.interpolate(given, list(size), mode="bilinear", align_corners=True)
    return (full[0].max(0).indices + 1).to(torch.uint8).numpy()


def _smoother(method: Baseline) -> Smoother:
    return lambda _, view, given: method(given.anchored, given.logits, view.rgb, view.stamp_ns)


def filter_smoother(condition: str, shot: Shot, job: Job, resets: list[str]) -> Smoother:
    """The temporal filter with the odometry of a condition; its resets are appended."""
    temporal_filter = TemporalFilter(job.settings)
    odometry = TEMPORAL_CONDITIONS[condition][1]
    factor, jumps = 5.0 if odometry == "x5" else 1.0, 15 if odometry == "jumps" else 0
    noisy = None if odometry == "none" else noise.NoisyOdometry(job.seed, factor, jumps)
    poses = [noisy.pose(view.odom_from_camera) if noisy else None for view in shot.views]

    def smooth(index: int, view: View, given: Input) -> tuple[np.ndarray, np.ndarray | None]:
        inverse = torch.from_numpy(given.inverse).to(job.device)
        logits = None if given.logits is None else torch.from_numpy(given.logits).to(job.device)
        more = (view.rgb, view.stamp_ns, view.camera, poses[index], given.anchors)
        steady = temporal_filter.update(inverse, logits, *more)
        if steady.reset:
            resets.append(f"{index}: {steady.reset}")
        labels = None if logits is None or steady.labels is None else steady.labels.cpu().numpy()
        return steady.inverse_depth.cpu().numpy(), labels

    return smooth


def measure(job: Job) -> list[Measured]:
    """Render, predict, smooth and measure; deterministic but for the times."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    shot = make_shot(job.shot, job.seed, job.frames, job.width, job.height)
    return [found for source in job.sources for found in _measure(job, shot, source)]


def _measure(job: Job, shot: Shot, source: str) -> Iterator[Measured]:
    minute = job.shot == "minute"
    labels = source != "anchored" and not minute
    resets: dict[str, list[str]] = {name: [] for name in job.conditions}
    chosen = {k: method for k, method in baselines().items() if k == "raw" or not minute}
    smoothers = {("", name): _smoother(method) for name, method in chosen.items()}
    for name in job.conditions:
        smoothers[name, FILTER] = filter_smoother(name, shot, job, resets[name])
    keep = bool(shot.steps)
    methods = {k: _Method(smooth, labels, not minute, keep) for k, smooth in smoothers.items()}
    inputs = predict(source, shot, job.seed, labels, job.cache)
    tracker = temporal.Tracker()
    truth: list[tuple[np.ndarray, ...]] = []
    for k, (view, given) in enumerate(zip(shot.views, inputs, strict=True)):
        reference = tracker.update(view, k in shot.cuts)
        for method in methods.values():
            method.update(k, reference, given, view)
        if shot.steps:
            truth.append((reference.inverse, reference.edge | view.movers))
    raw = methods["", "raw"].smoothed
    for condition in job.conditions:
        for (only, name), method in methods.items():
            if only not in ("", condition):
                continue
            values = method.depth.result() | (method.labels.result() if method.labels else {})
            if shot.cuts:
                values["cut"] = float(method.depth.per_frame("abs_rel")[shot.cuts[0]])
            if shot.steps:
                values["std"] = float("nan")  # objects appear
                values |= _steps(shot, truth, method.smoothed, raw)
            ms, own = 1e3 * float(np.median(method.seconds)), resets[condition]
            own = own if name == FILTER else []
            yield Measured(source, condition, name, job.seed, values, ms, own)


def _steps(
    shot: Shot, truth: list[tuple[np.ndarray, ...]], ours: list[np.ndarray], raw: list[np.ndarray]
) -> dict[str, float]:
    """Frames to 90 % of each step, between the levels of raw 6 frames before and STEP after."""
    needed: dict[str, list[float]] = {"near": [], "far": []}
    for k, appears in shot.steps:
        (old, old_edges), (new, new_edges) = truth[k - 1], truth[k]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = new / old if appears else old / new
        place = (ratio > 1.5) & np.isfinite(ratio) & ~(new_edges if appears else old_edges)
        if place.sum() < 50:
            continue
        span = range(max(k - 6, 0), min(k + STEP, len(ours)))
        level, reached = ([np.median(maps[i][place]) for i in span] for maps in (raw, ours))
        at = k - span[0]
        ends = float(np.mean(level[:at])), float(np.mean(level[at:]))
        needed["near" if appears else "far"].append(temporal.frames_to_90(reached, at, *ends))
    return {
        name: float(np.median(np.nan_to_num(frames, nan=STEP))) if frames else float("nan")
        for name, frames in needed.items()
    }


def predict(
    source: str, shot: Shot, seed: int, labels: bool, cache: Path | None = None
) -> Iterator[Input]:
    """What is smoothed of every frame of a video; ``source``: of ``TEMPORAL_SOURCES``."""
    if source == "network":
        for inverse, logits in _network(shot.views, cache):
            yield Input(inverse, inverse, None, logits if labels else None)
        return
    for k, view in enumerate(shot.views):
        if k == 0 or k in shot.cuts:
            part = int(k > 0)
            noisy = noise.NoisyNetwork(2 * seed + part, len(CLASSES))
            rng = np.random.default_rng([seed, part, 13])
        inverse, logits = noisy.predict(view)
        anchors, anchored = None, inverse
        if source == "anchored":
            rows, columns, depth = noise.scan(view, rng)
            anchors = noise.theil_sen(inverse[rows, columns].astype(np.float64), 1 / depth)
            anchored = np.maximum(anchors[0] * inverse + anchors[1], 1e-3)
            anchored = np.where(inverse > 0, anchored, 0).astype(np.float32)
        yield Input(inverse, anchored, anchors, logits if labels else None)


def _network(views: list[View], cache: Path | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The embedded network's inverse depth and logits, rounded to float16 as the cache is."""
    digest = hashlib.sha256(b"".join(view.rgb.tobytes() for view in views)).hexdigest()[:20]
    file = None if cache is None else cache / f"temporal_{digest}.npz"
    if file is not None and file.exists():
        with np.load(file) as found:
            maps = [found["inverse"], found["logits"]]
    else:
        model = create_model("dpt_hybrid_embedded").eval()
        predicted = zip(*(_predict(model, view) for view in views), strict=True)
        maps = [np.stack(one).astype(np.float16) for one in predicted]
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial.npz")
            np.savez(partial, inverse=maps[0], logits=maps[1])
            partial.replace(file)
    yield from zip(*(one.astype(np.float32) for one in maps), strict=True)


@torch.inference_mode()
def _predict(model: DPT, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Inverse depth (H, W) and logits (C, h, w)."""
    spec, (height, width) = model.spec, view.depth.shape
    size = network_size(height, width, spec.net_height, spec.net_width, spec.multiple_of)
    images = network_input(view.rgb, size, spec.mean, spec.std, torch.device("cpu"))
    features = model.features(images)
    assert model.depth_head is not None
    assert model.label_head is not None
    inverse = (1 / model.depth_head(features))[0].numpy()
    if inverse.shape != (height, width):
        inverse = cv2.resize(inverse, (width, height), interpolation=cv2.INTER_CUBIC)
    return inverse, model.label_head(features)[0].numpy()
