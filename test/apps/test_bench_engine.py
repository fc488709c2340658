# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of dpt_bench engine and cpu, and the counts that need no clock."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dpt_ros.apps import bench
from dpt_ros.apps.bench.network import cpu, engine
from dpt_ros.apps.bench.network.engine_row import compare
from dpt_ros.apps.bench.network.roofline import Work, count_work
from dpt_ros.apps.child_process import Failed
from dpt_ros.apps.child_process import rows as rows_apart


def test_work_is_counted_as_computed_by_hand():
    a, b = torch.empty(8, 4, device="meta"), torch.empty(4, 16, device="meta")
    work = count_work(lambda: (a @ b).t().relu())
    assert dict(work.by_name) == {"mm": 1, "relu": 1}
    assert work.heavy == [(2 * 8 * 4 * 16, 2 * (8 * 4 + 4 * 16 + 8 * 16))]


def test_the_floor_takes_the_larger_of_arithmetic_and_traffic_of_each_operation():
    work = Work()
    work.heavy = [(1000, 10), (10, 1000)]
    assert work.floor(100.0, 50.0) == pytest.approx(10.0 + 20.0)


def test_folding_and_fusing_leave_few_operations_of_the_same_arithmetic():
    counts = cpu.network_counts("dpt_hybrid_midas")
    assert counts["ATen operations, plain"] > counts["ATen operations, folded"] > 300
    assert counts["ATen operations, fused"] <= 265
    # Published: 255.2 GFLOP, of which the 1x1 convolution before the upsampling saves 4.8.
    assert counts["GFLOP, plain"] == 250
    assert counts["GFLOP, fused"] in (249, 250)


class Load:
    """Stands in for what other processes do: the share of the machine in each round."""

    def __init__(self, *shares: float) -> None:
        self._shares = iter(shares)

    def __call__(self, pids: dict[str, int]) -> "Load":
        return self

    def percent(self) -> dict[str, float]:
        return {"own": 100.0, "other": 100 * next(self._shares, 0.0)}


def test_every_arm_runs_once_per_round_and_a_ratio_is_taken_inside_the_rounds(monkeypatch):
    order: list[str] = []
    monkeypatch.setattr(cpu, "CpuWatch", Load())
    arms = {name: lambda name=name: order.append(name) for name in ("slow", "fast")}
    times, discarded, _ = cpu.quiet_rounds(arms, 4, 0.1, 10.0)
    assert [set(order[k : k + 2]) for k in range(0, 8, 2)] == [{"slow", "fast"}] * 4
    assert order[:2] != order[2:4] or order[2:4] != order[4:6]  # in random order
    assert {name: len(values) for name, values in times.items()} == {"slow": 4, "fast": 4}
    assert discarded == 0
    # the machine gets slower and slower
    grows = {"slow": np.array([2.0, 6.0, 10.0]), "fast": np.array([2.0, 4.0, 6.0])}
    assert cpu.ratio(grows, "slow", "fast") == 1.5


def test_rounds_beside_a_busy_machine_do_not_count(monkeypatch):
    monkeypatch.setattr(cpu, "CpuWatch", Load(0.0, 0.5, 0.05))
    times, discarded, load = cpu.quiet_rounds({"one": lambda: 1.0}, 4, 0.1, 10.0)
    assert len(times["one"]) == 4
    assert discarded == 1
    assert load == pytest.approx(0.05 / 4)


def test_parity_sees_a_wrong_depth_and_a_wrong_label():
    depth, labels = torch.full((1, 4, 4), 2.0), torch.ones(1, 4, 4, dtype=torch.uint8)
    expected = {"depth": depth, "labels": labels}
    assert compare(expected, expected) == {"AbsRel": 0.0, "labels equal": 1.0}
    wrong = {"depth": depth * 1.5, "labels": labels.clone()}
    wrong["labels"][0, 0] = 2
    assert compare(wrong, expected) == {"AbsRel": 0.5, "labels equal": 0.75}


