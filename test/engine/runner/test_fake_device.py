# SPDX-License-Identifier: Apache-2.0
"""Runs fake_device_checks.py in a process of its own.

What torch loads for fake tensors replaces Python's evaluation of frames for good, so that ROS in
the same process would be too slow for the tests of a full rate.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_frame_on_fake_cuda_tensors_passes_every_check():
    checks = Path(__file__).with_name("fake_device_checks.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[100%]" in done.stdout
