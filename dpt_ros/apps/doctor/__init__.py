# SPDX-License-Identifier: Apache-2.0
"""dpt_doctor: what this machine has and what would fail; proof of published weights."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial

from dpt_ros import __version__
from dpt_ros.apps.command_line import new_parser
from dpt_ros.apps.doctor.finding import LEVELS, OK, Check, Finding, Machine, isolated
from dpt_ros.apps.status import Parser
from dpt_ros.model.zoo import ZOO, unknown_model

DESCRIPTION = """Check this machine: Python packages, GPU, ROS, shared memory, networks, running
cameras and nodes. Every fault is named with its cure. The text belongs in a bug report."""
EXAMPLES = """examples:
  everything:
    dpt_doctor
  without looking for running cameras and nodes, as JSON:
    dpt_doctor --no-graph --json
  only ROS and what runs:
    dpt_doctor ros running
  does this machine compute with the published weights what was published of them?
    dpt_doctor --prove dpt_hybrid_midas
    dpt_doctor --prove dpt_large_midas --weights dpt_large-midas-2f21e586.pt --picture cats.jpg

exit codes: 0 all OK, or proven; 1 a warning, or nothing published to compare with; 2 an error, or
another result than published; 3 wrong arguments.
"""
_WIDEST = 110  # columns
_ONLY_WITH_PROVE = ("weights", "picture", "backend", "answers")

GROUPS = ("machine", "packages", "ros", "networks", "running")
"""Groups of checks, in the order of the report."""

_Groups = Iterable[tuple[str, Iterator[Finding]]]


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("dpt_doctor", DESCRIPTION, EXAMPLES, kind=Parser)
    add = parser.add_argument
    add("group", nargs="*", metavar="GROUP", help=f"only these checks: {', '.join(GROUPS)}")
    add("--json", action="store_true", help="print one JSON object")
    add("--no-graph", action="store_true", help="do not look for running ROS nodes")
    add("--hash", action="store_true", help="compare the sha256 of downloaded networks")
    add("--prove", metavar="NETWORK", help="compare a network's output on a public picture with"
        " published values; downloads both")  # fmt: skip
    add("--weights", metavar="FILE", help="with --prove: the file, or a mirror's URL")
    add("--picture", metavar="FILE", help="with --prove: the picture, or a mirror's URL")
    add("--backend", action="append", metavar="NAME", choices=("torch", "onnxruntime", "openvino"),
        help="with --prove: torch, onnxruntime or openvino; again for more (default: those"
        " installed)")  # fmt: skip
    add("--answers", metavar="FILE", help="with --prove: values to compare with, in place of the"
        " published ones (docs/doctor.md)")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dpt_doctor``. Returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    for name in _ONLY_WITH_PROVE:
        if getattr(args, name) and not args.prove:
            parser.error(f"--{name} needs --prove NETWORK.")
    if unknown := set(args.group) - set(GROUPS):
        parser.error(f"unknown GROUP {', '.join(sorted(unknown))}; known are {', '.join(GROUPS)}.")
    if args.prove and args.prove not in ZOO:
        parser.error(f"--prove: {unknown_model(args.prove)}")
    try:
        return _report(_groups(args), args.json)
    except BrokenPipeError:  # the reader of a pipe has closed it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the exit's flush
        return 0
    except KeyboardInterrupt:
        return 130


def _groups(args: argparse.Namespace) -> _Groups:
    """The checks by group, or a proof."""
    if args.prove:
        from dpt_ros.apps.doctor.prove import prove

        yield f"proof of {args.prove}", prove(args)
        return
    from dpt_ros.apps.doctor import graph, libraries, middleware, networks, system

    machine = Machine(dict(os.environ))

    def in_turn(*checks: Check) -> Iterator[Finding]:
        for one in checks:
            yield from isolated(one, machine)

    checks: dict[str, tuple[Check, ...]] = {
        "machine": (system.check_system,),
        "packages": (libraries.check_packages, libraries.check_torch, libraries.check_optional),
        "ros": (middleware.check_ros,),
        "networks": (partial(networks.check_networks, hashed=args.hash),),
        "running": () if args.no_graph else (graph.check_graph,),
    }
    yield from ((g, in_turn(*checks[g])) for g in args.group or GROUPS if checks[g])


def _report(groups: _Groups, as_json: bool) -> int:
    """Print findings as they come; the exit code."""
    found: list[tuple[str, Finding]] = []
    columns = shutil.get_terminal_size((_WIDEST, 0)).columns
    stamp = datetime.now().astimezone().isoformat(timespec="seconds")
    lines = [f"dpt_doctor {__version__}, {stamp}"]
    for group, findings in groups:
        lines += ["", group]
        for finding in findings:
            found.append((group, finding))
            lines.append(finding.text(max(min(columns, _WIDEST), 60)))
            if not as_json:
                print("\n".join(lines), flush=True)
                lines.clear()
    level = max((finding.level for _, finding in found), default=OK)
    if as_json:
        rows = [{"group": g, **f._asdict(), "level": LEVELS[f.level]} for g, f in found]
        content = {"dpt_ros": __version__, "stamp": stamp, "level": LEVELS[level]}
        print(json.dumps({**content, "findings": rows}, indent=1))
    else:
        faults = [f"{LEVELS[f.level]} of {f.name}" for _, f in found if f.level]
        print(f"\nresult: {', '.join(faults) or 'all OK'}")
    return level
