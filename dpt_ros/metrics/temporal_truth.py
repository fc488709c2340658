# SPDX-License-Identifier: Apache-2.0
"""What the truth of a video says about each of its frames: which places can be compared over time,
and where an object has just left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dpt_ros.engine.frame import CameraModel

MIN_DEPTH, MAX_DEPTH = 0.1, 40.0
LEFT = 8  # frames for which a place that an object left is watched
WRONG = 0.15  # relative depth error that makes a ghost or a miss
_EDGE = 1.15  # ratio of neighbouring depths at a depth edge
_PHOTOMETRIC = -np.log(0.01) / 50  # RGB distance (0..1) up to which OPW compares two pixels
_FLOW_LIMIT = 250.0  # pixels, of OPW
_NEVER = 10_000


class Truth(Protocol):
    """One frame of a video with everything known; ``dpt_ros.world.View`` is one."""

    @property
    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8."""

    @property
    def depth(self) -> np.ndarray:
        """(H, W) float32, metres, +Inf for sky."""

    @property
    def labels(self) -> np.ndarray:
        """(H, W) uint8, class ids from 1; 0 and 255 are not judged."""

    @property
    def flow(self) -> np.ndarray:
        """(H, W, 2) float32 pixels: what is at (x, y) was at (x, y) + flow in the frame before."""

    @property
    def flow_valid(self) -> np.ndarray:
        """(H, W) bool, whether that place was seen in the frame before."""

    @property
    def movers(self) -> np.ndarray:
        """(H, W) bool, things that move by themselves."""

    @property
    def odom_from_camera(self) -> np.ndarray:
        """(4, 4) float64, pose of the optical frame."""

    @property
    def camera(self) -> CameraModel:
        """Intrinsics."""

    @property
    def stamp_ns(self) -> int:
        """Nanoseconds."""


@dataclass(frozen=True)
class Reference:
    """What the measures need of one frame's truth; masks are (H, W) bool.

    Args:
        truth: the frame.
        before: the reference of the frame before, without its own past; None at a cut.
        inverse: (H, W) float32, 1/m, 0 where unknown.
        known: the depth is judged.
        edge: within 2 pixels of a depth edge: a band 5 pixels wide.
        left: an object covered this place within the last 8 frames and has uncovered it.
        left_label: (H, W) uint8, the label of the object that left, where ``left``.
        inside: (N,) flat indices of the pixels whose flow ends in the frame before.
        corners, weights: (4, N) flat indices there and weights of a bilinear sample.
        nearest: (N,) flat indices there, rounded.
        steady: (N,) which of them TEPE compares: visible and known in both frames, off the edge
            bands of both.
        same: (N,) which of them OPW and rTC compare: nearly the same colour in both frames.
        still: whether the camera has not moved since the frame before.
    """

    truth: Truth
    before: Reference | None
    inverse: np.ndarray
    known: np.ndarray
    edge: np.ndarray
    left: np.ndarray
    left_label: np.ndarray
    inside: np.ndarray
    corners: np.ndarray
    weights: np.ndarray
    nearest: np.ndarray
    steady: np.ndarray
    same: np.ndarray
    still: bool

    def sample(self, image: np.ndarray) -> np.ndarray:
        """Bilinear values (N,) of the last frame's ``image`` (H, W), along the true flow."""
        return np.einsum("kn,kn->n", image.ravel()[self.corners], self.weights)


