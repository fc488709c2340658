# SPDX-License-Identifier: Apache-2.0
import signal

import pytest
import torch


def pytest_configure() -> None:
    # What a script runs in its background ignores Ctrl-C, and so would the processes of the tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
