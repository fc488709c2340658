# SPDX-License-Identifier: Apache-2.0
"""Real processes on a ROS domain of their own, and a node in the test that talks to them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy

from helpers.places import ROOT, TEST

RESEND = 3.0  # seconds
PATIENCE = 60.0  # a loaded machine takes long to import torch
NODE_COMMAND = ("-m", "dpt_ros.ros.command_line", "dpt_node")
RANDOM_NETWORKS = {
    "depth_network": "dpt_hybrid_embedded",
    "label_network": "dpt_hybrid_embedded",
    "depth_weights": "random",
    "label_weights": "random",
    "device": "cpu",
    "threads": 1,
}
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)


class Process:
    """A Python program as a process of its own; what it prints is in ``output``."""

    def __init__(self, *args: str, env: dict[str, str]) -> None:
        # Not shared with the reader: its position would move the writer's.
        self._file = tempfile.NamedTemporaryFile("w")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-u", *args],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=env,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return Path(self._file.name).read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, text: str, timeout: float = PATIENCE) -> None:
        """Wait until ``text`` was printed."""
        wait_until(lambda: text in self.output or not self.running, timeout)
        assert text in self.output, self.output

    def end(self, number: int = signal.SIGINT, timeout: float = PATIENCE) -> tuple[int, float]:
        """Send a signal; the exit code and the seconds until the process was gone."""
        start = time.monotonic()
        self._process.send_signal(number)
        code = self._process.wait(timeout)
        return code, time.monotonic() - start

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code of a process that ends by itself."""
        return self._process.wait(timeout)

    def close(self) -> None:
        """Make sure that it is gone."""
        if self.running:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._file.close()


def _free_domain() -> tuple[int, int]:
    """A domain that no other test of this machine has, and the locked file that says so."""
    while True:
        number = random.SystemRandom().randrange(1, 101)
        path = Path(tempfile.gettempdir(), f"dpt_ros_domain_{number}")
        claim = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(claim)
        else:
            return number, claim