class Tracker:
    """Follows the truth of a video, frame by frame."""

    def __init__(self) -> None:
        self._last: Reference | None = None
        self._age = np.zeros(0)
        self._cover = np.zeros(0, np.uint8)

    def update(self, truth: Truth, cut: bool = False) -> Reference:
        """The next frame.

        Args:
            truth: the frame; its flow leads to the frame given before it.
            cut: whether this frame has nothing to do with the one before.

        Raises:
            ValueError: the size changed without a cut.
        """
        last = None if cut else self._last
        shape = truth.depth.shape
        if last is not None and last.inverse.shape != shape:
            raise ValueError(
                f"The size changed from {last.inverse.shape} to {shape} within a cut."
            )
        known = np.isfinite(truth.depth) & (truth.depth >= MIN_DEPTH) & (truth.depth <= MAX_DEPTH)
        inverse = np.zeros(shape, np.float32)
        np.divide(1.0, truth.depth, out=inverse, where=known)
        edge = _edge_band(inverse)
        inside, corners, weights, nearest = _places_before(truth.flow)
        steady = np.zeros(len(inside), bool)
        same, still = steady.copy(), False
        age = np.full(shape, _NEVER).ravel()
        cover = np.zeros(shape, np.uint8).ravel()
        if last is None:
            inside, corners, weights, nearest, steady, same = (
                np.array(a[..., :0]) for a in (inside, corners, weights, nearest, steady, same)
            )
        else:
            usable = truth.flow_valid & known & ~edge
            before = last.known & ~last.edge
            steady = usable.ravel()[inside] & before.ravel()[corners].all(0)
            rgb = last.truth.rgb.reshape(-1, 3)
            now = truth.rgb.reshape(-1, 3)[inside].astype(np.float32)
            shift = now - np.einsum("knc,kn->nc", rgb[corners].astype(np.float32), weights)
            same = np.einsum("nc,nc->n", shift, shift) < np.float32((255 * _PHOTOMETRIC) ** 2)
            same &= np.abs(truth.flow).max(2).ravel()[inside] < _FLOW_LIMIT
            same &= known.ravel()[inside] & last.known.ravel()[nearest]
            age[inside] = np.minimum(self._age[nearest] + 1, _NEVER)
            cover[inside] = self._cover[nearest]
            # what stood there hid this place, and was nearer by more than a ghost has to be
            uncovered = ~truth.flow_valid.ravel()[inside]
            nearer = last.inverse.ravel()[nearest] * (1 - WRONG) > inverse.ravel()[inside]
            uncovered &= nearer
            age[inside[uncovered]] = 0
            cover[inside[uncovered]] = last.truth.labels.ravel()[nearest[uncovered]]
            still = bool(np.allclose(truth.odom_from_camera, last.truth.odom_from_camera))
        self._age, self._cover = age, cover
        if last is not None:
            last = _without_past(last)
        self._last = Reference(
            truth, last, inverse, known, edge,
            (age < LEFT).reshape(shape) & known, cover.reshape(shape),
            inside, corners, weights, nearest, steady, same, still,
        )  # fmt: skip
        return self._last


def _without_past(reference: Reference) -> Reference:
    """A reference that does not hold the whole video in memory."""
    values = {name: getattr(reference, name) for name in Reference.__dataclass_fields__}
    return Reference(**{**values, "before": None})


def _places_before(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inside pixels, bilinear corners and weights, nearest pixel; all as in ``Reference``."""
    height, width = flow.shape[:2]
    x = (flow[..., 0] + np.arange(width, dtype=np.float32)).ravel()
    y = (flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]).ravel()
    inside = np.flatnonzero((x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1))
    x, y = x[inside], y[inside]
    x0 = np.minimum(x.astype(np.int32), width - 2)
    y0 = np.minimum(y.astype(np.int32), height - 2)
    u, v = x - x0, y - y0
    first = y0 * width + x0
    corners = np.stack([first, first + 1, first + width, first + width + 1])
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v]).astype(np.float32)
    nearest = np.rint(y).astype(np.int32) * width + np.rint(x).astype(np.int32)
    return inside, corners, weights, nearest


def _edge_band(inverse: np.ndarray) -> np.ndarray:
    """Within 2 pixels, along both axes, of the left or upper side of a depth edge."""
    edge = np.zeros(inverse.shape, bool)
    for now, there in (
        (inverse[:, :-1], inverse[:, 1:]),
        (inverse[:-1], inverse[1:]),
    ):
        low, high = np.minimum(now, there), np.maximum(now, there)
        edge[: now.shape[0], : now.shape[1]] |= high > low * np.float32(_EDGE)
    for axis in (0, 1):
        wide = edge.copy()
        for k in (1, 2):
            a = np.moveaxis(wide, axis, 0)
            e = np.moveaxis(edge, axis, 0)
            a[k:] |= e[:-k]
            a[:-k] |= e[k:]
        edge = wide
    return edge
