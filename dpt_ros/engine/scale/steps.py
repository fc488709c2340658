# SPDX-License-Identifier: Apache-2.0
"""The steps of ``scale``. On a GPU those of ``triton_steps`` take their place."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from dpt_ros.engine import triton_launch
from dpt_ros.engine.output import postprocess
from dpt_ros.engine.packed import unpack
from dpt_ros.engine.scale import arrays, kalman
from dpt_ros.engine.scale.anchors import MAX_PAIRS
from dpt_ros.engine.scale.arrays import Array
from dpt_ros.engine.scale.ground import GRID_COLUMNS, GRID_POINTS, GRID_ROWS, HEIGHT_SIGMA
from dpt_ros.engine.scale.kalman import Kalman
from dpt_ros.engine.scale.plan import (
    ANCHORS,
    DISABLED,
    HELD,
    NOT_METRIC,
    SCALE_FIELDS,
    UNCORRECTED,
    ScaleStats,
)
from dpt_ros.engine.scale.robust_fit import INF, Fit, fit_pairs

EDGE = 0.25  # relative difference of inverse depths around a pair from which on it is an edge
PIXELS_PER_REACH = 160  # image width per pixel of distance of the neighbours compared
COLUMNS, DEPTHS = 40, 64  # of the table
LOG_FAR, LOG_NEAR = float(np.log(0.03)), float(np.log(4.0))  # inverse depth at its ends, of 1/m
LOG_STEP = (LOG_NEAR - LOG_FAR) / (DEPTHS - 1)
COLUMN_SIGMA = 0.04  # of the kernel across columns, share of the image width
DEPTH_SIGMA = 0.05  # of the kernel across depth, relative
PRIOR_WEIGHT = 0.3  # of "no correction", in anchors
MAX_LOG_RATIO = 0.6  # from which on an anchor belongs to another object
MAX_TABLE_STEP = 0.03  # largest change from one frame to the next, relative
HALF_LIFE = 0.3  # seconds without anchors
LEAST = 1e-6  # of the table; smaller ones are 0
SQRT_HALF = 0.5**0.5
_MODULE = "dpt_ros.engine.scale.triton_steps"


def fit_frame(
    raw_inverse_depth: Tensor, logits: Tensor | None, numbers: Tensor, floor: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Robust fits of a batch of frames to their anchors and, of two sources, to the floor.

    Args:
        raw_inverse_depth: (B, H, W) float32.
        logits: (B, C, h, w), of which the floor is found; None without the second source.
        numbers: (B, length(SCALE_FIELDS)) float32.
        floor: (F,) int64 label ids of the floor, counted from 1; None as ``logits``.

    Returns:
        (B, S, 10) float64, the fields of ``Fit`` by source: anchors, floor; (B, MAX_PAIRS)
        float32, the raw inverse depth at the anchors, 0 where it is not used.
    """
    if triton := triton_launch.triton_of(raw_inverse_depth, _MODULE):
        return triton.fit_frame(raw_inverse_depth, logits, numbers, floor)
    n, is_floor = unpack(SCALE_FIELDS, numbers), None
    if logits is not None and floor is not None:
        index = _grid(logits.shape[2], logits.shape[3], logits)
        labels = logits.flatten(2)[..., index].argmax(1) + 1
        is_floor = (labels[..., None] == floor).any(-1)
    parts = raw_inverse_depth, n["anchors"], n["floor"], is_floor
    if not postprocess.on_host(raw_inverse_depth):
        return _fit_frame(*parts)
    if not n["anchors"].any() and not n["floor"].any():
        batch = len(numbers)
        return numbers.new_zeros(batch, 1, len(Fit._fields)).double(), numbers.new_zeros(
            batch, MAX_PAIRS
        )
    with np.errstate(all="ignore"):
        fits, seen = _fit_frame(*(None if one is None else one.numpy() for one in parts))
    return torch.from_numpy(fits), torch.from_numpy(seen)


