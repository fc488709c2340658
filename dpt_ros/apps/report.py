# SPDX-License-Identifier: Apache-2.0
"""What all benchmarks share: percentiles, tables, JSON, the machine and its load."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGES = (
    "torch", "triton", "timm", "numpy", "opencv", "openvino", "onnxruntime", "transformers",
    "rclpy", "dpt_ros",
)  # fmt: skip
_OTHER_NAMES = {
    "opencv": ("opencv-python", "opencv-python-headless"),
    "onnxruntime": ("onnxruntime-gpu",),
    "rclpy": ("ros-rclpy",),
}
_GPU_FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "memory (MiB)": "memory.total",
    "SM clock (MHz)": "clocks.sm",
    "SM clock max (MHz)": "clocks.max.sm",
    "memory clock (MHz)": "clocks.mem",
    "power (W)": "power.draw",
    "power limit (W)": "power.limit",
}
_WATCHED_FIELDS = {"utilization (%)": "utilization.gpu"}
_WATCHED_FIELDS |= {name: _GPU_FIELDS[name] for name in ("SM clock (MHz)", "power (W)")}


@dataclass(frozen=True)
class Summary:
    """Count, mean, percentiles (linear interpolation) and maximum of a sample; NaN if empty."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


def summarize(values: Sequence[float] | np.ndarray) -> Summary:
    """The `Summary` of a one-dimensional sample. Raises ValueError if a value is NaN: what was not
    measured must be counted, not summarised."""
    sample = np.asarray(values, np.float64)
    if np.isnan(sample).any():
        raise ValueError(f"{np.isnan(sample).sum()} of {sample.size} values are NaN.")
    if not sample.size:
        return Summary(0, *[float("nan")] * 5)
    p50, p90, p99 = np.percentile(sample, (50, 90, 99)).tolist()
    return Summary(sample.size, float(sample.mean()), p50, p90, p99, float(sample.max()))


def table(header: Sequence[str], rows: Iterable[Sequence[str | int | float | None]]) -> str:
    """Columns aligned for a terminal: words left, numbers right.

    Floats get two digits behind the point, None and NaN a dash. Format what should look otherwise.
    """
    columns = []
    for title, *values in zip(header, *rows, strict=True):
        cells = [title, *map(_cell, values)]
        width = max(map(len, cells))
        right = bool(values) and not any(isinstance(value, str) for value in values)
        columns.append([cell.rjust(width) if right else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _cell(value: str | int | float | None) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write results; NaN becomes null, because JSON has no NaN."""
    path.write_text(json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n")


def json_line(content: dict[str, Any]) -> str:
    """The same on one line."""
    return json.dumps(_without_nan(content), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def environment() -> dict[str, Any]:
    """What is needed to compare machines: date, devices, versions, load now."""
    return {
        "date": datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "usable cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": _versions(),
    }


def introduce(method: str) -> dict[str, Any]:
    """Print how a benchmark measures and the machine's `environment`; both for its JSON."""
    found = environment()
    print(method, _lines(found), sep="\n\n", end="\n\n", flush=True)
    return {"environment": found, "method": method}


def _lines(found: dict[str, Any]) -> str:
    """`environment` as a few lines of text."""
    gpus = [
        f"{gpu['name']} (driver {gpu['driver']}, {gpu['SM clock (MHz)']} of"
        f" {gpu['SM clock max (MHz)']} MHz, {gpu['power (W)']} of {gpu['power limit (W)']} W)"
        for gpu in found["gpus"]
    ]
    return (
        f"date      {found['date']}\n"
        f"CPU       {found['cpu']}, {found['usable cores'] or found['cores']} cores,"
        f" load average {found['load average']} at the start\n"
        f"GPU       {'; '.join(gpus) or 'none found by nvidia-smi'}\n"
        f"versions  {', '.join(f'{name} {v}' for name, v in found['versions'].items())}"
    )


def _versions() -> dict[str, str]:
    """Versions of Python and of those libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        for distribution in (name, *_OTHER_NAMES.get(name, ())):
            with suppress(metadata.PackageNotFoundError):
                found.setdefault(name, metadata.version(distribution))
    return found


def _processor() -> str:
    """The CPU's model."""
    listing = Path("/proc/cpuinfo")
    for line in listing.read_text().splitlines() if listing.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _nvidia_smi(fields: Mapping[str, str], *more: str) -> list[str]:
    """A command that prints these fields as CSV; empty where there is no nvidia-smi."""
    program = shutil.which("nvidia-smi")
    query = f"--query-gpu={','.join(fields.values())}"
    return [program, query, "--format=csv,noheader,nounits", *more] if program else []


def gpus() -> list[dict[str, str]]:
    """Name, driver, clocks and power of each GPU; empty without nvidia-smi or a driver."""
    command = _nvidia_smi(_GPU_FIELDS)
    answer = subprocess.run(command, capture_output=True, text=True) if command else None
    if answer is None or answer.returncode:
        return []
    rows = (line.split(", ") for line in answer.stdout.splitlines() if line)
    return [dict(zip(_GPU_FIELDS, row, strict=True)) for row in rows]


class GpuWatch:
    """Samples a GPU, by its ``index`` of nvidia-smi, four times a second while it is entered.
    ``means``, after the exit: of "utilization (%)", "SM clock (MHz)" and "power (W)"; empty
    without nvidia-smi or a GPU."""

    def __init__(self, index: int = 0) -> None:
        self.means: dict[str, float] = {}
        self._command = _nvidia_smi(_WATCHED_FIELDS, "-lms", "250", "-i", str(index))
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> GpuWatch:
        if self._command:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        samples = []
        for line in self._process.communicate()[0].splitlines():
            with suppress(ValueError):  # "[N/A]", or a line cut off
                samples.append([float(cell) for cell in line.split(",")])
        if complete := [sample for sample in samples if len(sample) == len(_WATCHED_FIELDS)]:
            means = np.mean(complete, axis=0).tolist()
            self.means = dict(zip(_WATCHED_FIELDS, means, strict=True))


# Fields of CPU time (proc(5)): user, nice, system, irq, softirq and steal of /proc/stat; utime and
# stime of /proc/PID/stat, counted behind the name.
_OF_MACHINE, _OF_PROCESS = (1, 2, 3, 6, 7, 8), (11, 12)


def _cpu_seconds(file: str, fields: Sequence[int]) -> float:
    """CPU time of all cores since the boot, or of a process, all threads; NaN without the file."""
    try:
        # The name of a process, in brackets, may hold spaces.
        words = Path("/proc", file).read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return sum(int(words[k]) for k in fields) / os.sysconf("SC_CLK_TCK")


class CpuWatch:
    """CPU use of some processes, by name, and of all others since it was made."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._start = self._now()

    def _now(self) -> dict[str, float]:
        pids = self._pids.items()
        used = {name: _cpu_seconds(f"{pid}/stat", _OF_PROCESS) for name, pid in pids}
        machine = _cpu_seconds("stat", _OF_MACHINE)
        return {**used, "machine": machine, "time": time.monotonic()}

    def percent(self) -> dict[str, float]:
        """Per process in percent of one core; "other" in percent of the whole machine."""
        spent = {name: value - self._start[name] for name, value in self._now().items()}
        seconds, machine = spent.pop("time"), spent.pop("machine")
        other = max(machine - sum(spent.values()), 0.0) / (os.cpu_count() or 1)
        return {name: 100 * value / seconds for name, value in {**spent, "other": other}.items()}
