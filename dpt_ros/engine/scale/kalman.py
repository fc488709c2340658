# SPDX-License-Identifier: Apache-2.0
"""The correction of a depth network: a Kalman filter over scale and shift of inverse depth.

Each fit is a measurement; its noise follows from residual, spread and number of pairs. Scale and
shift are random walks whose process noise adapts to the innovations: the correction follows a
network that flickers and is smooth for one that is steady. An outlier has little weight, and no
step is larger than 15 %. A fit of one number ("scale only", in front of a flat wall) moves what is
least certain, for a metric network its scale. A metric network's own scale and no shift are the
prior of each of its fits.
"""

from __future__ import annotations

from collections import namedtuple

from dpt_ros.engine.scale import arrays
from dpt_ros.engine.scale.arrays import Array
from dpt_ros.engine.scale.robust_fit import (
    FITTED,
    MIN_SCALE,
    NO_SPREAD,
    NOT_PLAUSIBLE,
    SCALE_ONLY,
    Fit,
)

MIN_SIGMA = 0.004  # relative standard deviation that every fit has at least
GATE = 16.0  # normalised innovation squared from which on a fit has less weight
ADAPTATION = 0.4  # exponent by which the process noise follows the innovations
MIN_SURPRISE = 1e-3  # smallest normalised innovation squared that it follows
MAX_PROCESS_NOISE_FACTOR = 1e4
MAX_STEP = 0.15  # largest relative change of the inverse depth from one frame to the next
METRIC_SIGMA = 0.25  # relative standard deviation of a metric network's own scale
RELATIVE_SIGMA = 0.5  # of a relative network after a long time without fits
SHIFT_SIGMA = 0.03  # 1/m, of a metric network
# The same as a prior of each fit: a line through far pairs only would bend what is near, so
# without other evidence a metric network has no shift.
PRIOR_SHIFT_SIGMA = 0.01
# Standard deviations by which scale (relative) and shift (1/m; of a relative network relative)
# wander in one second; the filter raises them where the innovations are larger.
METRIC_WALK, RELATIVE_WALK = (0.01, 0.002), (0.1, 0.1)
_CENTER = 0.33  # 1/m, before any pairs


Kalman = namedtuple(
    "Kalman", "scale shift c00 c01 c11 s0 s1 factor unit known fitted center source residual"
)
"""The state of the correction ``inverse_depth = scale * unit * raw_inverse_depth + shift``.

All are (...) float64; one array (..., 14) holds them in this order.

scale, shift: in units of ``unit`` and in 1/m.
c00, c01, c11: covariance of scale and shift.
s0, s1: variances of scale and shift of an error common to all fits of the last one's kind; it does
not average out.
factor: of the process noise.
unit: prior scale of a metric network; that of the first fit of a relative one.
known: 1 if there is a correction: a prior or a fit.
fitted: 1 if there was a fit.
center: 1/m, median inverse depth of the last pairs.
source: index into ``SOURCES``.
residual: of the last fit, 0 without one.
"""
KALMAN = Kalman._fields


def initial(prior: float | None) -> list[float]:
    """The state before any fit, as ``Kalman`` has it.

    Args:
        prior: scale of a metric network; None for a relative network, whose first fit is taken
            as it is.
    """
    variance, known = (1.0, 0.0) if prior is None else (METRIC_SIGMA**2, 1.0)
    state = Kalman(
        *(1.0, 0.0, variance, 0.0, SHIFT_SIGMA**2, 0.0, 0.0),
        *(1.0, prior or 1.0, known, 0.0, _CENTER, known, 0.0),
    )
    return list(state)


def predict(k: Kalman, seconds: Array, metric: bool) -> Kalman:
    """Add the process noise of a time without a fit, up to the variance of the prior.

    Args:
        k: the state, each (...).
        seconds: (...), since the last frame; nothing happens if it is 0.
        metric: whether the network predicts 1/m by itself.
    """
    noise = seconds * k.factor
    if metric:
        walk, size, limit = METRIC_WALK[1] ** 2, METRIC_SIGMA, SHIFT_SIGMA
    else:
        walk = (RELATIVE_WALK[1] * k.center) ** 2
        size, limit = RELATIVE_SIGMA, RELATIVE_SIGMA * k.center
    c00 = k.c00 + (METRIC_WALK if metric else RELATIVE_WALK)[0] ** 2 * noise
    c11 = k.c11 + walk * noise
    first = arrays.minimum(size * abs(k.scale) / arrays.sqrt(c00), 1)
    second = arrays.minimum(limit / arrays.sqrt(c11), 1)
    passed = seconds > 0
    return k._replace(
        c00=arrays.where(passed, c00 * first * first, k.c00),
        c01=arrays.where(passed, k.c01 * first * second, k.c01),
        c11=arrays.where(passed, c11 * second * second, k.c11),
    )


def relative_sigma(k: Kalman) -> Array:
    """(...): relative standard deviation of the inverse depth at ``center``."""
    x = arrays.maximum((k.center - k.shift) / k.scale, 1e-3)
    variance = ((k.c00 + k.s0) * x + 2 * k.c01) * x + k.c11 + k.s1
    return arrays.sqrt(arrays.maximum(variance, 0)) / k.center