def _fit_frame(
    raw: Array, anchors: Array, floor: Array, is_floor: Array | None
) -> tuple[Array, Array]:
    batch, height, width = raw.shape
    reach = max(1, round(width / PIXELS_PER_REACH))
    column, row = arrays.whole(anchors[..., 0] * width), arrays.whole(anchors[..., 1] * height)
    here, left, right = (_limited(column + k, width) for k in (0, -reach, reach))
    same, up, down = (_limited(row + k, height) * width for k in (0, -reach, reach))
    places = arrays.stack([same + here, same + left, same + right, up + here, down + here], 1)
    flat = raw.reshape(batch, -1)
    around = arrays.gather(flat, places.reshape(batch, -1)).reshape(batch, 5, -1)
    x, q = around[:, 0], anchors[..., 2]
    # At an edge a shift of a pixel decides between two depths; NaN is an edge too.
    even = arrays.largest(around, 1) <= (1 + EDGE) * arrays.smallest(around, 1)
    usable = _positive(x) & _positive(q) & even
    seen = arrays.where(usable, x, 0.0)
    if is_floor is None:
        return fit_pairs(x[:, None], q[:, None], usable[:, None]), seen
    ground = flat[:, _grid(height, width, raw)]
    on_floor = is_floor & _positive(ground) & _positive(floor)
    pairs = ([x, ground], [q, floor], [usable, on_floor])
    return fit_pairs(*(arrays.stack(both, 1) for both in pairs)), seen


def _positive(x: Array) -> Array:
    return (x > 0) & (x < INF)


def _limited(index: Array, size: int) -> Array:
    return arrays.minimum(arrays.maximum(index, 0), size - 1)


