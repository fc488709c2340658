# SPDX-License-Identifier: Apache-2.0
"""dpt_train: short real runs, their resumption, several processes, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dpt_ros.apps.train import main
from dpt_ros.datasets.world import WorldDataset
from dpt_ros.model import DPT, create_model, model_spec
from dpt_ros.model.zoo import EMBEDDED_NAME

SIZES = ["--worlds=3", "--frames=1", "--held-out=1", "--width=64", "--height=48", "--threads=1"]
SIZES += ["--batch=2"]
PROGRAM = ["-m", "dpt_ros.apps.train"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frames")


def run(out: Path, cache: Path, steps: int, *more: str) -> int:
    return main(["--out", str(out), "--cache", str(cache), "--steps", str(steps), *SIZES, *more])


def entries(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def state(out: Path) -> dict:
    return torch.load(out / "checkpoint.pt", weights_only=True)


def test_a_run_leaves_a_network_a_checkpoint_and_a_log_and_can_go_on(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(out, cache, 2, "--tensorboard") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 5
    assert 0 <= report["miou"] <= 1
    assert report["abs_rel"] > 0
    assert entries(out)[-1]["held_out"] == report
    assert entries(out)[-1]["step"] == 2

    exported = load_file(out / "dpt_hybrid_embedded.safetensors")
    model = create_model("dpt_hybrid_embedded", weights="random")
    wanted = {k: v.shape for k, v in model.state_dict().items()}
    assert {k: v.shape for k, v in exported.items()} == wanted
    assert {v.dtype for v in exported.values()} == {torch.float16, torch.int64}
    assert not list(out.glob("*.part"))

    assert run(out, cache, 3, "--resume") == 0
    assert entries(out)[-1]["step"] == 3
    again = load_file(out / "dpt_hybrid_embedded.safetensors")
    assert any(not torch.equal(again[k], exported[k]) for k in exported)
    assert run(out, cache, 3, "--resume", "--lr", "0.5") == 1
    assert "was started with --lr 0.001, but now it is 0.5" in capsys.readouterr().err

    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(out / "tensorboard")).Reload().Tags()
    assert "held out/abs_rel" in events["scalars"]
    assert "pictures/0" in events["images"]


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ["--train", "both", "--dropout", "0.1", "--auxiliary", "0.2"]
    assert run(tmp_path / "whole", cache, 8, *recipe) == 0
    killed = tmp_path / "killed"
    data = ["--out", str(killed), "--cache", str(cache), "--steps", "8", *SIZES]
    process = subprocess.Popen(
        [sys.executable, *PROGRAM, *data, *recipe, "--save-minutes", "0"],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while not (killed / "checkpoint.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= state(killed)["step"] < 8
    assert run(killed, cache, 8, "--resume", *recipe) == 0
    one, two = state(tmp_path / "whole"), state(killed)
    assert one["step"] == two["step"] == 8
    for part in ("model", "average"):
        assert all(torch.equal(one[part][k], two[part][k]) for k in one[part])
    moments = zip(
        one["optimizer"]["state"].values(), two["optimizer"]["state"].values(), strict=True
    )
    assert all(torch.equal(a[k], b[k]) for a, b in moments for k in a)


def test_two_processes_take_the_steps_of_one_with_the_joined_batch(
    tmp_path: Path, cache: Path
) -> None:
    recipe = ["--train=depth", "--no-batch-norm", "--optimizer=sgd", "--schedule=constant"]
    recipe += ["--lr=0.01", "--precision=fp32", "--average=0", "--steps=2"]
    data = ["--cache", str(cache), *SIZES]
    assert main(["--out", str(tmp_path / "one"), *data, *recipe]) == 0
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [sys.executable, *torchrun, *PROGRAM, "--out", str(tmp_path / "two"), *data, *recipe],
        env=ENVIRONMENT,
        check=True,
        timeout=240,
        capture_output=True,
    )
    one, two = state(tmp_path / "one")["model"], state(tmp_path / "two")["model"]
    torch.manual_seed(0)
    first = DPT(replace(model_spec(EMBEDDED_NAME), tasks=("depth",), batch_norm=False))
    moved = 0.0
    for name, value in first.state_dict().items():
        change = one[name] - value
        moved = max(moved, float(change.abs().max()))
        torch.testing.assert_close(two[name] - value, change, rtol=1e-3, atol=1e-6)
    assert moved > 1e-3
    assert [entry["step"] for entry in entries(tmp_path / "two")] == [0, 2]  # one process speaks


def test_a_published_dataset_is_learned_from_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("training", 3), ("validation", 2)):
        for kind in ("images", "annotations"):
            (tmp_path / "ade" / kind / part).mkdir(parents=True)
        for k in range(count):
            shape = (40 + 8 * k, 72)
            picture = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
            labels = rng.integers(0, 4, shape, dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "ade" / "images" / part / f"{k}.jpg"), picture)
            cv2.imwrite(str(tmp_path / "ade" / "annotations" / part / f"{k}.png"), labels)
    more = ["--batch=2", "--crop=64x48", "--scaling", "0.5", "2", "--steps=2", "--threads=1"]
    dataset = ["--dataset=ade20k", f"--root={tmp_path / 'ade'}", "--train=labels"]
    out = tmp_path / "run"
    assert main([f"--out={out}", *dataset, *more, "--auxiliary=0.2", "--tensorboard"]) == 0
    printed = capsys.readouterr()
    assert "The label head is new: 150 classes, in place of 10." in printed.err
    report = json.loads(printed.out)
    assert report["images"] == 2
    assert "abs_rel" not in report
    model = create_model(EMBEDDED_NAME, out / "dpt_hybrid_embedded.safetensors")
    assert model.tasks == ("labels",)
    assert (model.spec.num_classes, model.spec.net_width, model.spec.net_height) == (150, 64, 48)
    assert main([f"--out={tmp_path / 'b'}", "--dataset=ade20k", *more]) == 2
    assert "needs its --root" in capsys.readouterr().err
    assert main([f"--out={tmp_path / 'c'}", *dataset, *more, "--train=depth"]) == 1
    assert "--train is for depth, but ade20k has none" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_gpu_trains_in_half_precision_with_pictures_read_ahead(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--device=cuda", "--precision=fp16", "--workers=2", "--average=0"]
    assert run(tmp_path / "run", cache, 60, *more) == 0
    losses = [entry for entry in entries(tmp_path / "run") if "depth" in entry]
    assert losses[-1]["lost"] < 0.2
    assert np.isfinite(losses[-1]["grad_norm"])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--resume"], "does not exist"),
        (["--model", "dpt_tiny"], "dpt_hybrid_embedded"),
        (["--batch", "0"], "--batch is 0, but must be positive."),
        (["--epochs", "2"], "not --steps and --epochs"),
        (["--device", "cuda:7"], "--device is cuda:7, but torch"),
        (["--coarse", "1"], "--coarse is 1.0"),
        (["--scaling", "2", "1"], "--scaling is 2 1, but takes"),
        (["--weights", "/no/such/file.pt"], "the file /no/such/file.pt does not exist"),
        (["--batch", "8"], "--batch is 8, but there are only 3 frames to train on."),
        (["--preset", "kitti"], "give --dataset kitti --root DIR"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    more: list[str], sentence: str, tmp_path: Path, cache: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(tmp_path, cache, 1, *more) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--taps", "1,2"], "must be four"),
        (["--backbone", "small", "--weights", "cached"], "--weights random or imagenet"),
        (["--crop", "50x48"], "multiples of 16"),
        (["--weights", "imagenet"], "no ImageNet weights for this backbone"),
        (["--precision", "fp32", "--lr", "1e30"], "was not finite"),
    ],
)
def test_what_goes_wrong_is_a_sentence(
    more: list[str], sentence: str, tmp_path: Path, cache: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("dpt_ros.apps.train.trainer.LOST_STEPS", 2)
    assert run(tmp_path, cache, 6, *more) == 1
    assert sentence in capsys.readouterr().err


def test_a_second_run_into_the_same_folder_is_refused(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint.pt").touch()
    assert run(tmp_path, cache, 1) == 2
    assert "--resume" in capsys.readouterr().err
    assert run(tmp_path, cache, 1, "--resume") == 1
    assert "is not a checkpoint of dpt_train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--weights", "{garbage}"], "garbage.pt"),
        (["--taps", "1,2"], "must be four"),
        (["--crop", "50x48"], "multiples of 16"),
        (["--weights", "imagenet"], "no ImageNet weights for this backbone"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_worlds_are_rendered(
    more: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "garbage.pt").write_bytes(b"no checkpoint")
    more = [word.format(garbage=tmp_path / "garbage.pt") for word in more]
    assert run(tmp_path / "run", tmp_path / "frames", 1, *more) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "frames").exists()


def test_a_resumed_run_with_another_recipe_is_refused_before_worlds_are_rendered(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", cache, 1) == 0
    assert run(tmp_path / "run", tmp_path / "frames", 2, "--resume", "--lr", "0.5") == 1
    assert "was started with --lr 0.001, but now it is 0.5" in capsys.readouterr().err
    assert not (tmp_path / "frames").exists()


def test_a_run_shows_step_and_losses_and_names_the_trained_network(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", cache, 3) == 0
    shown = capsys.readouterr().err
    assert re.search(r"step 3/3, depth loss \d+\.\d{3}, labels loss \d+\.\d{3}", shown), shown
    network = tmp_path / "run" / "dpt_hybrid_embedded.safetensors"
    assert f"Trained network: {network}" in shown
    assert f"-p label_weights:={network}" in shown


def test_ctrl_c_completes_and_saves_the_step_that_the_next_run_continues_from(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--out", str(tmp_path), "--cache", str(cache), "--steps", "100000", *SIZES]
    process = subprocess.Popen(
        [sys.executable, *PROGRAM, *data],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while not re.search(r"step ([2-9]|\d\d+)/", said):  # the bar leaves out fast steps
        letter = process.stderr.read(1)
        assert letter, said
        said += letter
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    step = state(tmp_path)["step"]
    assert step >= 2
    assert f"Interrupted after step {step}, which is saved" in rest
    assert f"--resume continues with step {step + 1}." in rest
    assert run(tmp_path, cache, step + 1, "--resume") == 0
    assert f"Resumed at step {step}." in capsys.readouterr().err
    assert entries(tmp_path)[-1]["step"] == step + 1


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_rendered_frames_are_kept_and_read_back(cache: Path) -> None:
    dataset = WorldDataset("test", 2, 2, 64, 48)
    first = dataset.rendered(cache, workers=1)
    assert first.rgb.shape == (4, 48, 64, 3)
    assert first.inverse.dtype == np.float16
    assert first.labels.min() >= 1
    stamp = sorted(path.stat().st_mtime_ns for path in cache.rglob("*.npy"))
    again = dataset.rendered(cache, workers=1)
    assert np.array_equal(first.rgb[3], dataset[3].rgb)
    assert np.array_equal(first.inverse[3], dataset[3].inverse.astype(np.float16))
    assert np.array_equal(first.rgb, again.rgb)
    assert sorted(path.stat().st_mtime_ns for path in cache.rglob("*.npy")) == stamp
