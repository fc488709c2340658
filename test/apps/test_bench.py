# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: their arithmetic on made-up arrivals, their words, and a short run of all."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpt_ros.apps.bench import COMMANDS, main
from dpt_ros.apps.bench.node.arrivals import (
    Trace,
    account,
    choose_rate,
    jitter,
    out_of_order,
    peak_rate,
    together,
)
from dpt_ros.apps.report import summarize, table, write_json

MS = 1_000_000
PERIOD = 100 * MS


def trace(frames: int, warm_up: int, delays: dict[int, int]) -> Trace:
    """Frames every 100 ms; ``delays``: frame -> after how many ms it came back."""
    sent = np.arange(1, frames + 1, dtype=np.int64) * PERIOD
    rows = [(int(sent[k]), int(sent[k]) + ms * MS) for k, ms in delays.items()]
    rows.sort(key=lambda row: row[1])
    return Trace(sent, warm_up, {"depth": np.array(rows, np.int64).reshape(-1, 2)})


def test_percentiles_are_of_all_values_and_say_how_many():
    found = summarize(np.arange(101.0))
    assert (found.count, found.mean, found.p50, found.p90, found.p99, found.max) == (
        *(101, 50.0, 50.0, 90.0, 99.0),
        100.0,
    )
    assert summarize([]).count == 0
    assert math.isnan(summarize([]).p99)
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        summarize([1.0, math.nan])


def test_a_run_in_which_all_came_back_in_time():
    found = account([trace(6, 2, dict.fromkeys(range(6), 30))], period=0.1, dropped=0)
    assert (found.sent, found.returned, found.lost, found.dropped) == (4, 4, 0, 0)
    assert (found.late, found.out_of_order) == (0, 0)
    assert found.latency.p50 == found.latency.max == 30.0
    assert found.jitter.max == 0.0


def test_late_frames_and_those_overtaken_are_counted():
    # Frame 3 needs 250 ms: it is late, and frames 4 and 5 arrive before it.
    delays = {0: 10, 1: 10, 2: 10, 3: 250, 4: 20, 5: 20}
    found = account([trace(6, 0, delays)], period=0.1, dropped=0)
    assert (found.returned, found.late, found.out_of_order) == (6, 1, 1)
    assert found.latency.max == 250.0


def test_missing_frames_are_dropped_if_the_node_reports_them_and_else_lost():
    came = trace(10, 2, {0: 10, 2: 10, 5: 10})  # 1 of the warm-up and 6 measured are missing
    for reported, lost in ((7, 0), (6, 1), (5, 2), (1, 6), (0, 6), (9, 0)):
        found = account([came], period=0.1, dropped=reported)
        assert (found.sent, found.returned, found.lost) == (8, 2, lost)
        assert found.dropped == 6 - lost


def test_a_frame_is_back_when_all_its_outputs_are():
    depth = trace(3, 0, {0: 10, 1: 10, 2: 10})
    labels = trace(3, 0, {0: 15, 2: 5}).outputs["depth"]
    both = Trace(depth.sent, 0, {"depth": depth.outputs["depth"], "labels": labels})
    found = account([both], period=0.1, dropped=0)
    assert (found.returned, found.lost) == (2, 1)
    assert found.latency.max == 15.0
    assert found.latency.mean == 12.5


def test_what_was_not_sent_or_comes_twice_does_not_count():
    one = trace(3, 0, {0: 10, 1: 10})
    rows = one.outputs["depth"].tolist()
    strange = [[7, 10**9], *rows, [rows[0][0], rows[0][1] + PERIOD]]
    found = account([Trace(one.sent, 0, {"depth": np.array(strange, np.int64)})], 0.1, 0)
    assert (found.sent, found.returned, found.lost) == (3, 2, 1)
    assert found.latency.max == 10.0


def test_a_run_from_which_nothing_came_back_has_no_times():
    found = account([trace(4, 1, {})], period=0.1, dropped=0)
    assert (found.sent, found.returned, found.lost, found.late) == (3, 0, 3, 0)
    assert math.isnan(found.latency.p50)


def test_cameras_and_runs_add_up():
    traces = [trace(4, 0, {0: 10, 1: 10, 2: 10}), trace(4, 0, dict.fromkeys(range(4), 30))]
    one = account(traces, period=0.1, dropped=1)
    assert (one.sent, one.returned, one.lost, one.dropped) == (8, 7, 0, 1)
    assert (one.latency.p50, one.latency.max) == (30.0, 30.0)
    both = together([one, one], traces * 2)
    assert (both.sent, both.returned, both.lost, both.dropped) == (16, 14, 0, 2)
    assert both.latency.count == 14
    assert both.jitter.max == 0.0  # the step from one camera to the next is none


def test_jitter_is_the_second_difference_of_arrivals():
    times = np.array([0, 100, 200, 330, 400]) * MS
    np.testing.assert_allclose(jitter(times), [0, 30, 60])
    assert len(jitter(times[:2])) == 0


