# SPDX-License-Identifier: Apache-2.0
"""What dpt_status does once its arguments are parsed: listens to /diagnostics and prints."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from dpt_ros.apps.status import UNKNOWN
from dpt_ros.apps.status.table import Status, as_json, in_namespace, of_dpt, table, worst

_SETTLE = 1.2  # seconds after the first report, in which other nodes have one, too
_STALE = 5.0  # seconds without a report after which a node counts as gone
_REDRAW = 0.5  # seconds
_AGAIN = 10.0  # seconds between two complaints of silence


def show(args: argparse.Namespace, ros_args: Sequence[str]) -> int:
    """Show the state of the nodes, once or until Ctrl-C.

    Args:
        args: of ``dpt_status``.
        ros_args: further ROS arguments, with --ros-args.

    Returns:
        The exit code of ``dpt_status``.
    """
    try:
        rclpy.init(args=list(ros_args))
    except RuntimeError as error:
        text = re.sub(r", at [^ ,]+:[0-9]+", "", str(error))
        print(f"dpt_status: {text}", file=sys.stderr)
        return UNKNOWN
    node = Node("dpt_status", start_parameter_services=False, enable_rosout=False)
    reports = _Reports(node, args.namespace, args.all)
    try:
        return _once(reports, args) if args.once else _follow(reports, args)
    except (KeyboardInterrupt, ExternalShutdownException):
        return 130 if args.once else 0
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the exit's flush
        return 0
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


class _Reports:
    """The newest statuses of every node that is of interest."""

    def __init__(self, node: Node, namespace: str, every: bool) -> None:
        self._node, self._namespace, self._every = node, namespace, every
        self._newest: dict[str, tuple[float, list[Status]]] = {}
        self.others: set[str] = set()
        self.heard = 0
        self.stamp = 0.0
        self._topic = node.create_subscription(
            DiagnosticArray, "/diagnostics", self._take, 20
        ).topic_name

    def _take(self, msg: DiagnosticArray) -> None:
        statuses = [
            Status(s.name, s.level[0], s.message, {pair.key: pair.value for pair in s.values})
            for s in msg.status
        ]
        ours = of_dpt(statuses)
        taken = [s for s in statuses if in_namespace(s, self._namespace)]
        if not taken or not (ours or self._every):
            self.others |= {status.name for status in statuses}
            return
        self._newest[taken[0].node or taken[0].name] = time.monotonic(), taken
        self.heard += 1
        self.stamp = msg.header.stamp.sec + msg.header.stamp.nanosec * 1e-9

    def wait(self, seconds: float) -> bool:
        """Let reports come in for a while; whether one came."""
        before, end = self.heard, time.monotonic() + seconds
        while rclpy.ok() and (left := end - time.monotonic()) > 0 and self.heard == before:
            rclpy.spin_once(self._node, timeout_sec=left)
        return self.heard > before

    def statuses(self) -> list[Status]:
        """Of all nodes, those of a node that fell silent as stale."""
        now = time.monotonic()
        found = []
        for heard, statuses in self._newest.values():
            if now - heard > _STALE:
                gone = f"Nothing heard for {now - heard:.0f} s; the last report was: "
                statuses = [replace(s, level=3, message=gone + s.message) for s in statuses]
            found += statuses
        return found

    def silence(self, seconds: float) -> str:
        """Why there is nothing to show."""
        where = f" in or below {self._namespace}" if self._namespace else ""
        domain = os.environ.get("ROS_DOMAIN_ID") or "0"
        text = (
            f"No dpt_ros node{where} reported on {self._topic} within {seconds:g} s"
            f" (ROS_DOMAIN_ID {domain}). Start one with dpt_node, and give both shells the same"
            " ROS_DOMAIN_ID and RMW_IMPLEMENTATION."
        )
        if self.others:
            names = ", ".join(sorted(self.others)[:8])
            way = "leave --namespace out" if self._namespace else "--all shows them"
            text += f" Other reports: {names}; {way}."
        return text


def _once(reports: _Reports, args: argparse.Namespace) -> int:
    if not reports.wait(args.timeout):
        print(f"dpt_status: {reports.silence(args.timeout)}", file=sys.stderr)
        return UNKNOWN
    end = time.monotonic() + _SETTLE
    while (left := end - time.monotonic()) > 0:
        reports.wait(left)
    _print(reports, args)
    return min(worst(reports.statuses()), UNKNOWN)


def _follow(reports: _Reports, args: argparse.Namespace) -> int:
    screen = sys.stdout.isatty() and not args.json
    heard = time.monotonic()
    complained = -_AGAIN
    drawn = 0.0
    while rclpy.ok():
        came = reports.wait(_REDRAW)
        now = time.monotonic()
        if came:
            heard = now
        elif now - heard > args.timeout and now - complained > _AGAIN and not screen:
            complained = now
            print(f"dpt_status: {reports.silence(args.timeout)}", file=sys.stderr, flush=True)
        if screen and now - drawn >= _REDRAW / 2:
            drawn = now
            _draw(reports, args, now - heard)
        elif came and not screen:
            _print(reports, args)
    return 0


def _print(reports: _Reports, args: argparse.Namespace) -> None:
    statuses = reports.statuses()
    if args.json:
        print(json.dumps(as_json(reports.stamp, statuses)), flush=True)
    else:
        end = "\n" if args.once else "\n\n"
        print(table(statuses, sys.stdout.isatty() and _colorful()), end=end, flush=True)


def _draw(reports: _Reports, args: argparse.Namespace, silent: float) -> None:
    """Draw the table over the one before, as many lines as the terminal has."""
    size = shutil.get_terminal_size()
    lines = [f"dpt_status  {time.strftime('%H:%M:%S')}  Press Ctrl-C to quit.", ""]
    statuses = reports.statuses()
    if statuses:
        lines += table(statuses, _colorful(), size.columns).splitlines()
    elif silent > args.timeout:
        lines.append(reports.silence(args.timeout))
    else:
        lines.append("Waiting for a dpt_ros node ...")
    if len(lines) > size.lines - 1:
        hidden = len(lines) - (size.lines - 2)
        lines = [*lines[: size.lines - 2], f"... {hidden} more lines: --once prints all."]
    # Home, every line with the rest of the old one cleared, then all below.
    sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
    sys.stdout.flush()


def _colorful() -> bool:
    """Whether colours are wanted (https://no-color.org) and the terminal has them."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
