# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at any moment from a program's first line on: it ends quietly, in time, with code 0."""

from __future__ import annotations

import random
import sys
import time

import pytest

pytest.importorskip("rclpy")

from helpers.ros_processes import RANDOM_NETWORKS, ros_domain

PROGRAMS = {
    "dpt_node": [f"{k}:={v}" for k, v in RANDOM_NETWORKS.items()],
    "dpt_camera_sim": ["width:=96", "height:=64"],
}
STARTED = 0.2  # seconds in which the interpreter itself starts, before any line of ours


def end_at(program: str, seconds: float) -> tuple[int, float, str]:
    """Start a program and end it after a while: exit code, seconds to the end, output."""
    with ros_domain() as domain:
        words = [word for value in PROGRAMS[program] for word in ("-p", value)]
        started = domain.start("-m", "dpt_ros.ros.command_line", program, "--ros-args", *words)
        time.sleep(seconds)
        code, took = started.end()
        return code, took, started.output


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("seconds", [0.5, 1.5, 3.0, 5.0])
def test_a_signal_while_it_starts_ends_it_quietly(program: str, seconds: float) -> None:
    code, took, output = end_at(program, seconds)
    assert "Traceback" not in output, output
    assert (code, took < 2.0) == (0, True), (code, took, output)


def main(program: str, times: int) -> None:
    """By hand: ``times`` moments in the first ten seconds, at random."""
    slowest = 0.0
    for k in range(times):
        moment = random.Random(k).uniform(STARTED, 10.0)
        code, took, output = end_at(program, moment)
        slowest = max(slowest, took)
        good = code == 0 and took < 2.0 and "Traceback" not in output
        print(f"{program} {moment:.2f} s: code {code}, {took:.2f} s", "" if good else output)
    print(f"{program}: slowest {slowest:.2f} s")


if __name__ == "__main__":  # python test/habits/test_signals.py dpt_node 30
    main(sys.argv[1], int(sys.argv[2]))
