# SPDX-License-Identifier: Apache-2.0
"""From what a depth network says to 1/m: the metric sources behind one interface."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.scale.anchors import Anchors, Fit, fit_pairs
from dpt_ros.engine.scale.ground import floor_places
from dpt_ros.engine.scale.kalman import Correction
from dpt_ros.engine.scale.local import LocalCorrection
from dpt_ros.engine.scale.scaled import Scaled

SOURCES = ("auto", "network", "anchors", "ground", "none")
NO_ANCHORS = "no anchors"
_EDGE = 0.25  # relative difference of inverse depths around a pair, beyond which it is an edge


def focal_factor(trained: float, camera: CameraModel | None, input_width: int) -> float:
    """What the metres of a metric network are to be multiplied by for this camera.

    A network cannot see the focal length: twice the focal length looks like half the distance.
    Depth therefore scales with the focal length in pixels of the network's input, over the one
    it was trained with.

    Args:
        trained: focal length of the cameras that the network was trained with, pixels of its
            input (``ModelSpec.focal``); 0 if there is none.
        camera: of the picture; None if it is not known.
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
        source: "auto" (anchors while there are any, else their last fit until the ground knows
            better, else the network), "network", "anchors", "ground", or "none".
        depth_scale: what the network's metres are multiplied by, if a user knows better.
        max_anchor_age: seconds between a frame and anchors that still belong to it.
        min_pairs, min_spread: see ``fit_pairs``.
        camera_height: metres above the floor, 0 if unknown.
        height_error: relative standard deviation of it.
        tilt_error: standard deviation of the camera's tilt, radians. It shifts the inverse depth
            of the floor by tilt_error / camera_height wherever the floor is, so that the relative
            error of its depth Z is tilt_error * Z / camera_height: 10 % for 1 degree at 3 m under
            a camera 0.5 m high. The variance of depth grows with Z to the fourth, the relative
            one with Z squared.
        network_error: relative standard deviation of a metric network's scale.
        scale_walk, shift_walk: standard deviation by which a metric network's scale (relative)
            and shift (1/m) wander in one second; the filter raises them when it sees more.
        relative_walk: the same, for both and relative, of a relative network.
        local: whether anchors also correct what is beside them by more than scale and shift.
    """

    source: str = "auto"
    depth_scale: float = 1.0
    max_anchor_age: float = 0.15
    min_pairs: int = 8
    min_spread: float = 0.25
    camera_height: float = 0.0
    height_error: float = 0.02
    tilt_error: float = 0.0175
    network_error: float = 0.25
    scale_walk: float = 0.01
    shift_walk: float = 0.002
    relative_walk: float = 0.1
    local: bool = True


@dataclass(frozen=True)
class Samples:
    """Places whose values ``ScaleEstimator.observe`` wants: indices on the device, truth here.

    Args:
        values: (K,) float32 on the device: what is to be brought to the host.
        anchors: (N,) 1/m, the truth at the first 5 N values (a pair and its four neighbours).
        columns: (N,) where these are in the picture, 0 to 1.
        ground: (M,) 1/m, the truth at the M values after these, if it is floor; M values of
            labels come last.
        reason: why there are no anchors.
    """

    values: Tensor
    anchors: np.ndarray
    columns: np.ndarray
    ground: np.ndarray
    reason: str


class ScaleEstimator:
    """The correction of one camera's depth network: a Kalman filter over scale and shift.

    ``update`` does all at once and waits for some hundred values. A pipeline that must not wait
    calls ``sample`` (on the device), brings ``values`` to the host with the frame's results,
    calls ``observe`` and puts the ``correction`` into the next frame.

    Each frame's robust fit corrects a filter (``Correction``), so that nothing jumps. Without a
    good fit the last correction is held and its uncertainty grows. What anchors say beyond that
    corrects their surroundings (``LocalCorrection``).

    Args:
        settings: where metres come from.
        metric: whether the network says 1/m by itself.
        focal: from ``focal_factor``; used with a metric network.
        floor: label ids of the floor, for the ground.

    Raises:
        ValueError: the source is unknown, or cannot be had with this network.
    """

    def __init__(
        self,
        settings: ScaleSettings = ScaleSettings(),
        metric: bool = True,
        focal: float = 1.0,
        floor: tuple[int, ...] = (),
    ) -> None:
        if settings.source not in SOURCES:
            raise ValueError(
                f"scale.source is {settings.source!r}, but must be one of {', '.join(SOURCES)}."
            )
        if settings.source == "network" and not metric:
            raise ValueError(
                "scale.source is network, but this network predicts relative inverse depth: use a"
                " metric network, or set scale.source to anchors or ground."
            )
        if settings.source == "ground" and not settings.camera_height > 0:
            raise ValueError("scale.source is ground, which needs scale.camera_height.")
        if not focal > 0 or not settings.depth_scale > 0:
            raise ValueError("focal and depth_scale must be greater than 0.")
        self.settings, self.metric = settings, metric
        self._local = LocalCorrection()
        self._prior = 1 / (focal * settings.depth_scale) if metric else 1.0
        self._floor = floor
        self.reset()

    def reset(self) -> None:
        """Forget every fit."""
        s = self.settings
        if self.metric:
            walk = s.scale_walk, s.shift_walk
            self._filter = Correction(self._prior, s.network_error, walk)
        else:
            self._filter = Correction(None, 1.0, (s.relative_walk, s.relative_walk))
        self._stamp: int | None = None
        self._source = "network" if self.metric else "none"
        self._residual = 0.0
        self._local.reset()

    def copy(self) -> ScaleEstimator:
        """The same correction, which stays as it is while frames are taken into this one."""
        other = copy(self)
        other._filter, other._local = copy(self._filter), copy(self._local)
        return other

    def state(self) -> dict[str, Any]:
        """Everything that ``restore`` needs to go on as this one would, as plain values."""
        return {
            "correction": self._filter.state(),
            "stamp": self._stamp,
            "source": self._source,
            "residual": float(self._residual),
            "local": self._local.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where the one with this state was; made with the same arguments."""
        self._filter.restore(state["correction"])
        self._stamp, self._source = state["stamp"], state["source"]
        self._residual = state["residual"]
        self._local.restore(state["local"])

    @property
    def correction(self) -> tuple[float, float]:
        """Scale and shift, as of now."""
        return self._filter.scale, self._filter.shift

    def update(
        self,
        network: Tensor | np.ndarray,
        stamp_ns: int,
        camera: CameraModel | None = None,
        anchors: Anchors | None = None,
        labels: Tensor | np.ndarray | None = None,
        down: np.ndarray | None = None,
    ) -> Scaled:
        """Sample, observe and apply.

        Args:
            network: (H, W) float32, relative inverse depth, or 1/m from a metric network; 0
                beyond range, NaN unknown.
            stamp_ns: of the frame.
            camera: of the frame; for the ground.
            anchors: measured at about the same time, None if there are none.
            labels: (h, w) uint8 class ids; for the ground.
            down: (3,) unit vector, see ``engine.ground.down_direction``; for the ground.

        Returns:
            What is known of its scale; its property ``inverse`` is the frame in 1/m.

        Raises:
            ValueError: ``network`` is not a map.
        """
        tensor = torch.as_tensor(network)
        samples = self.sample(tensor, stamp_ns, camera, anchors, labels, down)
        # Nothing is waited for where nothing was sampled.
        values = samples.values.cpu().numpy() if len(samples.values) else np.zeros(0, np.float32)
        scaled = self.observe(values, samples, stamp_ns)
        if scaled.metric:
            tensor = self._local.apply(tensor, self.correction)
        return replace(
            scaled, network=tensor.numpy() if isinstance(network, np.ndarray) else tensor
        )

    def sample(
        self,
        network: Tensor,
        stamp_ns: int,
        camera: CameraModel | None = None,
        anchors: Anchors | None = None,
        labels: Tensor | np.ndarray | None = None,
        down: np.ndarray | None = None,
    ) -> Samples:
        """Gather what ``observe`` needs, on the network's device, without waiting for it."""
        if network.ndim != 2:
            raise ValueError(
                f"Inverse depth has shape {tuple(network.shape)}, but must be (H, W)."
            )
        s = self.settings
        height, width = network.shape
        flat, truth, columns, reason = [], np.zeros(0), np.zeros(0), NO_ANCHORS
        if s.source in ("auto", "anchors") and anchors is not None:
            late = abs(stamp_ns - anchors.stamp_ns) * 1e-9
            if late > s.max_anchor_age:
                reason = f"anchors {late:.2f} s from the frame"
            elif len(anchors) < s.min_pairs:
                reason = "too few pairs"
            else:
                anchors, reason = anchors.thinned(), ""
                truth = 1 / anchors.metres.astype(np.float64)
                columns = (anchors.u + 0.5) / anchors.width
                places = _around(anchors, height, width)
                flat.append(network.reshape(-1)[_to(places, network)])
        ground = np.zeros(0)
        wanted = s.source in ("auto", "ground") and s.camera_height > 0 and self._floor
        if wanted and camera is not None and labels is not None and down is not None:
            labels = torch.as_tensor(labels)
            x, y, ground = floor_places(camera, down, self.settings.camera_height)
            flat.append(network.reshape(-1)[_to(_flat(x, y, height, width), network)])
            at = _flat(x, y, int(labels.shape[0]), int(labels.shape[1]))
            flat.append(labels.reshape(-1)[_to(at, labels)].to(network))
        values = torch.cat([part.reshape(-1).float() for part in flat]) if flat else network[:0, 0]
        return Samples(values, truth, columns, ground, reason)

    def observe(self, values: np.ndarray, samples: Samples, stamp_ns: int) -> Scaled:
        """Take what the frame says into the correction.

        Args:
            values: ``samples.values``, on the host.
            samples: from ``sample``.
            stamp_ns: of the frame.

        Returns:
            Everything but ``network``, which is None.
        """
        s, correction = self.settings, self._filter
        limit_step, seconds = self._stamp is not None, 0.0
        if self._stamp is not None and stamp_ns > self._stamp:
            seconds = (stamp_ns - self._stamp) * 1e-9
            correction.grow(seconds)
        self._stamp = stamp_ns
        count = len(samples.anchors)
        fit, state, reason, pairs = None, "", samples.reason, 0
        if count:
            fit = self._fit_anchors(values[: 5 * count].reshape(count, 5), samples.anchors)
            reason = correction.take(fit, limit_step)
            state, pairs = "" if reason else fit.state, fit.pairs
            self._source = "anchors" if state else self._source
        if s.local:
            around = values[: 5 * count].reshape(count, 5) if state else np.zeros((0, 5))
            self._take_locally(around, samples, seconds, limit_step)
        if not state and len(samples.ground):
            doubt, systematic = self._ground_doubt()
            if s.source == "ground" or not correction.known or correction.sigma > doubt:
                fit = self._fit_ground(values[5 * count :].reshape(2, -1), samples.ground)
                # The tilt's error is mostly shift, and does not average out.
                reason = correction.take(fit, limit_step, systematic, slope=self.metric)
                state, pairs = "" if reason else fit.state, fit.pairs
                self._source = "ground" if state else self._source
        if state and fit is not None:
            self._residual = fit.residual
        metric = correction.known and s.source != "none"
        if s.source == "none":
            state, reason = "no metres asked for", ""
        elif not correction.known:
            state = "no metres yet"
        elif not state:
            state = "held" if correction.fitted else "as the network says"
        if s.source == "network" or (s.source == "auto" and state == "as the network says"):
            reason = "" if reason == NO_ANCHORS else reason
        scale, shift = self.correction if metric else (1.0, 0.0)
        return Scaled(
            None,
            metric,
            scale,
            shift,
            correction.covariance,
            correction.sigma if metric else float("inf"),
            self._residual,
            pairs,
            self._source if metric else "none",
            state,
            reason,
        )

    def _ground_doubt(self) -> tuple[float, np.ndarray]:
        """Relative standard deviation of the ground's inverse depth, and its covariance (2, 2)."""
        s = self.settings
        shift = s.tilt_error / s.camera_height
        covariance = np.diag([s.height_error**2, 0.0 if self.metric else shift**2])
        return float(np.hypot(s.height_error, shift / self._filter.center)), covariance

    def _fit_ground(self, found: np.ndarray, truth: np.ndarray) -> Fit:
        """``found``: (2, M), the network's values and the labels."""
        floor = np.isin(found[1], self._floor)
        s = self.settings
        return fit_pairs(found[0, floor], truth[floor], s.min_pairs, s.min_spread)

    def _fit_anchors(self, around: np.ndarray, truth: np.ndarray) -> Fit:
        """``around``: (N, 5), the pair's pixel and its neighbours."""
        flat = _flat_places(around)
        return fit_pairs(
            around[flat, 0], truth[flat], self.settings.min_pairs, self.settings.min_spread
        )

    def _take_locally(
        self, around: np.ndarray, samples: Samples, seconds: float, limit_step: bool
    ) -> None:
        """Let the local correction have the anchors of this frame, if they were taken."""
        scale, shift = self.correction
        inverse = around[:, 0] * scale + shift
        good = np.flatnonzero(_flat_places(around) & (around[:, 0] > 0) & (inverse > 0))
        self._local.take(
            samples.columns[good], inverse[good], samples.anchors[good], seconds, limit_step
        )


def _flat_places(around: np.ndarray) -> np.ndarray:
    """(N,) bool. At an edge a shift of a pixel decides between two depths; NaN is an edge too."""
    return around.max(1) <= (1 + _EDGE) * around.min(1)


def _flat(x: np.ndarray, y: np.ndarray, height: int, width: int) -> np.ndarray:
    """Flat indices of places given in 0..1."""
    column = np.clip((x * width).astype(np.int64), 0, width - 1)
    row = np.clip((y * height).astype(np.int64), 0, height - 1)
    return row * width + column


def _around(anchors: Anchors, height: int, width: int) -> np.ndarray:
    """(N, 5) flat indices in an image of ``width`` x ``height``: each pair and its neighbours."""
    reach = max(1, round(width / 160))
    u = (anchors.u + 0.5) * (width / anchors.width)
    v = (anchors.v + 0.5) * (height / anchors.height)
    column = u.astype(np.int64)[:, None] + reach * np.array([0, -1, 1, 0, 0])
    row = v.astype(np.int64)[:, None] + reach * np.array([0, 0, 0, -1, 1])
    return np.clip(row, 0, height - 1) * width + np.clip(column, 0, width - 1)


def _to(indices: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(indices).to(like.device, non_blocking=True)
