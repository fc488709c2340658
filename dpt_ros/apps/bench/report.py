# SPDX-License-Identifier: Apache-2.0
"""What all benchmarks say in the same way: percentiles, tables, the machine, JSON."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

_DISTRIBUTIONS = {
    "torch": ("torch",),
    "triton": ("triton",),
    "timm": ("timm",),
    "numpy": ("numpy",),
    "opencv": ("opencv-python", "opencv-python-headless"),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "transformers": ("transformers",),
    "rclpy": ("rclpy", "ros-rclpy"),
    "dpt_ros": ("dpt_ros",),
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


@dataclass(frozen=True)
class Summary:
    """Percentiles of a sample, in its own unit; NaN where the sample is empty.

    Args:
        count: how many values.
        mean, p50, p90, p99, max: of them; percentiles interpolate linearly (numpy's default).
    """

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


def summarize(values: Sequence[float] | np.ndarray) -> Summary:
    """The `Summary` of a one-dimensional sample.

    Raises:
        ValueError: a value is NaN: what was not measured must be counted, not summarised.
    """
    sample = np.asarray(values, np.float64)
    if np.isnan(sample).any():
        raise ValueError(f"{np.isnan(sample).sum()} of {sample.size} values are NaN.")
    if not sample.size:
        return Summary(0, *[float("nan")] * 5)
    p50, p90, p99 = np.percentile(sample, (50, 90, 99)).tolist()
    return Summary(sample.size, float(sample.mean()), p50, p90, p99, float(sample.max()))


def table(header: Sequence[str], rows: Sequence[Sequence[str | int | float | None]]) -> str:
    """Columns aligned for a terminal: words left, numbers right.

    Floats get two digits behind the point, None and NaN a dash. Format what should look otherwise.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    lines = [list(header), *cells]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    numeric = [
        bool(rows) and not any(isinstance(row[k], str) for row in rows) for k in range(len(header))
    ]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: str | int | float | None) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def environment() -> dict[str, Any]:
    """What a reader must know of this machine to compare: date, devices, versions, load now."""
    return {
        "date": datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "usable cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions(),
    }


def environment_lines(found: dict[str, Any]) -> str:
    """`environment` for people: a few lines."""
    graphics = [
        f"{gpu['name']} (driver {gpu['driver']}, {gpu['SM clock (MHz)']} of"
        f" {gpu['SM clock max (MHz)']} MHz, {gpu['power (W)']} of {gpu['power limit (W)']} W)"
        for gpu in found["gpus"]
    ]
    return "\n".join(
        (
            f"date      {found['date']}",
            f"CPU       {found['cpu']}, {found['usable cores'] or found['cores']} cores,"
            f" load average {found['load average']} at the start",
            f"GPU       {'; '.join(graphics) or 'none found by nvidia-smi'}",
            "versions  " + ", ".join(f"{name} {v}" for name, v in found["versions"].items()),
        )
    )


def versions() -> dict[str, str]:
    """Versions of Python and of those libraries that are installed."""
    found = {"python": platform.python_version()}
    for name, distributions in _DISTRIBUTIONS.items():
        for distribution in distributions:
            try:
                found[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    return found


def processor() -> str:
    """The CPU's model."""
    listing = Path("/proc/cpuinfo")
    for line in listing.read_text().splitlines() if listing.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def gpus() -> list[dict[str, str]]:
    """Each GPU's name, driver, clocks and power as nvidia-smi says them; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = f"--query-gpu={','.join(_GPU_FIELDS.values())}"
    answer = subprocess.run(
        [program, query, "--format=csv,noheader,nounits"], capture_output=True, text=True
    )
    if answer.returncode:  # a driver that does not answer: there is no GPU to speak of
        return []
    rows = (line.split(", ") for line in answer.stdout.splitlines() if line)
    return [dict(zip(_GPU_FIELDS, row, strict=True)) for row in rows]


class GpuWatch:
    """Samples a GPU four times a second while it is entered; nothing without nvidia-smi.

    Args:
        index: of the GPU, as nvidia-smi counts.

    Attributes:
        means: after the exit, the means of "utilization (%)", "SM clock (MHz)" and "power (W)";
            empty without a GPU.
    """

    _FIELDS = ("utilization (%)", "SM clock (MHz)", "power (W)")

    def __init__(self, index: int = 0) -> None:
        self.means: dict[str, float] = {}
        self._index = index
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> GpuWatch:
        program = shutil.which("nvidia-smi")
        if program:
            command = [program, "--query-gpu=utilization.gpu,clocks.sm,power.draw"]
            command += ["--format=csv,noheader,nounits", "-lms", "250", "-i", str(self._index)]
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        said = self._process.communicate()[0]
        samples = [_numbers(line) for line in said.splitlines()]
        complete = [sample for sample in samples if len(sample) == len(self._FIELDS)]
        if complete:
            self.means = dict(zip(self._FIELDS, np.mean(complete, axis=0).tolist(), strict=True))


def _numbers(line: str) -> list[float]:
    """The numbers of a line of CSV; nothing if one cell is no number ("[N/A]", a line cut off)."""
    try:
        return [float(cell) for cell in line.split(",")]
    except ValueError:
        return []


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
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
