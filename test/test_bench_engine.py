# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of dpt_bench engine and cpu, and the counts that need no clock."""

import numpy as np
import pytest
import torch

from dpt_ros.apps.bench import cpu, engine, rounds
from dpt_ros.apps.bench.roofline import Work, count_work


def test_work_is_counted_as_computed_by_hand():
    a, b = torch.empty(8, 4, device="meta"), torch.empty(4, 16, device="meta")
    work = count_work(lambda: (a @ b).t().relu(), bytes_per_value=2)
    assert dict(work.by_name) == {"mm": 1, "relu": 1}
    assert work.heavy == [(2 * 8 * 4 * 16, 2 * (8 * 4 + 4 * 16 + 8 * 16))]


def test_the_floor_takes_the_larger_of_arithmetic_and_traffic_of_each_operation():
    work = Work(heavy=[(1000, 10), (10, 1000)])
    assert work.floor(100.0, 50.0) == pytest.approx(10.0 + 20.0)


def test_folding_and_fusing_leave_few_operations_of_the_same_arithmetic():
    counts = cpu.network_counts("dpt_hybrid_midas")
    assert counts["ATen operations, plain"] > counts["ATen operations, folded"] > 300
    assert counts["ATen operations, fused"] <= 265
    # Published: 255.2 GFLOP, of which the 1x1 convolution before the upsampling saves 4.8.
    assert counts["GFLOP, plain"] == 250
    assert counts["GFLOP, fused"] in (249, 250)


def test_arms_take_turns_and_a_ratio_is_taken_inside_the_rounds():
    order: list[str] = []

    def arm(name: str, seconds: float):
        def run() -> float:
            order.append(name)
            return seconds * len(order)  # the machine gets slower and slower

        return run

    times = rounds.interleave({"slow": arm("slow", 2.0), "fast": arm("fast", 1.0)}, 3, 1)
    assert order == ["slow", "fast"] * 4
    assert {name: len(values) for name, values in times.items()} == {"slow": 3, "fast": 3}
    assert rounds.ratio(times, "slow", "fast") == pytest.approx(2 * 5 / 6, rel=0.1)


def test_rounds_beside_a_busy_machine_do_not_count(monkeypatch):
    clock = iter(np.cumsum([0.0, 0.0, 0.0, 100.0] + [0.0] * 50))
    monkeypatch.setattr(rounds, "machine_seconds", lambda: next(clock))
    monkeypatch.setattr(rounds, "own_seconds", lambda: 0.0)
    times, thrown, load = rounds.quiet_rounds({"one": lambda: 1.0}, 4, 0.1, 10.0)
    assert len(times["one"]) == 4
    assert thrown == 1
    assert load == 0.0


def test_parity_sees_a_wrong_depth_and_a_wrong_label():
    depth, labels = torch.full((1, 4, 4), 2.0), torch.ones(1, 4, 4, dtype=torch.uint8)
    expected = {"depth": depth, "labels": labels}
    assert engine.compare(expected, expected) == {"AbsRel": 0.0, "labels equal": 1.0}
    wrong = {"depth": depth * 1.5, "labels": labels.clone()}
    wrong["labels"][0, 0] = 2
    assert engine.compare(wrong, expected) == {"AbsRel": 0.5, "labels equal": 0.75}


@pytest.mark.gpu
def test_the_engine_benchmark_runs_and_our_arm_has_parity():
    size = ["--tasks", "depth", "--sizes", "384x384", "--rounds", "5", "--warm-up", "2"]
    arms = ["--arms", "plain fp32", "plain fp16", "ours", "ours, from host"]
    assert engine.main([*size, *arms, "--paced-rounds", "0"]) == 0


def test_without_a_gpu_the_engine_benchmark_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engine.main([]) == 2
    assert "torch finds no usable GPU" in capsys.readouterr().out
