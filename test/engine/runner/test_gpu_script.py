# SPDX-License-Identifier: Apache-2.0
"""scripts/gpu, rehearsed: all its steps on the CPU, and steps that fail, crash or hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from helpers.places import ROOT
from on_gpu import run


def test_all_steps_of_scripts_gpu_run_on_a_cpu_in_small(tmp_path):
    env = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [ROOT / "scripts" / "gpu", "--rehearse"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=580)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [row for row in rows if row.get("error")]
    assert not failed, failed
    assert done.returncode == 0, done.stderr
    assert rows == [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert rows[-1]["results"] == dict.fromkeys(run.STEPS, "ok")
    checks = {(row["step"], row["check"]) for row in rows if "check" in row}
    assert {
        ("facts", "probe kernel"),
        ("default_frame", "two networks"),
        ("precision", "bf16 beside fp32"),
        ("graphs", "full memory"),
        ("course", "many frames"),
        ("trace", "three default frames"),
    } <= checks
    assert {row["arm"] for row in rows if row["step"] == "bench" and "arm" in row} >= {"ours"}
    assert (tmp_path / "trace.json").stat().st_size > 0


STEPS = """
import os, time
from dpt_ros.apps.child_process import emit
from helpers.places import ROOT

def wrong(small, out):
    emit({"check": "one", "error": None})
    emit({"check": "two", "error": "ValueError: no"})
    emit({"check": "three", "error": None})

def broken(small, out):
    raise ValueError("no such thing")

def crashing(small, out):
    os.abort()

def hanging(small, out):
    emit({"check": "one", "error": None})
    time.sleep(60)

def fine(small, out):
    emit({"check": "one", "error": None, "small": small})
"""


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Names and works of a module that other processes can import, too."""
    (tmp_path / "made_up_steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(tmp_path)
    names = ("wrong", "broken", "crashing", "hanging", "fine")
    return {name: (f"made_up_steps:{name}", 4.0) for name in names}


def test_steps_that_fail_crash_or_hang_are_told_of_and_the_next_ones_run(tmp_path, steps, capsys):
    begin = time.monotonic()
    with (tmp_path / "rows").open("w") as file:
        made = run.Run(tmp_path, True, 1000.0, file, start="spawn")
        made.steps(steps)
    assert time.monotonic() - begin < 60
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    errors = {row["step"]: row["error"] for row in rows if row.get("error")}
    assert errors == {
        "wrong": "ValueError: no",
        "broken": "ValueError: no such thing",
        "crashing": "ended by SIGABRT",
        "hanging": "no end after 4 s",
    }
    assert made.results == {**dict.fromkeys(errors, "1 failed"), "fine": "ok"}
    (told,) = (row for row in rows if row["step"] == "hanging" and row.get("error"))
    assert any("in hanging" in line for line in told["log"])  # where it was
    assert [row["step"] for row in rows if row.get("check") == "one"] == [
        "wrong",
        "hanging",
        "fine",
    ]


def test_a_step_gets_no_more_than_its_share_of_the_time_left(tmp_path, steps):
    limits = []
    with (tmp_path / "rows").open("w") as file:
        made = run.Run(tmp_path, True, 10.0, file, start="spawn")
        made.step = lambda name, work, limit: limits.append(limit)
        made.steps(steps)
        assert limits == [pytest.approx(10 / 3, rel=0.01), 4.0, 4.0]
        assert made.results == dict.fromkeys(("wrong", "broken"), "no time left")
        limits.clear()
        made.budget = 40.0
        made.steps(steps)
    assert limits == [4.0] * 5
