# SPDX-License-Identifier: Apache-2.0
"""Temporal stability of depth and labels, and its side effects: measures against complete ground
truth.

``Tracker`` prepares the ground truth once per frame; any number of ``DepthStability`` and
``LabelStability`` then evaluate predictions for that frame. Depth is known where it is finite and
0.1 to 40 m; predictions are clipped to that range, NaN counts as its far end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dpt_ros.engine.frame import CameraModel
from dpt_ros.metrics.depth import Confusion, finite_mean
from dpt_ros.metrics.temporal_truth import MAX_DEPTH, MIN_DEPTH, WRONG, Reference, Tracker, Truth

__all__ = ["DepthStability", "LabelStability", "Reference", "Tracker", "Truth", "frames_to_90"]

_DRIFT_SECONDS = 20.0  # drift is not measured on a shorter video


class DepthStability:
    """The measures of depth over one video; call ``update`` for every frame in order.

    Args:
        stride: TAE uses every ``stride``-th row and column.
        tae: compute TAE, which keeps every prediction in memory until ``result``.
        settle: frames at the start that "std" leaves out, in which a filter converges.
    """

    def __init__(self, stride: int = 1, tae: bool = True, settle: int = 0) -> None:
        self._stride, self._tae, self._settle, self._count = stride, tae, settle, 0
        self._last: np.ndarray | None = None
        self._kept: list[_Kept] = []
        self._frames = defaultdict[str, list[float]](list)
        self._gain: list[tuple[float, float]] = []
        self._pixels = {"ghost": 0, "miss": 0}
        self._std = _PixelStd()

    def update(self, reference: Reference, inverse_depth: np.ndarray) -> None:
        """Evaluate the prediction for one frame.

        Args:
            reference: of this frame, from ``Tracker``.
            inverse_depth: (H, W) float, 1/m.

        Raises:
            ValueError: the prediction and the truth have different sizes.
        """
        if inverse_depth.shape != reference.inverse.shape:
            raise ValueError(
                f"The prediction has shape {inverse_depth.shape}, but the ground truth "
                f"{reference.inverse.shape}."
            )
        q = np.nan_to_num(inverse_depth, nan=1 / MAX_DEPTH).astype(np.float32)
        np.clip(q, 1 / MAX_DEPTH, 1 / MIN_DEPTH, out=q)
        truth, known = reference.inverse, reference.known
        ratio = np.divide(truth, q, out=np.ones_like(q), where=known)  # predicted / true depth
        error = np.abs(ratio - 1)
        add = self._add
        add("abs_rel", error[known])
        add("delta1", (ratio < 1.25)[known] & (ratio > 0.8)[known])
        add("edge", error[known & reference.edge])
        uncovered, moving = reference.uncovered, reference.truth.movers & known
        self._share("ghost", ratio[uncovered] < 1 - WRONG)
        self._share("miss", ratio[moving] > 1 + WRONG)
        if known.any():
            seconds = reference.truth.stamp_ns * 1e-9
            self._gain.append((seconds, float(np.median(ratio[known]))))
        if reference.before is not None and self._last is not None:
            self._compare(reference, q)
        self._count += 1
        if self._count > self._settle:
            usable = ~reference.truth.movers & known & ~uncovered
            self._std.update(ratio, usable, reference.static_camera)
        self._last = q
        if self._tae:
            self._kept.append(_Kept(reference, q))

    def _compare(self, reference: Reference, q: np.ndarray) -> None:
        assert reference.before is not None
        assert self._last is not None
        now, then = q.ravel()[reference.inside], reference.sample(self._last)
        truth = reference.inverse.ravel()[reference.inside]
        used, same = reference.comparable, reference.same_color
        change = truth[used] - reference.sample(reference.before.inverse)[used]
        self._add("tepe", np.abs(now[used] - then[used] - change) / truth[used])
        now, then = 1 / now[same], 1 / then[same]
        self._add("opw", np.abs(then - now))
        self._add("rtc", np.maximum(then / now, now / then) < 1.05)

    def _add(self, name: str, values: np.ndarray) -> None:
        self._frames[name].append(float(values.mean()) if values.size else float("nan"))

    def _share(self, name: str, wrong: np.ndarray) -> None:
        self._pixels[name] += wrong.size
        self._frames[name].append(float(wrong.sum()))

    def per_frame(self, name: str) -> np.ndarray:
        """(frames,) of ``name`` "abs_rel", "delta1" or "edge", fractions; NaN if not defined."""
        return np.array(self._frames[name])

    def result(self) -> dict[str, float]:
        """The measures; NaN for what could not be measured. Means are over frames.

        - "tepe", %: ``|(p_t - p_t-1) - (g_t - g_t-1)|`` / g_t along the true flow, p and g inverse
          depth predicted and true, so true changes of depth do not count. The TEPE of CODD (Li et
          al., WACV 2023, utils/metric.py), made relative to the inverse depth. Visible in both
          frames, off the 5-pixel edge bands.
        - "tae", %: temporal alignment error as in the code of Video Depth Anything (Chen et al.,
          CVPR 2025, eval_tae.py): one least-squares scale and shift of inverse depth per video,
          depth of each frame moved by the true pose into its neighbour, rounded, scattered without
          z-buffer, absolute relative difference; both directions. Moving objects are left out
          (ScanNet, which that code is for, has none).
        - "opw", m: ``|D_t-1 - D_t|`` along the true flow as in the code of Khan et al. (CVPR 2023,
          eval/metrics.py, without resample): RGB distance d (0..1) with exp(-50 d) > 0.01, flow
          below 250 pixels, no mask of hidden places. True motion in depth counts.
        - "rtc", %: share of the pixels of OPW with max(D_t-1 / D_t, D_t / D_t-1) < 1.05.
        - "abs_rel", "delta1" (%): as in ``metrics.depth_metrics``, range 0.1 to 40 m.
        - "edge": absolute relative error in a 5-pixel band along depth edges (neighbours that
          differ by more than 15 %).
        - "ghost", %: of the pixels that an object more than 15 % nearer uncovered in the last 8
          frames (carried along the true flow), those predicted more than 15 % nearer than true.
        - "miss", %: of the pixels on moving objects, those predicted more than 15 % farther.
        - "drift", % per minute: slope of the median of predicted / true depth over time; NaN for
          less than 20 s.
        - "std", %: mean over pixels of the standard deviation over time of predicted / true
          inverse depth, if the camera was static throughout, without moving objects; else NaN. The
          first ``settle`` frames do not count.
        """
        values = {"tepe": float("nan"), "tae": float("nan")}
        for name in ("tepe", "opw", "rtc", "abs_rel", "delta1", "edge"):
            percent = name in ("tepe", "rtc", "delta1")
            values[name] = (100 if percent else 1) * finite_mean(self._frames[name])
        values["tae"] = 100 * self._temporal_alignment()
        for name, pixels in self._pixels.items():
            values[name] = 100 * sum(self._frames[name]) / pixels if pixels else float("nan")
        values["drift"] = float("nan")
        seconds, gain = np.array(self._gain).reshape(-1, 2).T
        if len(seconds) and np.ptp(seconds) >= _DRIFT_SECONDS:
            values["drift"] = 6000 * float(np.polyfit(seconds, gain, 1)[0])
        values["std"] = 100 * self._std.result()
        return values

    def _temporal_alignment(self) -> float:
        if len(self._kept) < 2:
            return float("nan")
        p = np.concatenate([kept.prediction[kept.known] for kept in self._kept])
        g = np.concatenate([kept.truth for kept in self._kept])
        p, g = p.astype(np.float64), g.astype(np.float64)
        scale = np.mean((p - p.mean()) * (g - g.mean())) / max(float(np.var(p)), 1e-12)
        shift = g.mean() - scale * p.mean()
        aligned = [np.float32(scale) * kept.prediction + np.float32(shift) for kept in self._kept]
        depth = [1 / np.clip(inverse, 1 / MAX_DEPTH, 1 / MIN_DEPTH) for inverse in aligned]
        errors = []
        for (a, b), (depth_a, depth_b) in zip(pairwise(self._kept), pairwise(depth), strict=True):
            if b.follows:
                errors.append(_projected_error(depth_a, depth_b, a, b, self._stride))
                errors.append(_projected_error(depth_b, depth_a, b, a, self._stride))
        return finite_mean(errors)


class _Kept:
    """The data of a frame for TAE."""

    def __init__(self, reference: Reference, prediction: np.ndarray) -> None:
        self.prediction, self.known = prediction, reference.known & ~reference.truth.movers
        self.truth = reference.inverse[self.known]
        self.pose, self.camera = reference.truth.odom_from_camera, reference.truth.camera
        self.follows = reference.before is not None


def _projected_error(
    depth1: np.ndarray, depth2: np.ndarray, one: _Kept, two: _Kept, stride: int
) -> float:
    """AbsRel of depth1 (H, W), metres, moved into frame 2, against depth2."""
    camera: CameraModel = one.camera
    move = np.linalg.inv(two.pose) @ one.pose
    x = ((np.arange(camera.width)[::stride] - camera.cx) / camera.fx).astype(np.float32)
    y = ((np.arange(camera.height)[::stride, None] - camera.cy) / camera.fy).astype(np.float32)
    z = depth1[::stride, ::stride]
    r, t = move[:3, :3].astype(np.float32), move[:3, 3].astype(np.float32)
    px, py, pz = (z * ((r[k, 0] * x + r[k, 2]) + r[k, 1] * y) + t[k] for k in range(3))
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.rint(camera.fx * px / pz + camera.cx)
        v = np.rint(camera.fy * py / pz + camera.cy)
        fits = (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height) & (pz > 0)
    fits &= one.known[::stride, ::stride]
    moved = np.zeros(depth2.size, np.float32)
    moved[v[fits].astype(np.int32) * camera.width + u[fits].astype(np.int32)] = pz[fits]
    hit = (moved > 0) & two.known.ravel()
    there = depth2.ravel()[hit]
    return float(np.mean(np.abs(moved[hit] - there) / there)) if hit.any() else float("nan")


class _PixelStd:
    """Standard deviation over time at each pixel, for a static camera."""

    def __init__(self) -> None:
        self._count = 0
        self._valid: np.ndarray | np.bool_ = np.True_
        self._sum = self._square = np.zeros(())

    def update(self, ratio: np.ndarray, usable: np.ndarray, static: bool) -> None:
        value = 1 / ratio.astype(np.float64)
        self._valid = self._valid & usable & (static or not self._count)
        self._count += 1
        self._sum = self._sum + (value - 1)
        self._square = self._square + (value - 1) ** 2

    def result(self) -> float:
        if self._count < 2 or not self._valid.any():
            return float("nan")
        total, square = self._sum[self._valid], self._square[self._valid]
        variance = (square - total**2 / self._count) / (self._count - 1)
        return float(np.sqrt(np.maximum(variance, 0)).mean())


class LabelStability:
    """The measures of labels over one video; call ``update`` for every frame in order.

    Args:
        num_classes: ids 1..N are classes.
        mover_classes: ids of the classes of moving objects, for the mover IoU.
        clips: lengths n of the clips of VC_n.
    """

    def __init__(
        self, num_classes: int, mover_classes: Sequence[int], clips: Sequence[int] = (8, 16)
    ) -> None:
        self._truth = Confusion(num_classes)
        self._neighbours = Confusion(num_classes)
        self._movers = np.isin(np.arange(256), mover_classes)
        self._clips = {n: list[float]() for n in clips}
        self._overlap = self._union = self._uncovered = self._ghost = 0
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        self._run: tuple[np.ndarray, np.ndarray] = (np.zeros(0), np.zeros(0))

    def update(self, reference: Reference, labels: np.ndarray) -> None:
        """Evaluate ``labels`` (H, W) uint8, class ids, of one frame against its ``reference``.
        Raises ValueError for another size than the truth's."""
        truth = reference.truth.labels
        self._truth.add(labels, truth)
        moving, claimed = reference.truth.movers, self._movers[labels]
        self._overlap += int((moving & claimed).sum())
        self._union += int((moving | claimed).sum())
        uncovered = reference.uncovered & (reference.uncovered_label != truth)
        self._uncovered += int(uncovered.sum())
        self._ghost += int((labels == reference.uncovered_label)[uncovered].sum())
        if self._last is not None and reference.before is not None:
            visible = reference.truth.flow_valid.ravel()[reference.inside]
            now = labels.ravel()[reference.inside[visible]]
            self._neighbours.add(now, self._last[0].ravel()[reference.nearest[visible]])
            predicted, true = self._run
            same = labels == self._last[0], truth == self._last[1]
            self._run = np.where(same[0], predicted + 1, 1), np.where(same[1], true + 1, 1)
        else:
            self._run = np.ones(truth.shape, np.int32), np.ones(truth.shape, np.int32)
        self._last = labels.copy(), truth
        for n, shares in self._clips.items():
            constant = self._run[1] >= n
            if constant.any():
                shares.append(float((self._run[0] >= n)[constant].mean()))

    def result(self) -> dict[str, float]:
        """The measures, %; NaN for what could not be measured.

        - "miou": mean intersection over union of the classes that occur in the truth, pooled over
          the video.
        - "tc": mIoU between each prediction and the one before, moved along the true flow
          (nearest), places hidden before left out; same classes, pooled. The TC of Liu et al.
          (ECCV 2020) with the true flow; VSPW's TC_cal.py masks no hidden places.
        - "vc8", "vc16": over all clips of n frames, of the pixels whose true label is constant
          through the clip, the share whose prediction is constant too, right or wrong (VSPW,
          Miao et al., CVPR 2021, VC_perclip.py; here also the last clip counts).
        - "mover_iou": IoU of the predicted mover classes with the pixels of moving objects.
        - "ghost_label": of the pixels that an object of another class uncovered in the last 8
          frames, the share that still carries that object's label.
        """

        def share(part: int, whole: int) -> float:
            return 100 * part / whole if whole else float("nan")

        occurs = self._truth.counts.any(1)
        values = {
            "miou": 100 * finite_mean(self._truth.iou()[occurs].tolist()),
            "tc": 100 * finite_mean(self._neighbours.iou()[occurs].tolist()),
        }
        values |= {f"vc{n}": 100 * finite_mean(shares) for n, shares in self._clips.items()}
        values["mover_iou"] = share(self._overlap, self._union)
        values["ghost_label"] = share(self._ghost, self._uncovered)
        return values


def frames_to_90(values: Sequence[float], start: int, old: float, new: float) -> float:
    """Frames until 90 % of a step is reached, 0 if in the first frame after the step.

    Args:
        values: (frames,) a prediction's value.
        start: index of the first frame after the step.
        old, new: the value before the step, and the final one.

    Returns:
        NaN if it is never reached.

    Raises:
        ValueError: there is no step.
    """
    if old == new:
        raise ValueError(f"There is no step from {old} to {new}.")
    share = (np.asarray(values[start:], np.float64) - old) / (new - old)
    reached = np.flatnonzero(share >= 0.9)
    return float(reached[0]) if len(reached) else float("nan")
