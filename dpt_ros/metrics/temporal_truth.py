# SPDX-License-Identifier: Apache-2.0
"""The ground truth of a video, prepared frame by frame: which pixels can be compared with the
frame before, and which were uncovered by an object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np

from dpt_ros.engine.frame import CameraModel

MIN_DEPTH, MAX_DEPTH = 0.1, 40.0
UNCOVERED_FRAMES = 8  # frames for which an uncovered pixel counts as such
WRONG = 0.15  # relative depth error of a ghost or a miss
_EDGE = 1.15  # ratio of neighbouring depths at a depth edge
_SAME_COLOR = -np.log(0.01) / 50  # RGB distance (0..1) up to which OPW compares two pixels
_FLOW_LIMIT = 250.0  # pixels, of OPW
_NEVER = 10_000


class Truth(Protocol):
    """A video frame with complete ground truth, for example ``dpt_ros.world.View``."""

    @property
    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8."""

    @property
    def depth(self) -> np.ndarray:
        """(H, W) float32, metres, +Inf for sky."""

    @property
    def labels(self) -> np.ndarray:
        """(H, W) uint8, class ids from 1; 0 and 255 are ignored."""

    @property
    def flow(self) -> np.ndarray:
        """(H, W, 2) float32, pixels: the point at (x, y) was at (x, y) + flow one frame before."""

    @property
    def flow_valid(self) -> np.ndarray:
        """(H, W) bool, whether that point was visible in the frame before."""

    @property
    def movers(self) -> np.ndarray:
        """(H, W) bool, moving objects."""

    @property
    def odom_from_camera(self) -> np.ndarray:
        """(4, 4) float64, pose of the optical frame, metres."""

    @property
    def camera(self) -> CameraModel:
        """Intrinsics."""

    @property
    def stamp_ns(self) -> int:
        """Time, nanoseconds."""


@dataclass(frozen=True)
class Reference:
    """The ground truth of one frame, prepared for the measures; masks are (H, W) bool. N pixels
    have a flow that ends inside the frame before.

    Args:
        truth: the frame.
        before: the reference of the frame before, without its own past; None at a cut.
        inverse: (H, W) float32 inverse depth, 1/m, 0 where unknown.
        known: the depth is evaluated.
        edge: within 2 pixels of a depth edge: a band 5 pixels wide.
        uncovered: an object hid this point and uncovered it within the last 8 frames.
        uncovered_label: (H, W) uint8, the label of that object, where ``uncovered``.
        inside: (N,) flat indices of the N pixels.
        corners, weights: (4, N) flat indices in the frame before and weights of a bilinear sample.
        nearest: (N,) flat indices there, rounded.
        comparable: (N,) bool, compared by TEPE: visible and known in both frames, off the edge
            bands of both.
        same_color: (N,) bool, compared by OPW and rTC: nearly the same colour in both frames.
        static_camera: the camera has not moved since the frame before.
    """

    truth: Truth
    before: Reference | None
    inverse: np.ndarray
    known: np.ndarray
    edge: np.ndarray
    uncovered: np.ndarray
    uncovered_label: np.ndarray
    inside: np.ndarray
    corners: np.ndarray
    weights: np.ndarray
    nearest: np.ndarray
    comparable: np.ndarray
    same_color: np.ndarray
    static_camera: bool

    def sample(self, image: np.ndarray) -> np.ndarray:
        """(N,) bilinear values of the frame before's ``image`` (H, W), along the true flow."""
        return np.einsum("kn,kn->n", image.ravel()[self.corners], self.weights)


class Tracker:
    """Prepares the ground truth of a video, frame by frame."""

    def __init__(self) -> None:
        self._last: Reference | None = None
        self._age = np.zeros(0)
        self._cover = np.zeros(0, np.uint8)

    def update(self, truth: Truth, cut: bool = False) -> Reference:
        """The next frame.

        Args:
            truth: the frame; its flow leads to the frame given before it.
            cut: this frame does not continue the one before.

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
        inside, corners, weights, nearest = _previous_pixels(truth.flow)
        comparable, same_color, static = np.zeros(0, bool), np.zeros(0, bool), False
        # frames since each pixel was uncovered, and the label that it was uncovered by
        age, cover = np.full(truth.depth.size, _NEVER), np.zeros(truth.depth.size, np.uint8)
        if last is None:
            inside, corners, weights, nearest = (
                a[..., :0].copy() for a in (inside, corners, weights, nearest)
            )
        else:
            usable = truth.flow_valid & known & ~edge
            before = last.known & ~last.edge
            comparable = usable.ravel()[inside] & before.ravel()[corners].all(0)
            same_color = _same_color(truth, last.truth, inside, corners, weights)
            same_color &= known.ravel()[inside] & last.known.ravel()[nearest]
            age[inside] = np.minimum(self._age[nearest] + 1, _NEVER)
            cover[inside] = self._cover[nearest]
            # what hid this point was nearer by more than the relative error of a ghost
            uncovered = ~truth.flow_valid.ravel()[inside]
            uncovered &= last.inverse.ravel()[nearest] * (1 - WRONG) > inverse.ravel()[inside]
            age[inside[uncovered]] = 0
            cover[inside[uncovered]] = last.truth.labels.ravel()[nearest[uncovered]]
            static = bool(np.allclose(truth.odom_from_camera, last.truth.odom_from_camera))
            last = replace(last, before=None)
        self._age, self._cover = age, cover
        self._last = Reference(
            truth, last, inverse, known, edge,
            (age < UNCOVERED_FRAMES).reshape(shape) & known, cover.reshape(shape),
            inside, corners, weights, nearest, comparable, same_color, static,
        )  # fmt: skip
        return self._last


def _same_color(
    now: Truth, before: Truth, inside: np.ndarray, corners: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(N,) bool, where OPW compares two pixels: nearly the same colour, flow within its limit."""
    color = now.rgb.reshape(-1, 3)[inside].astype(np.float32)
    color_before = before.rgb.reshape(-1, 3)[corners].astype(np.float32)
    change = color - np.einsum("knc,kn->nc", color_before, weights)
    same = np.einsum("nc,nc->n", change, change) < np.float32((255 * _SAME_COLOR) ** 2)
    return same & (np.abs(now.flow).max(2).ravel()[inside] < _FLOW_LIMIT)


def _previous_pixels(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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
    """(H, W) bool, within 2 pixels, along both axes, of the left or upper side of a depth edge."""
    edge = np.zeros(inverse.shape, np.uint8)
    for now, there in ((inverse[:, :-1], inverse[:, 1:]), (inverse[:-1], inverse[1:])):
        low, high = np.minimum(now, there), np.maximum(now, there)
        edge[: now.shape[0], : now.shape[1]] |= high > low * np.float32(_EDGE)
    return cv2.dilate(edge, np.ones((5, 5), np.uint8)).astype(bool)
