# SPDX-License-Identifier: Apache-2.0
"""One case of the node's benchmark: its processes, and a run of one of its two arms."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np

from dpt_ros.apps.bench.node import arrivals
from dpt_ros.apps.bench.node.arrivals import Account, Trace
from dpt_ros.apps.report import CpuWatch, GpuWatch, Summary, summarize
from dpt_ros.ros.share import profile_variables, transport_environment

ARMS = ("echo", "node")
_START = 300.0  # seconds; a large network may be read from a slow disk, or compiled
_PROBE_RATE = 10.0
# Fast DDS repairs what was lost when the writer reminds the reader, by default every 3 seconds, on
# the way there and on the way back.
_PATIENCE = 7.0  # seconds without news after which missing frames are lost
_POLL = 0.1
_ERROR = 2  # diagnostic_msgs/DiagnosticStatus
_numbers = itertools.count()


class BenchError(RuntimeError):
    """The benchmark cannot continue; the text is for the user."""


@dataclass(frozen=True)
class Case:
    """What goes through the node."""

    cameras: int  # how many, triggered together
    width: int  # of their images
    height: int
    transport: str  # "raw" (rgb8) or "jpeg"
    outputs: str  # "depth" or "depth+labels"
    profile: str  # of Fast DDS, "shipped" or "default"

    @property
    def labels(self) -> bool:
        """Whether labels are requested."""
        return self.outputs == "depth+labels"

    @property
    def names(self) -> list[str]:
        """Names of the cameras as the node's parameter has them; a single one has none."""
        return [f"camera{k}" for k in range(self.cameras)] if self.cameras > 1 else [""]

    def image_topic(self, namespace: str, camera: str) -> str:
        """The topic of a camera's images."""
        return topic(namespace, camera, "image" if self.transport == "raw" else "image/compressed")

    def title(self) -> str:
        """For the head of a table."""
        cameras = "1 camera" if self.cameras == 1 else f"{self.cameras} cameras"
        images = f"{self.width}x{self.height} {self.transport}"
        return f"{cameras}, {images}, {self.outputs}, {self.profile} Fast DDS profile"


def topic(namespace: str, camera: str, name: str) -> str:
    """A topic of a camera, such as /bench/echo/camera1/image."""
    return "/".join(filter(None, (namespace, camera, name)))


