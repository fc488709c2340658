# SPDX-License-Identifier: Apache-2.0
"""The steps of ``scale``. On a GPU those of ``triton_steps`` take their place."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from dpt_ros.engine.output import postprocess
from dpt_ros.engine.packed import unpack
from dpt_ros.engine.scale import arrays, kalman
from dpt_ros.engine.scale.anchors import MAX_PAIRS
from dpt_ros.engine.scale.arrays import Array
from dpt_ros.engine.scale.ground import GRID_COLUMNS, GRID_POINTS, GRID_ROWS, HEIGHT_SIGMA
from dpt_ros.engine.scale.kalman import Kalman
from dpt_ros.engine.scale.plan import (
    DISABLED,
    HELD,
    NOT_METRIC,
    SCALE_FIELDS,
    SOURCES,
    UNCORRECTED,
    ScaleStats,
)
from dpt_ros.engine.scale.robust_fit import INF, Fit, fit_pairs
from dpt_ros.engine.triton_launch import has_twin

EDGE = 0.25  # relative difference of inverse depths around a pair from which on it is an edge
_PIXELS_PER_REACH = 160  # image width per pixel of distance of the neighbours compared
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
_TRITON = "dpt_ros.engine.scale.triton_steps"


@has_twin(_TRITON)
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
    is_floor = None
    if logits is not None and floor is not None:
        index = _grid(logits.shape[2], logits.shape[3], logits)
        labels = logits.flatten(2)[..., index].argmax(1) + 1
        is_floor = (labels[..., None] == floor).any(-1)
    if not postprocess.on_host(raw_inverse_depth):
        n = unpack(SCALE_FIELDS, numbers)
        return _fit_frame(raw_inverse_depth, n["anchors"], n["floor"], is_floor)
    n = unpack(SCALE_FIELDS, numbers.numpy())
    if not n["anchors"].any() and not n["floor"].any():
        none = torch.zeros(len(numbers), 1, len(Fit._fields), dtype=torch.float64)
        return none, torch.zeros(len(numbers), MAX_PAIRS)
    parts = [raw_inverse_depth.numpy(), n["anchors"], n["floor"]]
    floors = [None] * len(numbers) if is_floor is None else list(is_floor.numpy())
    with np.errstate(all="ignore"):
        return postprocess.batched([_fit_frame(*one) for one in zip(*parts, floors, strict=True)])


def _fit_frame(
    raw: Array, anchors: Array, floor: Array, is_floor: Array | None
) -> tuple[Array, Array]:
    height, width = raw.shape[-2:]
    reach = reach_of(width)
    # An anchor's pixel, those to its left and right, and those above and below.
    k = arrays.numbers(5, raw)[:, None]
    beside, above = ((k == i + 1) * reach - (k == i) * reach for i in (1, 3))
    column, row = (
        arrays.whole(anchors[..., None, :, axis] * size) + offset
        for axis, size, offset in ((0, width, beside), (1, height, above))
    )
    places = _limited(row, height) * width + _limited(column, width)
    flat = raw.reshape(*raw.shape[:-2], -1)
    around = arrays.gather(flat, places)
    x, q = around[..., 0, :], anchors[..., 2]
    # At an edge a shift of a pixel decides between two depths; NaN is an edge too.
    even = arrays.largest(around, -2) <= (1 + EDGE) * arrays.smallest(around, -2)
    usable = _positive(x) & _positive(q) & even
    fits = [fit_pairs(x, q, usable)]
    if is_floor is not None:
        ground = flat[..., _grid(height, width, raw)]
        fits += [fit_pairs(ground, floor, is_floor & _positive(ground) & _positive(floor))]
    packed = arrays.stack(fits, -2)
    packed = packed.reshape(*raw.shape[:-2], len(fits), packed.shape[-1])
    return packed, arrays.where(usable, x, 0.0)


def reach_of(width: int) -> int:
    """Pixels between an anchor and the neighbours that show whether it is at an edge."""
    return max(1, round(width / _PIXELS_PER_REACH))


def _positive(x: Array) -> Array:
    return (x > 0) & (x < INF)


def _limited(index: Array, size: int) -> Array:
    return arrays.minimum(arrays.maximum(index, 0), size - 1)


def _grid(height: int, width: int, like: Array) -> Array:
    """(GRID_POINTS,) flat indices of the pixels in which the floor is sampled."""
    k = arrays.numbers(GRID_POINTS, like)
    row = (2 * (k // GRID_COLUMNS) + 1) * height // (2 * GRID_ROWS)
    return row * width + (2 * (k % GRID_COLUMNS) + 1) * width // (2 * GRID_COLUMNS)


@has_twin(_TRITON)
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
    kept = {"state": state, "table": table, "fits": fits, "seen": seen}
    if not postprocess.on_host(fits):
        return _correct(unpack(SCALE_FIELDS, numbers) | kept, metric)
    n = unpack(SCALE_FIELDS, numbers.numpy())
    n |= {name: part.numpy() for name, part in kept.items()}
    cameras = [{name: part[k] for name, part in n.items()} for k in range(len(numbers))]
    with np.errstate(all="ignore"):
        return postprocess.batched([_correct(one, metric) for one in cameras])


def _correct(n: dict[str, Array], metric: bool) -> tuple[Any, ...]:
    fresh, tilt = n["fresh"] > 0, arrays.double(n["tilt"])
    state = arrays.where(arrays.column(fresh), arrays.double(n["initial"]), n["state"])
    before = kalman.predict(Kalman(*arrays.columns(state)), arrays.double(n["seconds"]), metric)
    sources = range(n["fits"].shape[-2])
    k, fits = before, [Fit(*arrays.columns(n["fits"][..., one, :])) for one in sources]

    tried = (n["anchors"][..., 2] != 0).any(-1)
    updated, refused = kalman.update(k, fits[0], ~fresh, 0.0, 0.0, metric)
    anchored = tried & (refused == 0)
    pairs, reason = arrays.where(tried, fits[0].pairs, 0.0), arrays.where(tried, refused, -1.0)
    used = arrays.where(anchored, fits[0].state, 0.0)
    k = _chosen(anchored, updated, k, SOURCES.index("anchors"))
    for fit in fits[1:]:
        share = tilt / before.center
        doubtful = kalman.relative_sigma(before) > arrays.sqrt(share * share + HEIGHT_SIGMA**2)
        tried = ~anchored & (n["floor"] > 0).any(-1)
        tried = tried & (doubtful | (n["ground_only"] > 0) | (before.known == 0))
        # The tilt's error is mostly shift, and does not average out.
        shared = HEIGHT_SIGMA**2, 0.0 if metric else tilt * tilt
        updated, refused = kalman.update(before, fit, ~fresh, *shared, metric, scale_only=metric)
        pairs, reason = arrays.where(tried, fit.pairs, pairs), arrays.where(tried, refused, reason)
        grounded = tried & (refused == 0)
        used = arrays.where(grounded, fit.state, used)
        k = _chosen(grounded, updated, k, SOURCES.index("ground"))

    disabled = n["disabled"] > 0
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
    covariance = [k.unit * k.unit * (k.c00 + k.s0), k.unit * k.c01, k.c11 + k.s1]
    covariance, told = (arrays.single(arrays.packed(part)) for part in (covariance, stats))
    line = arrays.single(scale), arrays.single(k.shift)
    local = n["table"], n["anchors"], n["seen"], n["seconds"]
    table = update_table(*local, fresh, anchored, *line)
    return arrays.packed(k), table, told[..., 1:3], covariance, told


def _chosen(condition: Array, a: Kalman, b: Kalman, source: int) -> Kalman:
    a = a._replace(source=a.source + source)
    if not isinstance(condition, Tensor):
        return a if condition else b
    return Kalman(*(arrays.where(condition, *both) for both in zip(a, b, strict=True)))


def update_table(
    table: Array,
    anchors: Array,
    seen: Array,
    seconds: Array,
    fresh: Array,
    anchored: Array,
    scale: Array,
    shift: Array,
) -> Array:
    """The local correction after a frame; of tensors (B, ...) or of one camera's arrays.

    Args:
        table: (DEPTHS, COLUMNS) before it, logarithms of the factor.
        anchors: (N, 3), shares of width and height, inverse depth.
        seen: (N,) raw inverse depth there, 0 where an anchor is not used.
        seconds: since the last frame.
        fresh: bool: there was none, and depth may jump.
        anchored: bool: whether the anchors determined scale and shift.
        scale, shift: of the frame.
    """
    q = anchors[..., 2]
    fresh, decay = (arrays.column(arrays.column(one)) for one in (fresh, seconds))
    before = arrays.where(fresh, arrays.zeros(table), table)
    target = before * 0.5 ** (decay / HALF_LIFE)
    inverse_depth = arrays.column(scale) * seen + arrays.column(shift)
    use = arrays.column(anchored) & (seen > 0) & (inverse_depth > 0)
    if isinstance(use, Tensor) or use.any():
        log = arrays.log(arrays.where(use, inverse_depth, 1.0))
        ratio = arrays.where(use, arrays.log(q) - log, MAX_LOG_RATIO)
        trust = arrays.maximum(1 - (ratio * (1 / MAX_LOG_RATIO)) ** 2, 0) ** 2
        centers = arrays.single((arrays.numbers(COLUMNS, log) + 0.5) * (1 / COLUMNS))
        across = (centers - anchors[..., :1]) * (SQRT_HALF / COLUMN_SIGMA)
        across = trust[..., None] * arrays.exp(-across * across)
        centers = arrays.single(arrays.numbers(DEPTHS, log) * LOG_STEP + LOG_FAR)
        along = (centers[:, None] - log[..., None, :]) * (SQRT_HALF / DEPTH_SIGMA)
        along = arrays.exp(-along * along)
        averaged = (along @ (ratio[..., None] * across)) / (along @ across + PRIOR_WEIGHT)
        some = arrays.column(arrays.column(use.any(-1)))
        target = arrays.where(some, averaged, target)
    step = arrays.minimum(arrays.maximum(target - before, -MAX_TABLE_STEP), MAX_TABLE_STEP)
    table = arrays.where(fresh, target, before + step)
    return table * (abs(table) > LEAST)


@has_twin(_TRITON)
def apply_table(raw_inverse_depth: Tensor, table: Tensor, affine: Tensor) -> Tensor:
    """The raw inverse depth of which ``affine`` makes the corrected inverse depth.

    Args:
        raw_inverse_depth: (B, H, W) float32; what is not > 0 stays as it is.
        table: (B, DEPTHS, COLUMNS) float32, from ``correct``.
        affine: (B, 2) float32, scale and shift.

    Returns:
        (B, H, W) float32; perhaps the argument itself where there is no correction.
    """
    if postprocess.on_host(raw_inverse_depth):
        if not table.numpy().any():
            return raw_inverse_depth
        parts = (part.numpy() for part in (raw_inverse_depth, table, affine))
        with np.errstate(all="ignore"):
            return postprocess.batched(
                [(_apply_on_host(*one),) for one in zip(*parts, strict=True)]
            )[0]
    scale, shift = affine[:, :, None, None].unbind(1)
    offset = shift / scale
    moved = raw_inverse_depth + offset
    y = ((moved * scale).log() - LOG_FAR) * (2 / LOG_STEP / DEPTHS) + (1 / DEPTHS - 1)
    width = raw_inverse_depth.shape[2]
    x = (torch.arange(width, device=y.device) * 2 + 1) * (1 / width) - 1
    grid = torch.stack([x.expand_as(y), y], -1)
    log = grid_sample(table[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    corrected = moved * log.exp() - offset
    use = (raw_inverse_depth > 0) & (moved > 0) & (corrected > 0)
    return torch.where(use, corrected, raw_inverse_depth)


def _apply_on_host(raw: np.ndarray, table: np.ndarray, affine: np.ndarray) -> np.ndarray:
    offset = affine[1] / affine[0]
    moved = raw + offset
    y = cv2.log(moved)
    y += np.log(affine[0]) - np.float32(LOG_FAR)
    y *= np.float32(1 / LOG_STEP)
    x = _columns_of(*raw.shape)
    log = cv2.remap(table, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    corrected = cv2.exp(log, y)
    corrected *= moved
    corrected -= offset
    use = (raw > 0) & (corrected > 0) if offset > 0 else moved > 0
    if not use.all():
        np.copyto(corrected, raw, where=~use)
    return corrected


@lru_cache(8)
def _columns_of(height: int, width: int) -> np.ndarray:
    """(H, W): column of the table of each pixel."""
    x = (np.arange(width, dtype=np.float32) + 0.5) * (COLUMNS / width) - 0.5
    return np.repeat(x[None], height, 0)


@has_twin(_TRITON)
@np.errstate(all="ignore")
def relative_variance(raw_inverse_depth: Tensor, affine: Tensor, covariance: Tensor) -> Tensor:
    """Relative variance of the (inverse) depth due to scale and shift.

    Args:
        raw_inverse_depth: (B, H, W) float32.
        affine: (B, 2) float32, scale and shift.
        covariance: (B, 3) float32, from ``correct``.

    Returns:
        (B, H, W) float32.
    """
    parts: tuple[Array, ...] = raw_inverse_depth, affine, covariance
    if host := postprocess.on_host(raw_inverse_depth):
        parts = tuple(part.numpy() for part in parts)
    raw, affine, covariance = parts
    variance = raw * covariance[:, :1, None]
    variance += 2 * covariance[:, 1:2, None]
    variance *= raw
    variance += covariance[:, 2:, None]
    size = raw * affine[:, :1, None]
    size += affine[:, 1:, None]
    size = size.clip(1e-6, INF)
    size *= size
    variance /= size
    return torch.from_numpy(variance) if host else variance
