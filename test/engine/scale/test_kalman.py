# SPDX-License-Identifier: Apache-2.0
"""The filter over scale and shift: what one fit moves, and what is believed of the rest."""

import numpy as np
import pytest

from dpt_ros.engine.scale.anchors import Fit
from dpt_ros.engine.scale.kalman import Correction

WALK = (0.01, 0.002)


def metric(scale_error=0.25):
    return Correction(1.0, scale_error, WALK)


def fit(scale=1.0, shift=0.0, center=(0.5, 0.5), scale_error=0.02, shift_error=0.01):
    covariance = np.diag([scale_error**2, shift_error**2])
    return Fit("fitted", 60, scale, shift, covariance, center, 0.03)


def wall(inverse, error, network=0.5):
    """A fit of one number: the inverse depth of a wall, and its standard deviation."""
    covariance = np.diag([error**2, 0.0])
    return Fit("scale only", 60, inverse / network, 0.0, covariance, (network, inverse), 0.03)


def test_the_first_fit_of_a_relative_network_is_taken_whole():
    correction = Correction(None, 1.0, (0.1, 0.1))
    assert correction.update(wall(0.5, 0.02), limit_step=True) == "no spread"
    assert not correction.known
    assert (
        correction.update(fit(0.002, 0.07, (200.0, 0.47)), limit_step=True, scale_only=True) == ""
    )
    assert (correction.scale, correction.shift) == pytest.approx((0.002, 0.07))
    assert (correction.known, correction.fitted, correction.center) == (True, True, 0.47)


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
    before = correction.state_dict()
    nearly = fit(0.005, 0.497, scale_error=1e-6, shift_error=1e-6)
    assert correction.update(nearly, limit_step=False) == "not plausible"
    assert correction.state_dict() == before
    assert correction.update(Fit("too few pairs", 3), limit_step=False) == "too few pairs"
    assert correction.state_dict() == before


def test_the_error_that_all_fits_share_does_not_average_out():
    shared = np.diag([0.05**2, 0.0])
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
    relative, network = Correction(None, 1.0, (0.1, 0.1)), metric()
    for correction in (relative, network):
        correction.update(fit(center=(center, center)), limit_step=False)
    for correction, walk, most in (
        (relative, (0.1, 0.1 * center), (0.5, 0.5 * center)),
        (network, WALK, (0.25, 0.03)),
    ):
        start = np.diag(correction.covariance)
        correction.predict(0.1)
        grown = np.diag(correction.covariance) - start
        np.testing.assert_allclose(grown, 0.1 * np.square(walk), rtol=1e-6)
        correction.predict(1e9)
        np.testing.assert_allclose(np.sqrt(np.diag(correction.covariance)), most, rtol=0.1)


def test_one_that_is_restored_goes_on_as_the_other():
    one, other = metric(), metric()
    shared = np.diag([0.02**2, 0.0])
    for scale in (1.1, 1.4, 0.9):
        one.update(fit(scale), limit_step=True, systematic=shared)
        one.predict(0.1)
    other.load_state_dict(one.state_dict())
    for correction in (one, other):
        correction.predict(0.2)
        correction.update(fit(1.2), limit_step=True)
    assert other.state_dict() == one.state_dict()
    assert (other.scale, other.sigma) == (one.scale, one.sigma)
