# SPDX-License-Identifier: Apache-2.0
"""dpt_evaluate: from a dataset to results.json and a page, with the embedded network."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dpt_ros.apps.evaluate import main
from dpt_ros.apps.evaluate.command import make_plan
from dpt_ros.apps.evaluate.page import notes_of, table_rows, tiles_of
from dpt_ros.apps.evaluate.protocols import NAMES, PROTOCOLS, find_protocol
from dpt_ros.apps.evaluate.run import EvaluatedImage, Extremes, Result, evaluate, smaller
from dpt_ros.apps.evaluate.videos import Videos
from dpt_ros.data import class_names, palette
from dpt_ros.datasets import Dataset, Sample, list_datasets, open_dataset
from dpt_ros.engine.inference.predict import predict_image
from dpt_ros.metrics.depth import depth_metrics
from dpt_ros.metrics.temporal import DepthStability, LabelStability, Tracker
from dpt_ros.model import create_model
from dpt_ros.model.dpt import DPT

SIZE = {"width": 96, "height": 64}


@pytest.fixture(scope="module")
def model() -> DPT:
    return create_model("dpt_hybrid_embedded")


@pytest.fixture(scope="module")
def relative() -> DPT:
    """The embedded network's inverse depth before it becomes metres."""
    return create_model("dpt_hybrid_embedded", invert=False, scale=1.0, shift=0.0)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(open_dataset("world", worlds=3, frames=1, **SIZE))


class Few(Dataset):
    """Some samples in memory."""

    def __init__(
        self, name: str, samples: list[Sample], names: tuple[str, ...] | None = None
    ) -> None:
        self.name, self.samples, self.class_names = name, samples, names

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Sample:
        return self.samples[index]


def run(out: Path, *words: str) -> dict[str, Any]:
    assert main(["--out", str(out), "--threads", "1", *words]) == 0
    return json.loads((out / "results.json").read_text())


