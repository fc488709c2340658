# SPDX-License-Identifier: Apache-2.0
"""Numbers packed into one vector."""

from __future__ import annotations

import numpy as np
import pytest

from dpt_ros.engine.packed import length, offsets, pack, unpack

FIELDS = {"one": ((), "a number"), "matrix": ((2, 3), "six"), "last": ((), "another")}


def test_numbers_come_back_by_name_and_what_is_not_given_is_zero() -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    packed = pack(FIELDS, {"matrix": matrix, "last": 7})
    assert (length(FIELDS), offsets(FIELDS)) == (8, {"one": 0, "matrix": 1, "last": 7})
    found = unpack(FIELDS, packed[None])
    assert (found["one"], found["last"]) == (0, 7)
    np.testing.assert_array_equal(found["matrix"], matrix[None])


def test_a_name_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError, match="matriks"):
        pack(FIELDS, {"matriks": 1.0})