class Domain:
    """A ROS domain that nobody else uses, a node in this process, and processes on it."""

    def __init__(self) -> None:
        self.id, self._claim = _free_domain()
        self.env = dict(os.environ, ROS_DOMAIN_ID=str(self.id))
        self.env["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self.env["OMP_NUM_THREADS"] = "1"
        # The wheels start Python anew once to set the library path; a child does that for itself.
        for name in (
            "_ROS_WHEELS_BOOTSTRAP_COMPLETE",
            "FASTDDS_DEFAULT_PROFILES_FILE",
            "FASTRTPS_DEFAULT_PROFILES_FILE",
        ):
            self.env.pop(name, None)
        self._processes: list[Process] = []
        self._context = Context()
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        rclpy.init(context=self._context, domain_id=self.id)
        self.node = Node("tester", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.received: dict[str, list[Any]] = defaultdict(list)
        self._clients: dict[str, Any] = {}

    def close(self) -> None:
        for process in self._processes:
            process.close()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)
        os.close(self._claim)

    def start(self, *args: str, **env: str) -> Process:
        """Start ``python args``."""
        process = Process(*args, env={**self.env, **env})
        self._processes.append(process)
        return process

    def start_dpt(
        self, *extra: str, command: Sequence[str] = NODE_COMMAND, **given: Any
    ) -> Process:
        """Start the node with parameters (random networks unless given)."""
        parameters = [
            word
            for name, value in {**RANDOM_NETWORKS, **given}.items()
            for word in (
                "-p",
                f"{name}:={str(value).lower() if value in (True, False) else value}",
            )
        ]
        return self.start(*command, "--ros-args", *parameters, *extra)

    def start_camera(
        self,
        width: int,
        height: int,
        frames: int,
        reliable: bool,
        *,
        fast: bool = False,
        **env: str,
    ) -> Process:
        """Start a camera driver with the middleware's defaults: see `helpers.stock_camera`."""
        numbers = map(str, (width, height, frames, int(reliable), int(fast)))
        path = os.pathsep.join([str(TEST), *filter(None, [os.environ.get("PYTHONPATH")])])
        return self.start("-m", "helpers.stock_camera", *numbers, PYTHONPATH=path, **env)

    def spin_until(self, condition: Callable[[], Any], timeout: float = PATIENCE) -> None:
        """Let callbacks run until ``condition`` holds; fails after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self._situation(timeout)
            self._executor.spin_once(timeout_sec=0.02)

    def _situation(self, seconds: float) -> str:
        counts = {topic: len(messages) for topic, messages in self.received.items()}
        outputs = "\n".join(process.output for process in self._processes)
        return f"waited {seconds} s in vain; received {counts}; the processes said:\n{outputs}"

    def spin_for(self, seconds: float) -> None:
        """Let callbacks run for a while."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def listen(self, kind: type, topic: str, qos: QoSProfile = RELIABLE) -> list[Any]:
        """The messages of a topic, in a list that grows while spinning."""
        messages = self.received[topic]
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def of_stamp(self, topics: Iterable[str], seconds: int, timeout: float = 20) -> dict[str, Any]:
        """The message of each topic whose stamp has these seconds."""
        wanted, found = tuple(topics), dict[str, Any]()

        def complete() -> bool:
            for topic in wanted:
                for msg in self.received[topic]:
                    if msg.header.stamp.sec == seconds:
                        found[topic] = msg
            return len(found) == len(wanted)

        self.spin_until(complete, timeout)
        return found

    def publisher(self, kind: type, topic: str, qos: QoSProfile = RELIABLE) -> Any:
        """A publisher that has found a subscriber."""
        publisher = self.node.create_publisher(kind, topic, qos)
        self.spin_until(publisher.get_subscription_count)
        return publisher

    @contextlib.contextmanager
    def another_node(self) -> Iterator[Node]:
        """A node of another participant on this domain."""
        context = Context()
        rclpy.init(context=context, domain_id=self.id)
        node = Node("another", context=context)
        yield node
        node.destroy_node()
        rclpy.shutdown(context=context)

    def call(self, kind: type, service: str, request: Any, again: bool = True) -> Any:
        """The answer of a service.

        A server that has not found its client yet drops the answer, and the client cannot know.
        So clients are kept, and a request is sent ``again`` while no answer comes.
        """
        if service not in self._clients:
            self._clients[service] = self.node.create_client(kind, service)
        client = self._clients[service]
        self.spin_until(client.service_is_ready)
        asked = [client.call_async(request)]
        next_time = time.monotonic() + RESEND

        def answered() -> bool:
            nonlocal next_time
            if again and time.monotonic() > next_time:
                asked.append(client.call_async(request))
                next_time += RESEND
            return any(future.done() for future in asked)

        self.spin_until(answered)
        return next(future for future in asked if future.done()).result()

    def state(self) -> str:
        """The lifecycle state of the node dpt."""
        return str(self.call(GetState, "/dpt/get_state", GetState.Request()).current_state.label)

    def change(self, transition: str) -> bool:
        """Ask the node dpt for a transition by name."""
        # A transition may be asked for only once, so one that does not exist finds the way first.
        for label, again in (("none", True), (transition, False)):
            request = ChangeState.Request()
            request.transition.label = label
            success = self.call(ChangeState, "/dpt/change_state", request, again).success
        return bool(success)

    def set_parameter(self, name: str, value: Any) -> str:
        """The reason for refusing a change of a parameter of the node dpt, "" if accepted."""
        parameter: ParameterMessage = Parameter(name, value=value).to_parameter_msg()
        request = SetParameters.Request(parameters=[parameter])
        (result,) = self.call(SetParameters, "/dpt/set_parameters", request).results
        return "" if result.successful else str(result.reason)

    def wait_for_state(self, state: str) -> None:
        """Wait until the node dpt is in a state."""
        self.spin_until(lambda: self.state() == state)

    def diagnostics(self, status: str) -> dict[str, str]:
        """The newest values of a status of the node dpt, with its message and level."""
        messages = self.received["/diagnostics"] or self.listen(DiagnosticArray, "/diagnostics")
        messages.clear()
        self.spin_until(lambda: any(s.name == status for m in messages for s in m.status))
        newest = next(s for m in reversed(messages) for s in m.status if s.name == status)
        values = {pair.key: pair.value for pair in newest.values}
        return {**values, "message": newest.message, "level": str(newest.level[0])}


@contextlib.contextmanager
def ros_domain() -> Iterator[Domain]:
    """A `Domain` that is cleaned up."""
    domain = Domain()
    try:
        yield domain
    finally:
        domain.close()


def wait_until(condition: Callable[[], Any], timeout: float = PATIENCE) -> None:
    """Poll until ``condition`` holds; returns in any case after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
