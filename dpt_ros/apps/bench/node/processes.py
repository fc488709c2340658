# SPDX-License-Identifier: Apache-2.0
"""The processes of the node's benchmark: started, sent commands, and ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any


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
        return (
            f"{cameras}, {self.width}x{self.height} {self.transport}, {self.outputs},"
            f" {self.profile} Fast DDS profile"
        )


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
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=dict(env),
            pass_fds=passed,
        )

    def log(self, lines: int = 20) -> str:
        """The end of its output."""
        text = Path(self._log.name).read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def check(self) -> None:
        """Raise a `BenchError` if it has ended."""
        if self.process.poll() is not None:
            raise BenchError(
                f"{self.name} ended with code {self.process.returncode}. Its output:\n{self.log()}"
            )

    def interrupt(self) -> None:
        """Send SIGINT, if it has not ended."""
        if self.process.poll() is None:
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
