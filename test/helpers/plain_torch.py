# SPDX-License-Identifier: Apache-2.0
"""The plain twins of the Triton kernels, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dpt_ros.engine import triton_launch


@contextmanager
def plain_torch() -> Iterator[None]:
    before, triton_launch._enabled = triton_launch._enabled, False
    try:
        yield
    finally:
        triton_launch._enabled = before
