# SPDX-License-Identifier: Apache-2.0
"""The robust fit of a network's inverse depth to a measured one."""

from __future__ import annotations

from collections import namedtuple

from dpt_ros.engine.scale import arrays
from dpt_ros.engine.scale.arrays import Array

INF, NAN = float("inf"), float("nan")
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


Fit = namedtuple("Fit", "state pairs scale shift c00 c01 c11 raw measured residual")
"""``inverse_depth = scale * raw_inverse_depth + shift``, as fitted to frames.

All are (...) float64; one array (..., 10) holds them in this order.

state: index into ``FIT_STATES``: "fitted"; "scale only": the pairs have no spread and fix one
number, namely that the line goes through the center; or why there is no fit.
pairs: how many pairs there were.
scale, shift: of the line; in state "scale only" the shift is 0.
c00, c01, c11: covariance of scale and shift; in state "scale only" c00 is the variance of the
inverse depth at the center.
raw, measured: the center: medians of the raw and of the measured inverse depth.
residual: relative standard deviation of the network about the line, robust.
"""


def fit_pairs(raw_inverse_depth: Array, inverse_depth: Array, usable: Array) -> Array:
    """Robust lines from a network's inverse depth to the measured one.

    The network is regressed on the measurement, not vice versa, since the network has the noise,
    which would flatten the line. The initial slope is the repeated median (Siegel 1982, a
    Theil-Sen estimator with a breakdown point of 50 %), which is unique and does not jump between
    two solutions as RANSAC does; Tukey's weights refine it, with errors relative to the inverse
    depth.

    Args:
        raw_inverse_depth: tensor (..., N) or array (N,) of the network, any unit, float32.
        inverse_depth: the same, measured, 1/m.
        usable: the same, bool; where both are > 0 and finite. The rest may hold anything.

    Returns:
        float64: the fields of ``Fit``, of tensors (..., 1, 10), of arrays (10,).
    """
    pairs = arrays.column(usable.sum(-1))
    n = arrays.maximum(pairs, 2)  # so that there are indices, where there is no fit
    middle = (n - 1) // 2, n // 2
    # Unusable pairs sort last; their weight is 0.
    x = arrays.where(usable, arrays.double(raw_inverse_depth), INF)
    q = arrays.where(usable, arrays.double(inverse_depth), 1.0)
    raw, ascending = _median(x, middle), arrays.ascending(arrays.where(usable, q, INF))
    measured = _middle(ascending, middle)
    spread = _percentile(ascending, n, 0.9) - _percentile(ascending, n, 0.1)
    unit = measured / raw
    x = x * unit

    a = _repeated_median(raw_inverse_depth, inverse_depth, usable, n) * unit
    b = _median(x - a * q, middle)
    good = (spread >= MIN_SPREAD * measured) & (a > 0) & (a < INF)
    known = arrays.where(usable, x, 0.0)
    moments = arrays.stack([arrays.double(usable), q, q * q, known, known * q], -2)
    for _ in range(ITERATIONS):
        # Errors are relative to the fitted value, bounded from below near its zero.
        slope = a * q
        line = slope + b
        size = arrays.maximum(line, slope * 0.1)
        error = abs((x - line) / size)
        noise = arrays.maximum(_median(error, middle) * MAD, MIN_NOISE)
        error = error / (noise * TUKEY)
        root = arrays.maximum(1 - error * error, 0)
        weight = root / size
        sums = arrays.product(moments, weight * weight)
        m0, m1, m2, y0, y1 = map(arrays.column, arrays.columns(sums))
        determinant = m0 * m2 - m1 * m1
        a = (m0 * y1 - m1 * y0) / determinant
        b = (m2 * y0 - m1 * y1) / determinant
    sigma = arrays.maximum(noise, BIAS)
    factor = sigma * sigma * arrays.maximum(n / INDEPENDENT, 1) / determinant
    c00, c01, c11 = m0 * factor, -m1 * factor, m2 * factor
    trace, inliers = m0 + m2, arrays.column((root > 0).sum(-1))
    good = good & (determinant * MAX_CONDITION > trace * trace) & (noise <= MAX_NOISE)
    good = good & (a > MIN_SCALE) & (a < 1 / MIN_SCALE) & (inliers >= MIN_INLIERS * n)
    good = good & (c00 <= (MAX_SCALE_SIGMA * a) ** 2)
    # From unit * raw = a * inverse + b to inverse = scale * raw + shift, by their derivatives.
    by_b = -1 / a
    scale, shift = -unit * by_b, b * by_b
    scale_by_a, shift_by_a = scale * by_b, shift * by_b
    line_fit = (
        scale,
        shift,
        scale_by_a * scale_by_a * c00,
        scale_by_a * (shift_by_a * c00 + by_b * c01),
        shift_by_a * (shift_by_a * c00 + 2 * by_b * c01) + by_b * by_b * c11,
        raw,
        measured,
        noise,
    )
    # The median ratio, unless the pairs do not agree on it.
    ratio = arrays.where(usable, q / x, INF)
    agreed = _median(ratio, middle)
    noise = arrays.maximum(_median(abs(ratio / agreed - 1), middle) * MAD, MIN_NOISE)
    center, zero = agreed * measured, noise * 0
    sigma = arrays.maximum(noise, BIAS) * center
    ratio_fit = (agreed * unit, zero, sigma * sigma / INDEPENDENT, zero, zero, raw, center, noise)

    state = arrays.where(noise > MAX_NOISE, float(NOT_PLAUSIBLE), float(SCALE_ONLY))
    state = arrays.where(good, float(FITTED), state)
    state = arrays.where(pairs < MIN_PAIRS, float(TOO_FEW), state)
    parts = [arrays.where(good, *both) for both in zip(line_fit, ratio_fit, strict=True)]
    return arrays.packed([state, pairs, *parts])


