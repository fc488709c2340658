# SPDX-License-Identifier: Apache-2.0
"""Every pixel's position in the previous frame: by the camera's pose, and by optical flow."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

_FLOW_WIDTH = 320  # of the images for optical flow at most, pixels
# OpenCV 5.0's DIS reads outside of smaller images: its coarsest scale has no room for a patch,
# and the process may crash.
_MIN_SIZE = 32
_FLOW_NOISE = 0.0015  # standard deviation of the flow, share of the focal length
_INDEPENDENT = 200.0  # samples of the flow with independent errors
_ITERATIONS = 2  # of the refinement
_MIN_DEPTH_RATIO = 0.05  # of the two depths of one point; keeps divisions finite
_CONTRAST = 4.0  # grey levels per pixel by which motion is measured well


@dataclass(frozen=True)
class Flow:
    """Backward optical flow, from one frame to the previous one.

    Args:
        displacement: (h, w, 2) float32, pixels of this map: what is at (x, y) was at
            (x, y) + displacement.
        residual: (h, w) float32, photometric error of the flow, grey levels, after the exposures
            are made equal.
        weight: (2, h, w) float32, 0..1, how well the texture determines motion along x and y.
        luma: (h, w) uint8, this frame in grey.
        stamp_ns, since_ns: of this frame and of the previous one, nanoseconds.
    """

    displacement: np.ndarray
    residual: np.ndarray
    weight: np.ndarray
    luma: np.ndarray
    stamp_ns: int
    since_ns: int


class FlowEstimator:
    """Optical flow of one camera, on a thread of its own if wanted.

    OpenCV's dense inverse search (DIS; Kroeger et al., ECCV 2016), ultrafast preset: its patches
    have zero mean, so that a step of the exposure does not matter.
    """

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._previous: tuple[np.ndarray, int] | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._pending: Future[Flow | None] | None = None
        self._previous_pending: tuple[np.ndarray, int] | None = None

    def submit(self, rgb: np.ndarray, stamp_ns: int) -> None:
        """Start with the next frame on the estimator's thread; ``result`` waits for it.

        Args:
            rgb: (H, W, 3) uint8, must not change until ``result`` returns.
            stamp_ns: of the frame, nanoseconds.
        """
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "dpt_flow")
        if self._pending is not None:
            wait([self._pending])
        self._previous_pending = self._previous
        self._pending = self._worker.submit(self.compute, rgb, stamp_ns)

    def withdraw(self) -> None:
        """Forget the frame submitted last."""
        if self._pending is not None:
            wait([self._pending])
            self._pending, self._previous = None, self._previous_pending

    def result(self) -> Flow | None:
        """Flow of the frame submitted last; None when there is no previous frame of its size, or
        the image has less than 32 pixels a side."""
        return None if self._pending is None else self._pending.result()

    def compute(self, rgb: np.ndarray, stamp_ns: int) -> Flow | None:
        """The same on the caller's thread; arguments as of ``submit``, result as of ``result``."""
        luma = grey(rgb)
        previous, self._previous = self._previous, (luma, stamp_ns)
        if previous is None or previous[0].shape != luma.shape or min(luma.shape) < _MIN_SIZE:
            return None
        displacement = self._dis.calc(luma, previous[0], None)
        residual = _residual(displacement, luma, previous[0])
        return Flow(displacement, residual, _texture(luma), luma, stamp_ns, previous[1])

    def reset(self) -> None:
        """Forget the previous frame."""
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs to continue identically: tensors, plain values."""
        self.result()
        if self._previous is None:
            return {}
        luma, stamp_ns = self._previous
        return {"luma": torch.from_numpy(luma), "stamp_ns": stamp_ns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict``."""
        self.result()
        self._pending = None
        self._previous = (state["luma"].numpy(), state["stamp_ns"]) if state else None

    def close(self) -> None:
        """End the thread."""
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None


