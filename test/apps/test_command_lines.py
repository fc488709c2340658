# SPDX-License-Identifier: Apache-2.0
"""What all commands have in common: help at once, and wrong arguments refused before any work."""

from __future__ import annotations

import ast
import json
import os
import resource
import subprocess
import sys

import pytest
from helpers.places import ROOT

from dpt_ros.apps import bench

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "cv2",
    "numpy",
    "rclpy",
    "rosbags",
    "rerun",
    "ray",
    "yaml",
)
SECONDS = 1.0  # of CPU time, which does not depend on what else the machine does


def _entry_points() -> dict[str, str]:
    tree = ast.parse((ROOT / "setup.py").read_text())
    (programs,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PROGRAMS"
    )
    return ast.literal_eval(programs)


ENTRY_POINTS = _entry_points()
COMMANDS = [(name,) for name in ENTRY_POINTS] + [("dpt_bench", name) for name in bench.COMMANDS]


def start(command: tuple[str, ...], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command as its entry point does; the modules that it imported are the last line."""
    module, _, function = ENTRY_POINTS[command[0]].partition(":")
    code = f"""
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules))))
from {module} import {function}
sys.exit({function}({[*command[1:], *words]!r}))
"""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    return set(json.loads(done.stdout.splitlines()[-1])) & set(HEAVY)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_comes_within_a_second_and_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = start(command, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert f"usage: {' '.join(command)}" in done.stdout
    assert imported(done) == set()
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < SECONDS


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("dpt_train", "--out x --weights nothere.pt", "the file nothere.pt does not exist"),
        ("dpt_train", "--out x --preset kitti", "--dataset kitti --root DIR"),
        ("dpt_train", "--out x --preset midas", "--dataset NAME --root DIR"),
        (
            "dpt_train",
            "--out x --dataset nuy --root .",
            "Unknown dataset 'nuy' (did you mean nyu?)",
        ),
        ("dpt_train", "--out x --dataset nyu --root no", "the folder no does not exist"),
        (
            "dpt_train",
            "--out x --worlds 2 --frames 2",
            "--batch is 8, but there are only 4 frames",
        ),
        ("dpt_train", "--out x --device gpu", "--device is 'gpu', but must be auto, cpu, cuda"),
        ("dpt_train", "--out x --model dpt", "Unknown network 'dpt'"),
        ("dpt_evaluate", "--out x --dataset nuy", "Unknown dataset 'nuy' (did you mean nyu?)"),
        ("dpt_evaluate", "--out x --dataset nyu", "--dataset nyu needs --root"),
        ("dpt_evaluate", "--out x --dataset world --root .", "leave --root . out"),
        (
            "dpt_evaluate",
            "--out x --dataset world --depth-weights no",
            "the file no does not exist",
        ),
        ("dpt_evaluate", "--out x --dataset world --device gpu", "--device is 'gpu', but must be"),
        ("dpt_bag", "one", "Give one bag to read and one to write"),
        ("dpt_bag", "a b --outputs depth/imge", "unknown output 'depth/imge'. Available:"),
        ("dpt_run", "a b --outputs depht", "unknown output 'depht'. Available: png, pfm, npy"),
        ("dpt_run", "a b --every 0", "--every is 0, but must be positive"),
        ("dpt_run", "a b --network dpt", "Unknown network 'dpt'"),
        ("dpt_run", "a b --weights x.pt", "--weights needs --network"),
        ("dpt_run", "a b --network dpt_large_midas --weights no.pt", "no.pt does not exist"),
        ("dpt_view", "nowhere", "nowhere does not exist"),
        ("dpt_view", "--only depht", "unknown kind 'depht'. Available:"),
        ("dpt_view", "--save no/such/../dir/ --web", "not allowed with argument"),
        ("dpt_export", "dpt_hybird_nyu a.onnx", "did you mean dpt_hybrid_nyu"),
        ("dpt_export", "mine.safetensors a.onnx", "The file mine.safetensors does not exist"),
        ("dpt_export", "dpt_hybrid_nyu a.onnx --weights no.pt", "the file no.pt does not exist"),
        ("dpt_export", "dpt_hybrid_nyu no/a.onnx", "the folder no does not exist"),
        ("dpt_export", "dpt_hybrid_nyu a.trt", "give a name that ends in .onnx"),
        ("dpt_export", "dpt_hybrid_nyu a.onnx --size 100x320", "multiples of 32"),
        ("dpt_export", "dpt_hybrid_nyu a.onnx --size 384", "no HEIGHTxWIDTH"),
        ("dpt_export", "dpt_hybrid_nyu a.onnx --batch 0", "no number of at least 1"),
        ("dpt_export", "dpt_hybrid_nyu a.onnx --encoding nv12", "only with --frame or --step"),
        ("dpt_export", "dpt_hybrid_nyu no.onnx --parity-only", "The file no.onnx does not exist"),
        ("dpt_bench engine", "--depth-network dpt", "Unknown network 'dpt'"),
        ("dpt_bench node", "--weights nothere.pt", "the file nothere.pt does not exist"),
        ("dpt_bench node", "-p trheads:=1", "'trheads' is not a parameter of the node"),
        ("dpt_bench cpu", "--json no/such/folder/a.json", "cannot be written"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_imported(
    command: str, words: str, message: str
) -> None:
    done = start(tuple(command.split()), *words.split())
    assert done.returncode == 2
    assert message in done.stderr
    assert imported(done) == set()


def test_the_benchmarks_run_the_arms_that_their_help_lists() -> None:
    from dpt_ros.apps.bench.network import cpu
    from dpt_ros.apps.bench.network import engine_row as arms
    from dpt_ros.apps.bench.temporal import shots

    assert tuple(arms.ARMS) == bench.ENGINE_ARMS
    assert {arms.REFERENCE, arms.TRANSFORMERS, arms.OURS} <= arms.ARMS.keys()
    assert tuple(cpu._ARMS) == bench.CPU_ARMS
    assert {shot for shot, _ in bench.TEMPORAL_CONDITIONS.values()} <= set(shots.SHOTS)


def test_the_storages_of_dpt_bag_are_those_that_it_writes() -> None:
    from rosbags.rosbag2 import StoragePlugin

    from dpt_ros.bag import STORAGES

    assert {plugin.name.lower() for plugin in StoragePlugin} == set(STORAGES)


def test_the_packages_give_all_that_they_list() -> None:
    code = """
import importlib
for package in ("model", "engine", "world", "datasets", "run"):
    module = importlib.import_module(f"dpt_ros.{package}")
    assert all(getattr(module, name) is not None for name in module.__all__)
    try:
        module.nothing
    except AttributeError as error:
        assert "has no attribute 'nothing'" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, timeout=120)
    assert done.returncode == 0