def update(
    k: Kalman,
    fit: Fit,
    limit_step: Array,
    s0: Array | float,
    s1: Array | float,
    metric: bool,
    scale_only: bool = False,
) -> tuple[Kalman, Array]:
    """Correct scale and shift by a fit.

    Args:
        k: the state, each (...).
        fit: of this frame, each (...).
        limit_step: (...) bool: depth was published before, so that it must not jump.
        s0, s1: (...) variances of an error common to all fits of this kind: of the scale,
            relative to the prior, and of the shift, (1/m)^2.
        metric: whether the network predicts 1/m by itself.
        scale_only: use the scale of the fit only.

    Returns:
        The state after it, meaningful where the fit was used, of source 0; (...) index into
        ``FIT_STATES``, why it was not used, 0 if it was.
    """
    fitted, q = fit.state == FITTED, fit.measured
    if not metric:
        first = fitted & (k.known == 0)
        k = k._replace(
            unit=arrays.where(first, fit.scale, k.unit),
            scale=arrays.where(first, 1.0, k.scale),
            shift=arrays.where(first, fit.shift, k.shift),
            c00=arrays.where(first, 1.0, k.c00),
            c01=arrays.where(first, 0.0, k.c01),
            c11=arrays.where(first, q * q, k.c11),
        )
        limit_step = limit_step & ~first
    inflated = k.s0 + k.s1 > s0 + s1
    p00 = k.c00 + arrays.where(inflated, k.s0, 0.0)
    p11 = k.c11 + arrays.where(inflated, k.s1, 0.0)
    p01, x = k.c01, fit.raw * k.unit

    # The measurements: h0 * scale + h1 * shift = v0 and, if ``two`` is 1, shift = v1.
    n00, n01, n11 = fit.c00 / (k.unit * k.unit), fit.c01 / k.unit, fit.c11
    v0, v1 = fit.scale / k.unit, fit.shift
    if metric:  # fused with the prior
        a, b = METRIC_SIGMA**2, PRIOR_SHIFT_SIGMA**2
        m00, m01, m11 = _inverse(n00 + a, n01, n11 + b)
        n00, n01, n11 = a - a * a * m00, -a * b * m01, b - b * b * m11
        e0 = v0 - 1
        v0, v1 = 1 + a * (m00 * e0 + m01 * v1), b * (m01 * e0 + m11 * v1)
    zero = fit.state * 0
    two = zero if scale_only else arrays.where(fitted, zero + 1, zero)
    h0, h1 = arrays.where(fitted, 1.0, x), arrays.where(fitted, 0.0, 1.0)
    floor0, floor1 = (MIN_SIGMA * k.scale) ** 2, (MIN_SIGMA * q) ** 2
    n00 = arrays.where(fitted, n00 + floor0 + s0, fit.c00 + floor1 + (x * x * s0 + s1))
    n01, n11 = two * n01, arrays.where(two > 0, n11 + floor1 + s1, 1.0)
    y0 = arrays.where(fitted, v0, q) - h0 * k.scale - h1 * k.shift
    y1 = two * (v1 - k.shift)

    # Their covariance with the state, and the innovation's: P H^T, H P H^T + N.
    a0, a1 = p00 * h0 + p01 * h1, p01 * h0 + p11 * h1
    b0, b1 = two * p01, two * p11
    t00, t01, t11 = h0 * a0 + h1 * a1, two * a1, two * b1
    m00, m01, m11 = _inverse(t00 + n00, t01 + n01, t11 + n11)
    surprise = (m00 * y0 * y0 + 2 * m01 * y0 * y1 + m11 * y1 * y1) / (1 + two)
    adapted = arrays.minimum(arrays.maximum(surprise, MIN_SURPRISE), GATE) ** ADAPTATION
    adapted = arrays.maximum(k.factor * adapted, 1)
    before = k.fitted > 0
    factor = arrays.where(before, arrays.minimum(adapted, MAX_PROCESS_NOISE_FACTOR), k.factor)
    doubt = arrays.where(before, arrays.maximum(surprise / GATE, 1), 1.0)
    m00, m01, m11 = _inverse(t00 + doubt * n00, t01 + doubt * n01, t11 + doubt * n11)
    # The gain P H^T M, its step, and how much of it is allowed.
    g00, g01 = a0 * m00 + b0 * m01, a0 * m01 + b0 * m11
    g10, g11 = a1 * m00 + b1 * m01, a1 * m01 + b1 * m11
    step0, step1 = g00 * y0 + g01 * y1, g10 * y0 + g11 * y1
    now = arrays.maximum(k.scale * x + k.shift, 1e-3 * q)
    change = arrays.maximum(abs(step0 * x + step1) / now, abs(step0) / k.scale)
    allowed = arrays.minimum(MAX_STEP / arrays.maximum(change, 1e-9), 1)
    allowed = arrays.where(limit_step, allowed, 1.0)
    scale, shift = k.scale + allowed * step0, k.shift + allowed * step1
    # Joseph's form where the gain is the optimal one times a factor.
    less = (2 - allowed) * allowed
    updated = Kalman(
        scale,
        shift,
        p00 - less * (g00 * a0 + g01 * b0),
        p01 - less * (g00 * a1 + g01 * b1),
        p11 - less * (g10 * a1 + g11 * b1),
        *(zero + s0, zero + s1, factor, zero + k.unit, zero + 1, zero + 1, q, zero, fit.residual),
    )
    refused = arrays.where(scale * x >= MIN_SCALE * q, 0.0, float(NOT_PLAUSIBLE))
    if not metric:  # One number does not fix a relative network, whose shift is unknown.
        refused = arrays.where((k.known == 0) & ~fitted, float(NO_SPREAD), refused)
    tried = fitted | (fit.state == SCALE_ONLY)
    return updated, arrays.where(tried, refused, fit.state)


def _inverse(a: Array, b: Array, d: Array) -> tuple[Array, Array, Array]:
    """The inverse of [[a, b], [b, d]]."""
    determinant = a * d - b * b
    return d / determinant, -b / determinant, a / determinant