def grey(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (h, w) uint8, at most 320 pixels wide."""
    height, width = rgb.shape[:2]
    if width > _FLOW_WIDTH:
        size = (_FLOW_WIDTH, max(8, round(height * _FLOW_WIDTH / width)))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def _residual(displacement: np.ndarray, luma: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """(h, w) float32 photometric error, grey levels."""
    height, width = luma.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x += displacement[..., 0]
    y += displacement[..., 1]
    moved = cv2.remap(previous, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    gain = cv2.mean(luma)[0] / max(cv2.mean(previous)[0], 1.0)
    return cv2.absdiff(luma, cv2.convertScaleAbs(moved, alpha=gain)).astype(np.float32)


def _texture(luma: np.ndarray) -> np.ndarray:
    """(2, h, w) float32, 0..1: the structure tensor's diagonal over noise and the other axis."""
    squares = []
    for axis in ((1, 0), (0, 1)):
        slope = cv2.Sobel(luma, cv2.CV_32F, *axis, ksize=3, scale=1 / 8)
        squares.append(cv2.boxFilter(slope * slope, -1, (5, 5)))
    total = squares[0] + squares[1] + _CONTRAST**2
    return np.stack([squares[0] / total, squares[1] / total])


def normalisation(width: int, height: int) -> np.ndarray:
    """(3, 3): homogeneous pixels -> -1 at the centre of the first pixel, 1 at the last one's."""
    return np.array([[2 / max(width - 1, 1), 0, -1], [0, 2 / max(height - 1, 1), -1], [0, 0, 1.0]])


@dataclass(frozen=True)
class EgoMotion:
    """A camera's motion between two frames, to warp the pixels of a static scene.

    Positions are in normalised coordinates, see ``normalisation``.

    Args:
        rotation: (3, 3), shift: (3,) metres: what is at X in this frame's axes was at
            rotation @ X + shift in those of the previous frame.
        to_grid: (3, 3), rays (X/Z, Y/Z, 1) -> normalised coordinates; from_grid: its inverse.
    """

    rotation: Tensor
    shift: Tensor
    to_grid: Tensor
    from_grid: Tensor

    def project(self, grid: Tensor, inverse_depth: Tensor) -> Tensor:
        """Positions of pixels in the previous frame.

        Args:
            grid: (3, ...) normalised x, y and 1.
            inverse_depth: (...) 1/m.

        Returns:
            (2, ...) normalised x, y.
        """
        turn = self.to_grid @ self.rotation @ self.from_grid
        shift = (self.to_grid @ self.shift).view(3, *[1] * inverse_depth.ndim)
        moved = (turn @ grid.reshape(3, -1)).view(grid.shape)
        moved = torch.addcmul(moved, shift, inverse_depth)
        return moved[:2] / moved[2].clamp(min=_MIN_DEPTH_RATIO)

    def advance(self, position: Tensor, inverse_depth: Tensor) -> Tensor:
        """Inverse depth (...), 1/m, of static points in this frame.

        Args:
            position: (2, ...) in the previous frame, normalised.
            inverse_depth: (...) in the previous frame, 1/m.
        """
        axis = self.rotation[:, 2]
        form = axis @ self.from_grid
        ratio = torch.addcmul(form[2], form[0], position[0])
        ratio = torch.addcmul(ratio, form[1], position[1])
        ratio = torch.addcmul(ratio, -(axis @ self.shift), inverse_depth)
        return inverse_depth / ratio.clamp(min=_MIN_DEPTH_RATIO)


def relative_pose(previous: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (3, 3) and shift (3,), metres, from the current axes to the previous ones, float64.

    Args:
        previous, current: (4, 4) poses of the optical frame in any fixed frame, metres.
    """
    previous_from_current = np.linalg.inv(previous) @ current
    return previous_from_current[:3, :3], previous_from_current[:3, 3]


def refine(
    ego: EgoMotion,
    grid: Tensor,
    inverse_depth: Tensor,
    flow_position: Tensor,
    weight: Tensor,
    prior_sigma: Tensor,
) -> EgoMotion:
    """Refine a camera's motion by optical flow.

    The equations of Longuet-Higgins and Prazdny (1980), linear in a small rotation and shift,
    solved by iteratively reweighted least squares, with the given motion as the prior. Removes
    the jitter of odometry, and estimates the motion where there is none.

    Args:
        ego: by odometry; no motion if there is none.
        grid: (3, N) normalised x, y and 1.
        inverse_depth: (N,) 1/m.
        flow_position: (2, N) in the previous frame by optical flow, normalised.
        weight: (2, N) of the flow along x and y, 0..1.
        prior_sigma: (6,) standard deviations of the prior: rotation, radians; shift, metres.
    """
    target = torch.addmm(ego.from_grid[:2, 2:], ego.from_grid[:2, :2], flow_position)
    rays = ego.from_grid @ grid
    identity = torch.eye(6, device=prior_sigma.device)
    rotation, shift, total = ego.rotation, ego.shift, torch.zeros_like(prior_sigma)
    for _ in range(_ITERATIONS):
        point = rotation @ rays + shift[:, None] * inverse_depth
        near = 1.0 / point[2].clamp(min=_MIN_DEPTH_RATIO)
        x, y, q = point[0] * near, point[1] * near, inverse_depth * near
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        along_x = torch.stack([-x * y, one + x * x, -y, q, zero, -x * q])
        along_y = torch.stack([-one - y * y, x * y, x, zero, q, -y * q])
        error_x, error_y = target[0] - x, target[1] - y
        length = (error_x.square() + error_y.square()).sqrt()
        robust = _FLOW_NOISE / length.clamp(min=_FLOW_NOISE) / _FLOW_NOISE**2
        robust = robust * _INDEPENDENT / x.numel()
        jacobian = torch.cat([along_x, along_y], 1) * prior_sigma[:, None]
        weighted = jacobian * torch.cat([weight[0] * robust, weight[1] * robust])
        normal = weighted @ jacobian.T + identity
        side = weighted @ torch.cat([error_x, error_y]) - total
        step = torch.linalg.solve_ex(normal, side)[0]
        total = total + step
        twist = step * prior_sigma
        cross = _cross(twist[:3])
        turn = identity[:3, :3] + cross + 0.5 * cross @ cross
        rotation, shift = turn @ rotation, turn @ shift + twist[3:]
    return EgoMotion(rotation, shift, ego.to_grid, ego.from_grid)


def _cross(w: Tensor) -> Tensor:
    zero = torch.zeros_like(w[0])
    return torch.stack([zero, -w[2], w[1], w[2], zero, -w[0], -w[1], w[0], zero]).view(3, 3)
