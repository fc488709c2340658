# SPDX-License-Identifier: Apache-2.0
"""The filter over scale and shift: what one fit moves, and what is believed of the rest."""

import numpy as np
import pytest

from dpt_ros.engine.scale import kalman
from dpt_ros.engine.scale.kalman import METRIC_WALK, Kalman, initial
from dpt_ros.engine.scale.robust_fit import FIT_STATES, FITTED, SCALE_ONLY, TOO_FEW, Fit


class Correction:
    """The filter of one camera, on numbers."""

    def __init__(self, prior):
        self.k, self.metric = Kalman(*map(np.float64, initial(prior))), prior is not None

    def update(self, fit, limit_step, systematic=(0.0, 0.0), scale_only=False):
        with np.errstate(all="ignore"):
            updated, refused = kalman.update(
                self.k, fit, np.bool_(limit_step), *systematic, self.metric, scale_only
            )
        if refused == 0:
            self.k = updated
        return FIT_STATES[int(refused)]

    def predict(self, seconds):
        self.k = kalman.predict(self.k, np.float64(seconds), self.metric)

    @property
    def scale(self):
        return self.k.scale * self.k.unit

    @property
    def shift(self):
        return self.k.shift

    @property
    def covariance(self):
        k = self.k
        whole = np.array([[k.c00 + k.s0, k.c01], [k.c01, k.c11 + k.s1]])
        return whole * np.outer([k.unit, 1], [k.unit, 1])

    @property
    def sigma(self):
        return kalman.relative_sigma(self.k)


def metric(scale_error=0.25):
    correction = Correction(1.0)
    correction.k = correction.k._replace(c00=np.float64(scale_error**2))
    return correction


def numbers(*values):
    return Fit(*map(np.float64, values))


def fit(scale=1.0, shift=0.0, center=(0.5, 0.5), scale_error=0.02, shift_error=0.01):
    variances = scale_error**2, 0.0, shift_error**2
    return numbers(FITTED, 60, scale, shift, *variances, *center, 0.03)


def wall(inverse, error, network=0.5):
    """A fit of one number: the inverse depth of a wall, and its standard deviation."""
    variances = error**2, 0.0, 0.0
    return numbers(SCALE_ONLY, 60, inverse / network, 0.0, *variances, network, inverse, 0.03)


def test_the_first_fit_of_a_relative_network_is_taken_whole():
    correction = Correction(None)
    assert correction.update(wall(0.5, 0.02), limit_step=True) == "no spread"
    assert not correction.k.known
    assert (
        correction.update(fit(0.002, 0.07, (200.0, 0.47)), limit_step=True, scale_only=True) == ""
    )
    assert (correction.scale, correction.shift) == pytest.approx((0.002, 0.07))
    assert (correction.k.known, correction.k.fitted, correction.k.center) == (True, True, 0.47)


@pytest.mark.parametrize("error", [0.02, 0.1])
def test_one_number_is_weighed_by_its_own_error(error):
    correction = metric()
    prior = correction.covariance
    at = np.array([0.5, 1.0])
    before = at @ prior @ at
    assert correction.update(wall(0.6, error), limit_step=False) == ""
    assert correction.scale * 0.5 + correction.shift == pytest.approx(
        0.5 + 0.1 * before / (before + error**2), rel=0.01
    )
    after = at @ correction.covariance @ at
    assert after == pytest.approx(1 / (1 / before + 1 / error**2), rel=0.03)


def test_a_step_is_bounded_where_the_pairs_are_and_of_the_scale_by_itself():
    for scale, shift in ((3.0, 0.0), (3.0, -1.0), (0.3, 0.35)):
        correction = metric(scale_error=2.0)
        one = fit(scale, shift, scale_error=1e-4, shift_error=1e-4)
        correction.update(one, limit_step=True)
        assert abs(np.log(correction.scale)) < 0.17
        assert abs(np.log((0.5 * correction.scale + correction.shift) / 0.5)) < 0.17
        whole = metric(scale_error=2.0)
        whole.update(one, limit_step=False)
        assert abs(np.log(whole.scale)) > 0.5


def test_a_fit_that_is_nearly_all_shift_is_refused_and_changes_nothing():
    correction = metric(scale_error=2.0)
    before = correction.k
    nearly = fit(0.005, 0.497, scale_error=1e-6, shift_error=1e-6)
    assert correction.update(nearly, limit_step=False) == "not plausible"
    assert correction.k == before
    assert (
        correction.update(numbers(TOO_FEW, 3, *[np.nan] * 8), limit_step=False) == "too few pairs"
    )
    assert correction.k == before


def test_the_error_that_all_fits_share_does_not_average_out():
    shared = (0.05**2, 0.0)
    correction = metric()
    for _ in range(200):
        correction.update(fit(), limit_step=True, systematic=shared)
    assert correction.sigma == pytest.approx(0.05, rel=0.1)
    assert correction.covariance[0, 0] ** 0.5 == pytest.approx(0.05, rel=0.1)
    # Fits that do not share it are believed as if there had been only one of the others.
    for _ in range(5):
        correction.update(fit(scale=1.05), limit_step=True)
    assert correction.scale == pytest.approx(1.05, abs=0.01)
    assert correction.sigma < 0.02


@pytest.mark.parametrize("center", [0.1, 2.0])
def test_without_fits_doubt_grows_by_the_walk_and_not_beyond_the_prior(center):
    relative, network = Correction(None), metric()
    for correction in (relative, network):
        correction.update(fit(center=(center, center)), limit_step=False)
    for correction, walk, most in (
        (relative, (0.1, 0.1 * center), (0.5, 0.5 * center)),
        (network, METRIC_WALK, (0.25, 0.03)),
    ):
        start = np.diag(correction.covariance)
        correction.predict(0.1)
        grown = np.diag(correction.covariance) - start
        np.testing.assert_allclose(grown, 0.1 * np.square(walk), rtol=1e-6)
        correction.predict(1e9)
        np.testing.assert_allclose(np.sqrt(np.diag(correction.covariance)), most, rtol=0.1)
