# SPDX-License-Identifier: Apache-2.0
"""The plain twins of the Triton kernels, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dpt_ros.engine.inference import kernels


@contextmanager
def plain_torch() -> Iterator[None]:
    before, kernels._enabled = kernels._enabled, False
    try:
        yield
    finally:
        kernels._enabled = before
