# SPDX-License-Identifier: Apache-2.0
"""dpt_train: a short real run, its resumption, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dpt_ros.apps.train import main
from dpt_ros.apps.trainer import aligned_depth, batches, class_weights, world_to_model_ids
from dpt_ros.data import class_names
from dpt_ros.model import create_model
from dpt_ros.model.zoo import EMBEDDED_NAME, ZOO
from dpt_ros.world import CLASSES
from dpt_ros.world.dataset import FrameSet, render_set


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frames")


def run(out: Path, cache: Path, steps: int, *more: str) -> int:
    sizes = ["--worlds", "2", "--frames", "1", "--held-out", "1", "--batch", "2", "--threads", "1"]
    return main(["--out", str(out), "--cache", str(cache), "--steps", str(steps), *sizes, *more])


def entries(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_network_a_checkpoint_and_a_log_and_can_go_on(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(out, cache, 2) == 0
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


def test_a_second_run_into_the_same_folder_is_refused(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint.pt").touch()
    assert run(tmp_path, cache, 1) == 2
    assert "--resume" in capsys.readouterr().err


def test_resuming_nothing_is_refused(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, cache, 1, "--resume") == 2
    assert "does not exist" in capsys.readouterr().err


def test_an_unknown_model_is_refused_with_the_known_ones(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, cache, 1, "--model", "dpt_tiny") == 2
    assert "dpt_hybrid_embedded" in capsys.readouterr().err


def test_a_batch_of_nothing_is_refused(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, cache, 1, "--batch", "0") == 2
    assert "--batch must be positive" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out


def frames(n: int, height: int, width: int) -> FrameSet:
    """The label of a pixel is 1 + its column modulo 10; its inverse depth is its column."""
    column = np.broadcast_to(np.arange(width), (n, height, width))
    return FrameSet(
        np.broadcast_to((column % 256)[..., None], (n, height, width, 3)).astype(np.uint8),
        column.astype(np.float16),
        (1 + column % 10).astype(np.uint8),
    )


def test_batches_flip_and_crop_picture_depth_and_labels_together() -> None:
    stream = batches(frames(6, 400, 500), 3, np.random.default_rng(0), ZOO[EMBEDDED_NAME])
    directions = set()
    for _ in range(4):
        batch = next(stream)
        assert batch.images.shape == (3, 3, 384, 384)
        assert batch.inverse.shape == (3, 384, 384)
        assert torch.equal(batch.labels, batch.inverse.long() % 10)
        step = batch.inverse[:, 0, 1] - batch.inverse[:, 0, 0]
        directions |= set(step.tolist())
    assert directions == {1.0, -1.0}


def test_crops_have_sizes_that_the_network_takes() -> None:
    spec = replace(ZOO[EMBEDDED_NAME], multiple_of=32)
    assert next(batches(frames(2, 240, 330), 2, np.random.default_rng(0), spec)).labels.shape == (
        2,
        224,
        320,
    )


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(ValueError, match="8 images"):
        next(batches(frames(3, 48, 64), 8, np.random.default_rng(0), ZOO[EMBEDDED_NAME]))


def test_the_worlds_classes_are_found_by_name() -> None:
    assert world_to_model_ids(ZOO[EMBEDDED_NAME]).tolist() == list(range(11))
    spec = replace(ZOO[EMBEDDED_NAME], class_names="labels_ade20k.json", num_classes=150)
    names = class_names("labels_ade20k.json")
    assert tuple(names[k - 1] for k in world_to_model_ids(spec)[1:]) == CLASSES


def test_rare_classes_weigh_more_and_the_mean_over_pixels_is_one() -> None:
    labels = np.array([1] * 90 + [2] * 10, np.uint8).reshape(1, 10, 10)
    weight = class_weights(labels, replace(ZOO[EMBEDDED_NAME], num_classes=2))
    assert weight[1] / weight[0] == pytest.approx(9**0.3, rel=1e-5)
    assert 0.9 * weight[0] + 0.1 * weight[1] == pytest.approx(1)


def test_aligned_depth_undoes_scale_and_shift() -> None:
    inverse = np.random.default_rng(0).uniform(0.05, 1, (8, 9))
    inverse[0] = 0
    got = aligned_depth(4 * inverse - 2, inverse)
    assert np.allclose(got[1:], 1 / inverse[1:])


def test_rendered_frames_are_kept_and_read_back(cache: Path) -> None:
    first = render_set(cache, range(7, 9), 2, 64, 48, workers=1)
    assert first.rgb.shape == (4, 48, 64, 3)
    assert first.inverse.dtype == np.float16
    assert first.labels.min() >= 1
    stamp = sorted(path.stat().st_mtime_ns for path in cache.rglob("*.npy"))
    again = render_set(cache, range(7, 9), 2, 64, 48, workers=1)
    assert np.array_equal(first.rgb, again.rgb)
    assert sorted(path.stat().st_mtime_ns for path in cache.rglob("*.npy")) == stamp
