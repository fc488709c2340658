# SPDX-License-Identifier: Apache-2.0
"""The content of /diagnostics: counts and times per camera, the networks, the node's clock."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.node import Node

from dpt_ros.engine.inference.network import Networks

_WINDOW = 512  # frames over which percentiles of times are taken
_CLOCK_TIMEOUT = 3.0  # seconds that a simulated clock may take to begin


class Statistics:
    """Counts and times of one camera. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._totals: Counter[str] = Counter()
        self._before: Counter[str] = Counter()  # at the last call of ``values``
        self._reasons: dict[str, Counter[str]] = {
            name: Counter() for name in ("encoding", "dropped:", "reset:", "error:")
        }
        self._seconds: dict[str, deque[float]] = {}
        self._failed = False

    def received(self) -> None:
        """Count a message."""
        with self._lock:
            self._totals["received"] += 1

    def published(self, seconds: Mapping[str, float]) -> None:
        """Count a frame whose outputs were published; ``seconds`` are its times by name."""
        with self._lock:
            self._totals["published"] += 1
            for name, value in seconds.items():
                self._seconds.setdefault(name, deque(maxlen=_WINDOW)).append(value)

    def count(self, name: str, reason: str) -> None:
        """Count an "encoding" that could be read, why a frame was "dropped:" or failed ("error:"),
        or why the temporal filter was "reset:"."""
        with self._lock:
            self._reasons[name][reason] += 1
            self._failed |= name == "error:"

    def values(self) -> tuple[dict[str, str], bool]:
        """Everything as text, and whether anything failed since the last call.

        Rates are those since the last call.
        """
        with self._lock:
            now = time.monotonic()
            seconds = max(now - self._since, 1e-9)
            since = self._totals - self._before
            values = {
                "input rate (Hz)": f"{since['received'] / seconds:.1f}",
                "output rate (Hz)": f"{since['published'] / seconds:.1f}",
                "frames received": str(self._totals["received"]),
                "frames published": str(self._totals["published"]),
                **_percentiles(self._seconds),
            }
            for name, counts in self._reasons.items():
                values |= {f"{name} {reason}": str(n) for reason, n in sorted(counts.items())}
            failed, self._failed = self._failed, False
            self._since, self._before = now, self._totals.copy()
        return values, failed


def _percentiles(seconds: Mapping[str, Iterable[float]]) -> dict[str, str]:
    return {
        f"{name} p{percent} (ms)": f"{np.percentile(list(times), percent) * 1e3:.2f}"
        for name, times in seconds.items()
        for percent in (50, 99)
    }


def camera_status(
    name: str, statistics: Statistics, more: dict[str, str], warnings: list[str]
) -> DiagnosticStatus:
    """The status of one camera: ERROR after a failed frame, WARN with a warning, else OK."""
    values, failed = statistics.values()
    if failed:
        warnings = ["Frames failed; the log has the errors.", *warnings]
    level = DiagnosticStatus.ERROR if failed else _level(warnings)
    return _status(name, level, " ".join(warnings) or "Running.", more | values)


def networks_status(
    name: str, state: str, networks: Networks | None, failure: str, warnings: Sequence[str] = ()
) -> DiagnosticStatus:
    """The status of the node itself: its lifecycle state, its networks and their device.

    ``networks`` is None while unconfigured, ``failure`` why configuring failed, or "".
    """
    if networks is None:
        level = DiagnosticStatus.ERROR if failure else DiagnosticStatus.OK
        return _status(name, level, failure or f"The node is {state}.", {"state": state})
    depth = "metric" if networks.metric else "relative inverse depth"
    values = {
        "state": state,
        "depth network": networks.depth_name or "none",
        "label network": networks.label_name or "none",
        "depth": depth if networks.depth_name else "none",
        "device": _device_name(networks.device),
        "precision": networks.precision,
    }
    if networks.device.type == "cuda":
        used = torch.cuda.memory_reserved(networks.device) / 2**20
        values["device memory (MiB)"] = f"{used:.0f}"
    if networks.random:
        warnings = ["Weights are random: the predictions mean nothing.", *warnings]
    return _status(name, _level(warnings), " ".join(warnings) or f"The node is {state}.", values)


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"


def _level(warnings: Sequence[str]) -> bytes:
    return DiagnosticStatus.WARN if warnings else DiagnosticStatus.OK


def _status(name: str, level: bytes, message: str, values: dict[str, str]) -> DiagnosticStatus:
    return DiagnosticStatus(
        level=level,
        name=name,
        message=message,
        hardware_id=values.get("device", ""),
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )


def ready_message(networks: Networks, inputs: Iterable[str], outputs: Iterable[str]) -> str:
    """One line for the log: networks, device, topics subscribed to and published."""
    names = {"depth": networks.depth_name, "labels": networks.label_name}
    running = [f"{output} {name}" for output, name in names.items() if name]
    return (  # launch/dpt.launch.py waits for the first two words
        f"Ready on {_device_name(networks.device)}, {networks.precision}: {', '.join(running)}."
        f" Subscribed: {', '.join(inputs)}. Published: {', '.join(outputs)}."
    )


class ClockMonitor:
    """Warns while ``use_sim_time`` is set and no message arrives on /clock: ``warning``."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._since: float | None = None
        self.warning = ""

    def review(self) -> None:
        """Update the warning, and log a new one; call it regularly."""
        clock, now, before = self._node.get_clock(), time.monotonic(), self.warning
        self.warning = ""
        if not clock.ros_time_is_active or clock.now().nanoseconds:
            self._since = None
            return
        self._since = now if self._since is None else self._since
        if now - self._since < _CLOCK_TIMEOUT:
            return
        count = self._node.count_publishers("/clock")
        self.warning = (
            "use_sim_time is true, but no message has been received on /clock, which has"
            f" {count or 'no'} publisher{'' if count == 1 else 's'}: the node's clock stands at 0."
            " Start the simulator or 'ros2 bag play --clock', or set use_sim_time to false."
        )
        if not before:
            self._node.get_logger().warning(self.warning)