def test_parity_is_unknown_where_random_weights_give_no_depth_and_infinite_where_one_is_lost():
    nothing, some = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    assert compare({"depth": some}, {"depth": nothing}) == {}
    lost = torch.tensor([[[1.0, torch.nan], [1.0, 1.0]]])
    assert compare({"depth": lost}, {"depth": some}) == {"AbsRel": float("inf")}
    assert compare({"depth": some}, {"depth": lost}) == {"AbsRel": 0.0}


def rehearse(capsys: pytest.CaptureFixture[str], path: Path, *words: str):
    """Exit code, rows and words of the whole command at a small size."""
    command = ["engine", "--device", "cpu", "--rehearse", "--json", str(path), *words]
    code = bench.main(command)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return code, lines, capsys.readouterr().out


def test_the_whole_command_runs_on_a_cpu_in_small(capsys, tmp_path):
    profile = tmp_path / "trace.json"
    code, lines, output = rehearse(
        capsys, tmp_path / "rows.jsonl", "--tasks", "both", "--profile", str(profile)
    )
    assert code == 0, output
    assert [line["error"] for line in lines[1:-1]] == [None] * (len(lines) - 2)
    rows = {(line["case"], line["arm"]): line for line in lines[1:-1]}
    for arm in ("plain fp32", "plain fp16", "ours, no graph", "ours", "ours, from host"):
        row = rows["both 64x64 x1", arm]
        assert row["agrees"]
        assert row["parity"]["AbsRel"] < 0.02
        assert row["pictures per second"] > 0
        assert [times["wall"]["count"] for times in row["paces"].values()] == [3, 2]
    for cameras in (1, 4):
        for networks in ("one network", "two networks"):
            row = rows[f"frames 48x64 x{cameras}", networks]
            assert len(row["first"]) == 6
            assert row["notes"] == []
            # All of it is in the wall clock: launching, and what the device does.
            assert 0 < row["start"]["p50"] <= row["wall"]["p50"]
            assert 0 < row["device"]["p50"] <= row["wall"]["p50"]
            assert row["rate"] > 0
    assert rows["trace 48x64 x1", ""]["operations"] > 100
    assert profile.stat().st_size > 0
    assert lines[-2]["case"].startswith("trace")  # nothing is timed after the profiler


def test_a_row_that_fails_tells_why_and_the_others_are_measured(capsys, tmp_path):
    words = ["--device", "cpu", "--rehearse", "--tasks", "depth", "--cameras"]
    args = bench.parse(["engine", *words])
    args.arms, args.batches, args.json = ["plain fp32", "ours"], [0, 1], tmp_path / "rows.jsonl"
    assert engine.run(args) == 1
    lines = [json.loads(line) for line in args.json.read_text().splitlines()]
    errors = [line["error"] for line in lines[1:-1]]
    assert errors[0] is None
    assert all(errors[1:3]), errors
    assert errors[3:] == [None, None]
    assert errors[1] in capsys.readouterr().out
    assert lines[2]["log"][-1] == errors[1]


def test_work_that_does_not_end_is_ended_with_all_it_started(tmp_path):
    child = tmp_path / "child"
    start = time.monotonic()
    arguments = {"args": ["sh", "-c", f"echo $$ > {child}; sleep 60; true"]}
    with pytest.raises(Failed, match="no end after 5 s"):
        list(rows_apart("subprocess:run", arguments, 5.0, tmp_path / "log", start="spawn"))
    assert time.monotonic() - start < 20
    state = Path(f"/proc/{child.read_text().strip()}/stat")
    deadline = time.monotonic() + 10  # a process that was killed ends when it is next scheduled
    while state.exists() and state.read_text().split()[2] != "Z":  # dead, if not reaped
        assert time.monotonic() < deadline, state.read_text()
        time.sleep(0.05)


@pytest.mark.gpu
def test_the_engine_benchmark_runs_and_our_arm_has_parity():
    size = ["--tasks", "depth", "--sizes", "384x384", "--rounds", "5", "--warm-up", "2"]
    arms = ["--arms", "plain fp32", "plain fp16", "ours", "ours, from host", "--cameras", "1"]
    assert bench.main(["engine", *size, *arms, "--paced-rounds", "0"]) == 0


def test_without_a_gpu_the_engine_benchmark_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["engine"]) == 2
    assert "torch finds no usable GPU" in capsys.readouterr().out
