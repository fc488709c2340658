# SPDX-License-Identifier: Apache-2.0
"""The robust fit of a network's inverse depth to a measured one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FIT_STATES = ("", "fitted", "scale only", "too few pairs", "not plausible", "no spread")
FITTED, SCALE_ONLY, TOO_FEW, NOT_PLAUSIBLE, NO_SPREAD = range(1, 6)

MIN_PAIRS = 8
# From the 10th to the 90th percentile of the inverse depth, relative to its median: the spread
# from which on scale and shift can be distinguished.
MIN_SPREAD = 0.25
START_PAIRS = 128  # pairs of which the initial estimate takes all slopes
MIN_BASELINE = 0.02  # smallest difference of two inverse depths that gives a slope, over median
ITERATIONS = 6
TUKEY = 4.685  # standard deviations from which on a pair has no weight (95 % efficiency)
MAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
MIN_NOISE = 0.01  # relative; no network is better than this
MAX_NOISE = 0.35  # relative; beyond this the pairs do not belong to the image
MIN_INLIERS = 0.5
MAX_CONDITION = 1e10  # of the normal equations
# A network's error is smooth over the image, not white noise: however many the pairs and however
# small their residual, they count as this many independent ones with this noise.
INDEPENDENT = 6.0
BIAS = 0.04
MAX_SCALE_SIGMA = 0.2  # relative; beyond it only one number is fitted
# Scale after the fit over the plain ratio: an inverse depth that is nearly all shift has no
# information about the scene.
MIN_SCALE = 0.05


class Fit(NamedTuple):
    """``inverse_depth = scale * raw_inverse_depth + shift``, as fitted to frames.

    All are (...) float64; ``stack`` makes one tensor (..., 10) of them.

    Args:
        state: index into ``FIT_STATES``: "fitted"; "scale only": the pairs have no spread and fix
            one number, namely that the line goes through the center; or why there is no fit.
        pairs: how many pairs there were.
        scale, shift: of the line; in state "scale only" the shift is 0.
        c00, c01, c11: covariance of scale and shift; in state "scale only" c00 is the variance of
            the inverse depth at the center.
        raw, measured: the center: medians of the raw and of the measured inverse depth.
        residual: relative standard deviation of the network about the line, robust.
    """

    state: Tensor
    pairs: Tensor
    scale: Tensor
    shift: Tensor
    c00: Tensor
    c01: Tensor
    c11: Tensor
    raw: Tensor
    measured: Tensor
    residual: Tensor


def fit_pairs(raw_inverse_depth: Tensor, inverse_depth: Tensor, usable: Tensor) -> Tensor:
    """Robust lines from a network's inverse depth to the measured one.

    The network is regressed on the measurement, not vice versa, since the network has the noise,
    which would flatten the line. The initial slope is the repeated median (Siegel 1982, a
    Theil-Sen estimator with a breakdown point of 50 %), which is unique and does not jump between
    two solutions as RANSAC does; Tukey's weights refine it, with errors relative to the inverse
    depth.

    Args:
        raw_inverse_depth: (..., N) float32 of the network, any unit, > 0 where usable.
        inverse_depth: (..., N) float32 measured, 1/m, > 0 where usable.
        usable: (..., N) bool; the other pairs may hold anything.

    Returns:
        (..., 10) float64: the fields of ``Fit``.
    """
    inf = float("inf")
    count = usable.sum(-1, keepdim=True)
    n = count.double()
    # Unusable pairs sort last; their weight is 0.
    x = raw_inverse_depth.masked_fill(~usable, inf).double()
    sorted_q = inverse_depth.masked_fill(~usable, inf).double().sort(-1).values
    q = inverse_depth.masked_fill(~usable, 1).double()
    upper = count // 2
    lower = (count - 1).clamp_(min=0) // 2

    def median(ascending: Tensor) -> Tensor:
        return (ascending.gather(-1, lower) + ascending.gather(-1, upper)) * 0.5

    raw, measured = median(x.sort(-1).values), median(sorted_q)
    spread = _percentile(sorted_q, n, 0.9) - _percentile(sorted_q, n, 0.1)
    unit = measured / raw
    x = x * unit

    a = _repeated_median(raw_inverse_depth, inverse_depth, usable, count, n) * unit
    b = median((x - a * q).sort(-1).values)
    wide = (spread >= MIN_SPREAD * measured) & (a > 0) & (a < inf)
    finite = x.masked_fill(~usable, 0)
    moments = torch.stack([torch.ones_like(q), q, q * q, finite, finite * q], -2)
    for _ in range(ITERATIONS):
        # Errors are relative to the fitted value, bounded from below near its zero.
        slope = a * q
        line = slope + b
        size = torch.maximum(line, slope * 0.1)
        error = ((x - line) / size).abs_()
        noise = (median(error.sort(-1).values) * MAD).clamp_(min=MIN_NOISE)
        root = (1 - (error / (noise * TUKEY)).square_()).clamp_(min=0)
        weight = (root / size).square_()
        m0, m1, m2, y0, y1 = (moments @ weight[..., None]).unbind(-2)
        determinant = m0 * m2 - m1 * m1
        a = (m0 * y1 - m1 * y0) / determinant
        b = (m2 * y0 - m1 * y1) / determinant
    inliers = (root > 0).sum(-1, keepdim=True) / n
    factor = noise.clamp(min=BIAS).square_() * (n / INDEPENDENT).clamp_(min=1) / determinant
    c00, c01, c11 = m0 * factor, -m1 * factor, m2 * factor
    good = wide & (determinant * MAX_CONDITION > (m0 + m2).square()) & (noise <= MAX_NOISE)
    good &= (a > MIN_SCALE) & (a < 1 / MIN_SCALE) & (inliers >= MIN_INLIERS)
    good &= c00 <= (MAX_SCALE_SIGMA * a).square()
    # From unit * raw = a * inverse + b to inverse = scale * raw + shift.
    inverse = 1 / a
    scale, shift = unit * inverse, -b * inverse
    by_slope = shift * inverse  # derivatives of scale and shift: -scale / a, -shift / a, -1 / a
    line_fit = (
        scale,
        shift,
        (scale * inverse).square() * c00,
        scale * inverse * (by_slope * c00 + inverse * c01),
        by_slope.square() * c00 + 2 * by_slope * inverse * c01 + inverse.square() * c11,
        raw,
        measured,
        noise,
    )
    # The median ratio, unless the pairs do not agree on it.
    ratio = (q / x).masked_fill_(~usable, inf)
    middle = median(ratio.sort(-1).values)
    apart = (ratio / middle - 1).abs_()
    noise = (median(apart.sort(-1).values) * MAD).clamp_(min=MIN_NOISE)
    zero, center = torch.zeros_like(n), middle * measured
    variance = (noise.clamp(min=BIAS) * center).square_() / INDEPENDENT
    ratio_fit = (middle * unit, zero, variance, zero, zero, raw, center, noise)

    state = (noise > MAX_NOISE) * (NOT_PLAUSIBLE - SCALE_ONLY) + SCALE_ONLY
    state = state.masked_fill(good, FITTED).masked_fill(count < MIN_PAIRS, TOO_FEW)
    parts = torch.where(good, torch.cat(line_fit, -1), torch.cat(ratio_fit, -1))
    return torch.cat([state.double(), n, parts], -1)


def _percentile(ascending: Tensor, n: Tensor, share: float) -> Tensor:
    place = ((n - 1) * share).clamp_(min=0)
    index = place.long()
    low, high = ascending.gather(-1, index), ascending.gather(-1, index + 1)
    return torch.lerp(low, high, place - index)


def _repeated_median(x: Tensor, q: Tensor, usable: Tensor, count: Tensor, n: Tensor) -> Tensor:
    """The median over points of the median slope to the others; NaN if there is none. (..., 1)"""
    # Evenly spaced ones of the usable pairs.
    number = torch.arange(START_PAIRS, device=x.device)
    picked = count.clamp(max=START_PAIRS)
    rank = (number * ((n - 1) / (picked - 1))).round_().long() + 1
    pick = torch.searchsorted(usable.cumsum(-1), rank).clamp_(max=x.shape[-1] - 1)
    none = number >= picked
    x = x.gather(-1, pick)
    q = q.gather(-1, pick).masked_fill(none, float("nan"))
    last = (picked - 1).clamp_(min=0)
    ascending = q.sort(-1).values
    middle = ascending.gather(-1, last // 2) + ascending.gather(-1, picked // 2)
    baseline = q[..., :, None] - q[..., None, :]
    slopes = (x[..., :, None] - x[..., None, :]) / baseline
    enough = baseline.abs_() > (0.5 * MIN_BASELINE * middle)[..., None]
    slopes = slopes.masked_fill_(~enough, float("nan")).nanmedian(-1).values
    ascending = slopes.double().sort(-1).values
    rows = (ascending == ascending).sum(-1, keepdim=True)
    last = (rows - 1).clamp_(min=0)
    return (ascending.gather(-1, last // 2) + ascending.gather(-1, rows // 2)) * 0.5
