# SPDX-License-Identifier: Apache-2.0
"""dpt_status: the state of running nodes from /diagnostics, without a ROS install."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from dpt_ros.apps.command_line import new_parser
from dpt_ros.apps.status.table import UNKNOWN
from dpt_ros.ros.command_line import split_ros_args

DESCRIPTION = """Show what running dpt_ros nodes report on /diagnostics: lifecycle state, networks,
device, rates, latencies, dropped frames and errors, one column per camera."""
EXAMPLES = """examples:
  a live table, until Ctrl-C:
    dpt_status
  the state of the nodes below a namespace, once, for a script:
    dpt_status --once --namespace /robot || echo "depth is not healthy"
  every report as a line of JSON:
    dpt_status --json

exit codes with --once, as of monitoring plugins: 0 OK, 1 warning, 2 error, 3 unknown (no node
reports, or wrong arguments); without --once: 0 after Ctrl-C.
"""


class Parser(argparse.ArgumentParser):
    """Exits with UNKNOWN for wrong arguments: 2 stands for an error that was found."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(UNKNOWN, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("dpt_status", DESCRIPTION, EXAMPLES, kind=Parser)
    add = parser.add_argument
    add("--namespace", default="", help="only nodes in or below this namespace")
    add("--all", action="store_true", help="also the reports of other programs on /diagnostics")
    add("--once", action="store_true", help="print the first report of every node and exit")
    add("--json", action="store_true", help="print JSON, one object on each line")
    add("--timeout", type=float, default=10.0, metavar="S",
        help="seconds to wait for a node (default: %(default)g)")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_status``. Returns the exit code."""
    own, ros_args = split_ros_args(argv)
    parser = _parser()
    args = parser.parse_args(own)
    if not args.timeout > 0:
        parser.error(f"--timeout is {args.timeout:g}, but must be positive.")
    from dpt_ros.apps.status.show import show

    return show(args, ros_args)