def _middle(ascending: Array, middle: tuple[Array, Array]) -> Array:
    return (arrays.gather(ascending, middle[0]) + arrays.gather(ascending, middle[1])) * 0.5


def _median(values: Array, middle: tuple[Array, Array]) -> Array:
    return _middle(arrays.ascending(values), middle)


def _percentile(ascending: Array, n: Array, share: float) -> Array:
    place = (n - 1) * share
    index = arrays.whole(place)
    low, high = arrays.gather(ascending, index), arrays.gather(ascending, index + 1)
    return low + (high - low) * (place - index)


def _repeated_median(x: Array, q: Array, usable: Array, n: Array) -> Array:
    """The median over points of the median slope to the others; NaN if there is none. (..., 1)"""
    # Evenly spaced ones of the usable pairs.
    number, picked = arrays.numbers(START_PAIRS, x), arrays.minimum(n, START_PAIRS)
    rank = arrays.minimum(arrays.whole((number * ((n - 1) / (picked - 1))).round()), n - 1)
    pick = arrays.gather(arrays.first_true(usable), rank)
    x, there = arrays.gather(x, pick), number < picked
    q = arrays.where(there, arrays.gather(q, pick), NAN)
    least = MIN_BASELINE * _median(q, ((picked - 1) // 2, picked // 2))
    baseline = q[..., :, None] - q[..., None, :]
    enough = arrays.single(abs(baseline) > arrays.column(least))
    # 0 / 0 is NaN, which is sorted last.
    slopes = (x[..., :, None] - x[..., None, :]) * enough / (baseline * enough)
    count = arrays.whole(enough.sum(-1))
    middle = arrays.maximum(count - 1, 0)[..., None] // 2
    slopes = arrays.gather(arrays.ascending(slopes), middle)[..., 0]
    rows = arrays.maximum(arrays.column((count > 0).sum(-1)), 2)
    return _median(arrays.double(slopes), ((rows - 1) // 2, rows // 2))
