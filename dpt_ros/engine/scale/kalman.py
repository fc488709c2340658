# SPDX-License-Identifier: Apache-2.0
"""The correction of a depth network: a Kalman filter over scale and shift of inverse depth."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpt_ros.engine.scale.anchors import LEAST_SCALE, Fit

_FLOOR = 0.004  # relative; no fit is believed to be better
_GATE = 16.0  # squared standard deviations from which on a fit counts less
_LIVELIER = 0.4  # how fast the random walk adapts to what is seen
_LIVELIEST = 1e4
_STEP = 0.15  # largest relative change of the inverse depth from one frame to the next
_MOST_DOUBT = 0.5  # relative, of a relative network held for long
_START_SHIFT = 0.03  # 1/m, standard deviation of a metric network's shift
# The same as a prior of each fit: a line through far pairs only would bend what is near, so
# without other evidence a metric network has no shift.
_PRIOR_SHIFT = 0.01
# What a Correction changes after it was made.
_ARRAYS = ("_state", "_covariance", "_systematic")
_VALUES = ("_unit", "_lively", "known", "fitted", "center")


class Correction:
    """Scale and shift with their uncertainty: inverse = scale * network + shift.

    Each fit is a measurement; its noise follows from residual, spread and number of pairs. Scale
    and shift walk at random, the faster the more the fits do so: the correction follows a network
    that flickers and is calm for one that is steady. One fit that does not agree with the others
    counts little, and no step is larger than 15 %. A fit of one number ("scale only", in front of
    a flat wall) moves what is known least, for a metric network its scale. The fit of a metric
    network is a posterior: its own scale and no shift are the prior.

    Args:
        prior: scale of a metric network before any fit; None for a relative network, whose first
            fit is taken as it is.
        scale_error: relative standard deviation of the prior.
        walk: standard deviations by which scale (relative) and shift wander in one second; the
            shift's in 1/m, or of a relative network relative to the inverse depth at the pairs.

    Attributes:
        known: whether there is a correction: a prior or a fit.
        fitted: whether there was a fit.
        center: 1/m, inverse depth in the middle of the last pairs.
    """

    def __init__(self, prior: float | None, scale_error: float, walk: tuple[float, float]) -> None:
        self._walk, self._most = walk, _MOST_DOUBT if prior is None else scale_error
        self._relative = prior is None
        self._unit = prior or 1.0  # of the scale in the state; that of the first fit if relative
        self._state = np.array([1.0, 0.0])
        self._covariance = np.diag([scale_error**2, _START_SHIFT**2])
        self._systematic = np.zeros((2, 2))  # of the last fit; it does not average out
        self._process_noise_factor = 1.0
        self.known, self.fitted = prior is not None, False
        self.center = 0.33

    def state(self) -> dict[str, Any]:
        """Everything that ``restore`` needs to go on as this one would, as plain values."""
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        return arrays | {name: np.asarray(getattr(self, name)).item() for name in _VALUES}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where the one with this state was; made with the same arguments."""
        for name in _ARRAYS:
            setattr(self, name, np.array(state[name]))
        for name in _VALUES:
            setattr(self, name, state[name])

    @property
    def scale(self) -> float:
        return float(self._state[0] * self._unit)

    @property
    def shift(self) -> float:
        """1/m."""
        return float(self._state[1])

    @property
    def covariance(self) -> np.ndarray:
        """(2, 2) of scale and shift."""
        turn = np.diag([self._unit, 1.0])
        return turn @ (self._covariance + self._systematic) @ turn

    @property
    def sigma(self) -> float:
        """Relative standard deviation of the inverse depth in the middle of the pairs."""
        scale, shift = self._state
        where = np.array([max((self.center - shift) / scale, 1e-3), 1.0])
        variance = where @ (self._covariance + self._systematic) @ where
        return float(np.sqrt(max(variance, 0.0)) / self.center)

    def grow(self, seconds: float) -> None:
        """Let the uncertainty grow over a time without a fit, up to that of the prior."""
        walk = np.array(self._walk)
        if self._relative:
            walk[1] *= self.center
        self._covariance = (
            self._covariance + np.diag(walk**2) * seconds * self._process_noise_factor
        )
        shift = self._most * self.center if self._relative else _START_SHIFT
        most = np.array([self._most * abs(self._state[0]), shift])
        over = np.minimum(1.0, most / np.sqrt(np.diag(self._covariance)))
        self._covariance = self._covariance * np.outer(over, over)

    def take(
        self, fit: Fit, limit_step: bool, systematic: np.ndarray | None = None, slope: bool = False
    ) -> str:
        """Correct scale and shift by a fit.

        Args:
            fit: of this frame.
            gently: whether depth went out before, so that it must not jump.
            systematic: (2, 2) covariance of an error that all fits of this kind share: of the
                scale, relative to the prior, and of the shift, 1/m; None for none.
            slope: whether to believe the scale of the fit only, if there is a shift already.

        Returns:
            "" if it was taken; else why not.
        """
        if fit.state not in ("fitted", "scale only"):
            return fit.state
        systematic = np.zeros((2, 2)) if systematic is None else systematic
        if not self.known:
            if fit.state == "scale only":
                # Of a relative network one number fixes nothing: its shift is not known yet.
                return "no spread"
            self._unit = fit.scale
            self._state = np.array([1.0, fit.shift])
            self._covariance = np.diag([1.0, fit.center[1] ** 2])
            self.known, limit_step, slope = True, False, False
        if self._systematic.trace() > systematic.trace():
            self._covariance = self._covariance + self._systematic
        x, q = fit.center[0] * self._unit, fit.center[1]
        if fit.state == "fitted":
            seen, turn = np.eye(2), np.diag([1 / self._unit, 1.0])
            value = turn @ np.array([fit.scale, fit.shift])
            noise = turn @ fit.covariance @ turn
            if not self._relative:
                value, noise = self._with_prior(value, noise)
            noise += np.diag([(_FLOOR * self._state[0]) ** 2, (_FLOOR * q) ** 2]) + systematic
            if slope:
                seen, value, noise = seen[:1], value[:1], noise[:1, :1]
        else:
            seen, value = np.array([[x, 1.0]]), np.array([q])
            noise = np.array([[fit.covariance[0, 0] + (_FLOOR * q) ** 2]])
            noise += seen @ systematic @ seen.T
        if not self._correct(seen, value, noise, (x, q), limit_step):
            return "not plausible"
        self.center, self._systematic, self.fitted = q, systematic, True
        return ""

    def _with_prior(self, value: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A fit of one frame and its covariance, with what is known of a metric network."""
        prior = np.diag([self._most**-2, _PRIOR_SHIFT**-2])
        weight = np.linalg.inv(noise)
        noise = np.linalg.inv(weight + prior)
        return noise @ (weight @ value + prior @ [1.0, 0.0]), noise

    def _correct(
        self,
        seen: np.ndarray,
        value: np.ndarray,
        noise: np.ndarray,
        center: tuple[float, float],
        limit_step: bool,
    ) -> bool:
        p, (x, q) = self._covariance, center
        error = value - seen @ self._state
        spread = seen @ p @ seen.T + noise
        normalised_innovation_squared = float(error @ np.linalg.solve(spread, error)) / len(value)
        if self.fitted:
            faster = min(max(normalised_innovation_squared, 1e-3), _GATE) ** _LIVELIER
            self._process_noise_factor = float(
                np.clip(self._process_noise_factor * faster, 1.0, _LIVELIEST)
            )
            if normalised_innovation_squared > _GATE:
                noise = noise * (normalised_innovation_squared / _GATE)
                spread = seen @ p @ seen.T + noise
        gain = p @ seen.T @ np.linalg.inv(spread)
        step = gain @ error
        if limit_step:
            now = max(self._state[0] * x + self._state[1], 1e-3 * q)
            change = max(abs(step[0] * x + step[1]) / now, abs(step[0]) / self._state[0])
            gain = gain * min(1.0, _STEP / max(change, 1e-9))
            step = gain @ error
        state = self._state + step
        if state[0] * x < LEAST_SCALE * q:
            return False
        rest = np.eye(2) - gain @ seen
        self._state = state
        self._covariance = rest @ p @ rest.T + gain @ noise @ gain.T
        return True
