# SPDX-License-Identifier: Apache-2.0
"""What /diagnostics says: counts and times per camera, and the networks that run."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from dpt_ros.engine.inference.network import Networks

_WINDOW = 512


class Statistics:
    """Counts and times of one camera; may be told things from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._received = 0
        self._published = 0
        self._frames_in = 0
        self._frames_out = 0
        self._seconds: dict[str, deque[float]] = {}
        self._encodings: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._resets: Counter[str] = Counter()
        self._new_errors = False

    def received(self) -> None:
        """A message came in."""
        with self._lock:
            self._received += 1
            self._frames_in += 1

    def accepted(self, encoding: str) -> None:
        """A message could be read, and its pixels were in this (known) encoding."""
        with self._lock:
            self._encodings[encoding] += 1

    def published(self, seconds: Mapping[str, float]) -> None:
        """A frame's results went out; ``seconds`` are the times it took, by name."""
        with self._lock:
            self._published += 1
            self._frames_out += 1
            for name, value in seconds.items():
                self._seconds.setdefault(name, deque(maxlen=_WINDOW)).append(value)

    def dropped(self, reason: str) -> None:
        """A frame was not computed, and why."""
        with self._lock:
            self._dropped[reason] += 1

    def reset(self, reason: str) -> None:
        """The temporal filter forgot the past at a frame, and why."""
        with self._lock:
            self._resets[reason] += 1

    def failed(self, reason: str) -> None:
        """A frame could not be used or computed, and why."""
        with self._lock:
            self._errors[reason] += 1
            self._new_errors = True

    def values(self) -> tuple[dict[str, str], bool]:
        """Everything as text, and whether anything failed since the last call.

        Rates are those since the last call.
        """
        with self._lock:
            now = time.monotonic()
            seconds = max(now - self._since, 1e-9)
            values = {
                "input rate (Hz)": f"{self._received / seconds:.1f}",
                "output rate (Hz)": f"{self._published / seconds:.1f}",
                "frames received": str(self._frames_in),
                "frames published": str(self._frames_out),
                **_percentiles(self._seconds),
                **{f"encoding {k}": str(n) for k, n in sorted(self._encodings.items())},
                **{f"dropped: {k}": str(n) for k, n in sorted(self._dropped.items())},
                **{f"reset: {k}": str(n) for k, n in sorted(self._resets.items())},
                **{f"error: {k}": str(n) for k, n in sorted(self._errors.items())},
            }
            failed, self._new_errors = self._new_errors, False
            self._since, self._received, self._published = now, 0, 0
        return values, failed


def _percentiles(seconds: Mapping[str, Iterable[float]]) -> dict[str, str]:
    values = {}
    for name, times in seconds.items():
        for percent in (50, 99):
            milliseconds = np.percentile(list(times), percent) * 1e3
            values[f"{name} p{percent} (ms)"] = f"{milliseconds:.2f}"
    return values


def camera_status(
    name: str, statistics: Statistics, more: dict[str, str], warnings: list[str]
) -> DiagnosticStatus:
    """The status of one camera: ERROR after a failed frame, WARN with a warning, else OK."""
    values, failed = statistics.values()
    if failed:
        warnings = ["Frames fail; the log says why.", *warnings]
    level = DiagnosticStatus.ERROR if failed else _level(warnings)
    return _status(name, level, " ".join(warnings) or "Running.", more | values)


def networks_status(
    name: str, state: str, networks: Networks | None, why: str, notes: Sequence[str] = ()
) -> DiagnosticStatus:
    """The status of the node itself: its lifecycle state, its networks and their device.

    Args:
        name: of the status.
        state: the lifecycle state's label.
        networks: what runs, None while unconfigured.
        why: a sentence on what went wrong at configure, or "".
        notes: sentences on what runs otherwise than asked for.
    """
    if networks is None:
        level = DiagnosticStatus.ERROR if why else DiagnosticStatus.OK
        return _status(name, level, why or f"The node is {state}.", {"state": state})
    values = {
        "state": state,
        "depth network": networks.depth_name or "none",
        "label network": networks.label_name or "none",
        "depth": _depth_words(networks),
        "device": device_words(networks.device),
        "precision": networks.precision,
    }
    if networks.device.type == "cuda":
        used = torch.cuda.memory_reserved(networks.device) / 2**20
        values["device memory (MiB)"] = f"{used:.0f}"
    warnings = ["Weights are random: the predictions mean nothing."] if networks.random else []
    warnings += notes
    return _status(name, _level(warnings), " ".join(warnings) or f"The node is {state}.", values)


def _depth_words(networks: Networks) -> str:
    """What the depth network says by itself; where metres come from is said of each camera."""
    if networks.depth_name is None:
        return "none"
    return "metric" if networks.metric else "relative inverse depth"


def device_words(device: torch.device) -> str:
    """The device as people know it: "cpu", "cuda:0 (NVIDIA ...)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"


def _level(warnings: list[str]) -> bytes:
    return DiagnosticStatus.WARN if warnings else DiagnosticStatus.OK


def _status(name: str, level: bytes, message: str, values: dict[str, str]) -> DiagnosticStatus:
    return DiagnosticStatus(
        level=level,
        name=name,
        message=message,
        hardware_id=values.get("device", ""),
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )
