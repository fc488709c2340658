# SPDX-License-Identifier: Apache-2.0
"""Deprecated: ``TemporalFilter`` and ``TemporalSettings`` are in ``dpt_ros.engine``."""

import warnings

from dpt_ros.engine.smoothing.filter import TemporalFilter, TemporalSettings

__all__ = ["TemporalFilter", "TemporalSettings"]

warnings.warn(
    "dpt_ros.engine.temporal is deprecated: import TemporalFilter from dpt_ros.engine.",
    DeprecationWarning,
    stacklevel=2,
)
