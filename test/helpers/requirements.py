# SPDX-License-Identifier: Apache-2.0
"""What setup.py requires."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

from helpers.places import ROOT


def requirements(folder: Path) -> list[str]:
    """The requirements of setup.py with their markers, by way of an empty folder."""
    command = [sys.executable, "setup.py", "--quiet", "dist_info", "--output-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (information,) = folder.glob("*.dist-info")
    return Distribution.at(information).requires or []
