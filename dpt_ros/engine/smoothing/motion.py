# SPDX-License-Identifier: Apache-2.0
"""Where every pixel was in the frame before: by the camera's pose, and by optical flow."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

# Optical flow looks at pictures of at most this width, pixels.
FLOW_WIDTH = 320
# OpenCV 5.0's search reads outside of pictures that are smaller: its coarsest scale has no room
# for a patch, and the process may crash.
_SMALLEST = 32
# Refinement of the camera's motion: error of the flow (as a share of the focal length), how many
# of its samples say something of their own, and rounds.
_FLOW_NOISE = 0.0015
_INDEPENDENT = 200.0
_ROUNDS = 2
# Of two depths of one point, the smaller as a share of the larger; keeps divisions finite.
_NEAREST = 0.05
# Contrast of a picture that is enough to see motion by, grey levels per pixel.
_CONTRAST = 4.0


@dataclass(frozen=True)
class Flow:
    """Optical flow from one frame back to the one before it.

    Args:
        displacement: (h, w, 2) float32, pixels of this map: what is seen at (x, y) was at
            (x, y) + displacement.
        residual: (h, w) float32, grey levels by which a pixel differs from where its flow says
            it was, after the exposures are made equal.
        weight: (2, h, w) float32, 0..1, how well the picture tells motion along x and along y.
        luma: (h, w) uint8, this frame in grey.
        stamp_ns: of this frame.
        since_ns: of the frame before.
    """

    displacement: np.ndarray
    residual: np.ndarray
    weight: np.ndarray
    luma: np.ndarray
    stamp_ns: int
    since_ns: int


class FlowEstimator:
    """Optical flow of one camera, computed beside whatever else goes on.

    Dense inverse search (Kroeger et al., ECCV 2016) as OpenCV has it, with its fastest preset:
    its patches are made zero-mean, so that a step of the exposure does not mislead it.
    """

    def __init__(self) -> None:
        self._search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._before: tuple[np.ndarray, int] | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._pending: Future[Flow | None] | None = None
        self._before_pending: tuple[np.ndarray, int] | None = None

    def submit(self, rgb: np.ndarray, stamp_ns: int) -> None:
        """Begin with the next frame on a thread of its own; ``result`` waits for it.

        Args:
            rgb: (H, W, 3) uint8, must stay as it is until ``result`` returns.
            stamp_ns: of the frame, nanoseconds.
        """
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "dpt_flow")
        if self._pending is not None:
            wait([self._pending])
        self._before_pending = self._before
        self._pending = self._worker.submit(self.compute, rgb, stamp_ns)

    def withdraw(self) -> None:
        """Forget the frame submitted last, as if it had never been."""
        if self._pending is not None:
            wait([self._pending])
            self._pending, self._before = None, self._before_pending

    def result(self) -> Flow | None:
        """Flow of the frame submitted last, as often as it is asked for; None when there is no
        frame before it to compare, or the picture has less than 32 pixels a side."""
        return None if self._pending is None else self._pending.result()

    def compute(self, rgb: np.ndarray, stamp_ns: int) -> Flow | None:
        """The same at once, on the caller's thread."""
        luma = grey(rgb)
        before, self._before = self._before, (luma, stamp_ns)
        if before is None or before[0].shape != luma.shape or min(luma.shape) < _SMALLEST:
            return None
        displacement = self._search.calc(luma, before[0], None)
        residual = _residual(displacement, luma, before[0])
        return Flow(displacement, residual, _texture(luma), luma, stamp_ns, before[1])

    def reset(self) -> None:
        """Forget the frame before."""
        self._forget(None)

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs to go on as this one would: tensors and plain values."""
        self.result()
        if self._before is None:
            return {}
        luma, stamp_ns = self._before
        return {"luma": torch.from_numpy(luma), "stamp_ns": stamp_ns}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where the one with this state was."""
        self._forget((state["luma"].numpy(), state["stamp_ns"]) if state else None)

    def _forget(self, before: tuple[np.ndarray, int] | None) -> None:
        self.result()
        self._pending, self._before = None, before

    def close(self) -> None:
        """End the thread."""
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None


