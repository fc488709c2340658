# SPDX-License-Identifier: Apache-2.0
"""The processes of the node's benchmark: started, asked line by line, looked at, ended."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_PACKAGE = "dpt_ros.apps.bench"


class BenchError(RuntimeError):
    """The benchmark cannot continue; the text is for the user."""


def case_arguments(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser of what the camera, the echo and the monitor must know alike."""
    parser = argparse.ArgumentParser(prog=f"python -m {_PACKAGE}.{prog}", description=description)
    parser.add_argument("--namespace", nargs="+", required=True, help="one per arm")
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--transport", choices=("raw", "jpeg"), default="raw")
    parser.add_argument("--labels", action="store_true", help="labels beside depth")
    return parser


def camera_names(cameras: int) -> list[str]:
    """Names of the cameras as the node's parameter takes them; one camera has none."""
    return [""] if cameras == 1 else [f"camera{number}" for number in range(cameras)]


def topic(namespace: str, camera: str, name: str) -> str:
    """A topic of a camera, such as /bench/echo/camera1/image."""
    return "/".join(filter(None, (namespace, camera, name)))


def image_topic(namespace: str, camera: str, transport: str) -> str:
    """Where a camera's images go."""
    return topic(namespace, camera, "image" if transport == "raw" else "image/compressed")


class Program:
    """A module as a process of its own; what it prints goes to a log.

    Args:
        module: its full name.
        args: of its command line.
        env: its environment.
        talks: whether its standard input and output are kept for a `Worker`.
    """

    def __init__(
        self, module: str, *args: str, env: Mapping[str, str], talks: bool = False
    ) -> None:
        self.name = module.rsplit(".", 1)[-1]
        self._log = tempfile.NamedTemporaryFile("w", prefix="dpt_bench_")  # noqa: SIM115
        self.started = time.monotonic_ns()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else self._log,
            stderr=self._log,
            env=dict(env),
            text=True,
        )

    def log(self, lines: int = 20) -> str:
        """The end of what it printed."""
        text = Path(self._log.name).read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def check(self) -> None:
        """Raise a `BenchError` if it has ended."""
        if self.process.poll() is not None:
            raise BenchError(
                f"{self.name} ended with code {self.process.returncode}. Its output:\n{self.log()}"
            )

    def interrupt(self) -> None:
        """Ask it to end, if it has not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End it: kindly, then not."""
        self.interrupt()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


class Worker(Program):
    """A `Program` that answers commands by `serve`.

    Args:
        name: of a module of this package.
        args, env: as for `Program`.
    """

    def __init__(self, name: str, *args: str, env: Mapping[str, str]) -> None:
        super().__init__(f"{_PACKAGE}.{name}", *args, env=env, talks=True)
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)

    def send(self, command: str, **given: Any) -> None:
        """Give a command; the answer is fetched by ``answer``."""
        assert self.process.stdin is not None
        self.check()
        self.process.stdin.write(json.dumps({"command": command, **given}) + "\n")
        self.process.stdin.flush()

    def answer(self, timeout: float = 60.0) -> Any:
        """The answer of the command that was sent.

        Raises:
            BenchError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(queue.Empty):
                return json.loads(self._answers.get(timeout=0.2))
            self.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name} did not answer within {timeout:.0f} s.")

    def ask(self, command: str, timeout: float = 60.0, **given: Any) -> Any:
        """Give a command and wait for its answer."""
        self.send(command, **given)
        return self.answer(timeout)


def serve(commands: Mapping[str, Callable[..., Any]], idle: Callable[[], None]) -> None:
    """Answer a `Worker`'s commands until its input ends.

    Args:
        commands: by name; their keyword arguments and answers are what JSON can say.
        idle: called again and again between commands; returns after a short while.
    """
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    while True:
        idle()
        with contextlib.suppress(queue.Empty):
            line = lines.get_nowait()
            if not line:
                return
            given = json.loads(line)
            answer = commands[given.pop("command")](**given)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, all threads; NaN where there is no /proc or process."""
    try:
        # The name, in brackets, may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_seconds() -> float:
    """CPU time that the whole machine was busy since it started; NaN where there is no /proc."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return float("nan")
    user, nice, system, _, _, irq, softirq, steal = map(int, first[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class CpuWatch:
    """CPU use of some processes, and of everything else, between two moments.

    Args:
        pids: by name.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._start = self._now()

    def _now(self) -> dict[str, float]:
        used = {name: cpu_seconds(pid) for name, pid in self._pids.items()}
        return {**used, "machine": machine_seconds(), "time": time.monotonic()}

    def percent(self) -> dict[str, float]:
        """Per process in percent of one core; "other" in percent of the whole machine."""
        spent = {name: value - self._start[name] for name, value in self._now().items()}
        seconds, machine = spent.pop("time"), spent.pop("machine")
        other = max(machine - sum(spent.values()), 0.0) / (os.cpu_count() or 1)
        return {name: 100 * value / seconds for name, value in {**spent, "other": other}.items()}