def _grid(height: int, width: int, like: Array) -> Array:
    """(GRID_POINTS,) flat indices of the pixels in which the floor is sampled."""
    k = arrays.numbers(GRID_POINTS, like)
    row = (2 * (k // GRID_COLUMNS) + 1) * height // (2 * GRID_ROWS)
    return row * width + (2 * (k % GRID_COLUMNS) + 1) * width // (2 * GRID_COLUMNS)


def correct(
    state: Tensor, table: Tensor, fits: Tensor, seen: Tensor, numbers: Tensor, metric: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Update scale and shift, and the local correction, by the fits of a batch of frames.

    A network's error is alike for what stands in one direction at one depth: a whole piece of
    wall is too near, the box before it too far. So the anchors' ratios are averaged over pixels
    that are near in column and in depth, in any row: a 2-D scan, which is one row of anchors,
    corrects whole walls. This is the locally weighted fit of Xu et al. (2022, "Toward 3D scene
    reconstruction from locally scale-aligned monocular video depth") with a weight in depth
    instead of rows, held in a table over columns and depth as in a bilateral grid (Chen et al.
    2007). Far from anchors there is no correction. The table moves by small steps from frame to
    frame, and fades when anchors stop.

    Args:
        state: (B, 14) float64, the fields of ``Kalman``; anything where the frame is fresh.
        table: (B, DEPTHS, COLUMNS) float32, logarithms of the factor; anything likewise.
        fits, seen: from ``fit_frame``.
        numbers: (B, length(SCALE_FIELDS)) float32.
        metric: whether the network predicts 1/m by itself.

    Returns:
        The new state; the new table; (B, 2) float32 scale and shift, 1 and 0 without metres;
        (B, 3) float32, their covariance [0, 0], [0, 1] and [1, 1]; (B, 9) float32, the fields of
        ``ScaleStats``.
    """
    if triton := triton_launch.triton_of(fits, _MODULE):
        return triton.correct(state, table, fits, seen, numbers, metric)
    parts = {"state": state, "table": table, "fits": fits, "seen": seen}
    parts |= unpack(SCALE_FIELDS, numbers)
    if not postprocess.on_host(fits):
        return _correct(parts, metric)
    with np.errstate(all="ignore"):
        results = _correct({name: part.numpy() for name, part in parts.items()}, metric)
    return tuple(torch.from_numpy(one) for one in results)  # type: ignore[return-value]


def _correct(n: dict[str, Array], metric: bool) -> tuple[Array, ...]:
    fresh, seconds = n["fresh"] > 0, arrays.double(n["seconds"])
    state = arrays.where(fresh[:, None], arrays.double(n["initial"]), n["state"])
    k, fit = kalman.predict(Kalman(*_columns(state)), seconds, metric), Fit(*_columns(n["fits"]))
    ground, tilt = arrays.numbers(fit.state.shape[1], state) > 0, arrays.double(n["tilt"])
    # The tilt's error is mostly shift, and does not average out.
    s1 = ground * (tilt * tilt * (not metric))[:, None]
    updated, refused = kalman.update(
        Kalman(*(part[:, None] for part in k)),
        fit,
        ~fresh[:, None],
        ground * HEIGHT_SIGMA**2,
        s1,
        ground & metric,
        metric,
    )
    choices = arrays.stack(list(updated._replace(source=s1 * 0 + (ANCHORS + ground))), -1)
    state = arrays.stack(list(k), -1)

    tried = (n["anchors"][..., 2] != 0).any(-1)
    anchored = tried & (refused[:, 0] == 0)
    used, pairs, reason = (
        arrays.where(tried, value, other)
        for value, other in ((fit.state[:, 0], 0.0), (fit.pairs[:, 0], 0.0), (refused[:, 0], -1.0))
    )
    used = arrays.where(anchored, used, 0.0)
    state = arrays.where(anchored[:, None], choices[:, 0], state)
    if len(ground) > 1:
        share = tilt / k.center
        doubtful = kalman.relative_sigma(k) > arrays.sqrt(share * share + HEIGHT_SIGMA**2)
        asked = ~anchored & (n["floor"] > 0).any(-1)
        asked &= doubtful | (n["ground_only"] > 0) | (k.known == 0)
        pairs = arrays.where(asked, fit.pairs[:, 1], pairs)
        reason = arrays.where(asked, refused[:, 1], reason)
        asked &= refused[:, 1] == 0
        used = arrays.where(asked, fit.state[:, 1], used)
        state = arrays.where(asked[:, None], choices[:, 1], state)

    k, disabled = Kalman(*_columns(state)), n["disabled"] > 0
    now, scale = (k.known > 0) & ~disabled, k.scale * k.unit
    told = arrays.where(k.fitted > 0, float(HELD), float(UNCORRECTED))
    told = arrays.where(k.known > 0, arrays.where(used > 0, used, told), float(NOT_METRIC))
    told = arrays.where(disabled, float(DISABLED), told)
    idle = disabled | ((n["unasked"] > 0) & (told == UNCORRECTED) & (reason < 0))
    stats = ScaleStats(
        now * 1.0,
        arrays.where(now, scale, 1.0),
        arrays.where(now, k.shift, 0.0),
        arrays.where(now, kalman.relative_sigma(k), INF),
        k.residual,
        pairs,
        arrays.where(now, k.source, 0.0),
        told,
        arrays.where(idle, 0.0, reason),
    )
    told = arrays.single(arrays.stack(list(stats), -1))
    covariance = [k.unit * k.unit * (k.c00 + k.s0), k.unit * k.c01, k.c11 + k.s1]
    table = _table(n, fresh, anchored, arrays.single(scale), arrays.single(k.shift))
    return state, table, told[:, 1:3], arrays.single(arrays.stack(covariance, -1)), told


def _table(
    n: dict[str, Array], fresh: Array, anchored: Array, scale: Array, shift: Array
) -> Array:
    anchors, before = n["anchors"], arrays.where(fresh[:, None, None], 0.0, n["table"])
    inverse_depth = scale[:, None] * n["seen"] + shift[:, None]
    use = anchored[:, None] & (n["seen"] > 0) & (inverse_depth > 0)
    target = before * (0.5 ** (n["seconds"] / HALF_LIFE))[:, None, None]
    if isinstance(use, Tensor) or use.any():
        log = arrays.log(arrays.where(use, inverse_depth, 1.0))
        ratio = arrays.where(use, arrays.log(anchors[..., 2]) - log, MAX_LOG_RATIO)
        trust = arrays.maximum(1 - (ratio / MAX_LOG_RATIO) ** 2, 0) ** 2
        centers = arrays.single((arrays.numbers(COLUMNS, log) + 0.5) * (1 / COLUMNS))
        across = (centers - anchors[..., :1]) * (SQRT_HALF / COLUMN_SIGMA)
        across = trust[..., None] * arrays.exp(-across * across)
        centers = arrays.single(arrays.numbers(DEPTHS, log) * LOG_STEP + LOG_FAR)
        along = (centers[:, None] - log[:, None]) * (SQRT_HALF / DEPTH_SIGMA)
        along = arrays.exp(-along * along)
        averaged = (along @ (ratio[..., None] * across)) / (along @ across + PRIOR_WEIGHT)
        target = arrays.where(use.any(-1)[:, None, None], averaged, target)
    step = arrays.minimum(arrays.maximum(target - before, -MAX_TABLE_STEP), MAX_TABLE_STEP)
    table = arrays.where(fresh[:, None, None], target, before + step)
    return arrays.where(abs(table) > LEAST, table, 0.0)


def _columns(packed: Array) -> list[Array]:
    return [packed[..., k] for k in range(packed.shape[-1])]


def apply_table(raw_inverse_depth: Tensor, table: Tensor, affine: Tensor) -> Tensor:
    """The raw inverse depth of which ``affine`` makes the corrected inverse depth.

    Args:
        raw_inverse_depth: (B, H, W) float32; what is not > 0 stays as it is.
        table: (B, DEPTHS, COLUMNS) float32, from ``correct``.
        affine: (B, 2) float32, scale and shift.

    Returns:
        (B, H, W) float32; perhaps the argument itself where there is no correction.
    """
    if triton := triton_launch.triton_of(raw_inverse_depth, _MODULE):
        return triton.apply_table(raw_inverse_depth, table, affine)
    if postprocess.on_host(raw_inverse_depth):
        if not table.any():
            return raw_inverse_depth
        parts = zip(raw_inverse_depth.numpy(), table.numpy(), affine.tolist(), strict=True)
        with np.errstate(all="ignore"):
            return torch.from_numpy(np.stack([_apply_on_host(*one) for one in parts]))
    scale, shift = affine[:, :, None, None].unbind(1)
    offset = shift / scale
    moved = raw_inverse_depth + offset
    y = ((moved * scale).log() - LOG_FAR) * (2 / LOG_STEP / DEPTHS) + (1 / DEPTHS - 1)
    width = raw_inverse_depth.shape[2]
    x = (torch.arange(width, device=y.device) * 2 + 1) * (1 / width) - 1
    grid = torch.stack([x.expand_as(y), y], -1)
    table = table[:, None]
    log = grid_sample(table, grid, padding_mode="border", align_corners=False)[:, 0]
    corrected = moved * log.exp() - offset
    use = (raw_inverse_depth > 0) & (moved * scale > 0) & (corrected > 0) & (log != 0)
    return torch.where(use, corrected, raw_inverse_depth)


def _apply_on_host(raw: np.ndarray, table: np.ndarray, affine: list[float]) -> np.ndarray:
    scale, shift = affine
    offset = np.float32(shift / scale)
    moved = raw + offset
    y = cv2.log(moved)
    y += np.float32(np.log(scale) - LOG_FAR)
    y *= np.float32(1 / LOG_STEP)
    log = cv2.remap(
        table, _columns_of(*raw.shape), y, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE
    )
    corrected = cv2.exp(log)
    corrected *= moved
    corrected -= offset
    use = (raw > 0) & (moved > 0) & (corrected > 0) & (log != 0)
    np.copyto(corrected, raw, where=~use)
    return corrected


@lru_cache(8)
def _columns_of(height: int, width: int) -> np.ndarray:
    """(H, W): column of the table of each pixel."""
    x = (np.arange(width, dtype=np.float32) + 0.5) * (COLUMNS / width) - 0.5
    return np.repeat(x[None], height, 0)


def relative_variance(raw_inverse_depth: Tensor, affine: Tensor, covariance: Tensor) -> Tensor:
    """Relative variance of the (inverse) depth due to scale and shift.

    Args:
        raw_inverse_depth: (B, H, W) float32.
        affine: (B, 2) float32, scale and shift.
        covariance: (B, 3) float32, from ``correct``.

    Returns:
        (B, H, W) float32.
    """
    if triton := triton_launch.triton_of(raw_inverse_depth, _MODULE):
        return triton.relative_variance(raw_inverse_depth, affine, covariance)
    scale, shift = affine[:, :, None, None].unbind(1)
    c00, c01, c11 = covariance[:, :, None, None].unbind(1)
    variance = (c00 * raw_inverse_depth + 2 * c01) * raw_inverse_depth + c11
    return variance / (scale * raw_inverse_depth + shift).clamp(min=1e-6).square()