def grey(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (h, w) uint8, at most ``FLOW_WIDTH`` wide."""
    height, width = rgb.shape[:2]
    if width > FLOW_WIDTH:
        size = (FLOW_WIDTH, max(8, round(height * FLOW_WIDTH / width)))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def _residual(displacement: np.ndarray, luma: np.ndarray, before: np.ndarray) -> np.ndarray:
    """(h, w) float32 grey levels."""
    height, width = luma.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x += displacement[..., 0]
    y += displacement[..., 1]
    moved = cv2.remap(before, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    gain = cv2.mean(luma)[0] / max(cv2.mean(before)[0], 1.0)
    return cv2.absdiff(luma, cv2.convertScaleAbs(moved, alpha=gain)).astype(np.float32)


def _texture(luma: np.ndarray) -> np.ndarray:
    """(2, h, w) float32: the diagonal of the structure tensor against noise and the other axis."""
    squares = []
    for axis in ((1, 0), (0, 1)):
        slope = cv2.Sobel(luma, cv2.CV_32F, *axis, ksize=3, scale=1 / 8)
        squares.append(cv2.boxFilter(slope * slope, -1, (5, 5)))
    total = squares[0] + squares[1] + _CONTRAST**2
    return np.stack([squares[0] / total, squares[1] / total])


def normalisation(width: int, height: int) -> np.ndarray:
    """(3, 3): homogeneous pixels -> -1 at the centre of the first pixel, 1 at that of the last."""
    return np.array([[2 / max(width - 1, 1), 0, -1], [0, 2 / max(height - 1, 1), -1], [0, 0, 1.0]])


@dataclass(frozen=True)
class EgoMotion:
    """A camera's motion from one frame to the next, ready to move the pixels of a static world.

    Places are in normalised coordinates, see ``normalisation``.

    Args:
        rotation: (3, 3), shift: (3,) metres: what is at X in this frame's axes was at
            rotation @ X + shift in those of the frame before.
        to_grid: (3, 3), rays (X/Z, Y/Z, 1) -> normalised coordinates; from_grid: its inverse.
    """

    rotation: Tensor
    shift: Tensor
    to_grid: Tensor
    from_grid: Tensor

    def project(self, places: Tensor, inverse_depth: Tensor) -> Tensor:
        """Where pixels were in the frame before.

        Args:
            places: (3, ...) normalised x, y and 1.
            inverse_depth: (...) 1/m.

        Returns:
            (2, ...) normalised x, y.
        """
        turn = self.to_grid @ self.rotation @ self.from_grid
        shift = (self.to_grid @ self.shift).view(3, *[1] * inverse_depth.ndim)
        moved = (turn @ places.reshape(3, -1)).view(places.shape)
        moved = torch.addcmul(moved, shift, inverse_depth)
        return moved[:2] / moved[2].clamp(min=_NEAREST)

    def advance(self, places: Tensor, inverse_depth: Tensor) -> Tensor:
        """The inverse depth that static points have now.

        Args:
            places: (2, ...) where they were in the frame before, normalised.
            inverse_depth: (...) what they had there.
        """
        axis = self.rotation[:, 2]
        form = axis @ self.from_grid
        ratio = torch.addcmul(form[2], form[0], places[0])
        ratio = torch.addcmul(ratio, form[1], places[1])
        ratio = torch.addcmul(ratio, -(axis @ self.shift), inverse_depth)
        return inverse_depth / ratio.clamp(min=_NEAREST)


def relative_pose(before: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (3, 3) and shift (3,) from this frame's axes to those before, float64.

    Args:
        before, now: (4, 4) poses of the optical frame in any fixed frame, metres.
    """
    before_from_now = np.linalg.inv(before) @ now
    return before_from_now[:3, :3], before_from_now[:3, 3]


def refine(
    ego: EgoMotion,
    places: Tensor,
    inverse_depth: Tensor,
    seen_at: Tensor,
    weight: Tensor,
    trust: Tensor,
) -> EgoMotion:
    """Turn and shift a camera's motion until it explains the optical flow.

    The equations of Longuet-Higgins and Prazdny (1980), linear in a small rotation and shift,
    solved by reweighted least squares, with the motion given as the prior. Takes the jitter
    out of odometry, and finds the motion where there is none.

    Args:
        ego: what odometry says; no motion if there is none.
        places: (3, N) normalised x, y and 1.
        inverse_depth: (N,) 1/m.
        seen_at: (2, N) where optical flow finds them in the frame before, normalised.
        weight: (2, N) how well flow is known along x and y, 0..1.
        trust: (6,) standard deviations of the prior: rotation, radians; shift, metres.
    """
    target = torch.addmm(ego.from_grid[:2, 2:], ego.from_grid[:2, :2], seen_at)
    rays = ego.from_grid @ places
    identity = torch.eye(6, device=trust.device)
    rotation, shift, total = ego.rotation, ego.shift, torch.zeros_like(trust)
    for _ in range(_ROUNDS):
        point = rotation @ rays + shift[:, None] * inverse_depth
        near = 1.0 / point[2].clamp(min=_NEAREST)
        x, y, q = point[0] * near, point[1] * near, inverse_depth * near
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        along_x = torch.stack([-x * y, one + x * x, -y, q, zero, -x * q])
        along_y = torch.stack([-one - y * y, x * y, x, zero, q, -y * q])
        wrong_x, wrong_y = target[0] - x, target[1] - y
        length = (wrong_x.square() + wrong_y.square()).sqrt()
        robust = _FLOW_NOISE / length.clamp(min=_FLOW_NOISE) / _FLOW_NOISE**2
        robust = robust * _INDEPENDENT / x.numel()
        jacobian = torch.cat([along_x, along_y], 1) * trust[:, None]
        weighted = jacobian * torch.cat([weight[0] * robust, weight[1] * robust])
        normal = weighted @ jacobian.T + identity
        side = weighted @ torch.cat([wrong_x, wrong_y]) - total
        step = torch.linalg.solve_ex(normal, side)[0]
        total = total + step
        twist = step * trust
        cross = _cross(twist[:3])
        turn = identity[:3, :3] + cross + 0.5 * cross @ cross
        rotation, shift = turn @ rotation, turn @ shift + twist[3:]
    return EgoMotion(rotation, shift, ego.to_grid, ego.from_grid)


def _cross(w: Tensor) -> Tensor:
    zero = torch.zeros_like(w[0])
    return torch.stack([zero, -w[2], w[1], w[2], zero, -w[0], -w[1], w[0], zero]).view(3, 3)