class Program:
    """A Python module (``words``: its name and arguments) as a process of its own, which gets the
    file ``passed``; its output goes to a log."""

    def __init__(
        self, name: str, *words: str, env: Mapping[str, str], passed: Sequence[int] = ()
    ) -> None:
        self.name = name
        self._log = tempfile.NamedTemporaryFile("w", prefix="dpt_bench_")  # noqa: SIM115
        self.started = time.monotonic_ns()
        files: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": self._log}
        files |= {"stderr": self._log, "pass_fds": passed}
        self.process = subprocess.Popen([sys.executable, "-m", *words], env=dict(env), **files)

    def log(self) -> str:
        """The end of its output."""
        return "\n".join(Path(self._log.name).read_text(errors="replace").splitlines()[-20:])

    def check(self) -> None:
        """Raise a `BenchError` if it has ended."""
        if (code := self.process.poll()) is not None:
            raise BenchError(f"{self.name} ended with code {code}. Its output:\n{self.log()}")

    def interrupt(self) -> None:
        """Send SIGINT, if it has not ended."""
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Wait for its end after ``interrupt``; kill it after 10 s."""
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


class Worker(Program):
    """A process of ``roles``, which runs commands for the arms of ``namespaces`` and returns their
    results; ``node`` is the name of its node."""

    def __init__(
        self, role: str, case: Case, namespaces: Sequence[str], env: Mapping[str, str], node: str
    ) -> None:
        self._pipe, theirs = Pipe()
        file = theirs.fileno()
        super().__init__(role, "dpt_ros.apps.bench.node.roles", str(file), env=env, passed=(file,))
        theirs.close()
        self._pipe.send((role, case, namespaces, node))

    def send(self, command: str, **given: Any) -> None:
        """Send a command; ``result`` returns its result."""
        self.check()
        self._pipe.send((command, given))

    def result(self, timeout: float = 60.0) -> Any:
        """The result of the command that was sent; a `BenchError` if there is none in time."""
        if not self._pipe.poll(timeout):
            raise BenchError(f"{self.name} did not answer within {timeout:.0f} s.")
        try:
            return self._pipe.recv()
        except EOFError:
            self.process.wait()
            self.check()

    def call(self, command: str, timeout: float = 60.0, **given: Any) -> Any:
        """Send a command and wait for its result."""
        self.send(command, **given)
        return self.result(timeout)

    def interrupt(self) -> None:
        """Close its input, and see `Program`."""
        self._pipe.close()
        super().interrupt()


@dataclass(frozen=True)
class Run:
    """A run of one arm."""

    arm: str  # "echo" or "node"
    rate: float  # requested of each camera, frames per second
    achieved: float  # what the slowest camera really sent
    warm_up: int  # frames of each camera that were sent before the measured ones
    account: Account  # what became of the measured frames
    lag: Summary  # of the cameras behind their schedule, milliseconds
    cpu: dict[str, float]  # of ``CpuWatch``
    gpu: dict[str, float]  # of ``GpuWatch``
    diagnostics: dict[str, Any]  # of the arm, after the run
    traces: list[Trace]  # per camera

    def as_json(self) -> dict[str, Any]:
        """All of it but the traces."""
        found = {**vars(self), "account": asdict(self.account), "lag": asdict(self.lag)}
        del found["traces"]
        return found


class Session:
    """Camera, node with its ``parameters``, ``load`` busy processes, echo and monitor of one case;
    a context manager that ends them; ``gpu``: index of the one to watch.

    Attributes:
        start_seconds: from the start of the node's process to its first depth at 10 Hz; known
            after ``wait_for_depth``.
    """

    def __init__(self, case: Case, parameters: Mapping[str, str], load: int, gpu: int) -> None:
        self._case, self._gpu, self.start_seconds = case, gpu, math.nan
        root = f"dpt_bench_{os.getpid()}_{next(_numbers)}"
        self._node_names = {arm: f"{root}_{arm}" for arm in ARMS}
        self._namespaces = {arm: f"/{root}/{arm}" for arm in ARMS}
        self._programs: dict[str, Program] = {}
        self._load: list[subprocess.Popen[bytes]] = []
        self._given = parameters, load

    def __enter__(self) -> Session:
        with contextlib.ExitStack() as unfinished:
            unfinished.callback(self.close)
            self._start(*self._given)
            unfinished.pop_all()
        return self

    def _start(self, parameters: Mapping[str, str], load: int) -> None:
        case, env = self._case, case_environment(self._case.profile)
        both, echo = list(self._namespaces.values()), self._namespaces["echo"]

        def worker(role: str, namespaces: list[str], name: str) -> Worker:
            self._programs[role] = made = Worker(role, case, namespaces, env, name)
            return made

        self._camera = worker("camera", both, "bench_camera")
        self._monitor = worker("monitor", both, "bench_monitor")
        worker("echo", [echo], self._node_names["echo"])
        # Images are made first, so that they take no time from the start of the node.
        self._camera.call("run", timeout=_START, namespace=echo, rate=1.0, frames=0)
        self._monitor.call("clear", timeout=_START)
        given = {"image_transport": {"raw": "raw", "jpeg": "compressed"}[case.transport]}
        given |= {"cameras": f"[{', '.join(case.names)}]"} if case.cameras > 1 else {}
        words = ["--ros-args", "-r", f"__node:={self._node_names['node']}"]
        words += ["-r", f"__ns:={self._namespaces['node']}"]
        for name, value in {**given, **parameters}.items():
            words += ["-p", f"{name}:={value}"]
        self._programs["node"] = Program("dpt_node", "dpt_ros.ros.dpt_node", *words, env=env)
        busy = (sys.executable, "-c", "while True: pass")
        self._load = [subprocess.Popen(busy) for _ in range(load)]

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for process in self._load:
            process.kill()
            process.wait()
        for program in self._programs.values():
            program.interrupt()
        for program in self._programs.values():
            program.close()

    def wait_for_depth(self) -> None:
        """Send images at 10 Hz until both arms answer for every camera."""
        for arm in ARMS:
            deadline = time.monotonic() + _START
            while not all(map(len, arrived := self._arrivals(arm).values())):
                namespace = self._namespaces[arm]
                self._camera.call("run", namespace=namespace, rate=_PROBE_RATE, frames=5)
                self._programs[arm].check()
                status = self._status(arm)[1].get("networks")
                if status and status["level"] == _ERROR:
                    raise BenchError(f"The node cannot start. {status['message']}")
                if time.monotonic() > deadline:
                    log = self._programs[arm].log()
                    raise BenchError(f"The {arm} published no depth within {_START:.0f} s:\n{log}")
        first = min(rows[0, 1] for rows in arrived)  # of the node, the last arm
        self.start_seconds = float(first - self._programs["node"].started) * 1e-9

    def answer_seconds(self, arm: str, seconds: float = 2.0) -> float:
        """Time from stamp to depth at 10 Hz, 90th percentile, seconds."""
        run = self.run(arm, _PROBE_RATE, seconds, warm_up=0.5)
        if not run.account.returned:
            raise BenchError(f"The {arm} returned no frame at {_PROBE_RATE:g} Hz.")
        return run.account.latency.p90 * 1e-3

    def run(self, arm: str, rate: float, seconds: float, warm_up: float) -> Run:
        """Send frames to one arm at ``rate``, Hz of each camera, and find out what became of them;
        the ``warm_up`` seconds before the ``seconds`` do not count, each at least three frames."""
        first, frames = (max(math.ceil(s * rate), 3) for s in (warm_up, seconds))
        before = self._fresh_status(arm)
        self._monitor.call("clear")
        namespace = self._namespaces[arm]
        self._camera.send("run", namespace=namespace, rate=rate, frames=first + frames)
        time.sleep(first / rate)
        watched = {"camera": "camera", f"arm ({arm})": arm, "monitor": "monitor"}
        with GpuWatch(self._gpu) as gpu:
            watch = CpuWatch({k: self._programs[v].process.pid for k, v in watched.items()})
            time.sleep(frames / rate)
            cpu = watch.percent()
        done = self._camera.result(timeout=60 + 10 * (first + frames) / rate)
        traces, dropped, after = self._settle(arm, done["sent"], first, before)
        achieved = min(1e9 / float(np.diff(trace.sent[first:]).mean()) for trace in traces)
        account = arrivals.account(traces, 1.0 / rate, dropped)
        lag = summarize(np.array(done["lag"][first:]) * 1e-6)
        return Run(arm, rate, achieved, first, account, lag, cpu, gpu.means, after, traces)

    def _settle(
        self, arm: str, sent: Sequence[Sequence[int]], warm_up: int, before: dict[str, Any]
    ) -> tuple[list[Trace], int, dict[str, Any]]:
        """Wait until every frame is accounted for, or nothing new has arrived for a while."""
        stamps = dict(zip(self._case.names, (np.array(s, np.int64) for s in sent), strict=True))
        last_left, quiet_since = -1, time.monotonic()
        while True:
            after = self._fresh_status(arm)
            arrived = self._arrivals(arm)
            traces = [
                Trace(one, warm_up, {k: rows for (n, k), rows in arrived.items() if n == name})
                for name, one in stamps.items()
            ]
            dropped = dropped_frames(after) - dropped_frames(before)
            left = arrivals.missing(traces) - dropped
            if left != last_left:
                last_left, quiet_since = left, time.monotonic()
            slowest = arrivals.latencies(traces).max(initial=0.0) * 1e-3
            quiet = time.monotonic() - quiet_since
            if left <= 0 or quiet > max(_PATIENCE, 2 * slowest):
                return traces, dropped, after
            time.sleep(_POLL)

    def _arrivals(self, arm: str) -> dict[tuple[str, str], np.ndarray]:
        return self._monitor.call("arrivals", namespace=self._namespaces[arm])

    def _status(self, arm: str) -> tuple[int, dict[str, Any]]:
        return self._monitor.call("status", name=self._node_names[arm])

    def _fresh_status(self, arm: str) -> dict[str, Any]:
        """An arm's diagnostics, published after this call."""
        since, deadline = time.monotonic_ns() + 50_000_000, time.monotonic() + 70.0
        while True:
            received, status = self._status(arm)
            if received > since:
                return status
            self._programs[arm].check()
            if time.monotonic() > deadline:
                missing = f"No diagnostics of the {arm} on /diagnostics within 70 s"
                raise BenchError(f"{missing}, so its dropped frames cannot be counted.")
            time.sleep(_POLL)


def dropped_frames(status: Mapping[str, Any]) -> int:
    """Frames that an arm reports as dropped or failed, all cameras together; what the middleware
    lost does not count."""
    kinds = ("dropped: ", "error: ", "missed: not taken in time")
    counts = [count for part in status.values() for count in part["values"].items()]
    return sum(int(value) for key, value in counts if key.startswith(kinds))


def case_environment(profile: str) -> dict[str, str]:
    """The environment of all processes: with the "shipped" profile (one that the environment
    names already is kept) or, for "default", without any."""
    env = dict(os.environ)
    if profile == "shipped":
        env.update(transport_environment())
    else:
        for name in profile_variables():
            env.pop(name, None)
    env.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    return env


def profile_text(profile: str) -> str:
    """The profile's file, for the report."""
    env = case_environment(profile)
    files = [env[name] for name in profile_variables() if name in env]
    return f"{profile}: {files[0] if files else 'the defaults of Fast DDS'}"