@given(st.permutations(range(8)))
def test_out_of_order_counts_those_after_a_newer_one(stamps: list[int]):
    expected = sum(any(b > a for b in stamps[:k]) for k, a in enumerate(stamps))
    assert out_of_order(np.array(stamps)) == expected


@given(
    st.integers(0, 3),
    st.dictionaries(st.integers(0, 11), st.integers(1, 900), max_size=12),
    st.integers(0, 15),
)
def test_every_frame_ends_in_one_count(warm_up: int, delays: dict[int, int], dropped: int):
    found = account([trace(12, warm_up, delays)], period=0.1, dropped=dropped)
    assert found.sent == found.returned + found.lost + found.dropped == 12 - warm_up
    assert min(found.returned, found.lost, found.dropped) >= 0
    assert found.dropped <= dropped


@given(st.floats(1, 900), st.floats(1, 200))
def test_the_search_finds_the_peak_within_five_percent(peak: float, start: float):
    found = peak_rate(lambda rate: rate <= peak, start)
    assert found <= peak
    assert found >= peak / 1.06 or (found == 0 and start / 64 > peak / 2)


def test_a_rate_is_chosen_that_leaves_time():
    rates = (30.0, 10.0, 1.0)
    assert [choose_rate(s, rates) for s in (0.02, 0.03, 0.2, 5.0)] == [30.0, 10.0, 1.0, 1.0]


def test_a_table_puts_words_left_and_numbers_right():
    text = table(("arm", "ms", "n"), [["echo", 1.234, 5], ["node", math.nan, None]])
    assert text.splitlines() == ["arm     ms  n", "echo  1.23  5", "node     -  -"]


def test_json_has_null_where_there_is_no_number(tmp_path: Path):
    write_json(tmp_path / "a.json", {"a": [1.5, math.nan], "b": {"c": math.inf}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None], "b": {"c": None}}


def test_help_needs_neither_ros_nor_torch_and_names_all_commands():
    assert COMMANDS.keys() == {"node", "engine", "cpu", "temporal"}
    code = (
        "import sys\n"
        "for name in ('rclpy', 'sensor_msgs', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "from dpt_ros.apps.bench import main\n"
        "main(['--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--size", "640"], "'640' is neither one of vga, 720p, 1080p nor of the form 640x480"),
        (["--cameras", "0"], "0 is not a number from 1 to 1000"),
        (["--rate", "-3"], "-3 is not a positive number"),
        (["-p", "threads=1"], "'threads=1' is not of the form NAME:=VALUE"),
        (["--transport", "png"], "invalid choice: 'png'"),
    ],
)
def test_a_mistake_gets_a_sentence(words: list[str], sentence: str, capsys):
    pytest.importorskip("rclpy")
    with pytest.raises(SystemExit, match="2"):
        main(["node", *words])
    assert sentence in capsys.readouterr().err


def test_a_short_run_of_all_processes_accounts_for_every_frame(tmp_path, monkeypatch, capsys):
    pytest.importorskip("rclpy")
    from helpers.ros_processes import ros_domain

    with ros_domain() as domain:
        for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE", "OMP_NUM_THREADS"):
            monkeypatch.setenv(name, domain.env[name])
        path = tmp_path / "node.json"
        words = "--runs 1 --seconds 1 --warm-up 0.2 --rate 40 --size 160x128 --cameras 2"
        words += " --outputs depth+labels --weights random --device cpu -p diagnostics_period:=0.2"
        code = main(["node", *words.split(), "--json", str(path)])
    output = capsys.readouterr()
    assert code == 0, output.err
    assert "2 cameras, 160x128 raw, depth+labels, shipped Fast DDS profile; 40 Hz" in output.out
    (result,) = json.loads(path.read_text())["results"]
    runs = {run["arm"]: run["account"] for run in result["runs"]}
    for found in runs.values():
        assert found["sent"] == 80
        assert found["sent"] == found["returned"] + found["lost"] + found["dropped"]
        assert found["latency"]["count"] == found["returned"] > 0
        assert 0 < found["latency"]["p50"] <= found["latency"]["p99"] < 5000
    # 80 frames of 40 ms each do not fit into a second: the node must report the rest as dropped.
    assert runs["node"]["dropped"] > 0
    assert result["start_seconds"] > 0
    added = runs["node"]["latency"]["p99"] - runs["echo"]["latency"]["p99"]
    assert result["node_minus_echo_ms"]["p99"] == [pytest.approx(added)]


def test_a_node_that_cannot_start_ends_the_benchmark_with_its_message(
    monkeypatch, capsys, tmp_path
):
    pytest.importorskip("rclpy")
    from helpers.ros_processes import ros_domain

    with ros_domain() as domain:
        for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE"):
            monkeypatch.setenv(name, domain.env[name])
        bad = tmp_path / "bad.safetensors"
        bad.touch()
        code = main(["node", "--size", "64x64", "--weights", str(bad)])
    assert code == 1
    assert "The node cannot start." in capsys.readouterr().err
