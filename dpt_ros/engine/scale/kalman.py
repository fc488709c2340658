# SPDX-License-Identifier: Apache-2.0
"""The correction of a depth network: a Kalman filter over scale and shift of inverse depth."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpt_ros.engine.scale.anchors import MIN_SCALE, Fit

_MIN_SIGMA = 0.004  # relative standard deviation that every fit has at least
_GATE = 16.0  # normalised innovation squared from which on a fit has less weight
_ADAPTATION = 0.4  # exponent by which the process noise follows the innovations
_MAX_PROCESS_NOISE_FACTOR = 1e4
_MAX_STEP = 0.15  # largest relative change of the inverse depth from one frame to the next
_RELATIVE_SIGMA = 0.5  # of a relative network after a long time without fits
_SHIFT_SIGMA = 0.03  # 1/m, of a metric network
# The same as a prior of each fit: a line through far pairs only would bend what is near, so
# without other evidence a metric network has no shift.
_PRIOR_SHIFT_SIGMA = 0.01
# What a state_dict holds: keys and attributes.
_ARRAYS = ("_state", "_covariance", "_systematic")
_VALUES = {name: name for name in ("_unit", "known", "fitted", "center")}
_VALUES["_lively"] = "_process_noise_factor"


class Correction:
    """Scale and shift with their covariance: inverse_depth = scale * raw_inverse_depth + shift.

    Each fit is a measurement; its noise follows from residual, spread and number of pairs. Scale
    and shift are random walks whose process noise adapts to the innovations: the correction
    follows a network that flickers and is smooth for one that is steady. An outlier has little
    weight, and no step is larger than 15 %. A fit of one number ("scale only", in front of a flat
    wall) moves what is least certain, for a metric network its scale. A metric network's own
    scale and no shift are the prior of each of its fits.

    Args:
        prior: scale of a metric network before any fit; None for a relative network, whose first
            fit is taken as it is.
        scale_error: relative standard deviation of the prior.
        walk: standard deviations by which scale (relative) and shift wander in one second; the
            shift's in 1/m, or of a relative network relative to the inverse depth at the pairs.

    Attributes:
        known: whether there is a correction: a prior or a fit.
        fitted: whether there was a fit.
        center: 1/m, median inverse depth of the last pairs.
    """

    def __init__(self, prior: float | None, scale_error: float, walk: tuple[float, float]) -> None:
        self._walk, self._max_sigma = walk, _RELATIVE_SIGMA if prior is None else scale_error
        self._relative = prior is None
        self._unit = prior or 1.0  # of the scale in the state; that of the first fit if relative
        self._state = np.array([1.0, 0.0])
        self._covariance = np.diag([scale_error**2, _SHIFT_SIGMA**2])
        self._systematic = np.zeros((2, 2))  # of the last fit; it does not average out
        self._process_noise_factor = 1.0
        self.known, self.fitted = prior is not None, False
        self.center = 0.33

    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs to continue identically, as plain values."""
        arrays = {key: getattr(self, key).tolist() for key in _ARRAYS}
        values = {key: np.asarray(getattr(self, name)).item() for key, name in _VALUES.items()}
        return arrays | values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the ``state_dict`` of a correction made with the same arguments."""
        for key in _ARRAYS:
            setattr(self, key, np.array(state[key]))
        for key, name in _VALUES.items():
            setattr(self, name, state[key])

    @property
    def scale(self) -> float:
        """1/m per unit of the network."""
        return float(self._state[0] * self._unit)

    @property
    def shift(self) -> float:
        """1/m."""
        return float(self._state[1])

    @property
    def covariance(self) -> np.ndarray:
        """(2, 2) of scale and shift."""
        units = np.diag([self._unit, 1.0])
        return units @ (self._covariance + self._systematic) @ units

    @property
    def sigma(self) -> float:
        """Relative standard deviation of the inverse depth at ``center``."""
        scale, shift = self._state
        row = np.array([max((self.center - shift) / scale, 1e-3), 1.0])
        variance = row @ (self._covariance + self._systematic) @ row
        return float(np.sqrt(max(variance, 0.0)) / self.center)

    def predict(self, seconds: float) -> None:
        """Add the process noise of a time without a fit, up to the variance of the prior."""
        walk = np.array(self._walk)
        if self._relative:
            walk[1] *= self.center
        self._covariance = (
            self._covariance + np.diag(walk**2) * seconds * self._process_noise_factor
        )
        shift = self._max_sigma * self.center if self._relative else _SHIFT_SIGMA
        limit = np.array([self._max_sigma * abs(self._state[0]), shift])
        shrink = np.minimum(1.0, limit / np.sqrt(np.diag(self._covariance)))
        self._covariance = self._covariance * np.outer(shrink, shrink)

    def update(
        self,
        fit: Fit,
        limit_step: bool,
        systematic: np.ndarray | None = None,
        scale_only: bool = False,
    ) -> str:
        """Correct scale and shift by a fit.

        Args:
            fit: of this frame.
            limit_step: whether depth was published before, so that it must not jump.
            systematic: (2, 2) covariance of an error common to all fits of this kind: of the
                scale, relative to the prior, and of the shift, 1/m; None for none.
            scale_only: use the scale of the fit only, if there is a shift already.

        Returns:
            "" if the fit was used; else why not.
        """
        if fit.state not in ("fitted", "scale only"):
            return fit.state
        systematic = np.zeros((2, 2)) if systematic is None else systematic
        if not self.known:
            if fit.state == "scale only":
                # One number does not fix a relative network, whose shift is unknown.
                return "no spread"
            self._unit = fit.scale
            self._state = np.array([1.0, fit.shift])
            self._covariance = np.diag([1.0, fit.center[1] ** 2])
            self.known, limit_step, scale_only = True, False, False
        if self._systematic.trace() > systematic.trace():
            self._covariance = self._covariance + self._systematic
        x, q = fit.center[0] * self._unit, fit.center[1]
        if fit.state == "fitted":
            design, units = np.eye(2), np.diag([1 / self._unit, 1.0])
            value = units @ np.array([fit.scale, fit.shift])
            noise = units @ fit.covariance @ units
            if not self._relative:  # fused with the prior
                prior = np.diag([self._max_sigma**-2, _PRIOR_SHIFT_SIGMA**-2])
                weight = np.linalg.inv(noise)
                noise = np.linalg.inv(weight + prior)
                value = noise @ (weight @ value + prior @ [1.0, 0.0])
            floor = np.diag([(_MIN_SIGMA * self._state[0]) ** 2, (_MIN_SIGMA * q) ** 2])
            noise += floor + systematic
            if scale_only:
                design, value, noise = design[:1], value[:1], noise[:1, :1]
        else:
            design, value = np.array([[x, 1.0]]), np.array([q])
            noise = np.array([[fit.covariance[0, 0] + (_MIN_SIGMA * q) ** 2]])
            noise += design @ systematic @ design.T
        if not self._correct(design, value, noise, (x, q), limit_step):
            return "not plausible"
        self.center, self._systematic, self.fitted = q, systematic, True
        return ""

    def _correct(
        self,
        design: np.ndarray,
        value: np.ndarray,
        noise: np.ndarray,
        center: tuple[float, float],
        limit_step: bool,
    ) -> bool:
        """Kalman update by ``value = design @ state + noise``; False if it is not plausible."""
        p, (x, q) = self._covariance, center
        innovation = value - design @ self._state
        innovation_covariance = design @ p @ design.T + noise
        normalised_innovation_squared = float(
            innovation @ np.linalg.solve(innovation_covariance, innovation)
        ) / len(value)
        if self.fitted:
            factor = min(max(normalised_innovation_squared, 1e-3), _GATE) ** _ADAPTATION
            self._process_noise_factor = float(
                np.clip(self._process_noise_factor * factor, 1.0, _MAX_PROCESS_NOISE_FACTOR)
            )
            if normalised_innovation_squared > _GATE:
                noise = noise * (normalised_innovation_squared / _GATE)
                innovation_covariance = design @ p @ design.T + noise
        gain = p @ design.T @ np.linalg.inv(innovation_covariance)
        step = gain @ innovation
        if limit_step:
            now = max(self._state[0] * x + self._state[1], 1e-3 * q)
            change = max(abs(step[0] * x + step[1]) / now, abs(step[0]) / self._state[0])
            gain = gain * min(1.0, _MAX_STEP / max(change, 1e-9))
            step = gain @ innovation
        state = self._state + step
        if state[0] * x < MIN_SCALE * q:
            return False
        rest = np.eye(2) - gain @ design
        self._state = state
        self._covariance = rest @ p @ rest.T + gain @ noise @ gain.T  # Joseph's form
        return True
