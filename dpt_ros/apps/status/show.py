# SPDX-License-Identifier: Apache-2.0
"""dpt_status after its arguments are parsed: subscribes to /diagnostics and prints."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from dpt_ros.apps.command_line import fail
from dpt_ros.apps.status import table
from dpt_ros.apps.status.table import UNKNOWN, Status, worst
from dpt_ros.ros.command_line import rclpy_message

_SETTLE = 1.2  # seconds after the first report, in which the other nodes report, too
_STALE = 5.0  # seconds without a report after which a node is stale
_REDRAW = 0.5  # seconds
_REPEAT = 10.0  # seconds between warnings


def show(args: argparse.Namespace, ros_args: Sequence[str]) -> int:
    """Show the state of the nodes, once or until Ctrl-C: the exit code of ``dpt_status``, with its
    arguments and further ones of ROS, with --ros-args."""
    try:
        rclpy.init(args=list(ros_args))
    except RuntimeError as error:
        return fail("dpt_status", rclpy_message(error), UNKNOWN)
    node = Node("dpt_status", start_parameter_services=False, enable_rosout=False)
    reports = _Reports(node, args.namespace, args.all)
    try:
        return _once(reports, args) if args.once else _follow(reports, args)
    except (KeyboardInterrupt, ExternalShutdownException):
        return 130 if args.once else 0
    except BrokenPipeError:  # the reader of a pipe has closed it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the exit's flush
        return 0
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


class _Reports:
    """The newest statuses of every node that is shown."""

    def __init__(self, node: Node, namespace: str, every: bool) -> None:
        self._node, self._namespace, self._every = node, namespace, every
        self._newest: dict[str, tuple[float, list[Status]]] = {}
        self._others: set[str] = set()  # names of statuses that are not shown
        self._count = 0
        self.stamp = 0.0
        self._topic = node.create_subscription(
            DiagnosticArray, "/diagnostics", self._receive, 20
        ).topic_name

    def _receive(self, msg: DiagnosticArray) -> None:
        statuses = table.statuses_of(msg)
        shown = [s for s in statuses if table.in_namespace(s, self._namespace)]
        if not shown or not (self._every or table.of_dpt(statuses)):
            self._others |= {status.name for status in statuses}
            return
        self._newest[shown[0].node or shown[0].name] = time.monotonic(), shown
        self._count += 1
        self.stamp = msg.header.stamp.sec + msg.header.stamp.nanosec * 1e-9

    def wait(self, seconds: float) -> bool:
        """Wait for a report; whether one was received."""
        before, end = self._count, time.monotonic() + seconds
        while rclpy.ok() and (left := end - time.monotonic()) > 0 and self._count == before:
            rclpy.spin_once(self._node, timeout_sec=left)
        return self._count > before

    def statuses(self) -> list[Status]:
        """Those of all nodes; stale ones of a node that has stopped reporting."""
        now = time.monotonic()
        found = []
        for received, statuses in self._newest.values():
            if now - received > _STALE:
                prefix = f"No report for {now - received:.0f} s; the last one was: "
                statuses = [s._replace(level=3, message=prefix + s.message) for s in statuses]
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
        if self._others:
            names = ", ".join(sorted(self._others)[:8])
            way = "leave --namespace out" if self._namespace else "--all shows them"
            text += f" Other reports: {names}; {way}."
        return text


def _once(reports: _Reports, args: argparse.Namespace) -> int:
    if not reports.wait(args.timeout):
        return fail("dpt_status", reports.silence(args.timeout), UNKNOWN)
    end = time.monotonic() + _SETTLE
    while (left := end - time.monotonic()) > 0:
        reports.wait(left)
    _print(reports, args)
    return min(worst(reports.statuses()), UNKNOWN)


def _follow(reports: _Reports, args: argparse.Namespace) -> int:
    screen = sys.stdout.isatty() and not args.json
    last_report, last_warning, last_draw = time.monotonic(), -_REPEAT, 0.0
    while rclpy.ok():
        received = reports.wait(_REDRAW)
        now = time.monotonic()
        if received:
            last_report = now
        silent = now - last_report > args.timeout
        if screen:
            if now - last_draw >= _REDRAW / 2:
                last_draw = now
                _draw(reports, args, silent)
        elif received:
            _print(reports, args)
        elif silent and now - last_warning > _REPEAT:
            last_warning = now
            print(f"dpt_status: {reports.silence(args.timeout)}", file=sys.stderr, flush=True)
    return 0


def _print(reports: _Reports, args: argparse.Namespace) -> None:
    statuses = reports.statuses()
    if args.json:
        print(json.dumps(table.as_json(reports.stamp, statuses)), flush=True)
    else:
        color = sys.stdout.isatty() and _has_colors()
        text = table.table(statuses, color, shutil.get_terminal_size().columns)
        print(text, end="\n" if args.once else "\n\n", flush=True)


def _draw(reports: _Reports, args: argparse.Namespace, silent: bool) -> None:
    """Draw the table over the previous one, cut to the height of the terminal."""
    size = shutil.get_terminal_size()
    lines = [f"dpt_status  {time.strftime('%H:%M:%S')}  Press Ctrl-C to quit.", ""]
    if statuses := reports.statuses():
        lines += table.table(statuses, _has_colors(), size.columns).splitlines()
    else:
        lines.append(reports.silence(args.timeout) if silent else "Waiting for a dpt_ros node ...")
    if len(lines) > size.lines - 1:
        hidden = len(lines) - (size.lines - 2)
        lines = [*lines[: size.lines - 2], f"... {hidden} more lines: --once prints all."]
    # Cursor home, clear the rest of every line, then all below.
    sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
    sys.stdout.flush()


def _has_colors() -> bool:
    """Whether the terminal has colours and NO_COLOR (https://no-color.org) is not set."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
