# SPDX-License-Identifier: Apache-2.0
"""``dpt_bench frame``: where the time of a frame goes, as the node says it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from tqdm import tqdm

from dpt_ros.apps.bench.arguments import FRAME_METHOD as METHOD
from dpt_ros.apps.bench.arguments import frame_parser
from dpt_ros.apps.bench.report import environment, environment_lines, table, write_json
from dpt_ros.ros.share import transport_environment

OVERHEAD = "all but the network (ms)"
STEP = re.compile(r"step (.+) p50 \(ms\)")


@dataclass(frozen=True)
class Case:
    """A camera to measure with."""

    width: int
    height: int
    rate: float


@dataclass(frozen=True)
class Result:
    """What was measured of a case; times in milliseconds, p50."""

    case: Case
    output_rate: float
    steps: dict[str, float]
    overhead: float


def main(argv: Sequence[str]) -> int:
    """The step times of a frame at two sizes, and the rate that a fast camera gets."""
    args = frame_parser().parse_args(argv)
    os.environ.update(transport_environment())
    machine = environment()
    cases = (Case(640, 480, 8.0), Case(320, 240, 8.0), Case(320, 240, 30.0))
    results = [measure(case, args.seconds) for case in cases]
    print(METHOD, environment_lines(machine), sep="\n\n", end="\n\n")
    # Which steps there are depends on the device.
    steps = list(dict.fromkeys(step for result in results for step in result.steps))
    header = ("camera", "out (f/s)", *(f"{step} (ms)" for step in steps), OVERHEAD)
    print(table(header, [_row(result, steps) for result in results]))
    if args.json:
        content = {"method": METHOD, "results": [asdict(result) for result in results]}
        write_json(args.json, {"environment": machine, **content})
    return 0


def _row(result: Result, steps: list[str]) -> list[str | float | None]:
    case = result.case
    camera = f"{case.width}x{case.height} @ {case.rate:g}"
    return [camera, result.output_rate, *map(result.steps.get, steps), result.overhead]


def measure(case: Case, seconds: float) -> Result:
    """Run the three processes for a while and read the node's diagnostics."""
    namespace = f"/bench_{os.getpid()}_{case.width}_{case.rate:g}"
    rclpy.init()
    node = Node("bench", namespace=namespace)
    heard: dict[str, str] = {}
    arrivals: list[float] = []

    def listen(msg: DiagnosticArray) -> None:
        for status in msg.status:
            values = {pair.key: pair.value for pair in status.values}
            if values.get("topic") == f"{namespace}/image":
                heard.update(values)

    node.create_subscription(DiagnosticArray, "/diagnostics", listen, 10)
    for topic, kind in (("depth/camera_info", CameraInfo), ("semantic/labels", Image)):
        node.create_subscription(kind, topic, lambda _: None, 10)
    node.create_subscription(
        Image, "depth/image", lambda _: arrivals.append(time.monotonic()), 10, raw=True
    )
    camera = [f"width:={case.width}", f"height:={case.height}", f"rate:={case.rate}"]
    with _process("dpt_node", namespace), _process("camera_sim", namespace, *camera):
        _spin_until(node, lambda: len(arrivals) >= 10, 120.0)
        arrivals.clear()
        start = time.monotonic()
        name = f"{case.width}x{case.height}"
        bar = tqdm(total=round(seconds), unit="s", desc=name, leave=False, disable=None)
        while (elapsed := time.monotonic() - start) < seconds:
            rclpy.spin_once(node, timeout_sec=0.1)
            bar.update(int(elapsed) - bar.n)
        bar.close()
    node.destroy_node()
    rclpy.shutdown()
    found = {key: STEP.fullmatch(key) for key in heard}
    steps = {match[1]: float(heard[key]) for key, match in found.items() if match}
    rate = (len(arrivals) - 1) / float(np.ptp(arrivals))
    return Result(case, rate, steps, float(heard["all but the network p50 (ms)"]))


@contextmanager
def _process(module: str, namespace: str, *parameters: str) -> Iterator[None]:
    command = [sys.executable, "-m", f"dpt_ros.ros.{module}", "--ros-args", "-r"]
    command.append(f"__ns:={namespace}")
    for parameter in parameters:
        command += ["-p", parameter]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(10)


def _spin_until(node: Node, done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        rclpy.spin_once(node, timeout_sec=0.1)
        if time.monotonic() > deadline:
            raise SystemExit("The node published no depth in time; see its log above.")
