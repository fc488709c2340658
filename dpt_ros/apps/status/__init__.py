# SPDX-License-Identifier: Apache-2.0
"""dpt_status: the state of running nodes, from /diagnostics, where the ros2 command is missing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

UNKNOWN = 3

DESCRIPTION = """Show what running dpt_ros nodes report on /diagnostics: lifecycle state, networks,
device, rates, latencies, dropped frames and errors, one column per camera. No ROS install
is needed."""
EXAMPLES = """examples:
  a live table, until Ctrl-C:
    dpt_status
  the state of the nodes below a namespace, once, for a script:
    dpt_status --once --namespace /robot || echo "depth is not healthy"
  every report as a line of JSON:
    dpt_status --json

exit codes, as of monitoring plugins, with --once: 0 OK, 1 warning, 2 error, 3 unknown (no node
reports, or wrong arguments); without: 0 after Ctrl-C.
"""


class _Parser(argparse.ArgumentParser):
    """Wrong arguments exit with UNKNOWN, for 2 stands for an error of the node."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(UNKNOWN, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dpt_status",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--namespace", default="", help="only nodes in or below this namespace")
    add("--all", action="store_true", help="what other programs report on /diagnostics, too")
    add("--once", action="store_true", help="print the first report of every node and exit")
    add("--json", action="store_true", help="print JSON, one object on each line")
    add("--timeout", type=float, default=10.0, metavar="S",
        help="seconds to wait for a node (default: %(default)g)")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_status``. Returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    at = given.index("--ros-args") if "--ros-args" in given else len(given)
    parser = _parser()
    args = parser.parse_args(given[:at])
    if not args.timeout > 0:
        parser.error(f"--timeout is {args.timeout:g}, but must be positive.")
    from dpt_ros.apps.status.show import show

    return show(args, given[at:])


if __name__ == "__main__":
    sys.exit(main())