def test_the_world_from_command_line_to_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: DPT, samples: list[Sample]
) -> None:
    small = ["worlds=3", "frames=1", "width=96", "height=64"]
    found = run(tmp_path, "--dataset", "world", "--pictures", "1", "--set", *small)
    depth, labels = found["parts"]
    assert [part["protocol"] for part in (depth, labels)] == ["metric", "labels"]
    expected = []
    for sample, row in zip(samples, depth["rows"], strict=True):
        assert sample.depth is not None
        outputs = predict_image(model, sample.rgb)
        values = depth_metrics(outputs["depth"], sample.depth)
        assert row["name"] == sample.name
        assert row["rmse"] == pytest.approx(values["rmse"], rel=1e-4)
        expected.append(values["abs_rel"])
    assert depth["measures"]["abs_rel"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert 0.3 < labels["measures"]["pixel_accuracy"] <= 1
    page = (tmp_path / "index.html").read_text()
    worst = samples[int(np.argmax(expected))].name
    assert worst in page.split("Worst by AbsRel")[1].split("Best by AbsRel")[0]
    assert re.findall(r"(?:src|href)=['\"](?!data:)", page) == []  # nothing from elsewhere
    assert page.count("<figure>") == 4
    said = capsys.readouterr().out
    assert f"{depth['measures']['abs_rel']:.3f}" in said
    assert f"{labels['measures']['miou']:.3f}" in page


def test_a_fit_makes_the_relative_twin_no_worse_than_the_metric_network(
    model: DPT, relative: DPT, samples: list[Sample]
) -> None:
    dataset = Few("world", samples, class_names("labels_world.json"))
    plan = [
        (model, [find_protocol("world", "metric"), find_protocol("world", "labels")]),
        (relative, [find_protocol("world", "zero-shot")]),
    ]
    metric, labels, fitted = evaluate(dataset, plan, kept=2)
    assert fitted.measures["abs_rel"] < metric.measures["abs_rel"]
    assert len(fitted.worst) == 2
    assert fitted.worst[0].score > fitted.worst[1].score > fitted.best[0].score
    assert labels.classes["wall"] > 0.5
    (again,) = evaluate(dataset, [(model, [find_protocol("world", "zero-shot")])])
    assert again.measures["abs_rel"] == pytest.approx(fitted.measures["abs_rel"], rel=0.05)


def test_kitti_is_predicted_and_judged_in_the_published_crops(model: DPT) -> None:
    rng = np.random.default_rng(1)
    rgb = cv2.resize(rng.integers(0, 256, (12, 40, 3), np.uint8), (1242, 375))
    depth = np.where(rng.random((375, 1242)) < 0.05, rng.uniform(2, 90, (375, 1242)), np.nan)
    sample = Sample("one", rgb, depth.astype(np.float32))
    protocol = find_protocol("kitti", "metric")
    (part,) = evaluate(Few("kitti", [sample]), [(model, [protocol])])
    outputs = predict_image(model, rgb, kitti_crop=True)
    full = np.full(depth.shape, np.nan)
    full[23:, 13:1229] = outputs["depth"]
    judged = np.zeros(depth.shape, bool)
    judged[153:371, 44:1197] = True
    judged &= (depth > 1e-3) & (depth < 80)
    truth = depth[judged].astype(np.float32).astype(np.float64)
    error = np.abs(full[judged].clip(1e-3, 80) - truth) / truth
    assert part.measures["abs_rel"] == pytest.approx(error.mean(), rel=1e-5)
    # sparse points stay visible on the page: a smaller picture, and a tile with many of them
    assert part.worst[0].truth.shape == (176, 608)
    error_tile = dict(tiles_of(part.worst[0], protocol, palette("labels_world.json")))[
        "relative error"
    ]
    assert (error_tile != 90).any(2).mean() > 0.1


def test_labels_of_another_vocabulary_go_by_name(model: DPT, samples: list[Sample]) -> None:
    learn = pytest.importorskip("sklearn.metrics")
    names = class_names("labels_ade20k.json")
    ids = np.array([0, *(names.index(n) + 1 for n in class_names("labels_world.json"))], np.uint8)
    as_ade = []
    for sample in samples:
        assert sample.labels is not None
        as_ade.append(replace(sample, labels=ids[sample.labels]))
    (part,) = evaluate(
        Few("ade20k", as_ade, names), [(model, [find_protocol("ade20k", "labels")])]
    )
    outputs = [predict_image(model, sample.rgb) for sample in samples]
    guess = np.concatenate([ids[o["labels"]].ravel() for o in outputs])
    truth = np.concatenate([s.labels.ravel() for s in as_ade if s.labels is not None])
    assert part.measures["pixel_accuracy"] == pytest.approx(learn.accuracy_score(truth, guess))
    iou = learn.jaccard_score(truth, guess, average=None, labels=np.union1d(truth, guess))
    assert part.measures["miou"] == pytest.approx(iou.mean(), abs=1e-6)
    assert "140 of the 150 classes" in part.notes[0]
    with pytest.raises(ValueError, match="has none of the classes"):
        evaluate(Few("x", [], ("cat", "dog")), [(model, [find_protocol("world", "labels")])])


def test_the_order_of_points_near_and_far(model: DPT, samples: list[Sample]) -> None:
    judged = []
    for sample in samples:
        assert sample.depth is not None
        depth = np.where(np.isfinite(sample.depth), sample.depth, 0)
        far, near = (
            np.unravel_index(i, depth.shape) for i in (depth.argmax(), sample.depth.argmin())
        )
        judged.append(replace(sample, pairs=np.array([[*far, *near, -1.0], [*near, *far, 1.0]])))
    protocol = find_protocol("diw", "order")
    (part,) = evaluate(Few("diw", judged), [(model, [protocol])])
    assert part.measures == {"whdr": 0.0}
    judged[0] = replace(judged[0], pairs=np.array([[0, 0, 1, 1, 0.5]]))  # an order nobody can say
    (part,) = evaluate(Few("diw", judged), [(model, [protocol])])
    assert part.measures["whdr"] == pytest.approx(100 / 5)  # over pairs, not images
    shown = dict(tiles_of(part.worst[0], protocol, palette("labels_world.json")))
    assert shown["prediction"].shape == samples[0].rgb.shape


def test_videos_give_the_temporal_metrics(model: DPT, tmp_path: Path) -> None:
    options = ["worlds=1", "frames=9", "width=96", "height=64", "video=true"]
    found = run(tmp_path, "--dataset", "world", "--pictures", "0", "--set", *options)
    (name, values), *others = found["videos"].items()
    assert others == []
    dataset = open_dataset("world", worlds=1, frames=9, video=True, **SIZE)
    tracker, depth = Tracker(), DepthStability(stride=2)
    labels = LabelStability(10, [6])
    for sample in dataset:
        assert sample.truth is not None
        reference = tracker.update(sample.truth)
        outputs = predict_image(model, sample.rgb)
        depth.update(reference, 1 / outputs["depth"])
        labels.update(reference, outputs["labels"])
    assert name == dataset[0].sequence
    for measure in ("tepe", "tae", "opw", "rtc"):
        assert values[measure] == pytest.approx(depth.result()[measure], rel=1e-3)
    assert values["tc"] == pytest.approx(labels.result()["tc"], rel=1e-3)
    assert values["vc16"] is None  # nine frames hold no clip of sixteen
    assert NAMES["tepe"] in (tmp_path / "index.html").read_text()


def test_a_relative_network_is_fitted_to_a_videos_first_frame_and_held() -> None:
    dataset = open_dataset("world", worlds=1, frames=4, video=True, **SIZE)
    good, drifting = Videos(()), Videos(())
    for k, sample in enumerate(dataset):
        assert sample.inverse is not None
        for videos, gain in ((good, 1.0), (drifting, 1 + 0.2 * k)):
            videos.add(sample, {"zero-shot": (7 * sample.inverse + 2) * gain})
    ((_, steady),), ((_, loose),) = good.result().items(), drifting.result().items()
    assert steady["tepe"] < 0.1
    assert loose["tepe"] > 5


def test_numbers_are_said_to_be_the_papers_only_for_the_same_images() -> None:
    protocol = find_protocol("nyu", "metric")
    measures = dict.fromkeys(protocol.measures, 0.1)
    extract = "extract with black borders, raw depth"
    part = Result(protocol, "dpt_hybrid_nyu", measures, 654, extract, [])
    _, rows, kinds = table_rows(part)
    assert rows[-1][0] == "DPT-Hybrid (paper)"
    assert rows[-1][1:] == ["0.904", "0.988", "0.998", "0.110", "0.357", "-", "0.045"]
    assert kinds == ["ours", "", "", "", "same"]
    (source,) = notes_of(part)
    assert source.endswith("(Ranftl et al., ICCV 2021), Table 2.")
    some = replace(part, images=20)
    assert table_rows(some)[1][-1][0] == "DPT-Hybrid (other protocol)"
    assert "The paper evaluates 654 images, this run 20." in notes_of(some)
    other = replace(part, variant=".mat file, raw depth")
    assert table_rows(other)[1][-1][0] == "DPT-Hybrid (other protocol)"
    assert f"The paper uses nyu as {extract}, this run .mat file, raw depth." in notes_of(other)


def test_every_dataset_has_a_protocol_and_every_measure_a_name() -> None:
    assert {protocol.dataset for protocol in PROTOCOLS} == set(list_datasets())
    for protocol in PROTOCOLS:
        assert protocol.rank in protocol.measures
        for row in protocol.published:
            assert set(row.values) <= set(protocol.measures) <= set(NAMES)
    with pytest.raises(ValueError, match=r"diw has no protocol metric\. Available: order"):
        find_protocol("diw", "metric")


def test_networks_that_do_not_fit_a_dataset_are_refused(model: DPT, relative: DPT) -> None:
    with pytest.raises(ValueError, match="predicts relative depth, not metres"):
        make_plan("nyu", relative, None, "metric")
    assert make_plan("nyu", relative, None, "auto")[0][1][0].kind == "zero-shot"
    assert make_plan("nyu", model, None, "auto")[0][1][0].kind == "metric"
    assert make_plan("diw", model, None, "auto")[0][1][0].kind == "order"
    assert [p.kind for p in make_plan("world", model, model, "zero-shot")[0][1]] == ["zero-shot"]
    assert make_plan("ade20k", model, None, "auto")[0][1][0].kind == "labels"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--dataset", "diw", "--root", "."], 2, "Give --depth-network"),
        (["--dataset", "world", "--depth-network", "dpt"], 2, "Unknown network 'dpt'"),
        (["--dataset", "world", "--limit", "0"], 2, "--limit is 0, but must be at least 1."),
        (
            ["--dataset", "world", "--set", "worlds"],
            2,
            "--set is 'worlds', but must be NAME=VALUE.",
        ),
        (["--dataset", "world", "--label-weights", "x"], 2, "needs --label-network"),
        (["--dataset", "wolrd"], 2, "(did you mean world?)"),
        (
            ["--dataset", "nyu", "--depth-network", "dpt_hybrid_nyu"],
            2,
            "--dataset nyu needs --root",
        ),
        (["--dataset", "world", "--root", "."], 2, "leave --root . out"),
        (["--dataset", "world", "--set", "worlds=0"], 2, "worlds is 0, but must be at least 1."),
        (
            ["--dataset", "diw", "--root", ".", "--depth-network", "dpt_hybrid_nyu"],
            1,
            "Found none",
        ),
        (["--dataset", "world", "--set", "moons=2"], 2, "Unknown option 'moons'"),
        (["--dataset", "world", "--set", "worlds=many"], 2, "'many', but must be a whole number"),
        (
            ["--dataset", "world", "--limit", "2", "--set", "video=true"],
            2,
            "--limit would cut videos",
        ),
    ],
)
def test_wrong_arguments_and_files_have_exit_codes_and_messages(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    sentence: str,
) -> None:
    assert main(["--out", str(tmp_path / "out"), *words]) == code
    assert sentence in capsys.readouterr().err


def test_extremes_keep_the_first_of_equals_and_skip_nan() -> None:
    kept = Extremes(2, higher_is_better=True)
    none = np.zeros(0)
    for name, score in (("a", 0.5), ("b", np.nan), ("c", 0.9), ("d", 0.1), ("e", 0.5), ("f", 0.7)):
        kept.add(score, lambda n=name, s=score: EvaluatedImage(n, s, none, none, none))  # type: ignore[misc]
    assert [judged.name for judged in kept.worst] == ["d", "a"]
    assert [judged.name for judged in kept.best()] == ["c", "f"]


def test_a_smaller_picture_keeps_what_is_known() -> None:
    truth = np.full((30, 1300), np.nan)
    truth[::3, ::3] = np.arange(10 * 434).reshape(10, 434)
    rgb, guess = np.zeros((30, 1300, 3), np.uint8), np.nan_to_num(truth) + 1
    small, guessed, known = smaller(rgb, guess, truth)
    assert small.shape == (10, 433, 3)
    assert np.array_equal(known, truth[::3, :1299:3])
    assert np.array_equal(guessed, known + 1)
