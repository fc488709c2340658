# SPDX-License-Identifier: Apache-2.0
"""The steps of scripts/gpu, each in a process of its own and under its own time limit."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from dpt_ros.apps.child_process import Failed, rows
from dpt_ros.apps.report import json_line

# Work and seconds at most: in the order in which they are worth having.
STEPS = {
    "facts": ("on_gpu.facts:facts", 45.0),
    "kernel_tests": ("on_gpu.steps:kernel_tests", 90.0),
    "runner_tests": ("on_gpu.steps:runner_tests", 90.0),
    "default_frame": ("on_gpu.steps:default_frame", 90.0),
    "precision": ("on_gpu.steps:precision", 40.0),
    "graphs": ("on_gpu.steps:graphs", 60.0),
    "course": ("on_gpu.steps:course", 60.0),
    "bench": ("on_gpu.steps:bench", 75.0),
    "trace": ("on_gpu.steps:trace", 40.0),
}
_IMPORTS = 90.0  # seconds for importing everything
_LEAST = 3.0  # seconds that a step needs to be worth beginning
_PRELOAD = ["pytest", "dpt_ros.engine.pipeline", "on_gpu.facts", "on_gpu.steps"]


@dataclass
class Run:
    """What all steps share: where rows go, and how much time there is."""

    out: Path
    rehearse: bool
    budget: float
    file: TextIO
    start: str = "forkserver"
    begin: float = field(default_factory=time.monotonic)
    results: dict[str, str] = field(default_factory=dict)

    @property
    def left(self) -> float:
        return self.budget - (time.monotonic() - self.begin)

    def tell(self, step: str, row: dict[str, Any]) -> None:
        """A line, at once, to whoever watches and to the file that is kept."""
        line = json_line({"step": step, "t": round(time.monotonic() - self.begin, 2), **row})
        self.file.write(line + "\n")
        self.file.flush()
        print(line, flush=True)

    def step(self, name: str, work: str, limit: float) -> None:
        """Run one step; whatever becomes of it, this returns."""
        begin, wrong = time.monotonic(), 0
        try:
            arguments = {"small": self.rehearse, "out": str(self.out)}
            log = self.out / f"{name}.log"
            for row in rows(work, arguments, limit, log, self.start):
                wrong += bool(row.get("error"))
                self.tell(name, row)
        except Failed as failed:
            wrong += 1
            self.tell(name, {"error": str(failed), "log": failed.log})
        self.results[name] = f"{wrong} failed" if wrong else "ok"
        self.tell(name, {"result": self.results[name], "seconds": time.monotonic() - begin})

    def steps(self, chosen: dict[str, tuple[str, float]]) -> None:
        """Run steps, each for at most its share of the time that is left for it and the rest."""
        wanted = sum(limit for _, limit in chosen.values())
        for name, (work, limit) in chosen.items():
            share = self.left * limit / wanted
            wanted -= limit
            if share < _LEAST:
                self.results[name] = "no time left"
                self.tell(name, {"result": self.results[name]})
            else:
                self.step(name, work, min(limit, share))


def main(argv: list[str]) -> int:
    """Run the steps; exit code 0 if nothing failed, 1 if something did, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="scripts/gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder; or $OUT")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny sizes")
    parser.add_argument("--budget", type=float, default=420.0, help="seconds for all of it")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    args = parser.parse_args(argv)
    out = Path(args.out or tempfile.mkdtemp(prefix="dpt_ros_gpu_"))
    out.mkdir(parents=True, exist_ok=True)
    # Compiled once for all steps, and no matter whether there is a home.
    cache = Path(tempfile.gettempdir()) / "dpt_ros_triton"
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache))
    with (out / "gpu.jsonl").open("w") as file:
        run = Run(out, args.rehearse, args.budget, file)
        ready = _ready(run)
        if not ready:
            return 2
        run.steps({name: STEPS[name] for name in args.steps})
        run.tell("summary", {"results": run.results, "start": run.start, "out": str(out)})
    return int(any(result != "ok" for result in run.results.values()))


def _ready(run: Run) -> bool:
    """Import everything once; whether there is what the steps run on."""
    multiprocessing.set_forkserver_preload(_PRELOAD)
    for start in ("forkserver", "spawn"):
        run.start = start
        try:
            arguments = {"small": run.rehearse, "out": str(run.out)}
            log = run.out / "ready.log"
            found = list(rows("on_gpu.facts:ready", arguments, _IMPORTS, log, start))
        except Failed as failed:
            run.tell("ready", {"start": start, "error": str(failed), "log": failed.log})
            continue
        for row in found:
            run.tell("ready", {"start": start, **row})
        return True
    return False


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
