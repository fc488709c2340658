# SPDX-License-Identifier: Apache-2.0
"""From a depth network's raw inverse depth to 1/m: the metric sources behind one interface."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.scale.anchors import MIN_PAIRS, Anchors, fit_pairs
from dpt_ros.engine.scale.ground import floor_places
from dpt_ros.engine.scale.inverse_depth import apply_affine, metric_inverse_depth
from dpt_ros.engine.scale.kalman import Correction
from dpt_ros.engine.scale.local import LocalCorrection

_NO_ANCHORS, _UNCORRECTED = "no anchors", "uncorrected"
_MAX_ANCHOR_AGE = 0.15  # seconds between a frame and its anchors
_EDGE = 0.25  # relative difference of inverse depths around a pair from which on it is an edge
_METRIC_SIGMA = 0.25  # relative standard deviation of a metric network's own scale
# Standard deviations by which scale (relative) and shift (1/m; of a relative network relative)
# wander in one second; the filter raises them where the innovations are larger.
_METRIC_WALK, _RELATIVE_WALK = (0.01, 0.002), (0.1, 0.1)
_HEIGHT_SIGMA = 0.02  # relative, of the camera's height
# Of the camera's tilt, radians. It shifts the inverse depth of the whole floor by _TILT_SIGMA /
# camera_height, so that the relative error of its depth Z is _TILT_SIGMA * Z / camera_height:
# 10 % for 1 degree at 3 m under a camera 0.5 m high.
_TILT_SIGMA = 0.0175


def focal_factor(trained: float, camera: CameraModel | None, input_width: int) -> float:
    """Factor of a metric network's depth for a camera of another focal length than in training.

    Twice the focal length looks like half the distance to a network. Depth therefore scales with
    the focal length in pixels of the network's input, over that of its training.

    Args:
        trained: focal length of the training cameras, pixels of the network's input
            (``ModelSpec.focal``); 0 if there is none.
        camera: of the image; None if it is not known.
        input_width: of the network's input, pixels.

    Returns:
        1.0 without either.
    """
    if not trained or camera is None:
        return 1.0
    return camera.fx * input_width / camera.width / trained


@dataclass(frozen=True)
class ScaleSettings:
    """Where metres come from.

    Args:
        source: "auto" (anchors while there are any, else their last fit until the ground is more
            certain, else the network), "network", "anchors", "ground", or "none".
        depth_scale: factor of a metric network's depth.
        camera_height: metres above the floor, 0 if unknown.
    """

    source: str = "auto"
    depth_scale: float = 1.0
    camera_height: float = 0.0


@dataclass(frozen=True)
class ScaledFrame:
    """A frame and its scale.

    Args:
        raw_inverse_depth: (H, W) float32 of the network, corrected beside anchors
            (``LocalCorrection``).
        metric: whether ``inverse_depth`` is in 1/m.
        scale, shift: inverse_depth = scale * raw_inverse_depth + shift.
        covariance: (2, 2) of scale and shift.
        sigma: relative standard deviation of the inverse depth at the pairs; inf if not metric.
        residual: relative standard deviation of the network about the last fit, 0 without one.
        pairs: how many pairs of the frame were fitted.
        source: "network", "anchors", "ground" or "none": what the scale comes from.
        state: "fitted", "scale only" (the pairs fix one number), "held" (the last fit),
            "uncorrected", "not metric yet" or "disabled".
        reason: why the frame itself was not used: "no anchors", "anchors 0.40 s from the frame",
            "too few pairs", "no spread", "not plausible"; "" if it was, or need not be.
    """

    raw_inverse_depth: Tensor
    metric: bool
    scale: float
    shift: float
    covariance: np.ndarray
    sigma: float
    residual: float
    pairs: int
    source: str
    state: str
    reason: str

    @property
    def inverse_depth(self) -> Tensor:
        """(H, W) float32: 1/m, 0 beyond range, NaN unknown; raw if it is not metric."""
        if not self.metric:
            return self.raw_inverse_depth
        return metric_inverse_depth(self.raw_inverse_depth, (self.scale, self.shift))

    def relative_variance(self) -> Tensor:
        """(H, W) float32: relative variance of the (inverse) depth due to scale and shift."""
        raw, c = self.raw_inverse_depth, self.covariance
        variance = (float(c[0, 0]) * raw + 2 * float(c[0, 1])) * raw + float(c[1, 1])
        return variance / apply_affine(raw, (self.scale, self.shift)).clamp(min=1e-6).square()

    def diagnostics(self) -> dict[str, str]:
        """Names and values for /diagnostics."""
        return {
            "scale source": self.source,
            "scale state": f"{self.state} ({self.reason})" if self.reason else self.state,
            "scale": f"{self.scale:.6g}",
            "shift": f"{self.shift:.4f} 1/m",
            "scale sigma": f"{100 * self.sigma:.1f} %",
            "scale residual": f"{100 * self.residual:.1f} %",
            "scale pairs": str(self.pairs),
        }


@dataclass(frozen=True)
class _Samples:
    """Values of a frame on the host, where the inverse depth is measured or predicted.

    Args:
        around: (N, 5) raw inverse depth at each anchor and its four neighbours.
        measured: (N,) inverse depth of the anchors, 1/m.
        columns: (N,) of the anchors, 0..1.
        ground: (2, M) raw inverse depth and labels where the floor would be.
        floor: (M,) inverse depth of the floor there, 1/m.
        reason: why there are no anchors.
    """

    around: np.ndarray
    measured: np.ndarray
    columns: np.ndarray
    ground: np.ndarray
    floor: np.ndarray
    reason: str


class ScaleEstimator:
    """The correction of one camera's depth network: a Kalman filter over scale and shift.

    Each frame's robust fit updates a filter (``Correction``), so that nothing jumps. Without a
    good fit the last correction is held and its uncertainty grows. What anchors measure beyond
    that corrects their surroundings (``LocalCorrection``).

    Args:
        settings: where metres come from; a source that the network allows.
        metric: whether the network predicts 1/m by itself.
        focal: from ``focal_factor``, > 0; used with a metric network.
        floor: label ids of the floor, for the ground.
    """

    def __init__(
        self,
        settings: ScaleSettings = ScaleSettings(),
        metric: bool = True,
        focal: float = 1.0,
        floor: tuple[int, ...] = (),
    ) -> None:
        self.settings, self.metric = settings, metric
        self._floor = floor
        if metric:
            prior = 1 / (focal * settings.depth_scale)
            self._filter = Correction(prior, _METRIC_SIGMA, _METRIC_WALK)
        else:
            self._filter = Correction(None, 1.0, _RELATIVE_WALK)
        self._local = LocalCorrection()
        self._stamp_ns: int | None = None
        self._source = "network" if metric else "none"
        self._residual = 0.0

    def copy(self) -> ScaleEstimator:
        """A copy whose state is independent of this one."""
        other = copy(self)
        other._filter, other._local = copy(self._filter), copy(self._local)
        return other

    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs to continue identically, as plain values."""
        return {
            "correction": self._filter.state_dict(),
            "stamp": self._stamp_ns,
            "source": self._source,
            "residual": float(self._residual),
            "local": self._local.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the ``state_dict`` of an estimator made with the same arguments."""
        self._filter.load_state_dict(state["correction"])
        self._stamp_ns, self._source = state["stamp"], state["source"]
        self._residual = state["residual"]
        self._local.load_state_dict(state["local"])

    @property
    def affine(self) -> tuple[float, float]:
        """Scale and shift, as of now."""
        return self._filter.scale, self._filter.shift

    def update(
        self,
        raw_inverse_depth: Tensor | np.ndarray,
        stamp_ns: int,
        camera: CameraModel | None = None,
        anchors: Anchors | None = None,
        labels: Tensor | np.ndarray | None = None,
        down: np.ndarray | None = None,
    ) -> ScaledFrame:
        """Update the correction by a frame and its sensors; waits for some hundred values of it.

        Args:
            raw_inverse_depth: (H, W) float32, relative, or 1/m of a metric network; 0 beyond
                range, NaN unknown.
            stamp_ns: of the frame, nanoseconds.
            camera: intrinsics; for the ground.
            anchors: measured at about the same time, None if there are none.
            labels: (h, w) uint8 class ids; for the ground.
            down: (3,) unit vector, see ``scale.ground.down_direction``; for the ground.

        Returns:
            The frame and its scale, on its device.

        Raises:
            ValueError: ``raw_inverse_depth`` is not (H, W).
        """
        raw = torch.as_tensor(raw_inverse_depth)
        if raw.ndim != 2:
            raise ValueError(f"Inverse depth has shape {tuple(raw.shape)}, but must be (H, W).")
        samples = self._sample(raw, stamp_ns, camera, anchors, labels, down)
        s, correction = self.settings, self._filter
        limit_step, seconds = self._stamp_ns is not None, 0.0
        if self._stamp_ns is not None and stamp_ns > self._stamp_ns:
            seconds = (stamp_ns - self._stamp_ns) * 1e-9
            correction.predict(seconds)
        self._stamp_ns = stamp_ns
        fit, state, reason = None, "", samples.reason
        usable = _no_edge(samples.around)
        if len(samples.measured):
            fit = fit_pairs(samples.around[usable, 0], samples.measured[usable])
            reason = correction.update(fit, limit_step)
            state = "" if reason else fit.state
            self._source = "anchors" if state else self._source
        self._update_local(samples, usable & bool(state), seconds, limit_step)
        if not state and len(samples.floor):
            sigma, systematic = self._ground_uncertainty()
            if s.source == "ground" or not correction.known or correction.sigma > sigma:
                is_floor = np.isin(samples.ground[1], self._floor)
                fit = fit_pairs(samples.ground[0, is_floor], samples.floor[is_floor])
                # The tilt's error is mostly shift, and does not average out.
                reason = correction.update(fit, limit_step, systematic, scale_only=self.metric)
                state = "" if reason else fit.state
                self._source = "ground" if state else self._source
        if state and fit is not None:
            self._residual = fit.residual
        metric = correction.known and s.source != "none"
        if s.source == "none":
            state, reason = "disabled", ""
        elif not correction.known:
            state = "not metric yet"
        elif not state:
            state = "held" if correction.fitted else _UNCORRECTED
        unused = s.source == "network" or (s.source == "auto" and state == _UNCORRECTED)
        scale, shift = self.affine if metric else (1.0, 0.0)
        return ScaledFrame(
            raw_inverse_depth=self._local.apply(raw, self.affine) if metric else raw,
            metric=metric,
            scale=scale,
            shift=shift,
            covariance=correction.covariance,
            sigma=correction.sigma if metric else float("inf"),
            residual=self._residual,
            pairs=0 if fit is None else fit.pairs,
            source=self._source if metric else "none",
            state=state,
            reason="" if unused and reason == _NO_ANCHORS else reason,
        )

    def _sample(
        self,
        raw: Tensor,
        stamp_ns: int,
        camera: CameraModel | None,
        anchors: Anchors | None,
        labels: Tensor | np.ndarray | None,
        down: np.ndarray | None,
    ) -> _Samples:
        s, (height, width) = self.settings, raw.shape
        parts, reason = [], _NO_ANCHORS
        measured, columns, floor = np.zeros(0), np.zeros(0), np.zeros(0)
        if s.source in ("auto", "anchors") and anchors is not None:
            age = abs(stamp_ns - anchors.stamp_ns) * 1e-9
            if age > _MAX_ANCHOR_AGE:
                reason = f"anchors {age:.2f} s from the frame"
            elif len(anchors) < MIN_PAIRS:
                reason = "too few pairs"
            else:
                anchors, reason = anchors.thinned(), ""
                measured = 1 / anchors.metres.astype(np.float64)
                columns = (anchors.u + 0.5) / anchors.width
                parts.append(_gather(raw, _around(anchors, height, width)))
        use_ground = s.source in ("auto", "ground") and s.camera_height > 0 and self._floor
        if use_ground and camera is not None and labels is not None and down is not None:
            x, y, floor = floor_places(camera, down, s.camera_height)
            for values in (raw, torch.as_tensor(labels)):
                column, row = (x * values.shape[1]).astype(int), (y * values.shape[0]).astype(int)
                parts.append(_gather(values, row * values.shape[1] + column).to(raw))
        # Nothing is waited for where nothing was sampled.
        sampled = torch.cat(parts).float().cpu().numpy() if parts else np.zeros(0, np.float32)
        around, ground = np.split(sampled, [5 * len(measured)])
        return _Samples(
            around.reshape(-1, 5), measured, columns, ground.reshape(2, -1), floor, reason
        )

    def _update_local(
        self, samples: _Samples, use: np.ndarray, seconds: float, limit_step: bool
    ) -> None:
        """``use``: (N,) bool, the anchors to use."""
        raw = samples.around[:, 0]
        inverse_depth = apply_affine(raw, self.affine)
        good = np.flatnonzero(use & (raw > 0) & (inverse_depth > 0))
        self._local.update(
            samples.columns[good], inverse_depth[good], samples.measured[good], seconds, limit_step
        )

    def _ground_uncertainty(self) -> tuple[float, np.ndarray]:
        """Relative standard deviation of the ground's inverse depth; covariance (2, 2)."""
        shift = _TILT_SIGMA / self.settings.camera_height
        covariance = np.diag([_HEIGHT_SIGMA**2, 0.0 if self.metric else shift**2])
        return float(np.hypot(_HEIGHT_SIGMA, shift / self._filter.center)), covariance


def _no_edge(around: np.ndarray) -> np.ndarray:
    """(N,) bool. At an edge a shift of a pixel decides between two depths; NaN is an edge too."""
    return around.max(1) <= (1 + _EDGE) * around.min(1)


def _around(anchors: Anchors, height: int, width: int) -> np.ndarray:
    """(N, 5) flat indices in an image of ``width`` x ``height``: each pair and its neighbours."""
    reach = max(1, round(width / 160))
    u = (anchors.u + 0.5) * (width / anchors.width)
    v = (anchors.v + 0.5) * (height / anchors.height)
    column = u.astype(np.int64)[:, None] + reach * np.array([0, -1, 1, 0, 0])
    row = v.astype(np.int64)[:, None] + reach * np.array([0, 0, 0, -1, 1])
    return np.clip(row, 0, height - 1) * width + np.clip(column, 0, width - 1)


def _gather(values: Tensor, indices: np.ndarray) -> Tensor:
    """1-D, on the values' device, at flat indices."""
    index = torch.from_numpy(indices.reshape(-1)).to(values.device, non_blocking=True)
    return values.reshape(-1)[index]
