# SPDX-License-Identifier: Apache-2.0
"""--version of every command."""

from __future__ import annotations

import argparse

from dpt_ros import __version__


def add_version(parser: argparse.ArgumentParser) -> None:
    """Give a command the option --version, which prints its name and the version, and exits."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
